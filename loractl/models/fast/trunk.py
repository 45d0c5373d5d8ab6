"""The trunk of a Llama-like model in hand-written layers, with the results of transformers' own.

`Trunk` verifies itself when it is created: on a short packed batch its hidden states must equal the
model's. Whatever it cannot handle, in any call, runs with transformers' own layers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from loractl.models.fast.architectures import TRUNKS
from loractl.models.fast.read_layer import Unusual, read_layer
from loractl.models.fast.shared_start import once, shared_start
from loractl.models.fast.trunk_cache import TrunkCache
from loractl.models.forward import hidden_states
from loractl.models.head import plain_head
from loractl.models.proving_run import ProvingRun
from loractl.ops.layer.block import block
from loractl.ops.layer.description import Layer, Place
from loractl.ops.segments import Segments, segments_of
from loractl.records import Batch

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Trunk:
    """Batch -> its hidden states after the final norm, and the batch as it was laid out for them:
    (1, tokens, hidden) without padding and with a start shared by all examples only once, or
    (rows, length, hidden) as transformers takes it."""

    def __init__(self, model: "PreTrainedModel", run: ProvingRun | None = None) -> None:
        """`run` may be shared with other checks."""
        self._model = model
        self._cache: TrunkCache | None = None
        self.fallback_reason = _why_not(model, run or ProvingRun(model))
        """Why transformers' own layers are used; empty if they are not."""

    def __call__(self, batch: Batch) -> tuple[Tensor, Batch]:
        return self.together([batch])[0]

    def together(self, batches: Sequence[Batch]) -> list[tuple[Tensor, Batch]]:
        """The same for several batches, with each layer read once for all."""
        if not self.fallback_reason:
            try:
                wholes = [batch.without_padding() for batch in batches]
                return _hidden(self._model, wholes, self._cache)
            except Unusual:  # a hook added later, for example
                pass
        return [(hidden_states(self._model, batch), batch) for batch in batches]

    @property
    def goes_together(self) -> bool:
        """Whether all micro-batches of a step are computed together: layers come from elsewhere,
        no random mask depends on the order, and each gradient is one sum over the batches (A and B
        with a start have two terms for each)."""
        if self.fallback_reason:
            return False
        layers = _layers(self._model.base_model)
        if all(layer.arrive is None for layer in layers):
            return False
        linears = [linear for layer in layers for linear in layer.linears]
        factors = (one for linear in linears if linear.factors for one in linear.factors())
        return not any(linear.dropout for linear in linears) and all(one.is_leaf for one in factors)

    @property
    def frozen_layers(self) -> int:
        """How many of the lowest layers have nothing trained in or below them; 0 if not fast."""
        if self.fallback_reason:
            return 0
        trunk: Any = self._model.base_model
        if any(parameter.requires_grad for parameter in trunk.embed_tokens.parameters()):
            return 0
        return _lowest_adapted(_layers(trunk))

    def keep_(self, cache: TrunkCache) -> None:
        """Compute the frozen layers once per example and keep the result."""
        self._cache = cache


def _why_not(model: "PreTrainedModel", run: ProvingRun) -> str:
    """Why a model cannot use the fast layers, or an empty string."""
    trunk: Any = model.base_model
    if type(trunk).__name__ not in TRUNKS:
        return f"no fast layers for {type(trunk).__name__}"
    if plain_head(model) is None:  # loss and gradients then come from the model as a whole
        head: Any = model.get_output_embeddings()  # type: ignore[no-untyped-call]
        return f"its head is a {type(head).__name__}"
    was_training = model.training
    try:
        model.train()  # to notice what only training has, such as attention dropout
        if not _layers(trunk):
            return "it has no layers"
        model.eval()  # type: ignore[no-untyped-call]
        with torch.no_grad():
            theirs, [(ours, _)] = run.shown.hidden, _hidden(model, [run.shown.batch])
    except Unusual as found:
        return str(found)
    finally:
        model.train(was_training)
    # bfloat16 keeps 8 bits and loses a few over many layers; a wrong layer is off by more
    allowed = {torch.float32: 1e-4, torch.float64: 1e-8}.get(ours.dtype, 0.1)
    off = (theirs.double() - ours.double()).norm() / theirs.double().norm()
    return "" if off <= allowed else f"its layers differ from transformers' by {float(off):.1e}"


