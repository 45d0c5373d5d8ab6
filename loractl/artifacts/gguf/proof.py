"""The proof of a GGUF file: what llama.cpp makes of it, against base + adapter in float32.

Three looks. Texts must give the token ids that training had. Logits of every position must agree
within the noise of float32, and in a coarser dtype within what that dtype's rounding explains:
measured by errors of the very sizes that rounding makes, with signs drawn at random. And in a
coarser dtype, where that is much, every tensor of the file must be the exact one, rounded once.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from loractl.artifacts.gguf import llamacpp
from loractl.artifacts.gguf.layout import Layout
from loractl.artifacts.gguf.write import BLOCK, dtype_of
from loractl.artifacts.model.merge import is_tied
from loractl.artifacts.model.proof import columns_of, picked
from loractl.artifacts.peft.adapter import Adapter
from loractl.artifacts.peft.attach import load_
from loractl.errors import ArtifactError, NumericError
from loractl.lora.inject import adapters, merge_
from loractl.lora.whole import wholes
from loractl.models.load import Source, head_name, load_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers import PreTrainedTokenizerBase as Tokenizer

ROWS, LENGTH = 4, 32
ROUNDING_FACTOR = 4.0
"""Beside the weights, llama.cpp rounds what it multiplies them with, to the same dtype. Measured:
the differences are 1.0 to 2.0 times those that the weights' errors alone make at random."""
FP32_NOISE = 1e-6
HALF_STEP = {"f32": 0.0, "f16": 2.0**-11, "bf16": 2.0**-8, "q8_0": 0.57}
"""Largest error of rounding: a share of the value, in q8_0 of the block's scale (rounded too)."""


@dataclass(frozen=True)
class Proof:
    """What the comparison found."""

    dtype: str
    difference: float
    bound: float
    largest_logit: float
    top1_agreement: float
    effect: float  # largest difference that the adapter itself makes
    n_texts: int
    wrong_texts: tuple[str, ...]  # texts that gave other token ids
    wrong: tuple[str, ...]  # tensors other than the exact ones, rounded once

    @property
    def holds(self) -> bool:
        return self.difference <= self.bound and not self.wrong_texts and not self.wrong

    @property
    def drowned(self) -> bool:
        """Whether rounding changes the model as much as the adapter does."""
        return self.difference > 0.5 * self.effect

    def __str__(self) -> str:
        parts = [
            f"{'proven' if self.holds else 'FAILED'}: logits in llama.cpp ({self.dtype}) and of"
            f" base + adapter differ by at most {self.difference:.2e}, allowed {self.bound:.2e}",
            f"same next token in {self.top1_agreement:.1%}",
            f"the adapter itself moves logits by {self.effect:.2e}",
            f"same token ids in {self.n_texts - len(self.wrong_texts)} of {self.n_texts} texts",
        ]
        if self.wrong_texts:
            parts.append(f"the first that differs: {self.wrong_texts[0][:60]!r}")
        if self.wrong:
            parts.append(f"{len(self.wrong)} tensors are wrong: {', '.join(self.wrong[:3])}")
        return "; ".join(parts)


@dataclass(frozen=True)
class Expected:
    """What base + adapter computes in float32, before llama.cpp is asked."""

    ids: Tensor  # (ROWS, LENGTH)
    logits: Tensor  # (ROWS, LENGTH, vocabulary)
    effect: float
    rounding: float  # change of the logits by errors as large as those of the dtype
    wrong: tuple[str, ...]  # tensors of the file that are not the exact ones


def expect(
    source: Source, adapter: Adapter, layout: Layout, *, dtype: str, model_file: Path | None
) -> Expected:
    """Compute in transformers what a file must give; look at the tensors of `model_file`.

    Without one the file holds the adapter alone, in `dtype`. Raises ArtifactError when the adapter
    changes nothing.
    """
    model = load_model(source, dtype=torch.float32, device=torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, model.config.vocab_size, (ROWS, LENGTH), generator=generator)
    base = _logits(model, ids)
    layers = load_(model, adapter)
    logits = _logits(model, ids)
    effect = float((logits - base).abs().max())
    if effect == 0.0:
        raise ArtifactError(
            f"{adapter.directory}: the adapter changes nothing: its update is zero everywhere"
        )
    wrong: tuple[str, ...] = ()
    if model_file is not None and dtype != "f32":
        wrong = _wrong_tensors(model_file, model, layout)
    if model_file is not None:
        merge_(model)
        rounded = list(model.parameters())
    else:
        rounded = [part for layer in layers.values() for part in (layer.A, layer.B)]
    rounding = 0.0
    if dtype != "f32":
        _shake_(rounded, dtype)
        rounding = float((_logits(model, ids) - logits).abs().max())
    return Expected(ids, logits, effect, rounding, wrong)


