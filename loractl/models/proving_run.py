"""One short run of transformers' own model, against which the fast layers and the head are checked.
It knows nothing about either."""

import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from loractl.models.forward import hidden_states, trunk_of, trunk_options
from loractl.models.segments.install import call_options
from loractl.records import Batch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LENGTHS = (5, 7, 4)
"""Tokens of the examples packed into the first row; the second row is one example of their sum."""


@dataclass(frozen=True)
class Shown:
    """What a model computed from a batch."""

    batch: Batch
    hidden: Tensor  # (rows, length, hidden): as `hidden_states`
    logits: Tensor  # (rows, length, vocabulary): of the whole model


class ProvingRun:
    """A run that is made on first use and kept for later ones."""

    def __init__(self, model: "PreTrainedModel") -> None:
        self._model = model
        self._shown: Shown | None = None

    @property
    def shown(self) -> Shown:
        """Needs a model with a trunk (`trunk_of`). Costs one short forward pass, or two if the
        model calls its trunk differently from `hidden_states`."""
        if self._shown is None:
            model, was_training = self._model, self._model.training
            model.eval()  # type: ignore[no-untyped-call]
            with torch.no_grad():
                self._shown = _run(model)
            model.train(was_training)
        return self._shown

    def forget_(self) -> None:
        """Run again on next use: the model now computes in another way."""
        self._shown = None


class _Calls:
    """A hook that records the arguments and the output of a module."""

    def __init__(self) -> None:
        self.noted: list[tuple[dict[str, Any], Any]] = []

    def __call__(self, module: nn.Module, args: Any, options: dict[str, Any], output: Any) -> None:
        given = {f"argument {number}": value for number, value in enumerate(args)}
        self.noted.append((given | options, output))


def _run(model: "PreTrainedModel") -> Shown:
    batch, trunk = _batch(model), trunk_of(model)
    assert trunk is not None, f"{type(model).__name__} has no trunk of its own"
    besides = call_options(model, batch.position_ids)
    options = dict(besides)
    if "position_ids" in inspect.signature(model.forward).parameters:
        options["position_ids"] = batch.position_ids
    calls = _Calls()
    hook = trunk.register_forward_hook(calls, with_kwargs=True)
    try:
        logits: Tensor = model(
            input_ids=batch.input_ids, attention_mask=None, use_cache=False, **options
        ).logits
    finally:
        hook.remove()
    wanted = {"input_ids": batch.input_ids, **trunk_options(model, trunk, batch), **besides}
    if len(calls.noted) == 1 and _are_equal(calls.noted[0][0], wanted):
        return Shown(batch, calls.noted[0][1][0], logits)
    return Shown(batch, hidden_states(model, batch), logits)


def _are_equal(given: dict[str, Any], wanted: dict[str, Any]) -> bool:
    """Whether two calls have the same options, ignoring those that are None."""
    given = {name: value for name, value in given.items() if value is not None}
    wanted = {name: value for name, value in wanted.items() if value is not None}
    return given.keys() == wanted.keys() and all(
        given[name] is value or (not isinstance(value, Tensor) and given[name] == value)
        for name, value in wanted.items()
    )


def _batch(model: "PreTrainedModel") -> Batch:
    """Two rows of random tokens: packed examples, and a single one."""
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(0)
    length, vocabulary = sum(LENGTHS), model.config.get_text_config().vocab_size
    ids = torch.randint(0, vocabulary, (2, length), generator=generator).to(device)
    packed = torch.cat([torch.arange(n, device=device) for n in LENGTHS])
    positions = torch.stack([packed, torch.arange(length, device=device)])
    return Batch(ids, ids, positions, n_tokens=ids.numel(), lines=())
