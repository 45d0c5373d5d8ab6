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
from loractl.data.rendering import TemplateError, Tokenizer
from loractl.engine.base import (
    choose_trained_dtype,
    find_model,
    find_shared_base,
    load_base,
    model_path,
    recorded,
    recorded_base,
    recorded_dtype,
)
from loractl.engine.eval_rows import EvalRows, rows_of_file, rows_of_runs, taken_by_first
from loractl.engine.layers import attend_apart_
from loractl.engine.questions import Question, question_of, trains_calls, up_to_answer
from loractl.engine.run_rows import Taken, taken_by
from loractl.engine.speakers import base_speaker, ends_of, tokenizer_of
from loractl.errors import DataError, NumericError
from loractl.evaluation.bootstrap import Figure, ratio
from loractl.evaluation.eval_request import LOSSES, EvalRequest
from loractl.evaluation.loss import RowLoss, row_losses
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

Losses = dict[int | str, RowLoss]


@dataclass
class Evaluated:
    """The results of one model on the rows."""

    name: str
    where: list[int | str] = field(default_factory=list)  # the row of each example
    losses: Losses = field(default_factory=dict)
    retain: Losses = field(default_factory=dict)
    expected: list[str | None] = field(default_factory=list)  # None: the row has no answer
    answers: list[str | None] = field(default_factory=list)
    scores: dict[str, list[float | None]] = field(default_factory=dict)
    figures: dict[str, Figure] = field(default_factory=dict)

    @property
    def n_rows(self) -> int:
        return len(set(self.where))

    def as_dict(self) -> dict[str, Any]:
        return {"model": self.name, "rows": self.n_rows, **_figures_as_dict(self.figures)}

    def rows_as_dicts(self) -> Iterator[dict[str, Any]]:
        """The figures of each row, or of each of its answers where each is an example: the loss of
        a row then stands with its first answer. A row without a loss was too long."""
        losses = dict(self.losses)
        for number, where in enumerate(self.where):
            row: dict[str, Any] = {"model": self.name, "row": where}
            if where in losses:
                row["loss_sum"], weight, row["tokens"] = losses.pop(where)
                if weight != row["tokens"]:
                    row["weight"] = weight
            if self.answers and self.answers[number] is not None:
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
        about = {paths[name]: one.about for name, one in read.items()}
        about |= {path: recorded(str(path)) for path in full.values()}
        taken = taken_by_first({path: taken_by(path, about[path]) for path in paths.values()})
        rows = rows_of_file(asked.data, asked, taken=taken, columns=asked.columns)
    else:
        rows = rows_of_runs(paths.values(), asked, load.limits(source).positions)
    dtypes = [one.dtype for one in read.values()]
    dtypes += [recorded_dtype(str(path)) for path in full.values()]
    dtype = choose_trained_dtype(asked.dtype, dtypes)
    loaded = _load_frozen(source, dtype, list(read.values()), named=model)
    tokenizer = load.load_tokenizer(source)
    whole = {name: find_model(str(path)) for name, path in full.items()}
    speakers = {name: load.load_tokenizer(one) for name, one in whole.items()}
    tuned = [(one.about, one.chat_template) for one in read.values()]
    tuned += [(recorded(str(full[name])), one.chat_template) for name, one in speakers.items()]
    untuned = base_speaker(tokenizer, tuned)
    plain = _speech(loaded, untuned, ends_of_template(untuned))
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
    for name, own in speakers.items():
        model_of_run = _load_frozen(whole[name], dtype)
        speech = _speech(model_of_run, own, ends_of_template(own))
        found.append(_measure_model(name, model_of_run, speech, asked, rows))
    for one in found:
        fill_figures_(one, found[0], asked)
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
            general = rows_of_file(asked.retain, asked, taken=Taken("all", rows.taken.thoughts))
            found.retain = _losses_by_row(objective, tokenizer, general)
    if asked.matches:
        _answer_rows_(found, model, speech, asked, rows, [row for _, row in conversations])
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
    for where, loss in found.items():
        if not math.isfinite(loss.total):
            raise NumericError(f"{rows.name}:{where}: the loss is {loss.total}")
    return found


