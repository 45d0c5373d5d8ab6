"""How other tools name a quantized base, read together: which bits, of which kind, scales in 8 bits
or not."""

from collections.abc import Mapping
from typing import Any

from loractl.config.imports.values import Ours, as_number, is_off, is_on
from loractl.text import found

KEYS = frozenset(
    (
        "load_in_4bit", "load_in_8bit", "quantization_bit", "quantization_method",
        "quantization_type", "quant_method", "double_quantization", "bnb_4bit_quant_type",
        "bnb_4bit_use_double_quant", "use_bnb_nested_quant", "quantize_base",
        "model.quantize_base",
    )
)  # fmt: skip
"""The keys that `quantization` reads."""
NESTED = ("double_quantization", "bnb_4bit_use_double_quant", "use_bnb_nested_quant")
TYPES = ("bnb_4bit_quant_type", "quantization_type")
METHODS = ("quantization_method", "quant_method")
OURS = ("bitsandbytes", "bnb", "quanttype.bnb", "quantizationmethod.bits_and_bytes")
PLAIN = ("TRL", "PEFT")
"""Tools that keep scales in float32 unless told otherwise; the others keep them in 8 bits."""


def quantization(
    tool: str, keys: Mapping[str, Any], *, packed: bool
) -> tuple[Ours, dict[str, str]]:
    """Our setting, and why a key has none. `packed`: the method itself asks for 4 bits."""
    bits, reasons = _bits(keys, packed)
    if bits is None:
        return {}, reasons
    for key in METHODS:
        word = str(keys.get(key, "bnb")).lower()
        if word not in OURS and not is_off(keys[key]):
            return {}, {**reasons, key: f"there is no {word} here: set model.quantization: nf4"}
    if bits == 8:
        return {"model.quantization": "int8"}, reasons
    for key in TYPES:
        if str(keys.get(key, "nf4")).lower() not in ("nf4", "none", "null", ""):
            reasons[key] = f"there is no {keys[key]} here: nf4 is used, which is nearer the weights"
    given = [keys[key] for key in NESTED if key in keys]
    nested = any(map(is_on, given)) if given else tool not in PLAIN
    return {"model.quantization": "nf4-double" if nested else "nf4"}, reasons


def _bits(keys: Mapping[str, Any], packed: bool) -> tuple[int | None, dict[str, str]]:
    if not is_off(keys.get("quantization_bit")):
        bits = as_number(keys["quantization_bit"])
        if bits in (4, 8):
            return int(bits), {}
        value = found(keys["quantization_bit"])
        return None, {"quantization_bit": f"found {value}: model.quantization is of 4 or 8 bits"}
    if is_on(keys.get("load_in_8bit")):
        return 8, {}
    fours = ("load_in_4bit", "quantize_base", "model.quantize_base")
    return (4, {}) if packed or any(is_on(keys.get(key)) for key in fours) else (None, {})
