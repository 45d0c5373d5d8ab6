"""The ways in which a weight can be packed, by their names in `model.quantization`."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from loractl.dtypes import WIDTHS
from loractl.ops.packed import Nested, Packed
from loractl.quant import int8, nf4

PACKERS: dict[str, Callable[[Tensor], Packed]] = {
    "nf4": partial(nf4.pack, double=False),
    "nf4-double": partial(nf4.pack, double=True),
    "int8": int8.pack,
}


@dataclass(frozen=True)
class Quantization:
    """How the linear layers of a base are packed; everything else stays as it is."""

    kind: str
    dtype: str
    """Of the numbers that are packed, and of those that come back: the run's model.dtype."""
    head: bool = False

    def pack(self, weight: Tensor) -> Packed:
        return PACKERS[self.kind](weight.to(getattr(torch, self.dtype)))

    def rounded(self, weight: Tensor) -> Tensor:
        """What is left of a weight: the numbers that the packed layer computes with."""
        return self.pack(weight).dense()

    def about(self) -> dict[str, object]:
        """As loractl.json records it, beside the dtype."""
        return {"kind": self.kind, "head": self.head}

    @staticmethod
    def recorded(about: object, dtype: str | None) -> "Quantization | None":
        """What loractl.json says of the base; None if it was not quantized."""
        if not isinstance(about, dict) or about.get("kind") not in PACKERS or dtype not in WIDTHS:
            return None
        return Quantization(str(about["kind"]), dtype, bool(about.get("head")))


def kind_of(packed: Packed) -> str:
    """A name of PACKERS, or of a type of blocks in GGUF files."""
    if packed.blocks is not None:
        return packed.blocks.name
    if packed.bits == 8:
        return "int8"
    return "nf4-double" if isinstance(packed.scales, Nested) else "nf4"
