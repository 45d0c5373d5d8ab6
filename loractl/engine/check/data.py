"""What `check` reports on the data: masks, ends, lengths, duplicates, same ids at generation.

Each finding covers one way in which fine-tuning is known to fail silently.
"""

import contextlib
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence

from loractl.data import batches
from loractl.data.account import advice, oddities
from loractl.data.encoding import WRITES_CALLS, tokenize
from loractl.data.ends import TURN
from loractl.data.message_parts import function_of
from loractl.data.parity import doubled_bos
from loractl.data.rendering import Renders, TemplateError, apply, writes_date, writes_tools
from loractl.data.store import have_weights, lengths_of
from loractl.data.tool_proof import left_out_fields
from loractl.engine.prospects import fix, note, ok
from loractl.engine.same_prompt import first_conversations, same_at_generation
from loractl.engine.session import Session
from loractl.records import UNTRAINED, Conversation, Example
from loractl.reports.findings import Finding
from loractl.text import counted

_MARKER = re.compile(r"<\|[^<>|\s]+\|>|<[a-z]+_of_[a-z]+>")

SCHEMAS = 10
"""Rows with different tools whose schemas are taken apart."""

SEEN = 200
"""Rows whose ends and prompts are inspected; the counts of the account cover all rows."""


def data_findings(session: Session) -> Iterator[Finding]:
    """Inspect rows, masks and lengths; one finding for each aspect."""
    seen = [session.data.train[i] for i in range(min(SEEN, len(session.data.train)))]
    yield from _what_is_trained(session)
    yield from _ends(session, seen)
    yield from _markers(session)
    yield from _beginnings(session, seen)
    rows = first_conversations(session, SEEN)
    yield same_at_generation(session, rows)
    if _is_dated(session, rows):
        yield note(
            "date",
            "the chat template writes today's date; loractl uses a fixed date instead, both in"
            " training and in generate",
        )
    yield from _tools(session, rows)
    yield from _undeclared(rows)
    yield _filling(session)
    if not session.data.held_out:
        yield note(
            "held out",
            "data.eval is not set: nothing will distinguish learning from memorizing; set it to a"
            " path or a fraction",
        )


def _what_is_trained(session: Session) -> Iterator[Finding]:
    accounts = session.data.accounts
    trained = sum(one.trained_tokens for one in accounts.values())
    tokens = sum(one.tokens for one in accounts.values())
    weigh = ", and weigh what their rows say" if have_weights(session.data.train) else ""
    share = f"({trained / tokens:.0%})"
    yield ok("mask", f"{trained:,} of {tokens:,} tokens are trained {share}{weigh}")
    for name, one in accounts.items():
        keeps = advice(one, session.positions)
        if one.truncated.count and one.lost_answer.count:
            what = f"part of an answer is lost: {one.lost_answer}"
            yield note("truncated", f"{name}: {what}; {keeps}")
        elif one.truncated.count:
            what = f"only text after the last answer is lost: {one.truncated}"
            yield note("truncated", f"{name}: {what}; {keeps}")
        if one.dropped.count:
            yield note("dropped", f"{name}: too long, so dropped: {one.dropped}; {keeps}")
        if one.untrained.count:
            cure = "give each an assistant message, or remove them"
            if one.lost_whole:
                cure = f"the whole answer of {one.lost_whole:,} of them is cut off; {keeps}"
            yield note(
                "no answer", f"{name}: no trained token, so dropped: {one.untrained}; {cure}"
            )
        for kind, text in oddities(one):
            yield note(kind, f"{name}: {text}")
    if not any(one.truncated.count + one.dropped.count for one in accounts.values()):
        longest = max(one.longest for one in accounts.values())
        yield ok("length", f"no row is truncated or dropped; the longest has {longest:,} tokens")


def _ends(session: Session, seen: Sequence[Example]) -> Iterator[Finding]:
    """Whether the end-of-turn token is learned: without it, a model never stops."""
    tokenizer = session.tokenizer
    whole = [one for one in seen if one.labels[-1] != UNTRAINED or UNTRAINED in one.labels]
    lasts = {_last_trained(one) for one in whole}
    special = lasts & set(tokenizer.all_special_ids)
    texts = ", ".join(sorted(repr(tokenizer.decode([token])) for token in list(lasts)[:3]))
    cut = sum(one.truncated.count for one in session.data.accounts.values())
    if lasts == special and lasts:
        pad = " (also the pad token: masking goes by length)" if _is_pad(session, lasts) else ""
        yield ok("end", f"every answer ends with {texts}, which is trained{pad}")
    elif cut and special:
        yield note("end", "truncated answers have no end-of-turn token; raise data.max_length")
    else:
        yield note(
            "end",
            f"answers end with {texts}, not a special token of this tokenizer: generation may not"
            " know where to stop; check the chat template",
        )


def _is_pad(session: Session, lasts: set[int]) -> bool:
    return session.tokenizer.pad_token_id in lasts


