"""Conversations -> token ids, and which of them are trained.

The whole text is tokenized once, and the offsets of its tokens show which of them are in a trained
span, so no template needs `{% generation %}` marks.
"""

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, overload

from loractl.data.rendering import CallsLostError, TemplateError, Tokenizer
from loractl.data.template import Rendered, render_row, with_thoughts
from loractl.records import UNTRAINED, Conversation, Message

WRITES_CALLS = "set data.chat_template: chatml-tools, which writes tools, calls and results"
"""What is said of a row whose calls another template does not write, and what `init` then does."""


@dataclass(frozen=True)
class Encoded:
    """A conversation as token ids."""

    ids: list[int]
    labels: list[int]  # the ids, UNTRAINED where a token is not trained
    text: Rendered
    weights: list[float] | None = None  # of the trained tokens, if one is not 1


def encode(
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    *,
    train_on: str,
    tools: Sequence[Mapping[str, Any]] = (),
) -> tuple[list[int], list[int]]:
    """Token ids of a row, and labels that are UNTRAINED where a token is not trained.

    The first token is never trained: nothing predicts it. Raises TemplateError.
    """
    row = Conversation(tuple(messages), tuple(tools))
    (encoded,) = encode_many(tokenizer, [row], train_on=train_on)
    if isinstance(encoded, TemplateError):
        raise encoded
    return encoded.ids, encoded.labels


def encode_many(
    tokenizer: Tokenizer,
    conversations: Sequence[Conversation],
    *,
    train_on: str,
    thoughts: str = "auto",
) -> list[Encoded | TemplateError]:
    """The result of `encode` for each row with its weights, or its error, with one call of the
    tokenizer.

    A row of GSM8K (215 tokens) takes 0.62 ms of one core in batches of 256 and 0.77 ms alone;
    a third of it is rendering, and most of the rest is the tokenizer, whose threads share it.
    """
    rows = [_render_or_error(tokenizer, row, train_on, thoughts) for row in conversations]
    texts = [row.text for row in rows if isinstance(row, Rendered)]
    if not texts:
        return [row for row in rows if isinstance(row, TemplateError)]
    encoded = tokenize(tokenizer, texts)
    return [
        row
        if isinstance(row, TemplateError)
        else _labelled_or_error(tokenizer, row, *next(encoded))
        for row in rows
    ]


def _labelled_or_error(
    tokenizer: Tokenizer, row: Rendered, ids: list[int], offsets: Sequence[tuple[int, int]]
) -> Encoded | TemplateError:
    try:
        return _label_tokens(*apart(tokenizer, row, ids, offsets), row)
    except TemplateError as error:
        return TemplateError(str(error))  # without what it holds


def _render_or_error(
    tokenizer: Tokenizer, row: Conversation, train_on: str, thoughts: str
) -> Rendered | TemplateError:
    try:
        require_offsets(tokenizer)
        row = with_thoughts(tokenizer, row, thoughts)
        return render_row(tokenizer, row, train_on=train_on)
    except TemplateError as error:
        cure = f"; {WRITES_CALLS}" if isinstance(error, CallsLostError) else ""
        return TemplateError(f"{error}{cure}")  # without its cause, which keeps the texts alive


def require_offsets(tokenizer: Tokenizer) -> None:
    """Raise TemplateError if the tokenizer gives no offsets of its tokens in the text."""
    if not getattr(tokenizer, "is_fast", False):
        raise TemplateError(
            f"the tokenizer ({type(tokenizer).__name__}) gives no token offsets, so trained spans"
            " cannot be determined; use a model that has a tokenizer.json"
        )


class Offsets(Sequence[tuple[int, int]]):
    """Where each token is in the text. Looked up one by one: a list of all takes a tuple a token,
    and a tenth of the time of tokenizing, and a row needs a few."""

    def __init__(self, encoding: Any) -> None:
        self.encoding = encoding

    def __len__(self) -> int:
        return len(self.encoding)

    @overload
    def __getitem__(self, number: int) -> tuple[int, int]: ...
    @overload
    def __getitem__(self, number: slice) -> Sequence[tuple[int, int]]: ...
    def __getitem__(self, number: int | slice) -> Any:
        if isinstance(number, slice):
            return self.encoding.offsets[number]
        return self.encoding.token_to_chars(range(len(self))[number])


