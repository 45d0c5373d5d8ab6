"""One base in memory with many adapters: switching between them is one assignment.

The base is unchanged: its modules stay in place and are never written to. A hook on each module
that some adapter touches adds the update of the active adapter to its output; each row of a batch
may use a different adapter. For inference only.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from loractl.lora.experts import AdaptedExperts, LoraExperts
from loractl.lora.layer import LoraLayer
from loractl.lora.token_rows import TokenRows
from loractl.lora.whole import WholeModule

StandIn = LoraLayer | AdaptedExperts | WholeModule | TokenRows
"""What an adapter puts in place of a module of the base, its `base`."""
Hook = Callable[[nn.Module, tuple[Any, ...], dict[str, Any], Any], Any]


class MixedRowsError(ValueError):
    """A module does not see the rows of the batch as rows, so they must share one adapter."""


@dataclass(frozen=True)
class _Rows:
    """The rows of a batch grouped by adapter; the base serves the rest."""

    n_rows: int
    groups: tuple[tuple[str, Tensor], ...]  # adapter name and its rows (k,)


class Hub:
    """The adapters of one model by name. None means the base, which is active at first.

    Adapters may differ in rank, scale, formula and target modules.
    """

    def __init__(self, model: nn.Module) -> None:
        assert not stand_ins(model), "the model already has an adapter of its own"
        self._model = model
        self._adapters: dict[str, Mapping[str, StandIn]] = {}  # name -> module -> layer
        self._layers: dict[str, dict[str, StandIn]] = {}  # module -> name -> layer
        self._hooks: dict[str, RemovableHandle] = {}
        self._active: str | _Rows | None = None
        self.widths: Mapping[str | None, int] = {}
        """How many tokens each adapter (None: the base) knows, where the model has grown."""

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._adapters)

    def layers(self, name: str) -> Mapping[str, StandIn]:
        """The layers of an adapter, by the path of the module that each replaces."""
        return self._adapters[name]

    def ranks(self, name: str) -> list[int]:
        """The distinct ranks of an adapter's layers, lowest first."""
        inner = (module for one in self._adapters[name].values() for module in one.modules())
        return sorted({module.rank for module in inner if isinstance(module, LoraLayer)})

    def add_(self, name: str, layers: Mapping[str, StandIn]) -> None:
        """Add an adapter: the layers that would replace modules of this model, by path.

        It costs the memory of its own tensors; see `n_bytes`. Raises ValueError if the name is
        taken.
        """
        if name in self._adapters:
            raise ValueError(f"an adapter named {name!r} is already loaded")
        for path, layer in layers.items():
            assert layer.base is self._model.get_submodule(path), f"{path} has another base"
        self._adapters[name] = layers
        for path, layer in layers.items():
            layer.requires_grad_(False).eval()
            known = self._layers.setdefault(path, {})
            known[name] = layer
            if path not in self._hooks:
                hook = self._hook(path, layer.base, known)
                self._hooks[path] = layer.base.register_forward_hook(hook, with_kwargs=True)

    def narrow_(self, widths: Mapping[str | None, int]) -> None:
        """Rule out, for each adapter and the base, the tokens past those that it knows: a model
        that has grown for one of them gives logits for the others too."""
        assert not self.widths, "the model is narrowed already"
        self.widths = widths
        self._model.register_forward_hook(self._rule_out)

    def _rule_out(self, module: nn.Module, args: Any, output: Any) -> None:
        active, logits = self._active, output.logits  # (rows, seq, vocabulary)
        if not isinstance(active, _Rows):
            logits[..., self.widths.get(active, logits.shape[-1]) :] = -torch.inf
            return
        names: list[str | None] = [None] * active.n_rows
        for name, rows in active.groups:
            for row in rows.tolist():
                names[row] = name
        for row, one in enumerate(names):
            logits[row, ..., self.widths.get(one, logits.shape[-1]) :] = -torch.inf

    def remove_(self, name: str) -> None:
        """Drop an adapter and free its memory. If it is active, the base takes over."""
        for path in self._adapters.pop(name):
            del self._layers[path][name]
            if not self._layers[path]:
                del self._layers[path]
                self._hooks.pop(path).remove()
        active = self._active
        used = [group for group, _ in active.groups] if isinstance(active, _Rows) else [active]
        if name in used:
            self._active = None

    def use(self, name: str | None) -> None:
        """Use this adapter, or the base, for every row from now on."""
        if name is not None and name not in self._adapters:
            raise KeyError(name)
        self._active = name

    def use_rows(self, names: Sequence[str | None]) -> None:
        """Use one adapter per row in the following batches.

        A batch must have as many rows as there are names, and the input of every adapted module
        must have these rows as its first dimension, (rows, seq, d_in) or ids (rows, seq);
        otherwise the forward pass raises MixedRowsError.
        """
        distinct = list(dict.fromkeys(names))
        if len(distinct) == 1:
            self.use(distinct[0])
            return
        groups = []
        for name in distinct:
            if name is None:
                continue
            if name not in self._adapters:
                raise KeyError(name)
            rows = [row for row, one in enumerate(names) if one == name]
            groups.append((name, torch.tensor(rows, device=self._device)))
        self._active = _Rows(len(names), tuple(groups)) if groups else None

    @property
    def _device(self) -> torch.device:
        return next(self._model.parameters()).device

    def n_bytes(self, name: str) -> int:
        """Bytes of an adapter's tensors in memory, which are in float32."""
        return sum(tensor.nbytes for tensor in own_tensors(self._adapters[name]))

    def _hook(self, path: str, base: nn.Module, layers: Mapping[str, StandIn]) -> Hook:
        def adapt(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], y: Any) -> Any:
            active = self._active
            if module is not base:  # a copy of it, which carries the hook along
                return None
            if isinstance(active, _Rows):
                groups = [(layers[name], rows) for name, rows in active.groups if name in layers]
                return _adapt_rows(path, groups, active.n_rows, args, kwargs, y)
            layer = layers.get(active) if active is not None else None
            return None if layer is None else _adapt(layer, args, kwargs, y)

        return adapt


