"""The heavy half of `loractl eval`: load the models in turn, measure the rows one by one."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from loractl.artifacts import files
from loractl.artifacts.peft import adapter as adapters
from loractl.artifacts.peft.attach import load_
from loractl.data import batches, examples
from loractl.data.template import TemplateError, Tokenizer, prompt_ids, with_template
from loractl.engine.base import find_model, find_shared_base, load_base, model_path
from loractl.errors import DataError, NumericError
from loractl.evaluation.bootstrap import Figure, ratio
from loractl.evaluation.eval_request import LOSSES, EvalRequest
from loractl.evaluation.loss import row_losses
from loractl.evaluation.match import METRICS, matching
from loractl.generation.sample import Sampling, generate
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
    recorded = [*(one.base for one in read.values()), *map(_recorded_base, full.values())]
    source = find_shared_base(model, recorded)
    loaded = _load_frozen(source, asked, list(read.values()), named=model)
    tokenizer = load.load_tokenizer(source)
    found = [_measure_model("base", loaded, tokenizer, asked)]
    for name, adapter in read.items():
        own = with_template(tokenizer, adapter.chat_template)
        load_(loaded, adapter)
        found.append(_measure_model(name, loaded, own, asked))
        remove_(loaded)
    del loaded
    for name, path in full.items():
        whole = find_model(str(path))
        found.append(
            _measure_model(name, _load_frozen(whole, asked), load.load_tokenizer(whole), asked)
        )
    for one in found:
        _fill_figures_(one, found[0], asked)
    return found


def _is_model(path: Path) -> bool:
    """Whether a path is a model directory, or a run that produced one."""
    return (Path(model_path(str(path))) / "config.json").is_file()


def _recorded_base(path: Path) -> str | None:
    """The base that a fully trained model records."""
    about = Path(model_path(str(path))) / adapters.ABOUT
    base = files.read_json(about).get("base") if about.is_file() else None
    name = base.get("name_or_path") if isinstance(base, dict) else None
    return name if isinstance(name, str) else None


def _load_frozen(
    source: load.Source,
    asked: EvalRequest,
    trained: Sequence[adapters.Adapter] = (),
    *,
    named: str | None = None,
) -> "PreTrainedModel":
    model = load_base(source, asked.dtype, trained, named=named)
    return model.requires_grad_(False)  # trained layers would not use the fast implementation


def _measure_model(
    name: str, model: "PreTrainedModel", tokenizer: Tokenizer, asked: EvalRequest
) -> Evaluated:
    found = Evaluated(name)
    conversations = _read_conversations(asked)
    found.where = [where for where, _ in conversations]
    has_loss = any(metric in LOSSES for metric in asked.metrics)
    if has_loss or asked.retain is not None:
        run = ProvingRun(model)
        objective = TokenLoss(model, trunk=Trunk(model, run), run=run)
        if has_loss:
            found.losses = _losses_by_row(
                objective, tokenizer, asked, asked.data, train_on="assistant"
            )
        if asked.retain is not None:
            found.retain = _losses_by_row(objective, tokenizer, asked, asked.retain, train_on="all")
    if asked.matches:
        _answer_rows_(found, model, tokenizer, asked, [row for _, row in conversations])
    return found


def _read_conversations(asked: EvalRequest) -> list[tuple[int | str, Conversation]]:
    bad: list[str] = []
    reading = examples.Reading(
        "auto", asked.max_length, "assistant", "truncate", dict(asked.columns)
    )
    several = asked.data.is_dir()
    found: list[tuple[int | str, Conversation]] = [
        (f"{row.path}:{row.line}" if several else row.line, conversation)
        for row, conversation, _ in examples.conversations(str(asked.data), reading, bad.append)
    ]
    if bad or not found:
        raise DataError(*(bad or [f"{asked.data}: no rows"]))
    return found


def _losses_by_row(
    objective: TokenLoss, tokenizer: Tokenizer, asked: EvalRequest, path: Path, *, train_on: str
) -> Losses:
    columns = dict(asked.columns) if path == asked.data else {}
    reading = examples.Reading("auto", asked.max_length, train_on, "truncate", columns)
    store, _ = examples.load(str(path), tokenizer, reading)
    plan = batches.BatchPlan(asked.batch_size, 1, asked.max_length, packing=False)
    found = row_losses(objective.of_rows, batches.in_order(store, plan), objective.model.device)
    for where, (loss, _) in found.items():
        if not math.isfinite(loss):
            raise NumericError(f"{path}:{where}: the loss is {loss}")
    return found


def _answer_rows_(
    found: Evaluated,
    model: "PreTrainedModel",
    tokenizer: Any,
    asked: EvalRequest,
    conversations: Sequence[Conversation],
) -> None:
    """Let the model write the last turn of each row, and compare."""
    prompts = []
    for where, row in zip(found.where, conversations, strict=True):
        if len(row.messages) < 2 or row.messages[-1].role != "assistant":
            raise _no_answers(asked.data, asked.matches)
        try:
            prompts.append(prompt_ids(tokenizer, row.messages[:-1], row.tools))
        except TemplateError as error:
            raise DataError(f"{asked.data}:{where}: {error}") from None
    found.expected = [row.messages[-1].content for row in conversations]
    with torch.no_grad():
        answers = generate(model, tokenizer, prompts, Sampling(max_new_tokens=asked.max_new_tokens))
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


def _no_answers(data: Path, matches: Sequence[str]) -> DataError:
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
