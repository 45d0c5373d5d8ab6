"""Measures what merging into the original base changes, against the quantized one of training.

The two models take turns in memory: first the one of training, its layers packed, then the other
layer by layer; only one that cannot run so is loaded whole.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from loractl.artifacts import probe
from loractl.artifacts.model import streamed
from loractl.artifacts.model.hollow import Hollow, NotLayerwiseError, TableRows, base_of
from loractl.artifacts.peft.adapter import Adapter
from loractl.artifacts.peft.attach import load_
from loractl.engine.measured_tokens import tokens_of
from loractl.engine.merge_bases import Bases
from loractl.evaluation.difference import LogitDifference, error_to_update, logit_difference
from loractl.lora.dense import dense_weight_of
from loractl.lora.layer import LoraLayer, Rows
from loractl.lora.ranks import EXPERTS
from loractl.models import load
from loractl.models.fingerprints import remembered_fingerprint

if TYPE_CHECKING:
    from collections.abc import Iterable

    from transformers import PreTrainedModel


@dataclass(frozen=True)
class BaseDifference:
    """What is between the two models that an adapter can be merged into."""

    logits: LogitDifference  # of the original one against the one of training
    tokens: str  # which tokens they are of
    losses: tuple[float, float] | None  # as trained, and original; None: not of real text
    ratios: Mapping[str, float]  # ||quantization error|| / ||update|| of each layer that has both


def measure(directory: Path, bases: Bases, adapter: Adapter) -> BaseDifference:
    """Compare the two; the directory has the tokenizer of the merged model. Raises ModelError."""
    trained, original = bases.trained, bases.original
    assert original is not None, "there are two bases"
    model = _load(trained)
    layers = load_(model, adapter)
    merged = load.Source(trained.name, directory)
    measured = tokens_of(adapter, model, merged)
    expected = probe.probe_logits(model, measured.ids)[measured.counts]  # (tokens, vocabulary)
    ratios = _ratios(layers, original)
    del model, layers
    found = _logits_of(original, adapter, measured.ids)[measured.counts]
    losses = None
    if measured.are_real:
        losses = _loss(expected, measured.targets), _loss(found, measured.targets)
    difference = logit_difference(expected, found)
    return BaseDifference(difference, measured.words, losses, ratios)


def _loss(logits: Tensor, targets: Tensor) -> float:
    return float(F.cross_entropy(logits, targets))


def _load(source: load.Source) -> "PreTrainedModel":
    def fingerprint() -> str:
        return remembered_fingerprint(source)

    cpu = torch.device("cpu")
    return load.load_model(source, dtype=torch.float32, device=cpu, fingerprint=fingerprint)


def _ratios(layers: Mapping[str, LoraLayer], original: load.Source) -> dict[str, float]:
    weight = _weights_of(original)
    found = {
        name: error_to_update(layer, weight(name))
        for name, layer in layers.items()
        if layer.kind not in EXPERTS  # not quantized, and in files under other names
    }
    return {name: ratio for name, ratio in found.items() if ratio is not None}


def _weights_of(source: load.Source) -> Callable[[str], Rows | Tensor]:
    """The weight of a layer by its path: in its files, or in the model loaded whole."""
    try:
        hollow = Hollow(source)
    except NotLayerwiseError:
        model = _load(source)
        return lambda name: dense_weight_of(model.get_submodule(name))
    return lambda name: hollow.rows(f"{name}.weight")


def _logits_of(source: load.Source, adapter: Adapter, ids: Tensor) -> Tensor:
    """The logits of a base with an adapter."""
    try:
        hollow = base_of(source, adapter)
        return streamed.logits_of(hollow, adapter, ids, _Unseen(), None).expected
    except NotLayerwiseError:
        model = _load(source)
        load_(model, adapter)
        return probe.probe_logits(model, ids)


class _Unseen:
    """Where nobody looks at the tensors that come by (`streamed.Witness`)."""

    def merged(self, name: str, tensor: "Tensor | TableRows") -> None: ...
    def plain(self, name: str, strips: "Iterable[Tensor]") -> None: ...
    def adapted(self, name: str, layer: LoraLayer) -> None: ...
    def trained(self, name: str, tensor: Tensor) -> None: ...