def _answer_rows_(
    found: Evaluated,
    model: "PreTrainedModel",
    speech: Speech,
    asked: EvalRequest,
    rows: EvalRows,
    conversations: Sequence[Conversation],
) -> None:
    """Let the model write the last trained answer of each row, and compare; rows without one are
    left out."""
    questions: list[Question] = []
    n_rows = load.n_rows(model)
    answered = [up_to_answer(row, rows.taken.train_on) for row in conversations]
    if not any(answered):
        raise _no_answers(rows.name, asked.matches)
    for where, row in zip(found.where, answered, strict=True):
        if row is None:
            found.expected.append(None)
            continue
        try:
            question = question_of(speech, row, rows.taken.thoughts)
        except TemplateError as error:
            raise DataError(f"{rows.name}:{where}: {error}") from None
        if (index := beyond.first_beyond(question.prompt, n_rows)) is not None:
            what = beyond.describe_beyond(speech.tokenizer, index, n_rows, beyond.IN_USE)
            raise DataError(f"{rows.name}:{where}: {what}")
        questions.append(question)
        found.expected.append(question.expected)
    rows.note_unanswered(answered.count(None))
    has_call = [row is not None and trains_calls(row.messages[-1]) for row in answered]
    if "tool_call" in asked.matches and not any(has_call):
        raise DataError(f"{rows.name}: no row ends with a tool call, which tool_call needs")
    sampling = Sampling(max_new_tokens=asked.max_new_tokens)
    prompts = [question.prompt for question in questions]
    with torch.no_grad():
        written = generate(model, speech.tokenizer, prompts, sampling, stops=speech.stops)
    texts = iter(
        one.text if question.most is None else speech.text(one.ids[: question.most])
        for one, question in zip(written, questions, strict=True)
    )
    found.answers = [None if row is None else next(texts) for row in answered]
    for name in asked.matches:
        score: Callable[[str, str], float]
        score = matching(asked.regex) if name == "regex" and asked.regex else METRICS[name]
        pairs = zip(found.answers, found.expected, strict=True)
        scores: list[float | None] = [
            None if answer is None or expected is None else score(answer, expected)
            for answer, expected in pairs
        ]
        if name == "tool_call":  # says nothing of other answers
            scores = [s if call else None for s, call in zip(scores, has_call, strict=True)]
        found.scores[name] = scores


def fill_figures_(one: Evaluated, base: Evaluated, asked: EvalRequest) -> None:
    """Fill in the table's figures in the requested order; forgetting is relative to the base."""
    for name in asked.metrics:
        if name in one.scores:
            scores = [score for score in one.scores[name] if score is not None]
            one.figures[name] = ratio(scores, [1.0] * len(scores))
            continue
        sums, counts, _ = zip(*one.losses.values(), strict=True)
        loss = ratio(sums, counts)
        if name == "perplexity":
            loss = Figure(*(math.exp(min(x, 700.0)) for x in (loss.value, loss.low, loss.high)))
        one.figures[name] = loss
    if one.retain:
        sums, counts, _ = zip(*one.retain.values(), strict=True)
        one.figures["retain_loss"] = ratio(sums, counts)
        shared = [where for where in one.retain if where in base.retain]
        pairs = [(one.retain[w], base.retain[w]) for w in shared]
        one.figures["forgetting"] = ratio(
            [tuned.total for tuned, _ in pairs],
            [tuned.weight for tuned, _ in pairs],
            less=[old.total for _, old in pairs],
        )


def _no_answers(data: str, matches: Sequence[str]) -> DataError:
    """The error for metrics that compare answers on rows that have none."""
    return DataError(
        f"{data}: its rows are not conversations that end with an answer that is trained, which"
        f" {matches[0]} needs; use --metrics loss,perplexity"
    )


def _figures_as_dict(figures: Mapping[str, Figure]) -> dict[str, Any]:
    """Figures as they appear in JSON."""
    return {
        name: {"value": figure.value, "low": figure.low, "high": figure.high}
        for name, figure in figures.items()
    }
