"""The data section of `check`: two examples with their trained tokens, and a histogram."""

from collections.abc import Iterator, Sequence
from itertools import groupby

from loractl.data.account import Account
from loractl.data.rendering import Tokenizer
from loractl.records import UNTRAINED, Example
from loractl.text import printable, without_middle

LONGEST = 700  # characters shown of one span of text; the middle is left out
BAR = 40


def preview(tokenizer: Tokenizer, example: Example) -> list[tuple[bool, str]]:
    """Spans of an example's text, each with whether its tokens are trained."""
    pairs = zip(example.ids, example.labels, strict=True)
    found = []
    for trained, group in groupby(pairs, key=lambda pair: pair[1] != UNTRAINED):
        ids = [token for token, _ in group]
        found.append((trained, tokenizer.decode(ids, skip_special_tokens=False)))
    return found


def as_text(stretches: Sequence[tuple[bool, str]], *, colour: bool) -> str:
    """Trained spans in green, or between marks without color."""
    before, after = ("\x1b[32m", "\x1b[0m") if colour else ("⟦", "⟧")
    return "".join(
        f"{before}{_shorten_stretch(text)}{after}" if trained else _shorten_stretch(text)
        for trained, text in stretches
    )


def _shorten_stretch(text: str) -> str:
    return "\n".join(printable(line) for line in without_middle(text, LONGEST).split("\n"))


def histogram(account: Account, max_length: int) -> Iterator[str]:
    """One bar per range of lengths, with the position of max_length marked."""
    most = max((count for _, count in account.lengths), default=0)
    lower, shorter = 0, True
    for upper, count in account.lengths:
        shorter = shorter and not count
        if shorter:  # than every row
            lower = upper
            continue
        bar = "#" * max(round(BAR * count / most), count > 0)
        limit = "  <- data.max_length" if lower < max_length <= upper else ""
        yield f"  {lower + 1:>7,} to {upper:>7,} tokens  {count:>8,}  {bar}{limit}"
        lower = upper
