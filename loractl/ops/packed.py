"""A frozen weight in few bits a number, and its products without a dense copy of it.

A number is its code's value times the scale of its block. NF4 ("QLoRA", arXiv 2305.14314, appendix
E) has 16 values and blocks of 64; `double` keeps the scales themselves in 8 bits. int8 has one
scale a row, its largest absolute value. Codes, scales and rounding are those of bitsandbytes, to
the bit: each number is a float32 product, rounded once to `dtype`. The blocks of a GGUF file are
kept as the file has them (ggml_blocks.py).

gemm.c unpacks what it multiplies on the way; elsewhere a strip of rows at a time is unpacked.
"""

import ctypes
import functools
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from loractl.ops import native
from loractl.ops.ggml_blocks import BlockType
from loractl.ops.native import POINTER, REAL, SIZE

BLOCK = 64
"""Numbers of NF4 that share a scale, counted row after row."""
NESTED_BLOCK = 256
"""Scales that share a scale of their own, where these are kept in 8 bits."""
STRIP = 1 << 22
"""Numbers unpacked at a time where the whole product is not one call."""
INT8_STEP = 7.874015718698502e-3
"""1/127 as bitsandbytes writes it."""

NF4 = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)
"""The quantiles of a normal distribution, scaled to [-1, 1]; 0 is exact."""


@dataclass(frozen=True)
class Nested:
    """Scales in 8 bits: scale i is table[codes[i]] * scales[i // NESTED_BLOCK] + offset."""

    codes: Tensor  # (blocks,) uint8
    scales: Tensor  # (ceil(blocks / NESTED_BLOCK),) float32
    table: Tensor  # (256,) float32
    offset: float


