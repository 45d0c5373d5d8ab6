"""Which tokens end an answer: what was trained as the end is where generation has to stop.

A base model whose eos is another token than the one that its chat template writes after an answer
learns the template's; so the ends are read off what is trained, not off the tokenizer's roles.
"""

from collections.abc import Iterable, Sequence
from itertools import groupby

from loractl.data.encoding import encode
from loractl.data.rendering import TemplateError, Tokenizer
from loractl.records import UNTRAINED, Example, Message

SEEN = 200
"""Examples whose ends are looked at; templates end alike answers alike."""

TURN = (Message("user", "1"), Message("assistant", "2"))
CONVERSATIONS = (
    (*TURN, *TURN),
    TURN,
)
"""Where another turn follows an answer some templates end it differently; some accept one turn."""


def ends_of_template(tokenizer: Tokenizer) -> list[int]:
    """The tokens that the chat template writes to end an answer; empty without a template."""
    if not tokenizer.chat_template:
        return []
    for messages in CONVERSATIONS:
        try:
            _, labels = encode(tokenizer, messages, train_on="assistant")
        except TemplateError:
            continue
        return sorted(_ends(tokenizer, [labels]))
    return []


def ends_of_training(
    tokenizer: Tokenizer, examples: Sequence[Example], *, max_length: int
) -> list[int]:
    """The tokens that end the answers of the first examples, or that the template would write.

    Examples as long as `max_length` may be cut, and then end anywhere.
    """
    seen = (examples[number] for number in range(min(SEEN, len(examples))))
    whole = (one.labels for one in seen if len(one.ids) < max_length)
    return sorted(_ends(tokenizer, whole) | set(ends_of_template(tokenizer)))


def _ends(tokenizer: Tokenizer, rows: Iterable[list[int]]) -> set[int]:
    """The last token of each trained span, if it is a marker.

    A piece of text at the end ("." or a newline) occurs inside answers too.
    """
    markers = set(tokenizer.added_tokens_encoder.values())
    found: set[int] = set()
    for labels in rows:
        for trained, span in groupby(labels, lambda label: label != UNTRAINED):
            if trained:
                found.add(list(span)[-1])
    return found & markers


def ids_of(tokenizer: Tokenizer, ends: Iterable[str]) -> list[int]:
    """The ids of tokens by their text, without those that this tokenizer does not have."""
    known = tokenizer.added_tokens_encoder
    return sorted(known[end] for end in ends if end in known)


def texts_of(tokenizer: Tokenizer, ends: Iterable[int]) -> list[str]:
    """The texts of ends, by which they are known in another copy of the tokenizer."""
    texts = {index: text for text, index in tokenizer.added_tokens_encoder.items()}
    return sorted(texts[end] for end in ends)
