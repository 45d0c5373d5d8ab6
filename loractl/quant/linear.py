"""A frozen linear layer with a packed weight: y = x W' + b. No gradient but that of its input."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from loractl.ops.gemm import Term, products
from loractl.ops.packed import Nested, Packed


class PackedLinear(nn.Module):
    """In place of nn.Linear. The packed weight is no parameter and no buffer: it can be neither
    trained nor saved, and a change of dtype does not reach it."""

    bias: nn.Parameter | None

    def __init__(self, packed: Packed, bias: nn.Parameter | None = None) -> None:
        super().__init__()
        self.in_features, self.out_features = packed.d_in, packed.d_out
        self.packed = packed
        self.register_parameter("bias", bias)

    @property
    def weight(self) -> Tensor:
        """The dense matrix, made anew each time, for models that read their own layers."""
        return self.dense_weight()

    def dense_weight(self) -> Tensor:
        """The numbers that the weight stands for, (d_out, d_in)."""
        return self.packed.dense()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = _Product.apply(x, self.packed, self.bias)  # type: ignore[no-untyped-call]
        return y

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "PackedLinear":
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.packed = moved(self.packed, fn(self.packed.codes[:0]).device)
        return self

    def extra_repr(self) -> str:
        bits = f"{self.packed.bits} bits"
        return f"in_features={self.in_features}, out_features={self.out_features}, {bits}"


def packed_layers(model: nn.Module) -> dict[str, PackedLinear]:
    return {path: one for path, one in model.named_modules() if isinstance(one, PackedLinear)}


def n_bytes(packed: Packed) -> int:
    """Bytes of codes and scales; the table of 8-bit scales is one for all."""
    scales = packed.scales
    if isinstance(scales, Nested):
        return packed.codes.nbytes + scales.codes.nbytes + scales.scales.nbytes
    return packed.codes.nbytes + scales.nbytes


def moved(packed: Packed, device: torch.device) -> Packed:
    """The same on another device."""
    if packed.device == device:
        return packed
    scales = packed.scales
    if isinstance(scales, Nested):
        parts = (scales.codes.to(device), scales.scales.to(device), scales.table.to(device))
        there: Tensor | Nested = Nested(*parts, scales.offset)
    else:
        there = scales.to(device)
    return replace(packed, codes=packed.codes.to(device), scales=there)


def unpacked(layer: PackedLinear, dtype: torch.dtype | None = None) -> nn.Linear:
    """The same layer with a dense weight."""
    return dense_linear(layer.dense_weight().to(dtype or layer.packed.dtype), layer.bias)


def dense_linear(weight: Tensor, bias: nn.Parameter | None) -> nn.Linear:
    """A frozen linear layer around a weight (d_out, d_in)."""
    with torch.device("meta"):
        made = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    made.weight = nn.Parameter(weight, requires_grad=False)
    made.bias = bias  # type: ignore[assignment]
    return made


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, packed: Packed, bias: Tensor | None) -> Tensor:
        ctx.packed = packed
        rows = x.reshape(-1, x.shape[-1])  # (N, d_in)
        y = products([Term(rows, packed.T)], start=bias)
        return y.view(*x.shape[:-1], packed.d_out)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        rows = dy.reshape(-1, dy.shape[-1])  # (N, d_out)
        dx = products([Term(rows, ctx.packed)])
        return dx.view(*dy.shape[:-1], ctx.packed.d_in), None, None
