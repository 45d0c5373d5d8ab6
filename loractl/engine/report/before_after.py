"""The same held-out prompts, answered by what was trained and by its base: the end of a run."""

import gc
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from loractl.data.reading import conversations
from loractl.data.rendering import TemplateError
from loractl.engine.data import held_out_readings
from loractl.engine.questions import question_of, up_to_answer
from loractl.engine.session import Session
from loractl.evaluation.match import exact_match
from loractl.generation.sample import Answer, Sampling, generate
from loractl.generation.speech import Speech, stop_ids
from loractl.lora.inject import remove_
from loractl.models import load
from loractl.records import Conversation, Message
from loractl.reports.run_page.notes import Compared, Given, Said
from loractl.text import without_middle

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PROMPTS = 8
MOST_TOKENS = 64
LONGEST = 1200  # characters of a text that are kept; the middle is left out
SPARE_TOKENS = 8
"""An answer may be this much longer than the longest expected one, and no longer than MOST_TOKENS:
a base that rambles would take longer than the rest of the report."""


@dataclass(frozen=True)
class Question:
    """A held-out row: what is asked, as messages and as ids, and what was expected."""

    where: str
    context: tuple[Message, ...]
    ids: list[int]
    expected: str


def first_questions(session: Session) -> list[Question]:
    """The first eight held-out rows that end with an answer; none if no row does."""
    return list(islice(_questions(session), PROMPTS))


def _questions(session: Session) -> Iterator[Question]:
    data = session.config.data
    speech = Speech(session.tokenizer, ())
    readings = held_out_readings(data, max_length=session.plan.max_length)
    for path, reading in readings.values():
        for row, conversation, _ in conversations(path, reading, lambda message: None):
            answered = up_to_answer(conversation, data.train_on)
            if answered is None:
                continue
            found = _asked(speech, answered, data.thoughts)
            if found is not None and _has_room(session, found[0]):
                where = f"{row.path}:{row.line}"
                yield Question(where, answered.messages[:-1], *found)


def _asked(speech: Speech, row: Conversation, thoughts: str) -> tuple[list[int], str] | None:
    try:
        asked = question_of(speech, row, thoughts)
    except TemplateError:  # a row that training left out
        return None
    return asked.prompt, asked.expected


def _has_room(session: Session, ids: Sequence[int]) -> bool:
    return 0 < len(ids) < (session.positions or len(ids) + 1)


def answers(
    session: Session, model: "PreTrainedModel", questions: Sequence[Question]
) -> list[Answer]:
    """The model's answers, as `generate` would give them. The model is in eval mode afterwards."""
    if not questions:
        return []
    model.eval()  # type: ignore[no-untyped-call]
    return generate(
        model,
        session.tokenizer,
        [question.ids for question in questions],
        Sampling(max_new_tokens=_limit(session, questions), batch_size=PROMPTS),
        stops=stop_ids(model, session.tokenizer, session.ends),
    )


def _limit(session: Session, questions: Sequence[Question]) -> int:
    """Tokens that an answer may have."""
    texts = [question.expected for question in questions]
    expected = session.tokenizer(texts, add_special_tokens=False)["input_ids"]
    return min(MOST_TOKENS, max(map(len, expected)) + SPARE_TOKENS)


def base_of_(session: Session) -> "PreTrainedModel":
    """The model without what was trained: adapters are taken off, or the base is loaded again in
    the room that the gradients had."""
    if session.layers:
        remove_(session.model)
        return session.model
    for parameter in session.parameters.values():
        parameter.grad = None
    gc.collect()
    return load.load_model(
        session.source,
        dtype=session.dtype,
        device=session.device,
        trust_remote_code=session.config.model.trust_remote_code,
    )


def side_by_side(
    questions: Sequence[Question], base: Sequence[Answer], tuned: Sequence[Answer]
) -> list[Compared]:
    """Each question with what was expected and both answers."""
    return [
        Compared(
            where=question.where,
            prompt=[
                Said(one.role, without_middle(one.content, LONGEST)) for one in question.context
            ],
            expected=without_middle(question.expected, LONGEST),
            base=_given(before, question),
            tuned=_given(after, question),
        )
        for question, before, after in zip(questions, base, tuned, strict=True)
    ]


def _given(answer: Answer, question: Question) -> Given:
    return Given(
        text=answer.text,
        is_cut=answer.finish_reason == "length",
        is_right=bool(exact_match(answer.text, question.expected)),
    )
