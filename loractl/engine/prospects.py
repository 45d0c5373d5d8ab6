"""Whether a run is likely to learn: judged before its first step, for `check` and `train` alike.

Every finding that is not `ok` names the setting to change. None of them stops a run.
"""

import math
from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np

from loractl.data.store import lengths_of
from loractl.engine.new_tokens import unused
from loractl.engine.optimizer import judge_optimizer, judge_rate
from loractl.engine.session import Session
from loractl.lora.token_rows import only_rows, token_rows
from loractl.planning.recommend import ENOUGH_STEPS, usual_rate
from loractl.records import UNTRAINED, Example
from loractl.reports.findings import Finding
from loractl.text import counted

FEW_STEPS = 50
"""With fewer optimizer steps, few tasks are learned; ENOUGH_STEPS is what we suggest instead."""
FEW_HELD_OUT = 20
"""With fewer rows, the error of the held-out loss is as large as what most runs gain."""
MIXED = 2
"""Examples in a packed row from which batch_size no longer says how many a step takes."""
COMPARED = 200_000
"""Most rows that are searched for duplicates: more would take longer than everything else."""

ok = partial(Finding, "ok")
note = partial(Finding, "note")
fix = partial(Finding, "fix")


def prospects(session: Session) -> Iterator[Finding]:
    """One finding for each way in which runs are known to learn nothing without saying so."""
    train, data, plan = session.config.train, session.data, session.plan
    rows = session.epochs.rows(0)
    yield judge_steps(
        session.total_steps,
        epochs=train.epochs if train.steps is None else None,
        unpacked=len(rows.indices) / plan.window if plan.packing else None,
    )
    sizes, method = session.model.config.get_text_config(), session.config.method
    usual = usual_rate(sizes.hidden_size, sizes.model_type, method)
    yield judge_rate(train.learning_rate, method, usual, train.optimizer)
    shapes = [tuple(parameter.shape) for parameter in session.parameters.values()]
    yield judge_optimizer(train.optimizer, session.device.type, shapes)
    yield judge_answers(data.train)
    yield from judge_new_tokens(session)
    if data.held_out:
        is_share = isinstance(session.config.data.eval, float)
        train_rows = () if is_share else data.train  # by content, so duplicates are together
        own = independent(train_rows, data.held_out)
        yield judge_held_out(own, len(data.train), rows=len(data.held_out))
        if is_share:
            yield ok("held out", f"{len(data.held_out):,} rows, none of which is trained on")
        else:
            yield judge_split(data.train, data.held_out)
    if plan.packing:
        yield judge_packing(len(rows.indices), len(rows), plan.window, plan.max_length)


def judge_new_tokens(session: Session) -> Iterator[Finding]:
    """What model.add_tokens added and trains, and the tokens that no row uses."""
    new = session.new_tokens
    if not new.ids:
        return
    tokens = counted(len(new.texts), "token")
    rows = counted(len(new.ids), "row")
    owned = only_rows(session.whole)
    shared = any(one.follows for one in token_rows(session.model).values())
    where = " and ".join(path.rpartition(".")[2] for path in token_rows(session.model))
    is_whole = f"{rows} of the embedding and the head, which are trained whole"
    how = f"{rows} of {where}{' (shared)' if shared else ''}" if owned else is_whole
    trained = sum(one.rows.numel() for one in owned.values())
    count = f": {trained:,} trained values" if owned else ""
    spare = len(new.ids) - new.grown
    if new.given:
        yield ok("new tokens", f"{rows} of the adapter's own tokens, which are trained further")
        return
    had = f"; {spare} of them were spare rows of the base" if spare else ""
    yield ok("new tokens", f"{tokens} added (model.add_tokens), with {how}{count}{had}")
    if idle := unused(new, session.tokenizer, session.data):
        listed = ", ".join(map(repr, idle[:3])) + (", ..." if len(idle) > 3 else "")
        stays = "rows stay" if len(idle) > 1 else "row stays"
        yield note(
            "new tokens",
            f"no training row has {listed}, so {'their' if len(idle) > 1 else 'its'} {stays} the"
            " mean of the base's; remove from model.add_tokens what the rows do not use",
        )


