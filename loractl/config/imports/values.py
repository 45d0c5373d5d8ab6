"""Another tool's value -> ours: each function gives our settings, or the reason there are none.

A value that switches something off gives no settings: it is off here too.
"""

import re
from collections.abc import Callable
from typing import Any

from loractl.text import found

Ours = dict[str, Any]
"""Our keys and their values; empty: nothing to set."""
Translated = Ours | str
"""Or the reason why a value has no counterpart."""
Translator = Callable[[Any], Translated]

QUANTIZED = (
    "how the base is quantized here is not converted: set model.quantization: nf4, nf4-double or"
    " int8; without it the base keeps its own dtype, which needs more memory"
)
_TRUE, _FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0", "none", "null", "")


def is_off(value: Any) -> bool:
    """Whether a value says that something is not wanted: false, null, empty, none."""
    if isinstance(value, str):
        return value.strip().lower() in _FALSE
    return value is None or value is False or value == [] or value == {}


def is_on(value: Any) -> bool:
    return value is True or (isinstance(value, str) and value.strip().lower() in _TRUE)


def invalid(value: Any, expected: str) -> str:
    """Why a value that no tool accepts is left out."""
    return f"invalid: found {found(value)}, expected {expected}"


def same(key: str) -> Translator:
    """Our key takes their value as it is."""
    return lambda value: {} if is_off(value) else {key: value}


def text(key: str) -> Translator:
    return lambda value: {} if is_off(value) else {key: value}


def whole(key: str) -> Translator:
    """A number of something, also one written as 8.0 or '8'."""

    def translate(value: Any) -> Translated:
        if is_off(value) and value is not False:
            return {}
        number = as_number(value)
        return {key: int(number) if number is not None and number % 1 == 0 else value}

    return translate


def count(key: str) -> Translator:
    """A number of something that 0 or -1 switches off."""

    def translate(value: Any) -> Translated:
        number = as_number(value)
        return {} if number is not None and number <= 0 else whole(key)(value)

    return translate


def number(key: str) -> Translator:
    def translate(value: Any) -> Translated:
        if is_off(value) and value is not False:
            return {}
        number = as_number(value)
        return {key: value if number is None else number}

    return translate


