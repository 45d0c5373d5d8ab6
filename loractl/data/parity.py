"""Checks that generation starts an answer from the token ids that training saw before it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from loractl.data.encoding import apart, token_range, tokenize
from loractl.data.rendering import Tokenizer
from loractl.data.template import prompt_ids, render_row, trained_answers, with_thoughts
from loractl.records import Conversation

SHOWN = 60  # characters of a text in a message


@dataclass(frozen=True)
class Difference:
    """An answer preceded by different tokens in generation and in training."""

    number: int  # index of its message
    at: int  # the first token that differs
    prompt: str  # what generation sees from there up to the answer
    trained: str  # what training has there, or the first token of the answer

    def __str__(self) -> str:
        seen, trained = (repr(text[:SHOWN])[1:-1] for text in (self.prompt, self.trained))
        return (
            f"messages[{self.number}]: from token {self.at} on, generation sees '{seen}' and"
            f" training '{trained}'"
        )


def token_parity(
    tokenizer: Tokenizer,
    row: Conversation,
    *,
    train_on: str = "assistant",
    thoughts: str = "auto",
) -> list[Difference]:
    """Every trained answer whose prompt is not exactly how its training row begins.

    If there is none, generation sees the tokens that precede each trained answer, one for one. Some
    templates open a generation with a thinking block that a rendered answer lacks (DeepSeek-R1),
    and some tokenizers merge the end of a prompt with the start of an answer. An answer that opens
    a conversation has no prompt. Raises TemplateError.
    """
    row = with_thoughts(tokenizer, row, thoughts)
    whole = replace(row, messages=tuple(replace(one, spans=None) for one in row.messages))
    answers = "assistant" if train_on == "all" else train_on
    rendered = render_row(tokenizer, whole, train_on=answers)
    ((ids, offsets),) = tokenize(tokenizer, [rendered.text])
    ids, offsets = apart(tokenizer, rendered, ids, offsets)
    found = []
    for number, (start, end) in zip(rendered.numbers, rendered.spans, strict=False):
        if not number:
            continue
        first, _ = token_range(offsets, start, end)
        prompt = prompt_ids(tokenizer, row.messages[:number], row.tools, row.variables)
        if ids[:first] == prompt:
            continue
        pairs = zip(ids[:first], prompt, strict=False)
        at = next((i for i, (a, b) in enumerate(pairs) if a != b), min(first, len(prompt)))
        seen, trained = (
            tokenizer.decode(part[at:]) for part in (prompt, ids[: max(first, at + 1)])
        )
        found.append(Difference(number, at, seen, trained))
    return found


def n_prompted(row: Conversation, train_on: str) -> int:
    """How many answers of a row `token_parity` compares."""
    return sum(number > 0 for number in trained_answers(row.messages, train_on))


def doubled_bos(tokenizer: Tokenizer, ids: Sequence[int]) -> bool:
    """Whether the beginning-of-sequence token occurs twice in a row in these ids."""
    bos = tokenizer.bos_token_id
    return bos is not None and (bos, bos) in pairwise(ids)