def judge_steps(steps: int, *, epochs: float | None, unpacked: float | None) -> Finding:
    """`unpacked`: the steps of one epoch if the run packed no rows; None if it packs none."""
    if steps >= FEW_STEPS:
        return ok("steps", f"{steps:,} optimizer steps")
    cures = []
    if epochs is None:
        cures.append(f"train.steps: {ENOUGH_STEPS}")
    else:
        without = math.ceil(unpacked * epochs) if unpacked is not None else 0
        if without >= 2 * steps:
            cures.append(f"data.packing: false (about {without:,} steps)")
        if without < FEW_STEPS:
            enough = math.ceil(epochs * ENOUGH_STEPS / max(steps, without))
            cures.append(f"train.epochs: {enough} (about {ENOUGH_STEPS} steps)")
    return note(
        "steps",
        f"only {counted(steps, 'optimizer step')}: few tasks are learned in under {FEW_STEPS}; set"
        f" {' and '.join(cures)}",
    )


def judge_answers(examples: Sequence[Example]) -> Finding:
    """Whether any two rows are trained on different tokens; reads no further than to the first."""
    answers = (_trained_tokens(example) for example in examples)
    first = next(answers, [])
    if len(examples) < 2 or any(answer != first for answer in answers):
        return ok("answers", "the rows have different answers")
    return note(
        "answers",
        f"all {len(examples):,} rows have the same answer, which is what the model will then say to"
        " anything; check that data.columns names the right column",
    )


def _trained_tokens(example: Example) -> list[int]:
    return [label for label in example.labels if label != UNTRAINED]


def independent(train: Sequence[Example], held_out: Sequence[Example]) -> int:
    """The held-out rows without copies of each other and of training rows; all of them where there
    are too many to search."""
    if len(train) + len(held_out) > COMPARED:
        return len(held_out)
    known = {tuple(example.ids) for example in held_out}
    return len(known - {tuple(ids) for ids in _alike(train, held_out)})


def _alike(train: Sequence[Example], held_out: Sequence[Example]) -> Iterator[list[int]]:
    """The training rows that have the length of some held-out row: only these are read."""
    same = np.isin(lengths_of(train), lengths_of(held_out))
    return (train[int(number)].ids for number in same.nonzero()[0])


def judge_held_out(held_out: int, trained: int, *, rows: int) -> Finding:
    """Whether there are enough held-out rows to tell learning from chance; `rows`: with copies."""
    copies = "" if rows == held_out else f", as {rows - held_out:,} of {rows:,} are copies"
    if held_out >= FEW_HELD_OUT:
        return ok("eval rows", f"{held_out:,} different held-out rows{copies}")
    share = FEW_HELD_OUT / max(1, (held_out or rows) * (rows + trained) / rows)
    cure = (
        f"set data.eval to a share of at least {math.ceil(share * 100) / 100:g}"
        if share <= 0.5
        else "name a file with more rows as data.eval"
    )
    are = "row is" if held_out == 1 else "rows are"
    few = f"only {held_out:,} {'different ' if copies else ''}{are} held out{copies}"
    return note(
        "eval rows",
        f"{few}, too few to tell learning from chance; {cure}, so that there are {FEW_HELD_OUT}",
    )


def judge_split(train: Sequence[Example], held_out: Sequence[Example]) -> Finding:
    """Whether held-out rows are also trained on."""
    if len(train) + len(held_out) > COMPARED:
        return ok("held out", f"{len(held_out):,} rows (too many to search for duplicates)")
    known = {tuple(example.ids) for example in held_out}
    both = sum(tuple(ids) in known for ids in _alike(train, held_out))
    if both:
        return fix(
            "held out",
            f"{both:,} training rows are also held-out rows, whose loss will look too good; remove"
            " them, or set data.eval to a fraction instead of a path",
        )
    return ok("held out", f"{len(held_out):,} rows, none of which is trained on")


def judge_packing(examples: int, rows: int, window: int, max_length: int) -> Finding:
    """How many examples a step takes, which batch_size does not say where rows are packed."""
    in_a_row = examples / rows
    a_step = examples * min(1, window / rows)
    holds = f"a packed row of {max_length:,} tokens holds {in_a_row:.1f} examples"
    if in_a_row < MIXED:
        return ok("examples", f"{holds}; a step takes about {a_step:,.0f}")
    return note(
        "examples",
        f"{holds}, so a step takes about {a_step:,.0f} examples, where batch_size x"
        f" gradient_accumulation says {window:,}; for more and smaller steps set data.packing:"
        " false",
    )
