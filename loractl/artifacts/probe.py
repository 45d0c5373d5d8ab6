"""The arithmetic of every proof: the results of a reader of our files, against base + adapter.

There are two checks. Logits, on the same random tokens for all readers, must agree within the noise
of float32, and in a coarser dtype within what its rounding explains; that is measured with errors
of exactly the sizes that rounding makes, with random signs. And the columns of each adapted weight,
obtained by passing unit vectors through its own forward pass, must be the exact ones, rounded once.
Which reader reads which files is left to `model.proof`, `gguf.proof` and `peft.portable`.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.func import functional_call

from loractl.errors import ArtifactError
from loractl.lora.dense import matrix_sizes
from loractl.lora.experts import LoraExperts
from loractl.lora.layer import LoraLayer
from loractl.ops.untouched import untouched_zeros

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FP32_TOLERANCE = 1e-5
"""For logits computed twice in float32, relative to the largest one, or to 1."""
ROUNDING_FACTOR = 4.0
"""Two random draws of the same sizes seldom differ by more than 1.5x. Besides the weights,
llama.cpp rounds what it multiplies them with to the same dtype; measured: the differences are 1.0
to 2.0 times those that random errors of the weights alone make."""
ROWS, LENGTH = 4, 32
COLUMNS = 32
"""How many columns of each adapted weight are checked, drawn at random."""
FP32_NOISE = 1e-6
"""Error of a merge computed in float32, relative to the largest weight; measured: at most 2e-7."""
DROWNED = 0.5
"""The share of the adapter's effect above which rounding changes the model about as much."""


@dataclass(frozen=True)
class Agreement:
    """How far two computations of the same logits agree."""

    difference: float  # the largest one; infinite if a logit is not finite
    bound: float
    largest_logit: float
    top1_agreement: float

    @property
    def holds(self) -> bool:
        return self.difference <= self.bound

    def drowns(self, effect: float) -> bool:
        """Whether rounding changes the model as much as an adapter of this effect does."""
        return self.difference > DROWNED * effect

    def say(self, logits: str, *, proven: bool) -> str:
        """The verdict on everything checked, and how far these logits agree."""
        return (
            f"{'proven' if proven else 'FAILED'}: logits {logits} differ from those of base +"
            f" adapter by at most {self.difference:.2e}, allowed {self.bound:.2e}; same next token"
            f" at {self.top1_agreement:.1%} of positions"
        )


def compare_logits(
    found: Tensor, expected: Tensor, *, rounding: float, noise: float = FP32_TOLERANCE
) -> Agreement:
    """Judge logits (rows, length, vocabulary) against those of base + adapter.

    `rounding` is the change caused by errors as large as those of the dtype, 0 in float32; `noise`
    is how far two float32 computations may differ, relative to the largest logit.
    """
    low, high = torch.aminmax(expected)
    largest = float(torch.maximum(-low, high))
    difference = float((found - expected).abs_().max())
    return Agreement(
        difference=difference if math.isfinite(difference) else math.inf,
        bound=noise * max(1.0, largest) + ROUNDING_FACTOR * rounding,
        largest_logit=largest,
        top1_agreement=float((found.argmax(-1) == expected.argmax(-1)).float().mean()),
    )


