"""A config of another tool -> our settings, and every key that has none, with the reason.

Which tool wrote it is found from its keys. What a tool does where a key is not set is written out,
so that the run is the same.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loractl.config.imports import few_bits, torchtune
from loractl.config.imports.invalid import complaint
from loractl.config.imports.key_tables import ADALORA, KEYS
from loractl.config.imports.reasons import NEW_ADAPTER
from loractl.config.imports.their_data import DATA, READ
from loractl.config.imports.values import Translator, adapter, is_off, is_on
from loractl.config.settings import FROM_ADAPTER
from loractl.config.synonyms import KEYS as SYNONYMS
from loractl.config.template_setting import BUILT_IN
from loractl.errors import ConfigError
from loractl.text import shortened

SIGNS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("PEFT", ("peft_type",)),
    ("LLaMA-Factory", ("finetuning_type", "stage", "cutoff_len", "template", "dataset_dir",
                       "quantization_bit", "lora_target", "val_size")),
    ("axolotl", ("base_model", "sequence_len", "micro_batch_size", "num_epochs", "sample_packing")),
    ("unsloth", ("local_dataset", "format_type", "max_seq_length", "random_state",
                 "train_on_completions", "use_gradient_checkpointing")),
    ("TRL", ("model_name_or_path", "dataset_name", "per_device_train_batch_size", "use_peft",
             "lora_target_modules", "learning_rate")),
)  # fmt: skip
"""The keys that a tool is known by, the first that fits."""

DEFAULTS: dict[str, dict[str, Any]] = {
    "LLaMA-Factory": {
        "lora.rank": 8, "data.max_length": 2048, "data.packing": False, "data.too_long": "truncate",
        "train.epochs": 3, "train.batch_size": 8, "train.learning_rate": 5e-5,
        "train.schedule": "linear", "train.warmup": 0, "seed": 42,
    },
    "axolotl": {
        "data.max_length": 512, "data.packing": False, "data.too_long": "drop", "train.epochs": 1,
        "train.batch_size": 1, "train.schedule": "cosine", "seed": 42,
    },
    "TRL": {
        "lora.rank": 16, "lora.alpha": 32, "data.max_length": 1024, "data.packing": False,
        "data.too_long": "truncate", "train.epochs": 3, "train.batch_size": 8,
        "train.learning_rate": 2e-5, "train.schedule": "linear", "train.warmup": 0, "seed": 42,
    },
    "unsloth": {
        "data.packing": False, "data.too_long": "truncate", "train.batch_size": 2,
        "train.schedule": "linear",
    },
    "PEFT": {"lora.rank": 8, "lora.alpha": 8},
    "torchtune": {"data.packing": False, "data.too_long": "truncate", "train.epochs": 1},
}  # fmt: skip
"""What a tool does where its config says nothing, where that differs from ours or may change."""

REFUSED = {
    "stage": ("dpo", "kto", "ppo", "rm"),
    "rl": ("dpo", "ipo", "kto", "orpo", "simpo", "grpo", "gdpo", "ebft"),
    "finetuning_type": ("freeze", "oft"),
    "peft_type": ("ia3", "prompt_tuning", "prefix_tuning", "p_tuning", "loha", "lokr", "oft",
                  "vera", "boft", "multitask_prompt_tuning", "ln_tuning", "adaption_prompt"),
}  # fmt: skip


@dataclass
class Converted:
    """Our settings with the key each comes from, and what was left out."""

    tool: str
    settings: dict[str, Any] = field(default_factory=dict)
    source: dict[str, str] = field(default_factory=dict)  # our key -> theirs; "": a default
    not_mapped: dict[str, str] = field(default_factory=dict)  # their key -> why
    off: list[str] = field(default_factory=list)  # their keys that are switched off, as here

    def set_(self, settings: Mapping[str, Any], theirs: str) -> None:
        for key, value in settings.items():
            named = [one for one in (self.source.get(key), theirs) if one]
            self.settings[key], self.source[key] = value, ", ".join(named)

    def drop_(self, key: str, why: str) -> None:
        """Take back a setting that does not go with the others."""
        if key in self.settings:
            del self.settings[key]
            if theirs := self.source.pop(key):
                self.not_mapped[theirs] = why


def convert(document: Mapping[str, Any], folder: Path) -> Converted:
    """Convert a config; `folder` holds it. Raises ConfigError for a method that does not exist
    here, or a file that is no config of a known tool."""
    tool, keys = _recognize(document)
    found = Converted(tool)
    for key, words in REFUSED.items():
        if (word := str(keys.get(key, "")).lower()) in words:
            raise ConfigError(f"{key}: {word} is not available in this version")
    _set_method_(found, keys)
    _set_quantization_(found, keys)
    if tool in DATA:
        ours, reasons = DATA[tool](keys, folder)
        found.set_(ours, ", ".join(sorted(READ[tool] & keys.keys())))
        found.not_mapped |= reasons
    for key, value in keys.items():
        if key not in READ.get(tool, ()) and key not in _METHOD_KEYS | few_bits.KEYS:
            _translate_key_(found, key, value)
    _fill_defaults_(found)
    settle_conflicts_(found)
    return found


def _recognize(document: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The tool, and its keys without their sections where a leaf's name is enough."""
    flat = dict(_flatten(document, ""))
    if any(key.endswith("_component_") for key in flat):
        return "torchtune", _interpolated(flat)
    keys, is_sectioned = dict(document), isinstance(document.get("training"), dict)
    for section in ("model", "data", "lora", "training", "logging", "export"):
        if isinstance(inner := keys.get(section), dict):
            keys = {**{k: v for k, v in keys.items() if k != section}, **inner}
    if is_sectioned:
        return "unsloth", keys
    for tool, signs in SIGNS:
        if keys.keys() & set(signs):
            return tool, keys
    known = ", ".join((*(tool for tool, _ in SIGNS), "torchtune"))
    raise ConfigError(f"found no key of a config of {known}; the first key is {_first(document)}")


