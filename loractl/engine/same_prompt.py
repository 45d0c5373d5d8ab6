"""Whether generation begins an answer from the tokens that training saw before it, on a run's rows.

`check` looks at many of them, and `train` at a few: a run whose prompts differ learns its rows and
still answers wrong.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from itertools import islice

from loractl.data.parity import n_prompted, token_parity
from loractl.data.reading import Reading, conversations
from loractl.data.rendering import TemplateError
from loractl.engine.data import sources_of
from loractl.engine.session import Session
from loractl.records import Conversation
from loractl.reports.findings import Finding


def first_conversations(session: Session, count: int) -> list[Conversation]:
    """The first `count` rows of each training source, those that can be read."""
    return list(_conversations(session, count))


def _conversations(session: Session, count: int) -> Iterator[Conversation]:
    data = session.config.data
    nowhere: Callable[[str], None] = lambda message: None  # noqa: E731
    for source in sources_of(data):
        reading = Reading(
            format=source.format if source.format != "auto" else data.format,
            max_length=session.plan.max_length,
            train_on=data.train_on,
            too_long=data.too_long,
            columns=data.columns,
            split=source.split,
            thoughts=data.thoughts,
            split_turns=data.split_turns,
        )
        found = conversations(source.path, reading, nowhere)
        yield from (conversation for _, conversation, _ in islice(found, count))


def same_at_generation(session: Session, rows: Sequence[Conversation]) -> Finding:
    """Whether generation sees the same ids before an answer as training does."""
    answers, found = 0, []
    data = session.config.data
    for conversation in rows:
        with contextlib.suppress(TemplateError):  # reported where rows are read
            found += token_parity(
                session.tokenizer, conversation, train_on=data.train_on, thoughts=data.thoughts
            )
            answers += n_prompted(conversation, data.train_on)
    if found:
        text = (
            f"before {len(found)} of {answers} answers, generation sees other tokens than training,"
            f" so answers may begin wrong however low the loss is ({found[0]}); use a chat template"
            " that renders both alike"
        )
        return Finding("note", "prompt", text)
    text = f"before {answers:,} answers, generation sees the same tokens as training"
    return Finding("ok", "prompt", text)