@dataclass(frozen=True)
class Packed:
    """A matrix (d_out, d_in) in `bits` bits a number, or its transposed view if `turned`."""

    codes: Tensor  # 4 bits: uint8, two numbers a byte, the first in the upper half; 8: int8
    scales: Tensor | Nested  # float32 (blocks,), or (d_out,) with 8 bits; none beside GGUF's blocks
    bits: int
    d_out: int
    d_in: int
    dtype: torch.dtype  # of the numbers it stands for
    turned: bool = False
    blocks: BlockType | None = None  # those that are the codes: uint8 (d_out, bytes of a row)

    @staticmethod
    def of_blocks(codes: Tensor, kind: BlockType, dtype: torch.dtype) -> "Packed":
        """A matrix whose rows (d_out, bytes of a row) are whole blocks of a GGUF file."""
        d_out, d_in = len(codes), codes.shape[1] // kind.size * kind.values
        none = torch.empty(0, device=codes.device)
        return Packed(codes, none, kind.bits, d_out, d_in, dtype, blocks=kind)

    @property
    def shape(self) -> tuple[int, int]:
        return (self.d_in, self.d_out) if self.turned else (self.d_out, self.d_in)

    def __len__(self) -> int:
        return self.shape[0]

    def numel(self) -> int:
        return self.d_out * self.d_in

    @property
    def T(self) -> "Packed":
        return replace(self, turned=not self.turned)

    @property
    def device(self) -> torch.device:
        return self.codes.device

    @property
    def requires_grad(self) -> bool:
        return False

    def dense(self) -> Tensor:
        """The whole matrix as it is turned, in `dtype`."""
        is_nf4 = self.bits == 4 and self.blocks is None
        if is_nf4 and self.codes.is_cuda and has_bitsandbytes():
            rows = self._by_one_kernel()
        else:
            rows = self.rows(0, self.d_out)
        return rows.T if self.turned else rows

    def _by_one_kernel(self) -> Tensor:
        """The whole matrix as it is stored, by bitsandbytes: one launch, and two if the scales are
        in 8 bits. The memory is that of the matrix before: torch's allocator gives it again."""
        scales = self.block_scales(0, -(-self.numel() // BLOCK))
        shape = [self.d_out, self.d_in]
        codes = self.codes.reshape(-1, 1)
        unpack = torch.ops.bitsandbytes.dequantize_4bit
        made: Tensor = unpack(codes, scales, BLOCK, "nf4", shape, self.dtype)
        return made

    def rows(self, start: int, stop: int) -> Tensor:
        """Rows start to stop of the matrix as it is stored, (stop - start, d_in), in `dtype`."""
        library = native.compiled(self.dtype) if self.codes.is_cpu else None
        if library is None:
            return self._plain_rows(start, stop)
        out = torch.empty(stop - start, self.d_in, dtype=self.dtype)
        given = description(self)
        library.unpack(
            *(ctypes.addressof(given), start * self.d_in, out.numel()),
            *(out.data_ptr(), torch.get_num_threads()),
        )
        return out

    def _plain_rows(self, start: int, stop: int) -> Tensor:
        if self.blocks is not None:
            blocks = self.codes[start:stop].reshape(-1, self.blocks.size)
            return self.blocks.unpack(blocks).to(self.dtype).view(stop - start, self.d_in)
        first, last = start * self.d_in, stop * self.d_in
        if self.bits == 8:
            assert isinstance(self.scales, Tensor)
            values = self.codes.view(self.d_out, self.d_in)[start:stop].float()
            return (values * self.scales[start:stop, None] * INT8_STEP).to(self.dtype)
        pairs = self.codes.flatten()[first // 2 : (last + 1) // 2]
        codes = torch.stack([pairs >> 4, pairs & 15], dim=1).flatten()[first % 2 :][: last - first]
        block = first // BLOCK
        scales = self.block_scales(block, -(-last // BLOCK)).repeat_interleave(BLOCK)
        scaled = nf4_on(self.device)[codes.int()] * scales[first - block * BLOCK :][: last - first]
        return scaled.to(self.dtype).view(stop - start, self.d_in)

    def block_scales(self, start: int, stop: int) -> Tensor:
        """Scales start to stop of the blocks, in float32."""
        if isinstance(self.scales, Tensor):
            return self.scales[start:stop]
        of, first = self.scales, start // NESTED_BLOCK
        outer = of.scales[first : -(-stop // NESTED_BLOCK)].repeat_interleave(NESTED_BLOCK)
        outer = outer[start - first * NESTED_BLOCK :][: stop - start]
        return of.table[of.codes[start:stop].int()] * outer + of.offset


@functools.cache
def nf4_on(device: torch.device) -> Tensor:
    """The 16 values, copied to a device once."""
    return torch.tensor(NF4).to(device)


@functools.cache
def has_bitsandbytes() -> bool:
    if importlib.util.find_spec("bitsandbytes") is None:
        return False
    import bitsandbytes  # noqa: F401  # registers its operations

    return True


class Description(ctypes.Structure):
    """`Packed` of calls.h."""

    _fields_ = (
        *(("codes", POINTER), ("scales", POINTER), ("nested", POINTER), ("table", POINTER)),
        *(("offset", REAL), ("bits", SIZE), ("block", SIZE), ("row", SIZE), ("ggml", SIZE)),
    )


def description(packed: Packed) -> Description:
    """What the C files read. It points into the tensors of `packed`, which must outlive it."""
    given, scales = Description(), packed.scales
    parts = [packed.codes]
    if isinstance(scales, Nested):
        parts += [scales.scales, scales.codes, scales.table]
        _, given.scales, given.nested, given.table = (part.data_ptr() for part in parts)
        given.offset = scales.offset
    else:
        parts.append(scales)
        given.scales = scales.data_ptr()
    assert all(part.is_cpu and part.is_contiguous() for part in parts)
    given.codes, given.bits, given.row = packed.codes.data_ptr(), packed.bits, packed.d_in
    given.block = BLOCK if packed.bits == 4 else packed.d_in
    if packed.blocks is not None:
        given.block, given.ggml = packed.blocks.values, packed.blocks.number
    return given


def strips(packed: Packed) -> Iterator[tuple[int, int, Tensor]]:
    """The stored matrix in strips of rows: (start, stop, numbers)."""
    n_rows = max(1, STRIP // packed.d_in)
    for start in range(0, packed.d_out, n_rows):
        stop = min(start + n_rows, packed.d_out)
        yield start, stop, packed.rows(start, stop)
