"""A recommendation as a commented config that can be run as is."""

import textwrap
from collections.abc import Mapping
from typing import Any

from loractl.config.strict_yaml import scalar
from loractl.errors import ConfigError
from loractl.planning.recommend import RecommendRequest

MODELS = {
    "7B": "meta-llama/Llama-2-7b-hf",
    "13B": "meta-llama/Llama-2-13b-hf",
    "30B": "huggyllama/llama-30b",
    "70B": "meta-llama/Llama-2-70b-hf",
}
"""The hub models whose shapes the sizes stand for."""


def config_text(asked: RecommendRequest, found: Mapping[str, Any]) -> str:
    """The config for a recommendation. Raises ConfigError if nothing fits."""
    choices = found["choices"]
    method = choices["method"]["value"]
    if method is None:
        raise ConfigError(f"--write: {choices['method']['reason']}; there is nothing to write")
    again = choices["gradient_checkpointing"]["value"]
    lines = [f"# For a {asked.task} task, written by loractl recommend."]
    if method == "qlora":
        again = True
        lines += _comment_lines(
            "QLoRA would fit, but this version cannot train on a quantized base yet: this is LoRA"
            " with checkpointing and one row at a time, which needs more memory"
        )
    batch = 1 if method == "qlora" else choices["batch_size"]["value"]
    lines += [
        "",
        "model:",
        f"  name_or_path: {scalar(MODELS.get(asked.model.upper(), asked.model))}",
    ]
    if asked.memory is not None:
        lines.append(f"  dtype: {asked.dtype}  # as assumed in the memory estimate")
    lines += ["", "method: lora", "", "lora:"]
    lines += _setting_lines(choices, "rank", "rank")
    lines += _comment_lines(
        f"worth a sweep: {', '.join(map(str, choices['sweep']['value']))}", indent="  "
    )
    lines += _setting_lines(choices, "alpha", "alpha")
    lines += _setting_lines(choices, "target_modules", "target_modules")
    lines += ["", "data:", f"  train: {scalar(asked.data or 'train.jsonl')}"]
    if asked.data is None:
        lines[-1] += "  # the training data"
    lines += _setting_lines(choices, "max_length", "max_length")
    if "too_long: drop" in choices["max_length"]["reason"]:
        lines.append("  too_long: drop")
    lines += ["", "train:"]
    lines += _setting_lines(choices, "epochs", "epochs")
    lines += _comment_lines(choices["effective_batch"]["reason"], indent="  ")
    lines.append(f"  batch_size: {batch}")
    lines.append(f"  gradient_accumulation: {-(-choices['effective_batch']['value'] // batch)}")
    lines += _setting_lines(choices, "learning_rate", "learning_rate")
    shown = again if isinstance(again, str) else str(again).lower()
    lines += [f"  gradient_checkpointing: {shown}", "", "seed: 0", ""]
    return "\n".join(lines)


def _setting_lines(choices: Mapping[str, Any], key: str, name: str) -> list[str]:
    """A setting, preceded by its reason."""
    one = choices[key]
    return [
        *_comment_lines(f"{one['reason']} [{one['source']}]", indent="  "),
        f"  {name}: {one['value']}",
    ]


def _comment_lines(text: str, indent: str = "") -> list[str]:
    return [f"{indent}# {line}" for line in textwrap.wrap(text, 96 - len(indent))]
