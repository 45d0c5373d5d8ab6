"""The logits that a proof compares, computed layer by layer: those of base + adapter, and beside
them those of a merged model.

The weights of one layer of one model, in float32, are in memory at a time. An embedding is a table
of which only the rows looked up exist; a head is multiplied strip by strip.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from loractl.artifacts import probe
from loractl.artifacts.model.hollow import Hollow, TableRows
from loractl.artifacts.model.layerwise import Call, run
from loractl.artifacts.model.shaking import add_error_
from loractl.artifacts.peft.adapter import Adapter
from loractl.artifacts.peft.attach import load_
from loractl.lora.adalora import AdaloraEmbedding
from loractl.lora.dense import strips
from loractl.lora.inject import adapters
from loractl.lora.layer import LoraEmbedding, LoraLayer
from loractl.lora.whole import WholeModule, wholes
from loractl.ops.threads import one_thread

Rounded = Callable[[Tensor], Tensor]


class Witness(Protocol):
    """Sees every tensor once, as it comes by: one of the merged model first, if there is one, and
    then what it should be."""

    def merged(self, name: str, tensor: Tensor | TableRows) -> None:
        """A tensor of the merged model, to keep if it is wanted; of an embedding with an update,
        with the rows probed."""

    def plain(self, name: str, strips: Iterable[Tensor]) -> None:
        """A tensor without an update, from top to bottom."""

    def adapted(self, name: str, layer: LoraLayer) -> None:
        """A layer with an update, and with its weight; of an embedding, with the rows probed."""

    def trained(self, name: str, tensor: Tensor) -> None:
        """A tensor of a module trained whole."""


@dataclass(frozen=True)
class Logits:
    """Of the base, of base + adapter, of that with errors as large as those of rounding, and of the
    merged model."""

    base: Tensor
    expected: Tensor
    shaken: Tensor | None
    merged: Tensor | None


def logits_of(
    hollow: Hollow,
    adapter: Adapter,
    ids: Tensor,
    witness: Witness,
    rounded: Rounded | None,
    *,
    merged: Hollow | None = None,
    shakes_factors: bool = False,
) -> Logits:
    """All logits from one pass over the base, and one over the merged model in step with it.

    `rounded` None: nothing is shaken. `shakes_factors`: A and B are rounded, not the merged
    weights. Raises NotLayerwiseError.
    """
    load_(hollow.model, adapter)
    part = _Part(hollow, merged, ids, witness, rounded, shakes_factors=shakes_factors)
    models = [hollow.model] * (2 if rounded is None else 3)
    if merged is None:
        found = run(models, hollow.parts, ids, part)
    else:
        found = run([*models, merged.model], hollow.parts, ids, part)
    return Logits(
        base=found[0],
        expected=found[1],
        shaken=None if rounded is None else found[2],
        merged=None if merged is None else found[-1],
    )


class _Part:
    """Runs one part of the model for all passes: base, base + adapter, shaken, merged."""

    def __init__(
        self,
        hollow: Hollow,
        merged: Hollow | None,
        ids: Tensor,
        witness: Witness,
        rounded: Rounded | None,
        *,
        shakes_factors: bool,
    ) -> None:
        self.hollow, self.merged, self.ids, self.witness = hollow, merged, ids, witness
        self.rounded, self.shakes_factors = rounded, shakes_factors
        self.layers = adapters(hollow.model)
        self.wholes = wholes(hollow.model)

    def __call__(self, path: str, calls: list[Call]) -> list[Any] | tuple[Tensor, ...]:
        module = self.hollow.model.get_submodule(path)
        has_rows = self.hollow.has_rows(f"{path}.weight")
        if path == self.hollow.head and type(module) is nn.Linear and has_rows:
            return self._head(path, calls)
        base = getattr(module, "base", module)
        looked_up = module is base or type(module) in (LoraEmbedding, AdaloraEmbedding)
        if path == self.hollow.table and isinstance(base, nn.Embedding) and looked_up and has_rows:
            return self._table(path, module, calls)
        last, kept = ([], []) if self.merged is None else self._merged_part(path, calls[-1])
        self.hollow.fill(path)
        outputs = _base_and_adapted(module, calls)
        self._show(path)
        if self.rounded is not None:
            self._shake_part(path, module)
            outputs.append(calls[2]())
        self.hollow.take_back([*kept, *self._emptied(path, module)])
        return outputs + last

    def _merged_part(self, path: str, call: Call) -> tuple[list[Any], list[Tensor]]:
        """The output, and the tensors that are still needed to compare."""
        assert self.merged is not None
        self.merged.fill(path)
        output, held = call(), self.merged.held(path)
        self.merged.empty(path)
        for name, tensor in held.items():
            self.witness.merged(name, tensor)
        self.merged.take_back([tensor for name, tensor in held.items() if self._is_adapted(name)])
        return [output], [tensor for name, tensor in held.items() if not self._is_adapted(name)]

    def _is_adapted(self, name: str) -> bool:
        return name in self.layers or name.removesuffix(".weight") in self.layers

    def _emptied(self, path: str, module: nn.Module) -> list[Tensor]:
        held = self.hollow.held(path)
        self.hollow.empty(path)
        for inner in module.modules():
            if isinstance(inner, LoraLayer):
                inner.forget_()
        return list(held.values())

    def _show(self, path: str) -> None:
        """Let the witness see what a part of the base holds."""
        trained = set()
        for at, whole in self.wholes.items():
            if _is_inside(at, path):
                for inner, tensor in whole.tuned.state_dict().items():
                    trained.add(f"{at}.{inner}")
                    self.witness.trained(f"{at}.{inner}", tensor)
        for at, layer in self.layers.items():
            if _is_inside(at, path):
                self.witness.adapted(at, layer)
        for name, tensor in self.hollow.held(path).items():
            if name not in trained and not self._is_adapted(name):
                self.witness.plain(name, [tensor])

    def _shake_part(self, path: str, module: nn.Module) -> None:
        inside = {at: layer for at, layer in self.layers.items() if _is_inside(at, path)}
        if self.shakes_factors:
            for at, layer in inside.items():
                self._shake(layer.A.detach(), f"{at}.A", 0)
                self._shake(layer.B.detach(), f"{at}.B", 0)
            return
        with one_thread():
            for layer in inside.values():
                W = layer.weight.detach()
                for start, stop, exact in layer.merged_rows(W):
                    W[start:stop] = exact.float()
        for at, whole in self.wholes.items():
            if _is_inside(at, path):
                whole.swap_weights_()
        _enable(module, False)
        for name, tensor in self.hollow.held(path).items():
            if self.hollow.is_parameter(name):
                self._shake(tensor, self.hollow.key(name), 0)

    def _shake(self, tensor: Tensor, key: str, start: int) -> None:
        """Give a tensor errors of the sizes that rounding makes, with random signs."""
        assert self.rounded is not None
        with one_thread():
            for first, last in strips(tensor.shape):
                rows = tensor[first:last]
                add_error_(rows, self.rounded(rows), key, start + first)

    def _head(self, path: str, calls: list[Call]) -> tuple[Tensor, ...]:
        """The output head, in strips of rows: the logits of all passes."""
        name = f"{path}.weight"
        rows, bias = self.hollow.rows(name), self.hollow.load_one(f"{path}.bias")
        theirs = their_bias = None
        if self.merged is not None:
            theirs, their_bias = self.merged.rows(name), self.merged.load_one(f"{path}.bias")
        self.hollow.spare.clear()  # the logits take its place
        shape = (len(calls), *calls[0].input.shape[:-1], rows.shape[0])
        logits = torch.empty(shape)  # (passes, rows, length, vocabulary)
        ends = strips(rows.shape)
        for n in range(0, len(ends), 8):  # a product needs more than one strip
            start, stop = ends[n][0], ends[n : n + 8][-1][1]
            W, b = rows[start:stop], None if bias is None else bias[start:stop].clone()
            for number, call in enumerate(calls):
                if number == len(calls) - 1 and theirs is not None:
                    W = theirs[start:stop]
                    b = None if their_bias is None else their_bias[start:stop]
                elif number == 2 and not self.shakes_factors:
                    self._shake(W, self.hollow.key(name), start)
                    if b is not None:
                        self._shake(b, f"{path}.bias", start)
                logits[number, ..., start:stop] = F.linear(call.input, W, b)
        self._show_rows(name, rows)
        if bias is not None:
            if their_bias is not None:
                self.witness.merged(f"{path}.bias", their_bias)
            self.witness.plain(f"{path}.bias", [bias])
        return logits.unbind()

    def _table(self, path: str, module: nn.Module, calls: list[Call]) -> list[Any]:
        """The embedding of the input, of which only the rows looked up are read."""
        name, layer = f"{path}.weight", self.layers.get(path)
        rows = self.hollow.rows(name)
        drawn = probe.drawn_inputs(layer.d_in) if layer is not None else self.ids[:0].flatten()
        wanted = sorted({*self.ids.flatten().tolist(), *drawn.tolist()})
        last = []
        if self.merged is not None:
            table = self.merged.rows(name).only(wanted)
            self.merged.put(name, table)
            last.append(calls[-1]())
            self.merged.empty(path)
            if layer is not None:
                self.witness.merged(name, table)
        table = rows.only(wanted)
        self.hollow.put(name, table)
        outputs = _base_and_adapted(module, calls)
        if layer is None:
            self._show_rows(name, rows)
        else:
            self.witness.adapted(path, layer)
        if self.rounded is not None:
            if layer is not None and self.shakes_factors:
                self._shake_part(path, module)
            elif not self.shakes_factors:
                self._shake_rows(table, wanted, rows, layer, self.hollow.key(name))
                _enable(module, False)
            outputs.append(calls[2]())
        self._emptied(path, module)
        return outputs + last

    def _show_rows(self, name: str, rows: TableRows) -> None:
        """Show a table of both sides, unless on both it is the one that was shown before."""
        key = self.hollow.key(name)
        same = key != name and not self._is_adapted(key)
        same = same and key.removesuffix(".weight") not in self.wholes
        if self.merged is not None:
            same = same and self.merged.key(name) == key
            if not same:
                self.witness.merged(name, self.merged.rows(name))
        if not same:
            self.witness.plain(name, rows.strips())

    def _shake_rows(
        self, table: Tensor, wanted: Sequence[int], rows: TableRows, layer: LoraLayer | None,
        key: str,
    ) -> None:  # fmt: skip
        """Shake the rows looked up as the strips of a head that is tied to the table are shaken."""
        assert self.rounded is not None
        exact = layer.merged_rows(rows) if layer is not None else None
        for start, stop in strips(table.shape):
            merged = next(exact)[2].float() if exact is not None else None
            if not (here := [index for index in wanted if start <= index < stop]):
                continue
            strip = torch.zeros(stop - start, *table.shape[1:])
            at = [index - start for index in here]
            strip[at] = table[here] if merged is None else merged[at]
            add_error_(strip, self.rounded(strip), key, start)
            table[here] = strip[at]


def _base_and_adapted(module: nn.Module, calls: list[Call]) -> list[Any]:
    outputs = []
    for call, enabled in zip(calls, (False, True), strict=False):
        _enable(module, enabled)
        outputs.append(call())
    return outputs


def _is_inside(path: str, part: str) -> bool:
    return path == part or path.startswith(f"{part}.")


def _enable(module: nn.Module, enabled: bool) -> None:
    for inner in module.modules():
        if isinstance(inner, LoraLayer | WholeModule):
            inner.enabled = enabled
