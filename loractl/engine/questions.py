"""What eval asks of a row, and which answer it expects: what was trained of the row, decoded."""

from dataclasses import replace
from typing import NamedTuple

from loractl.data.encoding import encode_many
from loractl.data.rendering import TemplateError, Tokenizer
from loractl.data.template import prompt_ids, trained_answers, with_thoughts
from loractl.generation.speech import Speech
from loractl.records import UNTRAINED, Conversation, Message


def up_to_answer(row: Conversation, train_on: str) -> Conversation | None:
    """The row up to the last answer of which something is trained; None for one that has none, or
    nothing before it."""
    trained = trained_answers(row.messages, train_on)
    answers = [number for number in trained if row.messages[number].spans != ()]
    if not answers or answers[-1] == 0:
        return None
    return replace(row, messages=row.messages[: answers[-1] + 1])


def trains_calls(answer: Message) -> bool:
    return bool(answer.tool_calls) and answer.spans is None


class Question(NamedTuple):
    """What a model is asked for, and what it was trained to answer."""

    prompt: list[int]
    expected: str
    most: int | None = None  # tokens that are compared; None: all of the answer


def question_of(speech: Speech, row: Conversation, thoughts: str) -> Question:
    """The prompt of a row's last answer, and the text of what is trained of it, as an answer is
    decoded: calls, reasoning and special tokens included.

    Where spans of the answer are trained, the last of them is expected, after a prompt that ends
    where it begins; of the model's text as many tokens count, unless the span ends the answer.
    Raises TemplateError.
    """
    tokenizer = speech.tokenizer
    row = with_thoughts(tokenizer, row, thoughts)
    *context, last = row.messages
    trained = _trained(tokenizer, row)
    if last.spans is None or not trained.places:
        prompt = prompt_ids(tokenizer, context, row.tools, row.variables)
        return Question(prompt, speech.text([trained.ids[n] for n in trained.places]))
    end = first = trained.places[-1]
    while first - 1 in trained.places:
        first -= 1
    whole = replace(row, messages=(*context, replace(last, spans=None)))
    most = None if end == _trained(tokenizer, whole).places[-1] else end + 1 - first
    return Question(trained.ids[:first], speech.text(trained.ids[first : end + 1]), most)


class _Trained(NamedTuple):
    ids: list[int]
    places: list[int]  # of the trained ones


def _trained(tokenizer: Tokenizer, row: Conversation) -> _Trained:
    (encoded,) = encode_many(tokenizer, [row], train_on="last")
    if isinstance(encoded, TemplateError):
        raise encoded
    return _Trained(encoded.ids, [n for n, one in enumerate(encoded.labels) if one != UNTRAINED])
