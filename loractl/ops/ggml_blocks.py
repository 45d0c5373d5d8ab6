"""The blocks in which GGUF files hold weights: what the bytes of each type stand for.

A block has one or two scales, or scales of 6 or 8 bits times one in float16, and codes of 2 to 8
bits. The formulas are those of llama.cpp's dequantize_row_* (ggml-quants.c), in torch; ggml.h has
them in C. Each product in them has at most 23 significant bits, so float32 holds it exactly, and
whether it is fused with a sum changes nothing.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

IQ4_NL = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
"""What the 16 codes of iq4_nl stand for (kvalues_iq4nl in ggml-common.h)."""


@dataclass(frozen=True)
class BlockType:
    """One type of blocks."""

    name: str
    number: int  # of its ggml_type, as files call it
    values: int  # numbers of a block
    size: int  # bytes of a block
    bits: int  # of a code
    unpack: Callable[[Tensor], Tensor]  # (n, size) uint8 -> (n, values) float32


def _half(blocks: Tensor, at: int) -> Tensor:
    """The float16 at a byte of each block, (n, 1)."""
    return blocks[:, at : at + 2].contiguous().view(torch.float16).float()


def _codes(part: Tensor, bits: int, width: int) -> Tensor:
    """Codes of `bits` bits: each run of `width` bytes has the lowest bits of all of them first."""
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8, device=part.device)[:, None]
    runs = part.reshape(len(part), part.shape[1] // width, 1, width)
    codes: Tensor = (runs >> shifts) & (2**bits - 1)
    return codes.flatten(1)


def _scaled(codes: Tensor, scales: Tensor, lows: Tensor | None = None) -> Tensor:
    """Codes (n, values) times the scales (n, parts) of their parts, from `lows` (n, parts) on."""
    parts = codes.view(*scales.shape, -1) * scales[..., None]
    return (parts if lows is None else parts - lows[..., None]).flatten(1)


def _of_six_bits(part: Tensor) -> tuple[Tensor, Tensor]:
    """The scales and lows of q4_k and q5_k, (n, 8) each, from their 12 bytes (get_scale_min_k4)."""
    scales, lows, rest = part[:, :4], part[:, 4:8], part[:, 8:]
    late = (rest & 15) | (scales >> 6 << 4), (rest >> 4) | (lows >> 6 << 4)
    return (
        torch.cat([scales & 63, late[0]], dim=1).float(),
        torch.cat([lows & 63, late[1]], dim=1).float(),
    )


def _q4_0(blocks: Tensor) -> Tensor:
    return (_codes(blocks[:, 2:], 4, 16).float() - 8) * _half(blocks, 0)


def _q4_1(blocks: Tensor) -> Tensor:
    return _codes(blocks[:, 4:], 4, 16).float() * _half(blocks, 0) + _half(blocks, 2)


def _q5_0(blocks: Tensor) -> Tensor:
    codes = _codes(blocks[:, 6:], 4, 16) | _codes(blocks[:, 2:6], 1, 1) << 4
    return (codes.float() - 16) * _half(blocks, 0)


def _q5_1(blocks: Tensor) -> Tensor:
    codes = _codes(blocks[:, 8:], 4, 16) | _codes(blocks[:, 4:8], 1, 1) << 4
    return codes.float() * _half(blocks, 0) + _half(blocks, 2)


def _q8_0(blocks: Tensor) -> Tensor:
    return blocks[:, 2:].view(torch.int8).float() * _half(blocks, 0)


def _q2_k(blocks: Tensor) -> Tensor:
    both, codes = blocks[:, :16], _codes(blocks[:, 16:80], 2, 32).float()
    scales, lows = (both & 15).float(), (both >> 4).float()
    return _scaled(codes, scales * _half(blocks, 80), lows * _half(blocks, 82))


def _q3_k(blocks: Tensor) -> Tensor:
    codes = _codes(blocks[:, 32:96], 2, 32).float() + _codes(blocks[:, :32], 1, 32) * 4.0 - 4
    scales = _codes(blocks[:, 96:104], 4, 8) | _codes(blocks[:, 104:108], 2, 4) << 4
    return _scaled(codes, (scales.float() - 32) * _half(blocks, 108))


def _q4_k(blocks: Tensor) -> Tensor:
    scales, lows = _of_six_bits(blocks[:, 4:16])
    codes = _codes(blocks[:, 16:], 4, 32).float()
    return _scaled(codes, scales * _half(blocks, 0), lows * _half(blocks, 2))


def _q5_k(blocks: Tensor) -> Tensor:
    scales, lows = _of_six_bits(blocks[:, 4:16])
    codes = _codes(blocks[:, 48:], 4, 32) | _codes(blocks[:, 16:48], 1, 32) << 4
    return _scaled(codes.float(), scales * _half(blocks, 0), lows * _half(blocks, 2))


def _q6_k(blocks: Tensor) -> Tensor:
    codes = _codes(blocks[:, :128], 4, 64) | _codes(blocks[:, 128:192], 2, 32) << 4
    scales = blocks[:, 192:208].view(torch.int8).float()
    return _scaled(codes.float() - 32, scales * _half(blocks, 208))


def _iq4_nl(blocks: Tensor) -> Tensor:
    values = torch.tensor(IQ4_NL, dtype=torch.float32, device=blocks.device)
    return values[_codes(blocks[:, 2:], 4, 16).int()] * _half(blocks, 0)


TYPES = {
    one.number: one
    for one in (
        BlockType("q4_0", 2, 32, 18, 4, _q4_0),
        BlockType("q4_1", 3, 32, 20, 4, _q4_1),
        BlockType("q5_0", 6, 32, 22, 5, _q5_0),
        BlockType("q5_1", 7, 32, 24, 5, _q5_1),
        BlockType("q8_0", 8, 32, 34, 8, _q8_0),
        BlockType("q2_k", 10, 256, 84, 2, _q2_k),
        BlockType("q3_k", 11, 256, 110, 3, _q3_k),
        BlockType("q4_k", 12, 256, 144, 4, _q4_k),
        BlockType("q5_k", 13, 256, 176, 5, _q5_k),
        BlockType("q6_k", 14, 256, 210, 6, _q6_k),
        BlockType("iq4_nl", 20, 32, 18, 4, _iq4_nl),
    )
}
"""By the numbers of their ggml_type; the same ones as KINDS in ggml.h."""