def _first(document: Mapping[str, Any]) -> str:
    return shortened(str(next(iter(document), "missing")))


def _flatten(value: Mapping[str, Any], above: str) -> Iterator[tuple[str, Any]]:
    for key, inner in value.items():
        name = f"{above}.{key}" if above else str(key)
        if isinstance(inner, dict) and inner and key != "column_map":
            yield from _flatten(inner, name)
        else:
            yield name, inner


def _interpolated(flat: dict[str, Any]) -> dict[str, Any]:
    """With ${output_dir} and the like replaced by their values."""
    texts = {f"${{{key}}}": value for key, value in flat.items() if isinstance(value, str)}

    def filled(value: Any) -> Any:
        if isinstance(value, str):
            for mark, text in texts.items():
                value = value.replace(mark, text)
        return value

    return {key: filled(value) for key, value in flat.items()}


_METHOD_KEYS = {"finetuning_type", "adapter", "peft_type", "stage", "rl", "training_type",
                *torchtune.ADAPTER}  # fmt: skip


def _method_word(keys: Mapping[str, Any]) -> str:
    return str(keys.get("finetuning_type", keys.get("adapter", keys.get("peft_type", "")))).lower()


def _set_quantization_(found: Converted, keys: Mapping[str, Any]) -> None:
    packed = _method_word(keys) in ("qlora", "loftq") or torchtune.is_packed(keys)
    ours, reasons = few_bits.quantization(found.tool, keys, packed=packed)
    read = sorted(few_bits.KEYS & keys.keys() - reasons.keys())
    found.set_(ours, ", ".join(read))
    found.off += [] if ours else read
    found.not_mapped |= reasons


