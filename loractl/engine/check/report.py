"""The heavy half of `loractl check`, which imports torch: inspect the data, take a step, report."""

import itertools
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from loractl import console, text
from loractl.config.loader import Loaded
from loractl.data.account import Account
from loractl.data.examples import TooLongError
from loractl.engine.check.data import data_findings
from loractl.engine.check.model import model_findings, step_findings
from loractl.engine.check.step import StepReport, one_step
from loractl.engine.prospects import prospects
from loractl.engine.session import Session, assemble
from loractl.reports import check as check_preview
from loractl.reports.findings import Finding, findings_as_dicts, findings_as_text, wrapped

SHOWN = 2


@dataclass(frozen=True)
class Report:
    """The results of a check, for people and for programs."""

    accounts: dict[str, Account]
    max_length: int
    previews: list[tuple[str, list[tuple[bool, str]]]]  # (where, stretches)
    findings: list[Finding]
    step: StepReport
    estimate: dict[str, Any]
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        return {
            "ok": not any(one.state == "fix" for one in self.findings),
            "findings": findings_as_dicts(self.findings),
            "data": {name: one.as_dict() for name, one in self.accounts.items()},
            "estimate": self.estimate,
            "step": asdict(self.step),
            "preview": [
                {
                    "where": where,
                    "parts": [{"trained": trained, "text": text} for trained, text in stretches],
                }
                for where, stretches in self.previews
            ],
            "seconds": round(self.seconds, 2),
        }

    def lines(self, *, colour: bool, width: int | None = None) -> Iterator[str]:
        """The report as text: what is trained, how long the rows are, the findings."""
        how = "in green" if colour else "between ⟦ and ⟧"
        for where, stretches in self.previews:
            yield f"example from {where}, trained tokens {how}:"
            yield check_preview.as_text(stretches, colour=colour)
            yield ""
        for name, account in self.accounts.items():
            yield from wrapped(
                f"{name}: {account.path}, {account.format}: {account.rows:,} rows,"
                f" {account.examples:,} examples, {account.tokens:,} tokens,"
                f" {account.trained_tokens:,} trained",
                width,
                then="  ",
            )
            yield from check_preview.histogram(account, self.max_length)
        yield ""
        yield from findings_as_text(self.findings, colour=colour, width=width)
        yield ""
        for line in self._step_lines():
            yield from wrapped(line, width, then=" " * 10)

    def _step_lines(self) -> Iterator[str]:
        step = self.step
        yield (
            f"step      {step.rows} x {step.length} tokens: loss {step.loss:.4f} in"
            f" {step.seconds:.1f} s, saved and read back in {step.save_seconds:.1f} s"
        )
        yield (
            f"memory    peak {text.size(step.peak_bytes)} in this step (estimated:"
            f" {text.size(step.estimated_bytes)})"
        )
        yield (
            f"time      about {text.duration(self.estimate['seconds'])} for"
            f" {self.estimate['steps']:,} steps ({self.estimate['tokens_per_epoch']:,} tokens per"
            " epoch) at the speed of this step"
        )
        rest = self.seconds - step.seconds
        yield (
            f"checked in {self.seconds:.1f} s: {step.seconds:.1f} s for the step,"
            f" {rest:.1f} s for the rest"
        )


def examine(loaded: Loaded) -> Report:
    """Assemble the run, inspect its data, take one step. Raises whatever training would raise."""
    began = time.perf_counter()
    try:
        session = assemble(loaded)
    except TooLongError as error:
        # All lengths together show best which limit to set.
        for line in check_preview.histogram(error.account, loaded.config.data.max_length):
            console.note(line)
        raise
    findings = [*data_findings(session), *model_findings(session), *prospects(session)]
    step = one_step(session)
    findings += step_findings(session, step)
    return Report(
        accounts=session.data.accounts,
        max_length=session.plan.max_length,
        previews=list(_previews(session)),
        findings=findings,
        step=step,
        estimate=_estimate(session, step),
        seconds=time.perf_counter() - began,
    )


def _previews(session: Session) -> Iterator[tuple[str, list[tuple[bool, str]]]]:
    path = next(iter(session.data.accounts.values())).path
    for example in itertools.islice(session.data.train, SHOWN):
        where = example.where if example.path else f"{path}:{example.line}"
        yield str(where), check_preview.preview(session.tokenizer, example)


def _estimate(session: Session, step: StepReport) -> dict[str, Any]:
    """Time and memory of the whole run, extrapolated from the one step taken."""
    tokens = sum(round(one.tokens * one.weight) for one in session.data.of_train())
    rows = session.plan.window * session.total_steps
    per_row = tokens / max(1, sum(one.examples * one.weight for one in session.data.of_train()))
    if session.plan.packing:
        per_row = min(session.plan.max_length, tokens)
    epochs = session.config.train.epochs
    all_tokens = tokens * epochs if epochs is not None else rows * per_row
    return {
        "steps": session.total_steps,
        "tokens_per_epoch": tokens,
        "tokens_per_s": round(step.tokens / step.seconds, 1),
        "seconds": all_tokens * step.seconds / step.tokens,
        "estimated_bytes": step.estimated_bytes,
    }
