"""The heavy half of `loractl eval`: load the models in turn, measure the rows one by one."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from loractl.artifacts.peft import adapter as adapters
from loractl.artifacts.peft.attach import load_
from loractl.artifacts.peft.vocabulary_size import fit_
from loractl.data import batches, beyond
from loractl.data.ends import ends_of_template
from loractl.data.template import TemplateError, Tokenizer, prompt_ids
from loractl.engine.base import (
    choose_trained_dtype,
    find_model,
    find_shared_base,
    load_base,
    model_path,
    recorded_base,
    recorded_dtype,
)
from loractl.engine.eval_rows import EvalRows, rows_of_file, rows_of_runs
from loractl.engine.layers import attend_apart_
from loractl.engine.speakers import ends_of, tokenizer_of
from loractl.errors import DataError, NumericError
from loractl.evaluation.bootstrap import Figure, ratio
from loractl.evaluation.eval_request import LOSSES, EvalRequest
from loractl.evaluation.loss import row_losses
from loractl.evaluation.match import METRICS, matching
from loractl.generation.sample import Sampling, generate
from loractl.generation.speech import Speech, stop_ids
from loractl.lora.inject import remove_
from loractl.models import load
from loractl.models.fast.trunk import Trunk
from loractl.models.objective import TokenLoss
from loractl.models.proving_run import ProvingRun
from loractl.records import Conversation
from loractl.startup import libraries

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Losses = dict[int | str, tuple[float, int]]


@dataclass
class Evaluated:
    """The results of one model on the rows."""

    name: str
    where: list[int | str] = field(default_factory=list)
    losses: Losses = field(default_factory=dict)
    retain: Losses = field(default_factory=dict)
    expected: list[str] = field(default_factory=list)
    answers: list[str] = field(default_factory=list)
    scores: dict[str, list[float]] = field(default_factory=dict)
    figures: dict[str, Figure] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        return {"model": self.name, "rows": len(self.where), **_figures_as_dict(self.figures)}

    def rows_as_dicts(self) -> Iterator[dict[str, Any]]:
        """The figures of each row; a row without a loss was too long."""
        for number, where in enumerate(self.where):
            row: dict[str, Any] = {"model": self.name, "row": where}
            if where in self.losses:
                row["loss_sum"], row["tokens"] = self.losses[where]
            if self.answers:
                row |= {"answer": self.answers[number], "expected": self.expected[number]}
                row |= {name: of_row[number] for name, of_row in self.scores.items()}
            yield row


def evaluate(
    paths: Mapping[str, Path], asked: EvalRequest, *, model: str | None
) -> list[Evaluated]:
    """Evaluate the base, then each adapter on it, then each fully trained model.

    Raises DataError, ModelError or ArtifactError; NumericError for a loss that is not finite.
    """
    full = {name: path for name, path in paths.items() if _is_model(path)}
    read = {name: adapters.read(path) for name, path in paths.items() if name not in full}
    libraries.import_()  # after the adapters, so that an unreadable one is reported first
    bases = {name: one.base for name, one in read.items()}
    bases |= {name: recorded_base(path) for name, path in full.items()}
    source = find_shared_base(model, bases)
    if asked.data is not None:
        rows = rows_of_file(asked.data, asked, columns=asked.columns)
    else:
        rows = rows_of_runs(paths.values(), asked, load.limits(source).positions)
    dtypes = [one.dtype for one in read.values()]
    dtypes += [recorded_dtype(str(path)) for path in full.values()]
    dtype = choose_trained_dtype(asked.dtype, dtypes)
    loaded = _load_frozen(source, dtype, list(read.values()), named=model)
    tokenizer = load.load_tokenizer(source)
    plain = _speech(loaded, tokenizer, ends_of_template(tokenizer))
    found = [_measure_model("base", loaded, plain, asked, rows)]
    for name, adapter in read.items():
        grown = fit_(loaded, adapter)
        own = tokenizer_of(adapter, tokenizer, load.n_rows(loaded))
        load_(loaded, adapter)
        speech = _speech(loaded, own, ends_of(adapter, own))
        found.append(_measure_model(name, loaded, speech, asked, rows))
        remove_(loaded)
        if grown is not None:  # the next one is measured on the base as it was
            grown.undo_()
    del loaded
    for name, path in full.items():
        whole = find_model(str(path))
        tuned, own = _load_frozen(whole, dtype), load.load_tokenizer(whole)
        speech = _speech(tuned, own, ends_of_template(own))
        found.append(_measure_model(name, tuned, speech, asked, rows))
    for one in found:
        _fill_figures_(one, found[0], asked)
    return found


def _is_model(path: Path) -> bool:
    """Whether a path is a model directory, or a run that produced one."""
    return (Path(model_path(str(path))) / "config.json").is_file()


def _load_frozen(
    source: load.Source,
    dtype: str,
    trained: Sequence[adapters.Adapter] = (),
    *,
    named: str | None = None,
) -> "PreTrainedModel":
    model = load_base(source, dtype, trained, named=named)
    return model.requires_grad_(False)  # trained layers would not use the fast implementation


def _speech(model: "PreTrainedModel", tokenizer: Any, ends: Sequence[int]) -> Speech:
    return Speech(tokenizer, tuple(stop_ids(model, tokenizer, ends)))


def _measure_model(
    name: str, model: "PreTrainedModel", speech: Speech, asked: EvalRequest, rows: EvalRows
) -> Evaluated:
    found, tokenizer = Evaluated(name), speech.tokenizer
    conversations = rows.conversations()
    found.where = [where for where, _ in conversations]
    has_loss = any(metric in LOSSES for metric in asked.metrics)
    if has_loss or asked.retain is not None:
        objective = _objective_of(model, rows)
        if has_loss:
            found.losses = _losses_by_row(objective, tokenizer, rows)
        if asked.retain is not None:
            general = rows_of_file(asked.retain, asked, train_on="all")
            found.retain = _losses_by_row(objective, tokenizer, general)
    if asked.matches:
        _answer_rows_(found, model, speech, asked, rows.name, [row for _, row in conversations])
    return found


def _objective_of(model: "PreTrainedModel", rows: EvalRows) -> TokenLoss:
    """The loss as training computes it: by fast layers, or by transformers' own."""
    run = ProvingRun(model)
    is_auto = rows.kernels == "auto"
    trunk = Trunk(model, run) if is_auto else None
    if rows.of_run and (trunk is None or trunk.fallback_reason):
        attend_apart_(model, run, fuses=is_auto, packing=rows.plan.packing)
    return TokenLoss(model, trunk=trunk, run=run)