def _set_method_(found: Converted, keys: Mapping[str, Any]) -> None:
    theirs = ", ".join(key for key in keys if key in _METHOD_KEYS)
    if found.tool == "torchtune":
        found.set_(torchtune.adapter(keys), theirs)
        return
    word = _method_word(keys)
    adapts = word not in ("", "none", "null", "full")
    if found.tool == "TRL":
        adapts = is_on(keys.get("use_peft", False))
    if found.tool in ("LLaMA-Factory", "unsloth") and not word:
        adapts = str(keys.get("training_type", "lora")).lower() != "full"
    if not word and any(KEYS.get(key) is adapter and not is_off(keys[key]) for key in keys):
        adapts = True  # one to train further is named
    method = "adalora" if word == "adalora" else "lora" if adapts else "full"
    found.set_({"method": method}, theirs)


def _translate_key_(found: Converted, key: str, value: Any) -> None:
    translate = _translator_of(found, key)
    if translate is None:
        if is_off(value):
            found.off.append(key)
        else:
            found.not_mapped[key] = _unknown(key)
        return
    ours = translate(value)
    if isinstance(ours, str):
        found.not_mapped[key] = ours
    elif wrong := complaint(ours):
        found.not_mapped[key] = f"invalid: {wrong}"
    elif not ours or (ours == {"train.warmup": 0} and "train.warmup" in found.settings):
        found.off.append(key)  # no warmup steps beside a ratio: the ratio counts
    else:
        found.set_(ours, key)


def _unknown(key: str) -> str:
    """The reason for a key that no tool of these has: perhaps one of another tool's."""
    theirs = SYNONYMS.get(key.lower())
    return (
        f"it is called {theirs} here: set it there" if theirs else "there is no such setting here"
    )


def _translator_of(found: Converted, key: str) -> Translator | None:
    if found.tool == "torchtune":
        return torchtune.translator_of(key)
    if found.settings.get("method") == "adalora" and key in ADALORA:
        return ADALORA[key]
    return KEYS.get(key)


def _fill_defaults_(found: Converted) -> None:
    for key, value in DEFAULTS[found.tool].items():
        if key == "data.too_long" and found.settings.get("data.packing") is True:
            continue
        if key not in found.settings:
            found.set_({key: value}, "")


def settle_conflicts_(found: Converted) -> None:
    """Drop what our settings exclude, as each tool does in silence or by its own rules."""
    ours = found.settings
    if "train.steps" in ours:
        found.drop_("train.epochs", "max_steps counts instead, as there")
    _settle_method_(found)
    if (name := ours.get("data.chat_template")) in BUILT_IN:
        found.drop_("data.template_variables", f"the template {name} reads no variables")
    if "data.eval" not in ours:
        found.drop_("train.eval_every", "no rows are held out: set data.eval")
    if "train.eval_every" not in ours:
        found.drop_("train.early_stopping", "it needs train.eval_every")


def _settle_method_(found: Converted) -> None:
    """Leave out what the method does not have, or what an adapter that is trained further decides:
    its own settings and method are read from its files."""
    ours = found.settings
    if ours.get("method") == "full":
        for key in [
            key for key in ours if key.startswith("lora.") or key == "train.lora_plus_ratio"
        ]:
            found.drop_(key, "method: full has no adapter")
    if ours.get("method") == "adalora":
        for key in ("lora.rank", "lora.rank_pattern", "lora.alpha_pattern", "lora.init"):
            found.drop_(key, "method: adalora has its own ranks and initialization")
        found.drop_("lora.start_from", "method: adalora cannot continue from an adapter")
    if "create_new_adapter" in found.not_mapped:
        found.drop_("lora.start_from", NEW_ADAPTER)
    if "lora.start_from" in ours:
        found.drop_("method", "the method is that of the adapter in lora.start_from")
        for name in sorted(FROM_ADAPTER):
            found.drop_(f"lora.{name}", "the adapter in lora.start_from has its own")
