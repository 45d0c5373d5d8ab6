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
    return Expected(ids, told.expected, effect, rounding, tuple(compared.wrong))


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
    if model_file is not None and dtype != "f32":
        wrong = _wrong_tensors(model_file, model, layout)
    if model_file is not None:
        merge_(model)
        shaken = list(model.parameters())
    else:
        shaken = [part for layer in layers.values() for part in (layer.A, layer.B)]
    rounding = 0.0
    if dtype != "f32":
        rounding = probe.rounding_effect(
            model, ids, logits, shaken, lambda exact: _round_to(exact, dtype)
        )
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
    """Run llama.cpp and compare. Raises NumericError if it crashes on the file."""
    try:
        answer = llamacpp.ask(
            model_file, adapter=adapter_file, texts=texts, sequences=expected.ids.tolist()
        )
    except llamacpp.CrashError as error:
        raise NumericError(f"FAILED: llama.cpp cannot load or run it: {error}") from None
    wrong_texts = [
        text
        for text, found in zip(texts, answer.ids, strict=True)
        if found != list(tokenizer(text, add_special_tokens=False)["input_ids"])
    ]
    found = torch.from_numpy(np.stack(answer.logits))  # (rows, length, vocabulary)
    return Proof(
        dtype=dtype,
        logits=probe.compare_logits(
            found, expected.logits, rounding=expected.rounding, noise=layout.family.noise
        ),
        effect=expected.effect,
        n_texts=len(texts),
        wrong_texts=tuple(wrong_texts),
        wrong=expected.wrong,
    )


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