def _last_trained(example: Example) -> int:
    return next(label for label in reversed(example.labels) if label != UNTRAINED)


def _markers(session: Session) -> Iterator[Finding]:
    """Whether the tokenizer knows the markers of a template that the config chose."""
    tokenizer, marks = session.tokenizer, ""
    if session.config.data.chat_template is None:
        return
    with contextlib.suppress(TemplateError):
        marks = apply(tokenizer, TURN)
    found = dict.fromkeys(_MARKER.findall(marks))
    pieces = [mark for mark in found if len(next(tokenize(tokenizer, [mark]))[0]) != 1]
    if pieces:
        are = "markers are not single tokens" if len(pieces) > 1 else "marker is not a single token"
        yield note(
            "markers",
            f"{len(pieces)} of the chat template's {are} of this tokenizer, so a model needs longer"
            " to learn them and generation does not stop at the end of an answer; set"
            f" model.add_tokens: {json.dumps(pieces)}",
        )
    elif found:
        yield ok("markers", f"each marker of the chat template is one token: {', '.join(found)}")


def _beginnings(session: Session, seen: Sequence[Example]) -> Iterator[Finding]:
    twice = sum(doubled_bos(session.tokenizer, example.ids) for example in seen)
    if twice:
        yield fix(
            "bos",
            f"{twice} of {len(seen)} rows begin with two {session.tokenizer.bos_token!r}: remove"
            " one of them from the data or the chat template",
        )
    else:
        yield ok("bos", "no row begins with a doubled beginning-of-sequence token")


def _is_dated(session: Session, rows: Sequence[Conversation]) -> bool:
    for conversation in rows[:1]:
        with contextlib.suppress(TemplateError):
            return writes_date(session.tokenizer, conversation.messages, conversation.tools)
    return False


def _tools(session: Session, rows: Sequence[Conversation]) -> Iterator[Finding]:
    """Whether the tools that rows declare reach the model: many templates silently drop them."""
    declaring = [row for row in rows if row.tools]
    if not declaring:
        return
    first = declaring[0]
    with contextlib.suppress(TemplateError):
        if writes_tools(session.tokenizer, first.messages, first.tools):
            yield ok(
                "tools",
                f"{len(declaring)} of {len(rows)} rows declare tools; the chat template writes"
                " them",
            )
            yield from _schemas(session, declaring)
            return
    yield note(
        "tools",
        f"{len(declaring)} of {len(rows)} rows declare tools, which the chat template leaves out;"
        f" {WRITES_CALLS}, or describe them in the system message",
    )


def _schemas(session: Session, declaring: Sequence[Conversation]) -> Iterator[Finding]:
    """Which fields of the tools' schemas the chat template leaves out."""
    different = {json.dumps(row.tools, default=str): row for row in declaring}
    rows = list(different.values())[:SCHEMAS]
    counts: Counter[str] = Counter()
    for row in rows:
        with contextlib.suppress(TemplateError):
            renders = Renders(session.tokenizer, row.messages, row.tools, row.variables)
            counts.update(field.name for field in left_out_fields(renders))
    if counts:
        named = ", ".join(f"{name} ({count:,})" for name, count in counts.most_common())
        yield note(
            "schemas",
            f"the chat template leaves out fields of the tools, in {counted(len(rows), 'row')}"
            f" looked at: {named}; describe what they say in the description of the tool, or"
            " set data.chat_template: chatml-tools, which writes all of them",
        )


def _undeclared(rows: Sequence[Conversation]) -> Iterator[Finding]:
    """Rows that call what they do not declare: at generation, tools are what a model goes by."""
    found = []
    for row in rows:
        declared = {function_of(tool)["name"] for tool in row.tools}
        called = [function_of(call)["name"] for m in row.messages for call in m.tool_calls]
        found += [name for name in called if name not in declared][:1]
    if found:
        yield note(
            "undeclared",
            f"{len(found)} of {len(rows)} rows call a tool that they do not declare, the first:"
            f" {found[0]}; add it to tools, from which the model will choose",
        )


def _filling(session: Session) -> Finding:
    plan, examples_ = session.plan, session.data.train
    rows = batches.epoch_rows(examples_, plan, 0)
    lengths = lengths_of(examples_)[rows.indices]
    if plan.packing:
        share = float(lengths.sum()) / (len(rows) * plan.max_length)
        what = f"{len(lengths):,} examples in {len(rows):,} rows of {plan.max_length}"
        return ok("packing", f"{what}: {share:.1%} real tokens; no example sees another (tested)")
    padded = sum(
        int(lengths[start : start + plan.batch_size].max())
        * len(lengths[start : start + plan.batch_size])
        for start in range(0, len(lengths), plan.batch_size)
    )
    share = float(lengths.sum()) / padded
    return ok("padding", f"rows of similar length are batched together: {share:.1%} real tokens")