def stand_ins(model: nn.Module) -> dict[str, StandIn]:
    """The layers that replace modules of the base in a model, by path."""
    return {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, StandIn) and not isinstance(module, LoraExperts)
    }


def own_tensors(layers: Mapping[str, StandIn]) -> Iterator[Tensor]:
    """The tensors of an adapter, without those of the base."""
    for layer in layers.values():
        own = [*layer.named_parameters(), *layer.named_buffers()]
        yield from (tensor for name, tensor in own if not name.startswith("base."))


def _adapt(layer: StandIn, args: tuple[Any, ...], kwargs: dict[str, Any], y: Any) -> Any:
    """The output of a layer where that of the base is y."""
    if isinstance(layer, LoraLayer | TokenRows):
        return layer.adapt(args[0], y)
    return layer(*args, **kwargs)  # y is of no use to experts and modules trained in full


def _adapt_rows(
    path: str,
    groups: Sequence[tuple[StandIn, Tensor]],
    n_rows: int,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    y: Any,
) -> Any:
    """Overwrite the base's outputs of the adapted rows, one group of rows at a time."""
    if not groups:
        return None
    x = args[0]
    # An input without a token dimension does not consist of rows, even if its length happens to be
    # their number: for example the tokens that a router sends to an expert.
    least = 3 if x.is_floating_point() else 2
    if len(args) + len(kwargs) > 1 or x.dim() < least or x.shape[0] != n_rows:
        raise MixedRowsError(
            f"{path}: found an input of shape {list(x.shape)}, expected {n_rows} rows as its first"
            " dimension; the rows of one batch cannot use different adapters here"
        )
    for layer, rows in groups:
        rows = rows.to(x.device)
        adapted = _adapt(layer, (x.index_select(0, rows),), {}, y.index_select(0, rows))
        y.index_copy_(0, rows, adapted)  # y is the module's fresh output, which nothing else holds
    return y
