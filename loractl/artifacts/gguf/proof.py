"""The proof of a GGUF file: llama.cpp's results with it, against base + adapter in float32.

There are three checks. Texts must give the token ids that training had. Logits of every position
must agree within the noise of float32, and in a coarser dtype within what its rounding explains,
measured with errors of exactly the sizes that rounding makes, with random signs. And in a coarser
dtype, where that bound is wide, every tensor of the file must be the exact one, rounded once.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from loractl.artifacts import probe
from loractl.artifacts.gguf import llamacpp
from loractl.artifacts.gguf.compared import Compared
from loractl.artifacts.gguf.layout import Layout
from loractl.artifacts.gguf.write import dtype_of
from loractl.artifacts.model.hollow import NotLayerwiseError, base_of
from loractl.artifacts.model.plan import is_tied
from loractl.artifacts.model.streamed import logits_of
from loractl.artifacts.peft.adapter import Adapter
from loractl.artifacts.peft.attach import load_, ranks_of
from loractl.artifacts.peft.vocabulary_size import fit_
from loractl.errors import NumericError
from loractl.lora.inject import adapters, merge_
from loractl.lora.token_rows import token_rows
from loractl.lora.whole import wholes
from loractl.models.load import Source, head_name, load_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers import PreTrainedTokenizerBase as Tokenizer

Q4_K_M = "q4_k_m"
WORST_OF_FOUR_BITS = 0.25
"""Largest error of a tensor in four bits, as a share of it, by root mean squares. In a block of 32
values are at most 2 x the largest apart, which makes errors of about 2 / 15 / sqrt(12) = 0.04 of
it, and their root mean square is at least 1 / sqrt(32) = 0.18 of it; rows in a wrong order: 1.4."""


@dataclass(frozen=True)
class Proof:
    """The result of the comparison."""

    dtype: str
    logits: probe.Agreement
    effect: float  # largest difference that the adapter itself makes
    n_texts: int
    wrong_texts: tuple[str, ...]  # texts that gave other token ids
    wrong: tuple[str, ...]  # tensors that are not the exact ones, rounded once

    @property
    def holds(self) -> bool:
        return self.logits.holds and not self.wrong_texts and not self.wrong

    @property
    def drowned(self) -> bool:
        """Whether rounding changes the model as much as the adapter does."""
        return self.logits.drowns(self.effect)

    def __str__(self) -> str:
        parts = [
            self.logits.say(f"in llama.cpp ({self.dtype})", proven=self.holds),
            f"the adapter itself changes logits by {self.effect:.2e}",
            f"same token ids in {self.n_texts - len(self.wrong_texts)} of {self.n_texts} texts",
        ]
        if self.wrong_texts:
            parts.append(f"first text that differs: {self.wrong_texts[0][:60]!r}")
        if self.wrong:
            parts.append(f"{len(self.wrong)} tensors are wrong: {', '.join(self.wrong[:3])}")
        return "; ".join(parts)


@dataclass(frozen=True)
class Expected:
    """The results of base + adapter in float32, computed before llama.cpp runs."""

    ids: Tensor  # (rows, length)
    base: Tensor  # (rows, length, vocabulary), without the adapter
    logits: Tensor  # (rows, length, vocabulary)
    effect: float
    rounding: float  # change in logits caused by errors as large as those of the dtype
    wrong: tuple[str, ...]  # tensors of the file that are not the exact ones


def expect(
    source: Source, adapter: Adapter, layout: Layout, *, dtype: str, model_file: Path | None
) -> Expected:
    """Compute in transformers what a file must give, and check the tensors of `model_file`.

    If that is None, the file holds only the adapter, in `dtype`. Raises ArtifactError if the
    adapter changes nothing.
    """
    if dtype == Q4_K_M:
        return _expect_whole(source, adapter, layout, dtype=dtype, model_file=model_file)
    coarse = dtype != "f32"
    rounded = partial(_round_to, dtype=dtype) if coarse else None
    try:
        hollow = base_of(source, adapter)
        ids = probe.probe_ids(hollow.model, adapter.own_tokens)
        ranks_of(adapter, hollow.model)
        compared = Compared(model_file if coarse else None, layout)
        told = logits_of(hollow, adapter, ids, compared, rounded, shakes_factors=model_file is None)
    except NotLayerwiseError:
        return _expect_whole(source, adapter, layout, dtype=dtype, model_file=model_file)
    effect = probe.effect_of(told.base, told.expected, adapter.directory)
    rounding = 0.0
    if told.shaken is not None:
        rounding = float((told.shaken - told.expected).abs_().max())
    wrong = tuple(compared.wrong)
    return Expected(ids, told.base, told.expected, effect, rounding, wrong)


def _expect_whole(
    source: Source, adapter: Adapter, layout: Layout, *, dtype: str, model_file: Path | None
) -> Expected:
    """The same with the whole model in memory."""
    model = load_model(source, dtype=torch.float32, device=torch.device("cpu"), dense=True)
    fit_(model, adapter)
    ids = probe.probe_ids(model, adapter.own_tokens)
    base = probe.probe_logits(model, ids)
    layers = load_(model, adapter)
    logits = probe.probe_logits(model, ids)
    effect = probe.effect_of(base, logits, adapter.directory)
    wrong: tuple[str, ...] = ()
    if model_file is not None and dtype not in ("f32", Q4_K_M):
        wrong = _wrong_tensors(model_file, model, layout)
    if model_file is not None:
        merge_(model)
        shaken: list[Tensor] = list(model.parameters())
    else:
        shaken = [part for layer in layers.values() for part in (layer.A, layer.B)]
    rounding = 0.0
    if dtype == Q4_K_M:
        assert model_file is not None
        shaken, held, wrong = _held_by(model_file, model, layout)
        given = iter(held)
        rounding = probe.rounding_effect(model, ids, logits, shaken, lambda _: next(given))
    elif dtype != "f32":
        rounding = probe.rounding_effect(
            model, ids, logits, shaken, lambda exact: _round_to(exact, dtype)
        )
    return Expected(ids, base, logits, effect, rounding, wrong)


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
    """Run llama.cpp and compare. Raises NumericError if it crashes on the file."""
    answer = _ask(expected, model_file, adapter_file, texts)
    wrong_texts = [
        text
        for text, found in zip(texts, answer.ids, strict=True)
        if found != list(tokenizer(text, add_special_tokens=False)["input_ids"])
    ]
    return Proof(
        dtype=dtype,
        logits=probe.compare_logits(
            _logits(answer), expected.logits, rounding=expected.rounding, noise=layout.family.noise
        ),
        effect=expected.effect,
        n_texts=len(texts),
        wrong_texts=tuple(wrong_texts),
        wrong=expected.wrong,
    )


def agree_over(
    expected: Expected, layout: Layout, *, model_file: Path, adapter_file: Path
) -> probe.Agreement:
    """Logits of an adapter over the very file that it was trained on.

    llama.cpp rounds what it multiplies blocks with to 8 bits. How far that may move logits is how
    far it moves those of the base alone. Raises NumericError if llama.cpp crashes.
    """
    alone, adapted = (
        _logits(_ask(expected, model_file, adapter)) for adapter in (None, adapter_file)
    )
    moved = float((alone - expected.base).abs().max())
    return probe.compare_logits(adapted, expected.logits, rounding=moved, noise=layout.family.noise)


def _ask(
    expected: Expected, model: Path, adapter: Path | None, texts: Sequence[str] = ()
) -> llamacpp.Answer:
    try:
        return llamacpp.ask(model, adapter=adapter, texts=texts, sequences=expected.ids.tolist())
    except llamacpp.CrashError as error:
        raise NumericError(f"FAILED: llama.cpp cannot load or run it: {error}") from None


def _logits(answer: llamacpp.Answer) -> Tensor:
    return torch.from_numpy(np.stack(answer.logits))  # (rows, length, vocabulary)


def _round_to(exact: Tensor, dtype: str) -> Tensor:
    """A tensor as llama.cpp reads it from a file of `dtype`."""
    from gguf import GGMLQuantizationType, quants

    kind = GGMLQuantizationType[dtype_of(tuple(exact.shape), dtype).upper()]
    data = quants.quantize(exact.detach().numpy(), kind)
    return torch.from_numpy(quants.dequantize(data, kind)).view_as(exact)


def _wrong_tensors(path: Path, model: "PreTrainedModel", layout: Layout) -> tuple[str, ...]:
    """Tensors of a file that are missing, or that are not base + adapter rounded once."""
    layers, compared = adapters(model), Compared(path, layout)
    for name, exact in _exact_tensors(model):
        module = name.rpartition(".")[0]
        if is_tied(model) and module == head_name(model) and module not in layers:
            continue
        if module in layers and name.endswith(".weight"):
            compared.adapted(module, layers[module])
        else:
            compared.plain(name, [exact])
    return tuple(compared.wrong)


def _held_by(
    path: Path, model: "PreTrainedModel", layout: Layout
) -> tuple[list[Tensor], Iterator[Tensor], tuple[str, ...]]:
    """The parameters of a merged model, the numbers that a file has for each when they are asked
    for, and the names of those that it lacks or has too far away."""
    from gguf import GGUFReader, quants

    there = {tensor.name: tensor for tensor in GGUFReader(path).tensors}

    def held(name: str) -> Tensor | None:
        tensor = there.get(layout.name_of(name))
        if tensor is None:
            return None
        values = torch.from_numpy(quants.dequantize(np.array(tensor.data), tensor.tensor_type))
        order = layout.row_order(name, len(values))
        return (values if order is None else values[order.argsort()]) - layout.shift(name)

    exact = dict(model.named_parameters())  # a tied head is not listed
    wrong = []
    for name, tensor in exact.items():
        values = held(name)
        near = WORST_OF_FOUR_BITS * float(tensor.double().norm())
        if values is None or not float((values - tensor).double().norm()) <= near:
            wrong.append(name)
    whole = {name: tensor for name, tensor in exact.items() if name not in wrong}
    numbers = (found for name in whole if (found := held(name)) is not None)
    return list(whole.values()), numbers, tuple(wrong)


def _exact_tensors(model: "PreTrainedModel") -> Iterator[tuple[str, Tensor]]:
    """The tensors of a model with an adapter by their names without it; of a layer with A and B,
    the frozen weight."""
    layers, trained_whole, rows = adapters(model), wholes(model), token_rows(model)
    for path, one in rows.items():
        if not one.follows:
            yield f"{path}.weight", one.merged_weight().detach()
    for stored, tensor in model.state_dict().items():
        if any(stored.startswith(f"{path}.") for path in rows):
            continue
        if ".base." not in stored and any(stored.startswith(f"{name}.") for name in layers):
            continue  # A, B and anything else of an adapted layer
        if any(stored.startswith(f"{path}.base.") for path in trained_whole):
            continue  # its copy is what counts
        yield stored.replace(".base.", ".").replace(".tuned.", "."), tensor
