"""The proof of a merge: load what was written again, and compare it with base + adapter, twice.

By logits, as a user would see them: both sides compute in float32, and a float32 merge must agree
within 1e-5 x max(1, max |logit|). A merge in bfloat16 or float16 differs by its rounding; how much
that explains is measured, not guessed: the exact merge runs once more with errors of the very sizes
that rounding made, their signs drawn at random. In a deep model that is far more than one missing
update would change, and so the second look, tensor by tensor: each adapted layer is given unit
vectors, through its own forward and not the formula of the merge, and what comes out must be the
merged weight but for one rounding. Every other tensor must be the base's, bit for bit.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.func import functional_call

from loractl.artifacts.model.merge import float_dtypes
from loractl.artifacts.peft.adapter import Adapter
from loractl.artifacts.peft.attach import load_
from loractl.errors import ArtifactError
from loractl.lora.dense import dense_weight_of, matrix_sizes
from loractl.lora.experts import LoraExperts
from loractl.lora.inject import adapters, merge_, module_of
from loractl.lora.layer import LoraLayer
from loractl.lora.ranks import EXPERTS
from loractl.lora.whole import wholes
from loractl.models.load import Source, load_model, locate

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FP32_TOLERANCE = 1e-5
ROUNDING_FACTOR = 4.0
"""What chance explains seldom differs from another draw of the same sizes by more than 1.5x."""
ROWS, LENGTH = 4, 32
COLUMNS = 32
"""How many columns of each adapted weight are looked at, drawn at random."""
FP32_NOISE = 1e-6
"""Error of a merge computed in float32, over the largest weight; measured: at most 2e-7."""


@dataclass(frozen=True)
class Proof:
    """What the comparison found: differences of logits, and tensors that are not as they should."""

    difference: float
    bound: float
    largest_logit: float
    top1_agreement: float
    effect: float  # largest difference that the adapter itself makes
    dtype: str
    wrong: tuple[str, ...]  # tensors other than base + update, rounded once

    @property
    def holds(self) -> bool:
        return self.difference <= self.bound and not self.wrong

    @property
    def drowned(self) -> bool:
        """Whether rounding changes the model as much as the adapter does."""
        return self.difference > 0.5 * self.effect

    def __str__(self) -> str:
        verdict = "proven" if self.holds else "FAILED"
        wrong = f"; {len(self.wrong)} tensors are wrong: {', '.join(self.wrong[:3])}"
        return (
            f"{verdict}: logits of the merged model ({self.dtype}) and of base + adapter differ by"
            f" at most {self.difference:.2e}, allowed {self.bound:.2e}; same next token in"
            f" {self.top1_agreement:.1%}; the adapter itself moves logits by {self.effect:.2e}"
            f"{wrong if self.wrong else ''}"
        )


def prove(merged: Path, source: Source, adapter: Adapter, *, dtype: torch.dtype | None) -> Proof:
    """Compare a merged directory with base + adapter, one model in memory at a time.

    `dtype` is what every tensor was rounded to, None where each kept that of the base. Raises
    ArtifactError when the adapter changes nothing at all.
    """
    cpu = torch.device("cpu")
    dtypes = float_dtypes(locate(str(merged)))
    coarsest = max(dtypes, key=lambda found: torch.finfo(found).eps)
    model = load_model(source, dtype=torch.float32, device=cpu)
    ids = probe_ids(model)
    base = probe_logits(model, ids)
    untouched = _digests(model, dtype)
    layers = load_(model, adapter)
    expected = probe_logits(model, ids)
    effect = float((expected - base).abs().max())
    if effect == 0.0:
        raise ArtifactError(
            f"{adapter.directory}: the adapter changes nothing: its update is zero everywhere"
        )
    columns = {name: (layer.kind, columns_of(layer)) for name, layer in layers.items()}
    wanted = {
        f"{path}.{inner}": tensor
        for path, whole in wholes(model).items()
        for inner, tensor in whole.tuned.state_dict().items()
    }
    adapted = {name if kind in EXPERTS else f"{name}.weight" for name, (kind, _) in columns.items()}
    largest = float(expected.abs().max())
    bound = FP32_TOLERANCE * max(1.0, largest)
    if coarsest != torch.float32:
        bound += ROUNDING_FACTOR * _rounding_effect(model, ids, expected, coarsest)
    del model, layers
    model = load_model(locate(str(merged)), dtype=torch.float32, device=cpu)
    found = probe_logits(model, ids)
    return Proof(
        difference=float((found - expected).abs().max()),
        bound=bound,
        largest_logit=largest,
        top1_agreement=float((found.argmax(-1) == expected.argmax(-1)).float().mean()),
        effect=effect,
        dtype=str(coarsest).removeprefix("torch."),
        wrong=(
            *_wrong_updates(model, columns, coarsest),
            *_wrong_wholes(model, wanted, dtypes),
            *_changed(model, untouched, adapted | wanted.keys()),
        ),
    )


def probe_ids(model: "PreTrainedModel") -> Tensor:
    generator = torch.Generator().manual_seed(0)
    weight = model.get_input_embeddings().weight
    assert isinstance(weight, Tensor)
    vocabulary = weight.shape[0]
    return torch.randint(0, vocabulary, (ROWS, LENGTH), generator=generator)


def probe_logits(model: nn.Module, ids: Tensor) -> Tensor:
    with torch.no_grad():
        logits: Tensor = model(input_ids=ids, use_cache=False).logits  # (ROWS, LENGTH, vocabulary)
    return logits.float()


def _rounding_effect(model: nn.Module, ids: Tensor, expected: Tensor, dtype: torch.dtype) -> float:
    """The change of logits by errors as large as rounding to `dtype` makes, of random signs.

    Merges the adapter into `model`.
    """
    assert adapters(model), "expected a model that carries the adapter"
    merge_(model)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            error = parameter.to(dtype).float() - parameter
            signs = torch.randint(0, 2, error.shape, generator=generator, dtype=torch.int8)
            parameter.add_(error * (signs * 2 - 1))
    return float((probe_logits(model, ids) - expected).abs().max())


def columns_of(layer: LoraLayer) -> Tensor:
    """What an adapted layer answers to some unit vectors: (n, d_out) in float64.

    These are columns of its weight as the forward pass applies it: bias and embed_scale taken out.
    Of fused experts, one after the other: (n experts, d_out).
    """
    exact = {name: value.detach().double() for name, value in layer.named_parameters()}
    if isinstance(layer, LoraExperts):
        return _columns_of_experts(layer, exact)
    indices = picked(layer.d_in)
    if layer.kind == "embedding":
        rows: Tensor = functional_call(layer, exact, (indices,))
        return rows / float(getattr(layer.base, "embed_scale", 1.0))
    x = torch.zeros(len(indices) + 1, layer.d_in, dtype=torch.float64)
    x[torch.arange(len(indices)), indices] = 1.0
    y: Tensor = functional_call(layer, exact, (x,))  # (n + 1, d_out), the last: the bias alone
    return y[:-1] - y[-1]


def _columns_of_experts(layer: LoraExperts, exact: Mapping[str, Tensor]) -> Tensor:
    """The same of each expert: its product and update, as `AdaptedExperts` adds them."""
    W = layer.dense_weight().detach().double()
    x = torch.eye(layer.d_in, dtype=torch.float64)[picked(layer.d_in)]
    counts = [len(x)] * layer.n_experts
    with torch.no_grad():
        update: Tensor = functional_call(layer, dict(exact), (x.repeat(len(counts), 1), counts))
    return _plain_columns(layer.kind, W) + update * layer.scale


def picked(d_in: int) -> Tensor:
    """The inputs that are looked at: the same for a layer and its merged weight."""
    generator = torch.Generator().manual_seed(2)
    return torch.randperm(d_in, generator=generator)[:COLUMNS]


def _plain_columns(kind: str, weight: Tensor) -> Tensor:
    """The same columns of a plain weight, (n, d_out) or (n experts, d_out), in float64."""
    W = weight.detach().double()
    indices = picked(matrix_sizes(kind, W)[0])
    columns = W[..., indices].mT if kind in ("linear", "experts") else W[..., indices, :]
    return columns.reshape(-1, columns.shape[-1])


def _wrong_updates(
    model: nn.Module, columns: Mapping[str, tuple[str, Tensor]], dtype: torch.dtype
) -> list[str]:
    """Adapted weights that are not the exact ones rounded once to `dtype` (or finer)."""
    info = torch.finfo(dtype)
    wrong = []
    for name, (kind, exact) in columns.items():
        weight = dense_weight_of(*module_of(model, name, kind))
        error = (_plain_columns(kind, weight) - exact).abs()
        size = exact.abs().clamp(min=info.tiny)  # below it the steps of a format grow no smaller
        _, exponent = torch.frexp(size)  # 2^(exponent - 1) <= size < 2^exponent
        step = info.eps * torch.exp2(exponent.double() - 1)
        if not bool((error <= step / 2 + FP32_NOISE * exact.abs().max()).all()):
            wrong.append(name if kind in EXPERTS else f"{name}.weight")
    return wrong


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


def _digests(model: nn.Module, dtype: torch.dtype | None) -> dict[str, str]:
    """A hash of every tensor of a model, as it is once rounded to `dtype`."""
    return {
        name: hashlib.sha256(tensor.to(dtype or tensor.dtype).float().flatten().numpy()).hexdigest()
        for name, tensor in model.state_dict().items()
    }


def _changed(model: nn.Module, untouched: Mapping[str, str], adapted: Iterable[str]) -> list[str]:
    """Tensors without an adapter that differ from the base's, or are missing or new."""
    found = _digests(model, None)
    names = sorted((found.keys() | untouched.keys()) - set(adapted))
    return [name for name in names if found.get(name) != untouched.get(name)]
