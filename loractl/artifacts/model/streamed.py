"""The logits that a proof compares, computed layer by layer: those of a model in a directory, and
those of base + adapter.

The weights of one layer, in float32, are in memory at a time. An embedding is a table of which only
the rows looked up exist; a head is multiplied strip by strip.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from loractl.artifacts import probe
from loractl.artifacts.model.hollow import Hollow, NotLayerwiseError, TableRows
from loractl.artifacts.model.layerwise import Call, run
from loractl.artifacts.model.shaking import add_error_
from loractl.artifacts.peft.adapter import Adapter
from loractl.artifacts.peft.attach import load_
from loractl.lora.adalora import AdaloraEmbedding
from loractl.lora.dense import strips
from loractl.lora.inject import adapters
from loractl.lora.layer import LoraEmbedding, LoraLayer
from loractl.lora.whole import WholeModule, wholes
from loractl.models.load import Source
from loractl.ops.threads import one_thread

Rounded = Callable[[Tensor], Tensor]


class Witness(Protocol):
    """Sees every tensor once, as it comes by."""

    def plain(self, name: str, strips: Iterable[Tensor]) -> None:
        """A tensor without an update, from top to bottom."""

    def same(self, name: str, other: str) -> None:
        """A tensor that is another one, which was seen before."""

    def adapted(self, name: str, layer: LoraLayer) -> None:
        """A layer with an update, and with its weight; of an embedding, with the rows probed."""

    def trained(self, name: str, tensor: Tensor) -> None:
        """A tensor of a module trained whole."""


@dataclass(frozen=True)
class Logits:
    """Of the base, of base + adapter, and of that with errors as large as those of rounding."""

    base: Tensor
    expected: Tensor
    shaken: Tensor | None


def of_directory(source: Source, ids: Tensor, witness: Witness) -> Tensor:
    """The logits of a plain model. Raises NotLayerwiseError."""
    return _Pass(Hollow(source), ids, witness, None).run(1)[0]


def of_adapted(
    hollow: Hollow,
    adapter: Adapter,
    ids: Tensor,
    witness: Witness,
    rounded: Rounded | None,
    *,
    merged: bool = True,
) -> Logits:
    """The logits of base + adapter, all from one pass over the base. Raises NotLayerwiseError.

    `rounded` None: nothing is shaken. `merged`: whether what is rounded is the merged weights, or
    else A and B.
    """
    load_(hollow.model, adapter)
    found = _Pass(hollow, ids, witness, rounded, merged=merged).run(2 if rounded is None else 3)
    return Logits(found[0], found[1], found[2] if rounded is not None else None)


class _Pass:
    """One pass over the parts of a model, adapted or not."""

    def __init__(
        self,
        hollow: Hollow,
        ids: Tensor,
        witness: Witness,
        rounded: Rounded | None,
        *,
        merged: bool = True,
    ) -> None:
        self.hollow, self.ids, self.witness, self.rounded = hollow, ids, witness, rounded
        self.merged = merged
        self.slots = {
            ".".join(part for part in f"{path}.{name}".split(".") if part != "base"): (module, name)
            for path, module in hollow.model.named_modules()
            for name, tensor in (*module._parameters.items(), *module._buffers.items())
            if tensor is not None and tensor.is_meta
        }
        if lacking := sorted(hollow.shapes.keys() - self.slots.keys()):
            raise NotLayerwiseError(f"{lacking[0]} has no place of its own")
        self.layers = adapters(hollow.model)
        self.wholes = wholes(hollow.model)

    def run(self, variants: int) -> list[Tensor]:
        hollow = self.hollow
        return run(hollow.model, hollow.parts, self.ids, variants=variants, part=self._part)

    def _part(self, path: str, forward: Callable[..., Any], calls: list[Call]) -> Any:
        module = self.hollow.model.get_submodule(path)
        is_stored = self.hollow.stored(self.hollow.key(f"{path}.weight")) is not None
        if path == self.hollow.head and type(module) is nn.Linear and is_stored:
            return self._head(path, calls)
        base = getattr(module, "base", module)
        looked_up = module is base or type(module) in (LoraEmbedding, AdaloraEmbedding)
        if path == self.hollow.table and isinstance(base, nn.Embedding) and looked_up and is_stored:
            return self._table(path, module, forward, calls)
        self._fill(self.hollow.load(path))
        try:
            outputs = self._base_and_adapted(module, forward, calls)
            self._show(path)
            if len(calls) > 2:
                self._shake_part(path, module)
                outputs.append(forward(*calls[2][0], **calls[2][1]))
            return outputs
        finally:
            self._empty(path, module)

    def _base_and_adapted(
        self, module: nn.Module, forward: Callable[..., Any], calls: list[Call]
    ) -> list[Any]:
        outputs = []
        for number, (args, kwargs) in enumerate(calls[:2]):
            _enable(module, number == 1)
            outputs.append(forward(*args, **kwargs))
        return outputs

    def _fill(self, tensors: dict[str, Tensor]) -> None:
        for name, tensor in tensors.items():
            self._put(name, tensor)

    def _put(self, name: str, tensor: Tensor) -> None:
        module, last = self.slots[name]
        if last in module._parameters:
            module._parameters[last] = nn.Parameter(tensor, requires_grad=False)
        else:
            module._buffers[last] = tensor

    def _held(self, name: str) -> Tensor:
        module, last = self.slots[name]
        tensor: Tensor = getattr(module, last)
        return tensor.detach()

    def _empty(self, path: str, module: nn.Module) -> None:
        for name in self.hollow.names_of(path):
            self.hollow.take_back(self._held(name))
            self._put(name, torch.empty(self.hollow.shapes[name], device="meta"))
        for inner in module.modules():
            if isinstance(inner, LoraLayer):
                inner.forget_()

    def _show(self, path: str) -> None:
        """Let the witness see what a part holds."""
        trained = set()
        for at, whole in self.wholes.items():
            if _is_inside(at, path):
                for inner, tensor in whole.tuned.state_dict().items():
                    trained.add(f"{at}.{inner}")
                    self.witness.trained(f"{at}.{inner}", tensor)
        for at, layer in self.layers.items():
            if _is_inside(at, path):
                self.witness.adapted(at, layer)
        for name in self.hollow.names_of(path):
            adapted = name in self.layers or name.removesuffix(".weight") in self.layers
            if name not in trained and not adapted:
                self.witness.plain(name, [self._held(name)])

    def _shake_part(self, path: str, module: nn.Module) -> None:
        inside = {at: layer for at, layer in self.layers.items() if _is_inside(at, path)}
        if not self.merged:
            for at, layer in inside.items():
                self._shake(layer.A.detach(), f"{at}.A", 0)
                self._shake(layer.B.detach(), f"{at}.B", 0)
            return
        for layer in inside.values():
            W = layer.weight.detach()
            with one_thread():
                for start, stop, exact in layer.merged_rows(W):
                    W[start:stop] = exact.float()
        for at, whole in self.wholes.items():
            if _is_inside(at, path):
                whole.swap_weights_()
        _enable(module, False)
        for name in self.hollow.names_of(path):
            if isinstance(self.slots[name][0]._parameters.get(self.slots[name][1]), Tensor):
                self._shake(self._held(name), self.hollow.key(name), 0)

    def _shake(self, tensor: Tensor, key: str, start: int) -> None:
        """Give a tensor errors of the sizes that rounding makes, with random signs."""
        assert self.rounded is not None
        with one_thread():
            for first, last in strips(tensor.shape):
                rows = tensor[first:last]
                add_error_(rows, self.rounded(rows), key, start + first)

    def _head(self, path: str, calls: list[Call]) -> Tensor:
        """The output head, in strips of rows: the logits of all variants."""
        name, bias = f"{path}.weight", self.hollow.load_one(f"{path}.bias")
        rows = self.hollow.rows(name)
        hidden = [args[0] if args else next(iter(kwargs.values())) for args, kwargs in calls]
        size, shape = len(self.ids), (*hidden[0].shape[:-1], rows.shape[0])
        logits = torch.empty(size * len(calls), *shape[1:])
        ends = strips(rows.shape)
        for n in range(0, len(ends), 8):  # a product needs more than one strip
            start, stop = ends[n][0], ends[n : n + 8][-1][1]
            W = rows[start:stop]
            for number, h in enumerate(hidden):
                if number == 2 and self.merged:
                    self._shake(W, self.hollow.key(name), start)
                logits[number * size : (number + 1) * size, ..., start:stop] = F.linear(h, W)
        self._show_rows(name, rows)
        if bias is not None:
            self.witness.plain(f"{path}.bias", [bias])
            for number in range(len(calls)):
                if number == 2 and self.merged:
                    self._shake(bias, f"{path}.bias", 0)
                logits[number * size : (number + 1) * size] += bias
        return logits

    def _table(
        self, path: str, module: nn.Module, forward: Callable[..., Any], calls: list[Call]
    ) -> list[Any]:
        """The embedding of the input, of which only the rows looked up are read."""
        name, layer = f"{path}.weight", self.layers.get(path)
        rows = self.hollow.rows(name)
        drawn = probe.drawn_inputs(layer.d_in) if layer is not None else self.ids[:0].flatten()
        wanted = sorted({*self.ids.flatten().tolist(), *drawn.tolist()})
        table = torch.from_numpy(np.zeros(tuple(rows.shape), np.float32))  # no page until touched
        for index in wanted:
            table[index] = rows[index : index + 1][0]
        self._put(name, table)
        try:
            outputs = self._base_and_adapted(module, forward, calls)
            if layer is None:
                self._show_rows(name, rows)
            else:
                self.witness.adapted(path, layer)
            if len(calls) > 2:
                if layer is not None and self.merged:
                    for start, stop, exact in layer.merged_rows(rows):
                        for index in _between(wanted, start, stop):
                            table[index] = exact[index - start].float()
                    _enable(module, False)
                if self.merged:
                    self._shake_rows(table, wanted, self.hollow.key(name))
                elif layer is not None:
                    self._shake_part(path, module)
                outputs.append(forward(*calls[2][0], **calls[2][1]))
            return outputs
        finally:
            self._empty(path, module)

    def _show_rows(self, name: str, rows: TableRows) -> None:
        """Show a table, or say that it is the one that was shown before."""
        key = self.hollow.key(name)
        changed = self.layers.keys() | self.wholes.keys()
        if key != name and key.removesuffix(".weight") not in changed:
            self.witness.same(name, key)
        else:
            self.witness.plain(name, rows.strips())

    def _shake_rows(self, table: Tensor, wanted: Sequence[int], key: str) -> None:
        assert self.rounded is not None
        for start, stop in strips(table.shape):
            if not (here := _between(wanted, start, stop)):
                continue
            rows = torch.zeros(stop - start, *table.shape[1:])
            at = [index - start for index in here]
            rows[at] = table[here]
            add_error_(rows, self.rounded(rows), key, start)
            table[here] = rows[at]


def _between(indices: Sequence[int], start: int, stop: int) -> list[int]:
    return [index for index in indices if start <= index < stop]


def _is_inside(path: str, part: str) -> bool:
    return path == part or path.startswith(f"{part}.")


def _enable(module: nn.Module, enabled: bool) -> None:
    for inner in module.modules():
        if isinstance(inner, LoraLayer | WholeModule):
            inner.enabled = enabled
