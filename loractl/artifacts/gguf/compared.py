"""The tensors of a GGUF file, compared with base + adapter strip by strip.

Rows are read, not mapped: the touched pages of a map count as memory of the process.
"""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from loractl.artifacts import probe
from loractl.artifacts.gguf.layout import Layout
from loractl.artifacts.gguf.write import BLOCK
from loractl.lora.dense import strips
from loractl.lora.layer import LoraLayer
from loractl.models.torch_dtypes import FILE_DTYPES

if TYPE_CHECKING:
    from gguf import ReaderTensor

Q8_0_HALF_STEP = 0.57
"""Largest error of rounding to q8_0, as a share of the block's scale, which is rounded too."""


class Compared:
    """Is shown what every tensor of a file should be, and keeps the names of the wrong ones."""

    def __init__(self, path: Path | None, layout: Layout) -> None:
        """`path` None: nothing is compared."""
        self.path, self.layout = path, layout
        self.there = {} if path is None else _tensors_in(path)
        self.wrong: list[str] = []

    def merged(self, name: str, tensor: Any) -> None:
        raise AssertionError(f"{name}: only a base and an adapter are compared with a file")

    def plain(self, name: str, pieces: Iterable[Tensor]) -> None:
        if self.path is not None and not self._holds(name, pieces):
            self.wrong.append(name)

    def trained(self, name: str, tensor: Tensor) -> None:
        self.plain(name, [tensor.detach()])

    def adapted(self, name: str, layer: LoraLayer) -> None:
        full = f"{name}.weight"
        if self.path is not None and not self._holds_columns(full, layer):
            self.wrong.append(full)

    def _holds(self, name: str, pieces: Iterable[Tensor]) -> bool:
        """Whether a tensor without an update was rounded once."""
        tensor, start = self.there.get(self.layout.name_of(name)), 0
        if tensor is None:
            return False
        for large in pieces:
            order = self.layout.row_order(name, len(large))
            written = large if order is None else large[order]  # the only strip
            for first, last in strips(written.shape):
                exact = (written[first:last].double() + self.layout.shift(name)).float()
                found = self._rows(tensor, start + first, start + last).view_as(exact)
                if not probe.is_within(found, exact, _half_steps(tensor, found, exact)):
                    return False
            start += len(large)
        return start == _n_rows(tensor)

    def _holds_columns(self, name: str, layer: LoraLayer) -> bool:
        """Whether some columns of an adapted weight were rounded once."""
        tensor = self.there.get(self.layout.name_of(name))
        if tensor is None or _n_rows(tensor) != layer.laid_shape[0]:
            return False
        exact = probe.columns_of(layer).float()  # (n, d_out)
        order = self.layout.row_order(name, layer.d_out)

        def columns(of_rows: Callable[[Tensor], Tensor]) -> Tensor:
            parts = [of_rows(rows) for rows in self._rows_of_columns(tensor, layer)]
            if layer.transposed:
                return torch.cat(parts)
            found = torch.cat([probe.plain_columns(layer.kind, part) for part in parts], dim=1)
            return found if order is None else found[:, order.argsort()]

        if _kind(tensor) == "q8_0":
            half = columns(_q8_0_half_steps)
        else:
            half = probe.half_step(exact, FILE_DTYPES[_kind(tensor)])
        return probe.is_within(columns(lambda rows: rows), exact, half)

    def _rows_of_columns(self, tensor: "ReaderTensor", layer: LoraLayer) -> Iterable[Tensor]:
        """All rows in strips, or where a row is a column of the layer, those that are checked."""
        if layer.transposed:
            drawn = probe.drawn_inputs(layer.d_in).tolist()
            return (self._rows(tensor, index, index + 1) for index in drawn)
        return (self._rows(tensor, *ends) for ends in strips(layer.laid_shape))

    def _rows(self, tensor: "ReaderTensor", start: int, stop: int) -> Tensor:
        """Rows of a tensor as llama.cpp reads them; of a vector, its values."""
        from gguf import quants

        assert self.path is not None
        shape = tensor.data.shape[1:]
        width = int(np.prod(shape))
        raw = np.fromfile(
            self.path,
            dtype=tensor.data.dtype,
            count=(stop - start) * width,
            offset=int(tensor.data_offset) + start * width * tensor.data.itemsize,
        ).reshape(stop - start, *shape)
        return torch.from_numpy(quants.dequantize(raw, tensor.tensor_type))


def _tensors_in(path: Path) -> dict[str, "ReaderTensor"]:
    from gguf import GGUFReader

    return {one.name: one for one in GGUFReader(path).tensors}


def _n_rows(tensor: "ReaderTensor") -> int:
    return int(tensor.data.shape[0])


def _kind(tensor: "ReaderTensor") -> str:
    return tensor.tensor_type.name.lower()


def _half_steps(tensor: "ReaderTensor", found: Tensor, exact: Tensor) -> Tensor:
    """The largest error of rounding to the tensor's type, value by value."""
    if _kind(tensor) == "q8_0":
        return _q8_0_half_steps(found)
    return probe.half_step(exact, FILE_DTYPES[_kind(tensor)])


def _q8_0_half_steps(found: Tensor) -> Tensor:
    scale = found.view(found.shape[0], -1, BLOCK).abs().amax(dim=-1, keepdim=True) / 127
    return (scale * Q8_0_HALF_STEP).expand(-1, -1, BLOCK).reshape(found.shape)