def prove(
    expected: Expected,
    layout: Layout,
    *,
    dtype: str,
    model_file: Path,
    adapter_file: Path | None,
    tokenizer: "Tokenizer",
    texts: Sequence[str],
) -> Proof:
    """Ask llama.cpp and compare. Raises NumericError when it crashes on the file."""
    try:
        answer = llamacpp.ask(
            model_file, adapter=adapter_file, texts=texts, sequences=expected.ids.tolist()
        )
    except llamacpp.CrashError as error:
        raise NumericError(f"FAILED: llama.cpp does not load or run it: {error}") from None
    wrong_texts = [
        text
        for text, found in zip(texts, answer.ids, strict=True)
        if found != list(tokenizer(text, add_special_tokens=False)["input_ids"])
    ]
    found = torch.from_numpy(np.stack(answer.logits))  # (ROWS, LENGTH, vocabulary)
    largest = float(expected.logits.abs().max())
    bound = layout.family.noise * max(1.0, largest) + ROUNDING_FACTOR * expected.rounding
    difference = float((found - expected.logits).abs().max())
    return Proof(
        dtype=dtype,
        difference=difference if np.isfinite(difference) else float("inf"),
        bound=bound,
        largest_logit=largest,
        top1_agreement=float((found.argmax(-1) == expected.logits.argmax(-1)).float().mean()),
        effect=expected.effect,
        n_texts=len(texts),
        wrong_texts=tuple(wrong_texts),
        wrong=expected.wrong,
    )


def _logits(model: nn.Module, ids: Tensor) -> Tensor:
    with torch.no_grad():
        logits: Tensor = model(input_ids=ids, use_cache=False).logits
    return logits.float()


def _shake_(parameters: Sequence[nn.Parameter], dtype: str) -> None:
    """Add errors as large as those of rounding to `dtype`, of random signs."""
    from gguf import GGMLQuantizationType, quants

    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in parameters:
            kind = GGMLQuantizationType[dtype_of(tuple(parameter.shape), dtype).upper()]
            exact = parameter.detach().numpy()
            error = torch.from_numpy(quants.dequantize(quants.quantize(exact, kind), kind) - exact)
            signs = torch.randint(0, 2, error.shape, generator=generator, dtype=torch.int8)
            parameter.add_(error.view_as(parameter) * (signs * 2 - 1))


def _wrong_tensors(path: Path, model: "PreTrainedModel", layout: Layout) -> tuple[str, ...]:
    """Tensors of a file that are missing, or not those of base + adapter rounded once."""
    from gguf import GGUFReader, quants

    there = {tensor.name: tensor for tensor in GGUFReader(path).tensors}
    layers = adapters(model)
    wrong = []
    trained_whole = wholes(model)
    for stored, exact_all in model.state_dict().items():
        if ".base." not in stored and any(stored.startswith(f"{name}.") for name in layers):
            continue  # A, B and what else belongs to an adapted layer
        if any(stored.startswith(f"{path}.base.") for path in trained_whole):
            continue  # its copy is what counts
        name = stored.replace(".base.", ".").replace(".tuned.", ".")
        module = name.rpartition(".")[0]
        tied_head = is_tied(model) and module == head_name(model) and module not in layers
        tensor = None if tied_head else there.get(layout.name_of(name))
        if tensor is None:
            if not tied_head:
                wrong.append(name)
            continue
        raw = np.array(tensor.data)
        found = torch.from_numpy(quants.dequantize(raw, tensor.tensor_type)).view(exact_all.shape)
        order = layout.row_order(name, found.shape[0])
        if order is not None:
            found = found[order.argsort()]
        exact = (exact_all.double() + layout.shift(name)).float()
        kind = tensor.tensor_type.name.lower()
        bound = _bound(found, kind)
        if module in layers and name.endswith(".weight"):
            layer = layers[module]
            exact = columns_of(layer).float()  # (COLUMNS, d_out)
            indices, of = picked(layer.d_in), layer.kind
            found, bound = (
                t[indices] if of == "embedding" else t[:, indices].T for t in (found, bound)
            )
        noise = FP32_NOISE * float(exact.abs().max())
        if not bool(((found - exact).abs() <= bound + noise).all()):
            wrong.append(name)
    return tuple(wrong)


def _bound(found: Tensor, kind: str) -> Tensor:
    """The largest error that rounding a tensor to its dtype makes, value by value."""
    if kind != "q8_0":
        smallest = 2.0**-24 if kind == "f16" else 0.0  # below it the steps grow no smaller
        return (found.abs() * HALF_STEP[kind] * 1.01).clamp(min=smallest)
    scale = found.view(found.shape[0], -1, BLOCK).abs().amax(dim=-1, keepdim=True) / 127
    return (scale * HALF_STEP[kind]).expand(-1, -1, BLOCK).reshape(found.shape)