def _losses_by_row(objective: TokenLoss, tokenizer: Tokenizer, rows: EvalRows) -> Losses:
    examples, n_rows = rows.examples(tokenizer), load.n_rows(objective.model)
    beyond.require_rows(examples, tokenizer, n_rows, cure=beyond.IN_USE)
    found = row_losses(
        objective.of_examples,
        batches.in_order(examples, rows.plan),
        objective.model.device,
    )
    for where, (loss, _) in found.items():
        if not math.isfinite(loss):
            raise NumericError(f"{rows.name}:{where}: the loss is {loss}")
    return found


def _answer_rows_(
    found: Evaluated,
    model: "PreTrainedModel",
    speech: Speech,
    asked: EvalRequest,
    data: str,
    conversations: Sequence[Conversation],
) -> None:
    """Let the model write the last turn of each row, and compare."""
    prompts, n_rows = [], load.n_rows(model)
    for where, row in zip(found.where, conversations, strict=True):
        if len(row.messages) < 2 or row.messages[-1].role != "assistant":
            raise _no_answers(data, asked.matches)
        try:
            ids = prompt_ids(speech.tokenizer, row.messages[:-1], row.tools)
        except TemplateError as error:
            raise DataError(f"{data}:{where}: {error}") from None
        if (index := beyond.first_beyond(ids, n_rows)) is not None:
            what = beyond.describe_beyond(speech.tokenizer, index, n_rows, beyond.IN_USE)
            raise DataError(f"{data}:{where}: {what}")
        prompts.append(ids)
    found.expected = [row.messages[-1].content for row in conversations]
    sampling = Sampling(max_new_tokens=asked.max_new_tokens)
    with torch.no_grad():
        answers = generate(model, speech.tokenizer, prompts, sampling, stops=speech.stops)
    found.answers = [answer.text for answer in answers]
    for name in asked.matches:
        score: Callable[[str, str], float]
        score = matching(asked.regex) if name == "regex" and asked.regex else METRICS[name]
        pairs = zip(found.answers, found.expected, strict=True)
        found.scores[name] = [score(answer, expected) for answer, expected in pairs]


def _fill_figures_(one: Evaluated, base: Evaluated, asked: EvalRequest) -> None:
    """Fill in the table's figures in the requested order; forgetting is relative to the base."""
    for name in asked.metrics:
        if name in one.scores:
            one.figures[name] = ratio(one.scores[name], [1.0] * len(one.scores[name]))
            continue
        sums, counts = zip(*one.losses.values(), strict=True)
        loss = ratio(sums, counts)
        if name == "perplexity":
            loss = Figure(*(math.exp(min(x, 700.0)) for x in (loss.value, loss.low, loss.high)))
        one.figures[name] = loss
    if one.retain:
        sums, counts = zip(*one.retain.values(), strict=True)
        one.figures["retain_loss"] = ratio(sums, counts)
        shared = [where for where in one.retain if where in base.retain]
        pairs = [(one.retain[w], base.retain[w]) for w in shared]
        one.figures["forgetting"] = ratio(
            [tuned[0] for tuned, _ in pairs],
            [tuned[1] for tuned, _ in pairs],
            less=[old[0] for _, old in pairs],
        )


def _no_answers(data: str, matches: Sequence[str]) -> DataError:
    """The error for metrics that compare answers on rows that have none."""
    return DataError(
        f"{data}: its rows are not conversations that end with an answer, which {matches[0]} needs;"
        " use --metrics loss,perplexity"
    )


def _figures_as_dict(figures: Mapping[str, Figure]) -> dict[str, Any]:
    """Figures as they appear in JSON."""
    return {
        name: {"value": figure.value, "low": figure.low, "high": figure.high}
        for name, figure in figures.items()
    }
