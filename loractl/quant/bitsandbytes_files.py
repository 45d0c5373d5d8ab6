"""Packed weights as bitsandbytes names and lays them out in safetensors files, both ways.

In 4 bits a matrix is `weight`, (numbers / 2, 1), beside `weight.absmax`, `weight.quant_map` and
`weight.quant_state.bitsandbytes__nf4`, a JSON of bytes; with scales in 8 bits there are
`weight.nested_absmax` and `weight.nested_quant_map` too. In 8 bits it is `weight`, (d_out, d_in),
beside `SCB`, the scales, and `weight_format`.
"""

import json
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from loractl.ops.packed import BLOCK, NESTED_BLOCK, NF4, Nested, Packed

STATE = "quant_state.bitsandbytes__"
PARTS = ("absmax", "quant_map", "nested_absmax", "nested_quant_map", f"{STATE}nf4", f"{STATE}fp4")
METHOD = "bitsandbytes"


class Unreadable(ValueError):
    """What is in the files and cannot be read, in words."""


def groups(names: Iterable[str]) -> dict[str, dict[str, str]]:
    """For each packed weight among the names of a file, its parts: their names by their roles."""
    known = set(names)
    found: dict[str, dict[str, str]] = {}
    for name in sorted(known):
        if not name.endswith(".weight"):
            continue
        stem = name.removesuffix("weight")
        if f"{stem}SCB" in known:
            roles = {"SCB": f"{stem}SCB", "format": f"{stem}weight_format"}
        else:
            roles = {part: f"{name}.{part}" for part in PARTS}
        there = {role: full for role, full in roles.items() if full in known}
        if there:
            found[name] = {"weight": name, **there}
    return found


def read(parts: Mapping[str, Tensor], dtype: torch.dtype) -> Packed:
    """A weight from its parts by their roles. Raises Unreadable."""
    if "SCB" in parts:
        codes = parts["weight"]
        layout = int(parts["format"].item()) if "format" in parts else 0
        if codes.dtype != torch.int8 or codes.dim() != 2 or layout != 0:
            raise Unreadable("8-bit codes in an order of rows for a GPU, expected plain rows")
        d_out, d_in = codes.shape
        return Packed(codes, parts["SCB"].float().flatten(), 8, d_out, d_in, dtype)
    state = _state(parts)
    d_out, d_in = state["shape"]
    codes = parts["weight"].view(torch.uint8).flatten()
    if codes.numel() != (d_out * d_in + 1) // 2:
        raise Unreadable(f"{codes.numel()} bytes of codes for a matrix of {d_out} x {d_in}")
    scales: Tensor | Nested = parts["absmax"]
    if "nested_absmax" in parts:
        if state.get("nested_blocksize") != NESTED_BLOCK:
            raise Unreadable(f"8-bit scales in blocks of {state.get('nested_blocksize')}")
        nested = (parts["absmax"], parts["nested_absmax"].float(), parts["nested_quant_map"])
        scales = Nested(*nested, float(state["nested_offset"]))
    else:
        scales = parts["absmax"].float()
    return Packed(codes, scales, 4, d_out, d_in, dtype)


def _state(parts: Mapping[str, Tensor]) -> dict[str, Any]:
    """The checked settings of a matrix in 4 bits."""
    if f"{STATE}nf4" not in parts:
        raise Unreadable("4-bit weights in fp4, expected nf4")
    state: dict[str, Any] = json.loads(bytes(parts[f"{STATE}nf4"].tolist()))
    if state.get("blocksize") != BLOCK:
        raise Unreadable(f"nf4 in blocks of {state.get('blocksize')}, expected {BLOCK}")
    if len(state.get("shape") or ()) != 2:
        raise Unreadable(f"a packed tensor of shape {state.get('shape')}, expected a matrix")
    if not torch.equal(parts["quant_map"], torch.tensor(NF4)):
        raise Unreadable("nf4 with other values than those of bitsandbytes")
    return state


def tensors_of(packed: Packed, name: str) -> dict[str, Tensor]:
    """The tensors of a weight by the names that they have in files."""
    if packed.bits == 8:
        assert isinstance(packed.scales, Tensor)
        stem = name.removesuffix("weight")
        return {
            name: packed.codes,
            f"{stem}SCB": packed.scales,
            f"{stem}weight_format": torch.tensor(0, dtype=torch.uint8),
        }
    state: dict[str, Any] = {
        "quant_type": "nf4",
        "blocksize": BLOCK,
        "dtype": str(packed.dtype).removeprefix("torch."),
        "shape": [packed.d_out, packed.d_in],
    }
    tensors = {"quant_map": torch.tensor(NF4)}
    if isinstance(packed.scales, Nested):
        state |= {
            "nested_blocksize": NESTED_BLOCK,
            "nested_dtype": "float32",
            "nested_offset": packed.scales.offset,
        }
        tensors |= {
            "absmax": packed.scales.codes,
            "nested_absmax": packed.scales.scales,
            # A table of its own for each: safetensors refuses tensors that share memory.
            "nested_quant_map": packed.scales.table.clone(),
        }
    else:
        tensors["absmax"] = packed.scales
    tensors[f"{STATE}nf4"] = torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8)
    named = {f"{name}.{part}": tensor for part, tensor in tensors.items()}
    return {name: packed.codes.view(-1, 1), **named}


def config_of(kind: str, dtype: str, dense: Iterable[str]) -> dict[str, Any]:
    """The `quantization_config` of config.json; `dense`: the linear layers left as they are."""
    return {
        "quant_method": METHOD,
        "load_in_4bit": kind != "int8",
        "load_in_8bit": kind == "int8",
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": kind == "nf4-double",
        "bnb_4bit_compute_dtype": dtype,
        "bnb_4bit_quant_storage": "uint8",
        "llm_int8_threshold": 0.0 if kind == "int8" else 6.0,
        "llm_int8_has_fp16_weight": False,
        "llm_int8_skip_modules": sorted(dense) or None,
        "llm_int8_enable_fp32_cpu_offload": False,
    }