def tokenize(
    tokenizer: Tokenizer, texts: Sequence[str]
) -> Iterator[tuple[list[int], Sequence[tuple[int, int]]]]:
    """Yield (ids, offsets) of each text as it is: no tokens are added."""
    encoded = tokenizer(
        list(texts),
        add_special_tokens=False,  # the template has written them
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,  # rows longer than the model allows are handled and reported elsewhere
    )
    yield from zip(encoded["input_ids"], map(Offsets, encoded.encodings), strict=True)


def apart(
    tokenizer: Tokenizer, row: Rendered, ids: list[int], offsets: Sequence[tuple[int, int]]
) -> tuple[list[int], Sequence[tuple[int, int]]]:
    """The tokens of a row, none of which holds both the end of a prompt and the start of an answer.

    Such a token could not be trained, as generation begins after the prompt, and a short answer
    would be lost whole. The text is then tokenized in parts that are cut there, as a prompt is.
    Raises TemplateError if the tokenizer would add something to the parts.
    """
    starts = {row.spans[n][0] for n in range(len(row.numbers))} | {
        floor for *_, floor in row.pieces
    }
    cuts = sorted(start for start in starts if _is_within_token(offsets, start))
    if not cuts:
        return ids, offsets
    ends = [0, *cuts, len(row.text)]
    texts = [row.text[start:end] for start, end in pairwise(ends)]
    found: list[int] = []
    places: list[tuple[int, int]] = []
    for at, text, (part, inside) in zip(ends, texts, tokenize(tokenizer, texts), strict=False):
        if at and tokenizer.decode(part) != text:
            raise TemplateError(
                f"the tokenizer joins {row.text[at - 1 : at + 9]!r}, the end of the prompt and the"
                " start of an answer, which could not be trained; use a chat template whose prompt"
                " ends with a newline or a special token"
            )
        found += part
        places += [(start + at, end + at) for start, end in inside]
    return found, places


def _is_within_token(offsets: Sequence[tuple[int, int]], place: int) -> bool:
    first = bisect_left(offsets, (place,))
    return first > 0 and offsets[first - 1][1] > place


def _label_tokens(ids: list[int], offsets: Sequence[tuple[int, int]], row: Rendered) -> Encoded:
    labels = [UNTRAINED] * len(ids)
    for start, end in row.spans:
        first, last = token_range(offsets, start, end)
        labels[first:last] = ids[first:last]
    for start, end, floor in row.pieces:
        first, last = overlapping(offsets, start, end, floor)
        labels[first:last] = ids[first:last]
    labels[:1] = [UNTRAINED] * len(ids[:1])
    if not row.weights:
        return Encoded(ids, labels, row)
    weights = [float(label != UNTRAINED) for label in labels]
    for start, end, weight in row.weights:
        first, last = token_range(offsets, start, end)
        weights[first:last] = [weight * (one > 0) for one in weights[first:last]]
    return Encoded(ids, labels, row, weights)


def overlapping(
    offsets: Sequence[tuple[int, int]], start: int, end: int, floor: int
) -> tuple[int, int]:
    """(first, last + 1) of the tokens that hold a character of a span within an answer, which
    begins at `floor`: a space before a word belongs to its token."""
    first, last = token_range(offsets, start, end)
    while first and offsets[first - 1][1] > start and offsets[first - 1][0] >= floor:
        first -= 1
    return first, last


def token_range(offsets: Sequence[tuple[int, int]], start: int, end: int) -> tuple[int, int]:
    """(first, last + 1) of the tokens that begin within a span of the text.

    A token that begins before the span also holds part of the prompt, so a model given that
    prompt never writes it: it is not in the span.
    """
    first, last = bisect_left(offsets, (start,)), bisect_left(offsets, (end,))
    while first < last and offsets[first] == (start, start):
        first += 1  # zero width: a marker that some tokenizers add, or trimmed space before it
    return first, last
