"""NF4: from the numbers of a matrix to codes of 4 bits and one scale for each block of 64.

"QLoRA", arXiv 2305.14314, section 3 and appendix E; `ops/packed.py` has the way back. Every byte is
that of bitsandbytes 0.50 on a CPU, scales in 8 bits included. pack.c does the large part of it 14
times as fast as torch, whose temporary copies also leave holes in the heap as large as the model.
"""

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

from loractl.ops import native
from loractl.ops.packed import BLOCK, NESTED_BLOCK, NF4, Nested, Packed

PIECE = 1 << 20
"""Numbers packed at a time; whole blocks, and an even number."""
STEPS = 65536
"""bitsandbytes finds an 8-bit code on a CPU in a table of so many steps over [-1, 1]."""


def pack(W: Tensor, *, double: bool) -> Packed:
    """W (d_out, d_in) in NF4; `double`: the scales in 8 bits too."""
    flat = W.detach().reshape(-1)
    codes = torch.empty((flat.numel() + 1) // 2, dtype=torch.uint8, device=W.device)
    scales = torch.empty(-(-flat.numel() // BLOCK), device=W.device)
    library = native.compiled(W.dtype) if flat.is_cpu else None
    if library is not None:
        given = (flat.data_ptr(), flat.numel(), scales.data_ptr(), codes.data_ptr())
        library.pack_nf4(*given, torch.get_num_threads())
    for start in range(0, flat.numel(), PIECE) if library is None else ():
        found, largest = _pack_piece(flat[start : start + PIECE])
        codes[start // 2 : start // 2 + len(found)] = found
        scales[start // BLOCK : start // BLOCK + len(largest)] = largest
    held = nested(scales) if double else scales
    return Packed(codes, held, 4, W.shape[0], W.shape[1], W.dtype)


def _pack_piece(numbers: Tensor) -> tuple[Tensor, Tensor]:
    """The codes, two a byte, and the largest absolute value of each block."""
    blocks = F.pad(numbers.float(), (0, -len(numbers) % BLOCK)).view(-1, BLOCK)
    largest = blocks.abs().amax(dim=1)
    floor = largest.clamp_min(1e-38)
    scaled = blocks * (1.0 / floor)[:, None]
    if short := len(numbers) % BLOCK:  # bitsandbytes divides the numbers of the last, short block
        largest[-1] = floor[-1]
        scaled[-1] = blocks[-1] / floor[-1]
        scaled[-1, short:] = 0
    codes = torch.bucketize(scaled.flatten().clamp_(-1, 1), _bounds(numbers.device), out_int32=True)
    codes = codes[: len(numbers) + len(numbers) % 2].view(-1, 2)
    return (codes[:, 0] << 4 | codes[:, 1]).to(torch.uint8), largest


@functools.cache
def _bounds(device: torch.device) -> Tensor:
    """The middle between each two values; a number on it gets the lower one."""
    values = torch.tensor(NF4, device=device)
    return (values[:-1] + values[1:]) / 2


def nested(scales: Tensor) -> Nested:
    """Scales in 8 bits: what is left of them without their mean, in blocks of 256."""
    # On the CPU everywhere, so that a run's base does not depend on the device.
    given = scales.cpu()
    offset = given.mean()
    left = given - offset
    blocks = F.pad(left, (0, -len(left) % NESTED_BLOCK)).view(-1, NESTED_BLOCK)
    largest = blocks.abs().amax(dim=1)
    step = (blocks * (1.0 / largest)[:, None] + 1.0) * ((STEPS - 1) / 2) + 0.5
    nearest = _nearest()[step.nan_to_num(0).floor().long().clamp(0, STEPS - 1)]
    codes = nearest.flatten()[: len(left)]
    to = scales.device
    return Nested(codes.to(to), largest.to(to), dynamic_map().to(to), offset.item())


@functools.cache
def _nearest() -> Tensor:
    """The code whose value is nearest to each step."""
    values = dynamic_map()
    steps = (torch.arange(STEPS, dtype=torch.float64) * (2 / (STEPS - 1)) - 1).float()
    return torch.bucketize(steps, (values[:-1] + values[1:]) / 2).to(torch.uint8)


@functools.cache
def dynamic_map() -> Tensor:
    """The 256 values of bitsandbytes' dynamic type: a sign, a power of ten, an even fraction.

    "8-Bit Approximations for Parallelism in Deep Learning", arXiv 1511.04561.
    """
    values = [torch.tensor([0.0, 1.0])]
    for exponent in range(7):
        edges = torch.linspace(0.1, 1, 2**exponent + 1)
        means = 10.0 ** (exponent - 6) * ((edges[:-1] + edges[1:]) / 2)
        values += [means, -means]
    return torch.cat(values).sort().values