def as_number(value: Any) -> int | float | None:
    """A number, also one that another YAML reader takes for text, such as 1e-4."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int | float):
        return value
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return int(number) if number.is_integer() and "." not in str(value) else number


def switch(key: str, on: Any, off: Any = None) -> Translator:
    """`on` where their switch is on; `off`, if given, where it is off."""

    def translate(value: Any) -> Translated:
        if is_on(value):
            return {key: on}
        if is_off(value):
            return {} if off is None else {key: off}
        return invalid(value, "true or false")

    return translate


def no(reason: str) -> Translator:
    """Something that does not exist here; switched off, it needs nothing."""
    return lambda value: {} if is_off(value) else reason


def only(*words: str, why: str) -> Translator:
    """A word that says what is always so here, or switches something off; else the reason."""
    return lambda value: {} if is_off(value) or str(value).lower() in words else why


def fixed(reason: str) -> Translator:
    """Something that is always so here, whatever the value."""
    return lambda value: reason


def share_of_rows(value: Any) -> Translated:
    """val_size and the like: a share, or a number of rows."""
    number = as_number(value)
    if is_off(value) or number == 0:
        return {}
    if number is None or not number > 0:
        return invalid(value, "a share of the rows")
    if number >= 1:
        return f"{value} is a number of rows, and data.eval takes a share of them"
    return {"data.eval": float(number)}


def share_of_steps(value: Any) -> Translated:
    """warmup_ratio: a share, where train.warmup would take a number from 1 on for steps."""
    number = as_number(value)
    if number is not None and number >= 1:
        return invalid(value, "a share of the steps, below 1")
    return warmup_steps(value)


def dtype(value: Any) -> Translated:
    known = {
        "bf16": "bfloat16", "bfloat16": "bfloat16", "torch.bfloat16": "bfloat16",
        "fp16": "float16", "float16": "float16", "torch.float16": "float16", "half": "float16",
        "fp32": "float32", "float32": "float32", "torch.float32": "float32", "auto": "auto",
    }  # fmt: skip
    word = str(value).lower()
    if is_off(value):
        return {}
    return {"model.dtype": known[word]} if word in known else f"{value} is not a dtype of a run"


def precision(on: str) -> Translator:
    """bf16: true, fp16: true, or bf16: auto."""

    def translate(value: Any) -> Translated:
        if str(value).lower() == "auto":
            return {"model.dtype": "auto"}
        return switch("model.dtype", on)(value)

    return translate


def targets(value: Any) -> Translated:
    """Module names: a list, names between commas or spaces, a regex, or a word for all of them."""
    if is_off(value):
        return {}
    if isinstance(value, list):
        if all(isinstance(name, str) for name in value):
            return targets(value[0]) if value == ["all-linear"] else {_TARGETS: value}
        return "a list that holds something other than names"
    word = str(value).strip()
    if word in ("all", "all-linear", "all_linear", "auto"):
        return {_TARGETS: "all-linear"}
    if re.fullmatch(r"[\w.]+(?:[\s,]+[\w.]+)*", word):
        return {_TARGETS: re.split(r"[\s,]+", word)}
    return {_TARGETS: word}


_TARGETS = "lora.target_modules"


def names(key: str) -> Translator:
    """A list of names, or names between commas."""

    def translate(value: Any) -> Translated:
        if is_off(value):
            return {}
        return {key: value if isinstance(value, list) else re.split(r"[\s,]+", str(value).strip())}

    return translate


def adapter(value: Any) -> Translated:
    """An adapter to train further: a directory, or several between commas."""
    if is_off(value):
        return {}
    listed = value if isinstance(value, list) else str(value).split(",")
    if len(listed) > 1:
        return (
            f"one adapter can be trained further, found {len(listed)}: merge the others into the"
            " base first"
        )
    return {"lora.start_from": listed[0].strip() if isinstance(listed[0], str) else value}


def tokens(value: Any) -> Translated | str:
    """Tokens to add; as a switch, the same word asks for those at the start of a text."""
    if value is True:
        return "the model's own chat template is used"
    return names("model.add_tokens")(value)


def layers(value: Any) -> Translated:
    if value is None or value == []:
        return {}
    return {"lora.layers": [value] if isinstance(value, int) else value}


def start(value: Any) -> Translated:
    """init_lora_weights: a switch, or the name of a method."""
    word = str(value).lower()
    if word in ("true", "none", "default"):
        return {}
    if word in ("gaussian", "olora"):
        return {"lora.init": word}
    if word.startswith("pissa"):
        return {"lora.init": "pissa"}
    return f"adapters cannot start as {value} here: A is random and B is zero"


SCHEDULES = {
    "cosine": "cosine", "linear": "linear", "constant": "constant",
    "constant_with_warmup": "constant", "cosine_with_warmup": "cosine",
}  # fmt: skip
OPTIMIZERS = {
    "adamw": (
        "adamw", "adamw_torch", "adamw_torch_fused", "adamw_hf", "adamw_torch_xla",
        "torch.optim.adamw",
    ),
    # Paging moves state and changes no number; 8-bit state is a quarter of what would be paged
    "adamw-8bit": (
        "adamw_8bit", "adamw_bnb_8bit", "paged_adamw_8bit", "adamw8bit", "pagedadamw8bit",
    ),
    "adamw-paged": ("paged_adamw", "paged_adamw_32bit", "pagedadamw", "pagedadamw32bit"),
    "sgd": ("sgd",),
    "adafactor": ("adafactor",),
    "lion": ("lion", "lion_32bit", "paged_lion_32bit", "lion_pytorch"),
}  # fmt: skip
"""Our optimizer -> what others call the same; torchtune's by the last part of its class."""


def schedule(value: Any) -> Translated:
    if is_off(value):
        return {}
    word = str(value).lower().removeprefix("schedulertype.")
    ours = SCHEDULES.get(word)
    if ours is None:
        near = "cosine" if "cosine" in word else "linear"
        return f"there is no schedule {value} here; the nearest is train.schedule: {near}"
    return {"train.schedule": ours}


def optimizer(value: Any) -> Translated:
    word = str(value).lower().removeprefix("optimizernames.")
    if is_off(value) or word in OPTIMIZERS["adamw"]:
        return {}
    ours = next((name for name, theirs in OPTIMIZERS.items() if word in theirs), None)
    if ours is not None:
        return {"train.optimizer": ours}
    near = next((name for name in ("lion", "sgd", "adafactor") if name in word), None)
    near = near or ("adamw-8bit" if "8bit" in word or "4bit" in word else None)
    if near is None:
        return f"there is no optimizer {value} here: adamw is used"
    return f"there is no optimizer {value} here: adamw is used; near is train.optimizer: {near}"


def warmup_steps(value: Any) -> Translated:
    """Steps; below 1, a share of them, as newer transformers have it."""
    return number("train.warmup")(value)


def checkpointing(value: Any) -> Translated:
    if isinstance(value, str) and value.lower() in ("unsloth", "offload", "offload_disk"):
        return {"train.gradient_checkpointing": True}
    return switch("train.gradient_checkpointing", True, False)(value)


def trackers(value: Any) -> Translated:
    listed = value if isinstance(value, list) else [value]
    if all(is_off(one) for one in listed):
        return {}
    return "trackers are not available in this version: metrics.jsonl has every step"