def _layers(trunk: Any) -> list[Layer]:
    """Raises Unusual."""
    return [read_layer(layer, f"layers.{i}") for i, layer in enumerate(trunk.layers)]


def _lowest_adapted(layers: list[Layer]) -> int:
    adapted = (i for i, one in enumerate(layers) if any(linear.factors for linear in one.linears))
    return next(adapted, len(layers))


@dataclass
class _Pass:
    """A batch on its way through the layers."""

    batch: Batch
    shape: torch.Size  # (rows, length, hidden)
    rows: Tensor  # (N, hidden): what the next layer takes
    places: dict[str | None, Place]  # by what `_kinds` says of a layer


def _hidden(
    model: "PreTrainedModel", wholes: Sequence[Batch], cache: TrunkCache | None = None
) -> list[tuple[Tensor, Batch]]:
    """The hidden states of several batches, layer by layer: each layer is needed once.

    In each layer the last batch comes first, so that the backward pass, which goes the other way
    round, adds up their gradients in the order of the batches. Raises Unusual if a layer is not
    what the fast one computes.
    """
    trunk: Any = model.base_model
    layers, first = _layers(trunk), 0
    if cache is not None and all(whole.examples for whole in wholes):
        first = cache.layers
        assert first <= _lowest_adapted(layers), "a layer among the cached ones is adapted"
    passes = [_begin(trunk, layers, whole, cache, first) for whole in wholes]
    _go_through(trunk, layers, passes, first)
    return [(trunk.norm(one.rows.view(one.shape)), one.batch) for one in passes]


def _begin(
    trunk: Any, layers: list[Layer], whole: Batch, cache: TrunkCache | None, first: int
) -> _Pass:
    """A batch before layer number `first`, a start that all its examples share only once."""
    # With dropout the copies of a start differ: each has its own masks.
    drops = any(linear.dropout for layer in layers for linear in layer.linears)
    shared = 0 if drops else shared_start(whole)
    batch, kept = once(whole, shared) if shared else (whole, None)
    if not first:
        return _pass(trunk, batch, _embedded(trunk, batch), 0)
    assert cache is not None

    def below(one: Batch) -> Tensor:
        single = _pass(trunk, one, _embedded(trunk, one), 0)
        _go_through(trunk, layers[:first], [single], 0)
        return single.rows.view(single.shape)

    x = cache.fetch(whole, below)
    return _pass(trunk, batch, x if kept is None else x[:, kept], first)


def _pass(trunk: Any, batch: Batch, x: Tensor, first: int) -> _Pass:
    segments = segments_of(batch.on_host.position_ids, batch.shared)
    kinds = dict.fromkeys(_kinds(trunk)[first:])
    places = {kind: _place(trunk, x, batch, segments, kind) for kind in kinds}
    return _Pass(batch, x.shape, x.reshape(-1, x.shape[-1]), places)


def _go_through(trunk: Any, layers: list[Layer], passes: Sequence[_Pass], first: int) -> None:
    """Apply the layers from number `first` on."""
    kinds = _kinds(trunk)
    for number, layer in enumerate(layers[first:], start=first):
        own: Any = trunk.layers[number]
        checkpoint = bool(own.gradient_checkpointing) and own.training
        for one in reversed(passes):
            one.rows = block(one.rows, layer, one.places[kinds[number]], checkpoint=checkpoint)


def _embedded(trunk: Any, batch: Batch) -> Tensor:
    x: Tensor = trunk.embed_tokens(batch.input_ids)  # (rows, length, hidden)
    factor = getattr(trunk, "embedding_multiplier", 1.0)  # Granite
    return x if factor == 1.0 else x * factor


def _kinds(trunk: Any) -> list[str | None]:
    """Which rotary angles each layer uses: Gemma 3 has two sets of them."""
    count = len(trunk.layers)
    if type(trunk).__name__ == "Gemma3TextModel":
        return list(trunk.config.layer_types[:count])
    return [None] * count


def _place(trunk: Any, x: Tensor, batch: Batch, segments: Segments, kind: str | None) -> Place:
    more = () if kind is None else (kind,)
    cos, sin = trunk.rotary_emb(x, batch.position_ids, *more)  # (rows, length, rotated)
    n = batch.input_ids.numel()
    cos, sin = (one.expand(*batch.input_ids.shape, -1).reshape(n, -1) for one in (cos, sin))
    return Place(segments, cos.float(), sin.float())
