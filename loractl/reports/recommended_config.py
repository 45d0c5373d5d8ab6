"""A recommendation as a commented config that can be run as is."""

import textwrap
from collections.abc import Mapping
from typing import Any

from loractl.config.strict_yaml import scalar
from loractl.errors import ConfigError
from loractl.models.shape.sizes import SIZES
from loractl.planning.recommend import RecommendRequest


def config_text(
    asked: RecommendRequest, found: Mapping[str, Any], columns: Mapping[str, str]
) -> str:
    """The config for a recommendation.

    Raises ConfigError if nothing fits, and if every row is longer than the model allows.
    """
    choices = found["choices"]
    method = choices["method"]["value"]
    if method is None:
        raise ConfigError(f"--write: {choices['method']['reason']}; there is nothing to write")
    data, most = found["data"], choices["max_length"]["value"]
    if data is not None and data["shortest"] is not None and data["shortest"] > most:
        raise ConfigError(
            f"--write: every row of {asked.data} is longer than the {most:,} positions of"
            f" {asked.model}; choose a model with more, or split the rows"
        )
    again, batch = choices["gradient_checkpointing"]["value"], choices["batch_size"]["value"]
    lines = [f"# For a {asked.task} task, written by loractl recommend."]
    size = SIZES.get(asked.model.upper())
    model = asked.model if size is None else size.hub
    lines += ["", "model:", f"  name_or_path: {scalar(model)}"]
    if asked.memory is not None:
        lines.append(f"  dtype: {asked.dtype}  # as assumed in the memory estimate")
    if method == "qlora":
        lines.append(f"  quantization: nf4  # {choices['method']['reason']}")
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
    if columns:
        lines.append("  columns:  # our name of a field: its name in the file")
        lines += [f"    {field}: {scalar(column)}" for field, column in columns.items()]
    if data is not None and data["chat_template"] is not None:
        lines += _comment_lines("the model has no chat template that can write these rows", "  ")
        lines.append(f"  chat_template: {data['chat_template']}")
    lines += _setting_lines(choices, "max_length", "max_length")
    if "too_long: drop" in choices["max_length"]["reason"]:
        lines.append("  too_long: drop")
    lines += _setting_lines(choices, "packing", "packing")
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
    value = str(one["value"]).lower() if isinstance(one["value"], bool) else one["value"]
    return [
        *_comment_lines(f"{one['reason']} [{one['source']}]", indent="  "),
        f"  {name}: {value}",
    ]


def _comment_lines(text: str, indent: str = "") -> list[str]:
    return [f"{indent}# {line}" for line in textwrap.wrap(text, 96 - len(indent))]
