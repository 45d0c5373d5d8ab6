"""The proof of a merge: reload the result, and compare it with base + adapter in two ways.

First by logits, as a user would see them: both sides compute in float32, and a float32 merge must
agree within 1e-5 x max(1, max |logit|). A merge in bfloat16 or float16 differs by its rounding; how
much that explains is measured, not guessed: the exact merge runs once more with errors of exactly
the sizes that rounding made, with random signs. In a deep model that is far more than one missing
update would change, hence the second check, tensor by tensor: each adapted layer is given unit
vectors, through its own forward and not the formula of the merge, and the outputs must be the
merged weight up to one rounding. Every other tensor must equal the base's, bit for bit.

Both models run layer by layer in step (`streamed`). A model that cannot run so is loaded whole.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from loractl.artifacts import probe
from loractl.artifacts.model import streamed
from loractl.artifacts.model.hollow import Hollow, NotLayerwiseError, TableRows, base_of
from loractl.artifacts.model.merge import float_dtypes
from loractl.artifacts.peft.adapter import Adapter
from loractl.artifacts.peft.attach import load_, ranks_of
from loractl.artifacts.peft.vocabulary_size import fit_
from loractl.lora.dense import dense_weight_of
from loractl.lora.inject import adaptable, merge_, module_of
from loractl.lora.layer import LoraLayer
from loractl.lora.ranks import EXPERTS
from loractl.lora.token_rows import token_rows
from loractl.lora.whole import wholes
from loractl.models.load import Source, load_model, locate
from loractl.models.torch_dtypes import dtype_word


@dataclass(frozen=True)
class Proof:
    """The result of the comparison: how logits differ, and which tensors are wrong."""

    logits: probe.Agreement
    effect: float  # largest difference that the adapter itself makes
    dtype: str
    wrong: tuple[str, ...]  # tensors that are not base + update, rounded once
    whole: str | None = None  # why whole models were in memory, if they were

    @property
    def holds(self) -> bool:
        return self.logits.holds and not self.wrong

    @property
    def drowned(self) -> bool:
        """Whether rounding changes the model as much as the adapter does."""
        return self.logits.drowns(self.effect)

    def __str__(self) -> str:
        said = self.logits.say(f"of the merged model ({self.dtype})", proven=self.holds)
        wrong = f"; {len(self.wrong)} tensors are wrong: {', '.join(self.wrong[:3])}"
        return (
            f"{said}; the adapter itself changes logits by {self.effect:.2e}"
            f"{f'; with whole models in memory: {self.whole}' if self.whole else ''}"
            f"{wrong if self.wrong else ''}"
        )


def prove(merged: Path, source: Source, adapter: Adapter, *, dtype: torch.dtype | None) -> Proof:
    """Compare a merged directory with base + adapter, one layer of one model in memory at a time.

    `dtype` is what every tensor was rounded to; None: each kept that of the base. Raises
    ArtifactError if the adapter changes nothing at all.
    """
    try:
        return _prove_layerwise(merged, source, adapter, dtype=dtype)
    except NotLayerwiseError as error:
        return _prove_whole(merged, source, adapter, dtype=dtype, why=str(error))


def _prove_layerwise(
    merged: Path, source: Source, adapter: Adapter, *, dtype: torch.dtype | None
) -> Proof:
    dtypes = float_dtypes(locate(str(merged)))
    coarsest = max(dtypes, key=lambda found: torch.finfo(found).eps)
    hollow = base_of(source, adapter)
    other = Hollow(locate(str(merged)), hollow.spare)
    if (other.parts, other.shapes) != (hollow.parts, hollow.shapes):
        raise NotLayerwiseError("the merged model has other tensors than the base")
    kinds = adaptable(hollow.model)
    names = {
        name if kinds[name] in EXPERTS else f"{name}.weight": kinds[name]
        for name in ranks_of(adapter, hollow.model)
    }
    ids = probe.probe_ids(hollow.model, adapter.own_tokens)
    compared = _Compared(names, dtype, coarsest, dtypes)
    rounded = None if coarsest == torch.float32 else partial(_round_to, coarsest)
    told = streamed.logits_of(hollow, adapter, ids, compared, rounded, merged=other)
    assert told.merged is not None
    effect = probe.effect_of(told.base, told.expected, adapter.directory)
    rounding = 0.0
    if told.shaken is not None:
        rounding = float((told.shaken - told.expected).abs_().max())
    return Proof(
        logits=probe.compare_logits(told.merged, told.expected, rounding=rounding),
        effect=effect,
        dtype=dtype_word(coarsest),
        wrong=compared.wrong(),
    )


def _round_to(dtype: torch.dtype, exact: Tensor) -> Tensor:
    return exact.to(dtype).float()


class _Compared:
    """Compares the tensors of a merged model with base + adapter, part by part."""

    def __init__(
        self,
        kinds: Mapping[str, str],
        dtype: torch.dtype | None,
        coarsest: torch.dtype,
        dtypes: Iterable[torch.dtype],
    ) -> None:
        self.kinds, self.dtype, self.coarsest, self.dtypes = kinds, dtype, coarsest, dtypes
        self._found: dict[str, Tensor | TableRows] = {}  # of the part at hand
        self._updates: list[str] = []
        self._wholes: list[str] = []
        self._changed: list[str] = []

    def merged(self, name: str, tensor: Tensor | TableRows) -> None:
        kind = self.kinds.get(name)
        if kind is not None:
            assert isinstance(tensor, Tensor), name
            tensor = probe.plain_columns(kind, tensor)
        self._found[name] = tensor

    def plain(self, name: str, strips: Iterable[Tensor]) -> None:
        found = self._found.pop(name)
        theirs = [found] if isinstance(found, Tensor) else found.strips()
        dtype = self.dtype or torch.float32
        pairs = zip(strips, theirs, strict=True)
        if not all(_same_bits(strip.to(dtype).float(), their) for strip, their in pairs):
            self._changed.append(name)

    def adapted(self, name: str, layer: LoraLayer) -> None:
        full = name if layer.kind in EXPERTS else f"{name}.weight"
        exact, columns = probe.columns_of(layer), self._found.pop(full)
        assert isinstance(columns, Tensor), full
        if not probe.is_within(columns, exact, probe.half_step(exact, self.coarsest)):
            self._updates.append(full)

    def trained(self, name: str, tensor: Tensor) -> None:
        found = self._found.pop(name)
        assert isinstance(found, Tensor), name
        if not any(_same_bits(found, tensor.to(dtype).float()) for dtype in self.dtypes):
            self._wholes.append(name)

    def wrong(self) -> tuple[str, ...]:
        assert not self._found, sorted(self._found)
        return (*self._updates, *self._wholes, *sorted(self._changed))


def _same_bits(one: Tensor, other: Tensor) -> bool:
    """Whether float32 tensors are equal; 0 and -0 are not."""
    return torch.equal(one.view(torch.int32), other.view(torch.int32))


def _prove_whole(
    merged: Path, source: Source, adapter: Adapter, *, dtype: torch.dtype | None, why: str
) -> Proof:
    """The same with one whole model in memory at a time."""
    cpu = torch.device("cpu")
    dtypes = float_dtypes(locate(str(merged)))
    coarsest = max(dtypes, key=lambda found: torch.finfo(found).eps)
    model = load_model(source, dtype=torch.float32, device=cpu, dense=True)
    fit_(model, adapter)
    ids = probe.probe_ids(model, adapter.own_tokens)
    base = probe.probe_logits(model, ids)
    untouched = _digest_tensors(model, dtype)
    layers = load_(model, adapter)
    expected = probe.probe_logits(model, ids)
    effect = probe.effect_of(base, expected, adapter.directory)
    columns = {name: (layer.kind, probe.columns_of(layer)) for name, layer in layers.items()}
    wanted = {
        f"{path}.{inner}": tensor
        for path, whole in wholes(model).items()
        for inner, tensor in whole.tuned.state_dict().items()
    }
    rows = token_rows(model).items()
    wanted |= {f"{path}.weight": one.merged_weight().detach() for path, one in rows}
    adapted = {name if kind in EXPERTS else f"{name}.weight" for name, (kind, _) in columns.items()}
    rounding = 0.0
    if coarsest != torch.float32:
        merge_(model)
        rounding = probe.rounding_effect(
            model, ids, expected, model.parameters(), lambda exact: exact.to(coarsest).float()
        )
    del model, layers
    model = load_model(locate(str(merged)), dtype=torch.float32, device=cpu)
    return Proof(
        logits=probe.compare_logits(probe.probe_logits(model, ids), expected, rounding=rounding),
        effect=effect,
        dtype=dtype_word(coarsest),
        whole=why,
        wrong=(
            *_wrong_updates(model, columns, coarsest),
            *_wrong_wholes(model, wanted, dtypes),
            *_changed_tensors(model, untouched, adapted | wanted.keys()),
        ),
    )


def _wrong_updates(
    model: nn.Module, columns: Mapping[str, tuple[str, Tensor]], dtype: torch.dtype
) -> list[str]:
    """Adapted weights that are not the exact ones rounded once to `dtype` (or finer)."""
    return [
        name if kind in EXPERTS else f"{name}.weight"
        for name, (kind, exact) in columns.items()
        if not probe.is_within(
            probe.plain_columns(kind, dense_weight_of(*module_of(model, name, kind))),
            exact,
            probe.half_step(exact, dtype),
        )
    ]


def _wrong_wholes(
    model: nn.Module, wanted: Mapping[str, Tensor], dtypes: Iterable[torch.dtype]
) -> list[str]:
    """Tensors of modules trained whole that are not the adapter's, rounded once to one of these."""
    found = model.state_dict()
    return [
        name
        for name, tensor in wanted.items()
        if not any(torch.equal(found[name], tensor.to(dtype).float()) for dtype in dtypes)
    ]


def _digest_tensors(model: nn.Module, dtype: torch.dtype | None) -> dict[str, str]:
    """A hash of every tensor of a model after rounding it to `dtype`."""
    return {
        name: hashlib.sha256(tensor.to(dtype or tensor.dtype).float().flatten().numpy()).hexdigest()
        for name, tensor in model.state_dict().items()
    }


def _changed_tensors(
    model: nn.Module, untouched: Mapping[str, str], adapted: Iterable[str]
) -> list[str]:
    """Tensors without an adapter that differ from the base's, or are missing or new."""
    found = _digest_tensors(model, None)
    names = sorted((found.keys() | untouched.keys()) - set(adapted))
    return [name for name in names if found.get(name) != untouched.get(name)]