def probe_ids(model: "PreTrainedModel", own: Iterable[int] = ()) -> Tensor:
    """The tokens given to every reader, (ROWS, LENGTH); among them those of `own`, which have rows
    of their own in an adapter."""
    generator = torch.Generator().manual_seed(0)
    vocabulary = model.config.get_text_config().vocab_size
    ids = torch.randint(0, vocabulary, (ROWS, LENGTH), generator=generator)
    named = torch.tensor(sorted(set(own))[: ROWS * LENGTH // 2], dtype=torch.long)
    ids.view(-1)[1 : 2 * len(named) : 2] = named  # every second token
    return ids


def probe_logits(model: nn.Module, ids: Tensor) -> Tensor:
    with torch.no_grad():
        logits: Tensor = model(input_ids=ids, use_cache=False).logits  # (ROWS, LENGTH, vocabulary)
    return logits.float()


def effect_of(base: Tensor, expected: Tensor, directory: Path) -> float:
    """The largest difference an adapter makes to logits. Raises ArtifactError if it is zero."""
    effect = float((expected - base).abs_().max())
    if effect == 0.0:
        raise ArtifactError(
            f"{directory}: the adapter changes nothing: its update is zero everywhere"
        )
    return effect


def rounding_effect(
    model: nn.Module,
    ids: Tensor,
    expected: Tensor,
    shaken: Iterable[Tensor],
    rounded: Callable[[Tensor], Tensor],
) -> float:
    """The change in logits caused by errors as large as those of `rounded`, with random signs.

    The tensors in `shaken`, parts of `model`, keep the errors.
    """
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for tensor in shaken:
            error = rounded(tensor) - tensor
            signs = torch.randint(0, 2, error.shape, generator=generator, dtype=torch.int8)
            tensor.add_(error * (signs * 2 - 1))
    return float((probe_logits(model, ids) - expected).abs().max())


def columns_of(layer: LoraLayer) -> Tensor:
    """The outputs of an adapted layer for some unit vectors: (n, d_out) in float64.

    These are columns of its weight as the forward pass applies it, without bias and embed_scale.
    For fused experts, one expert after another: (n experts, d_out).
    """
    indices = drawn_inputs(layer.d_in)
    tensors = {
        name: tensor.detach()
        for name, tensor in (*layer.named_parameters(), *layer.named_buffers())
    }
    takes_norm = hasattr(layer, "gain")  # DoRA's is over all inputs
    if layer.kind == "embedding" and not takes_norm:
        tensors["base.weight"] = _only_rows(tensors["base.weight"], indices)
    if isinstance(layer, LoraExperts):
        return _columns_of_experts(layer, {name: one.double() for name, one in tensors.items()})
    if layer.kind == "embedding":
        exact = {name: one.double() for name, one in tensors.items()}
        rows: Tensor = functional_call(layer, exact, (indices,))
        return rows / float(getattr(layer.base, "embed_scale", 1.0))
    n, d_in = len(indices), layer.d_in
    if not takes_norm:  # the other inputs are zero, so what they are multiplied with is left out
        tensors |= _of_inputs(layer, tensors, indices)
        indices, d_in = torch.arange(n), n
    exact = {name: one.double() for name, one in tensors.items()}
    x = torch.zeros(n + 1, d_in, dtype=torch.float64)
    x[torch.arange(n), indices] = 1.0
    y: Tensor = functional_call(layer, exact, (x,))  # (n + 1, d_out), the last: bias only
    return y[:-1] - y[-1]


def _of_inputs(
    layer: LoraLayer, tensors: Mapping[str, Tensor], indices: Tensor
) -> dict[str, Tensor]:
    """What a linear layer multiplies some of its inputs with: columns of W, A and A's start."""
    found = {name: tensors[name][:, indices] for name in ("A", "A0") if name in tensors}
    W = tensors["base.weight"]
    found["base.weight"] = W[indices] if layer.transposed else W[:, indices]
    return found


def _only_rows(table: Tensor, indices: Tensor) -> Tensor:
    """A table in float64 of which the other rows are zero, and take no memory."""
    found = untouched_zeros(table.shape, torch.float64)
    found[indices] = table[indices].double()
    return found


def _columns_of_experts(layer: LoraExperts, exact: Mapping[str, Tensor]) -> Tensor:
    """The same for each expert: its product and update, as `AdaptedExperts` adds them."""
    W = plain_columns(layer.kind, layer.dense_weight().detach()).double()
    x = torch.eye(layer.d_in, dtype=torch.float64)[drawn_inputs(layer.d_in)]
    counts = [len(x)] * layer.n_experts
    with torch.no_grad():
        update: Tensor = functional_call(layer, dict(exact), (x.repeat(len(counts), 1), counts))
    return W + update * layer.scale


def plain_columns(kind: str, weight: Tensor) -> Tensor:
    """The same columns of a plain weight, (n, d_out) or (n experts, d_out)."""
    indices = drawn_inputs(matrix_sizes(kind, weight)[0])
    columns = weight[..., indices].mT if kind in ("linear", "experts") else weight[..., indices, :]
    return columns.reshape(-1, columns.shape[-1])


def drawn_inputs(d_in: int) -> Tensor:
    """The inputs that are checked: the same for a layer and its merged weight."""
    generator = torch.Generator().manual_seed(2)
    return torch.randperm(d_in, generator=generator)[:COLUMNS]


def half_step(exact: Tensor, dtype: torch.dtype) -> Tensor:
    """The largest error of rounding once to `dtype`, value by value, in float64."""
    info = torch.finfo(dtype)
    size = exact.double().abs().clamp(min=info.tiny)  # below it the steps grow no smaller
    _, exponent = torch.frexp(size)  # 2^(exponent - 1) <= size < 2^exponent
    return info.eps * torch.exp2(exponent.double() - 1) / 2


def is_within(found: Tensor, exact: Tensor, bound: Tensor) -> bool:
    """Whether a weight is the exact one up to errors of `bound` and the noise of float32."""
    error = (found.double() - exact.double()).abs()
    return bool((error <= bound + FP32_NOISE * float(exact.abs().max())).all())
