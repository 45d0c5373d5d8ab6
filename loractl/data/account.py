"""What happened to the rows read: counts, lengths, and the lines of those cut or left out."""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from loractl.data.row_notes import null_arguments
from loractl.data.template import Rendered
from loractl.records import Conversation
from loractl.text import counted

MOST_LINES = 10  # in a message
MOST_KEPT = 1000  # in an account
BARS = 10
LINES = ("truncated", "lost_answer", "dropped", "untrained", "empty", "rendered", "doubled")
COUNTS = (
    "rows", "examples", "tokens", "trained_tokens", "lost_whole", "lost_thoughts", "lost_trained",
    "unended", "null_arguments",
)  # fmt: skip
"""The fields of an account that are sums over its rows."""


@dataclass
class Lines:
    """How many rows something happened to, and where the first thousand of them are."""

    count: int = 0
    first: list[int | str] = field(default_factory=list)

    def add(self, where: int | str) -> None:
        self.count += 1
        if len(self.first) < MOST_KEPT:
            self.first.append(where)

    def __str__(self) -> str:
        shown = ", ".join(str(line) for line in self.first[:MOST_LINES])
        more = f" and {self.count - MOST_LINES} more" if self.count > MOST_LINES else ""
        return f"{'lines' if self.count > 1 else 'line'} {shown}{more}"

    def extend(self, later: "Lines") -> None:
        """Add those of the rows that follow."""
        self.count += later.count
        self.first += later.first[: max(0, MOST_KEPT - len(self.first))]

    @property
    def are(self) -> str:
        return "are" if self.count > 1 else "is"


@dataclass
class Account:
    """What happened to one source; goes to data.json."""

    path: str
    sha256: str
    format: str
    rows: int = 0
    examples: int = 0
    tokens: int = 0
    trained_tokens: int = 0
    longest: int = 0  # tokens of the longest row as read
    keeps_99_percent: int = 0  # the max_length that keeps 99% of the rows whole
    lengths: list[tuple[int, int]] = field(default_factory=list)  # (up to tokens, rows)
    truncated: Lines = field(default_factory=Lines)
    lost_answer: Lines = field(default_factory=Lines)  # too long: trained tokens past max_length
    dropped: Lines = field(default_factory=Lines)  # longer than max_length
    untrained: Lines = field(default_factory=Lines)  # left out: no trained token
    empty: Lines = field(default_factory=Lines)  # trained on an answer without any text
    lost_whole: int = 0  # of these, the rows whose whole answer was past max_length
    weight: float = 1.0  # how often an epoch uses each row
    unread: dict[str, int] = field(
        default_factory=dict
    )  # fields that nothing reads: rows with them
    lost_thoughts: int = 0  # answers whose reasoning the chat template drops
    lost_trained: int = 0  # of these, the answers that are trained without it
    unended: int = 0  # answers trained without what ends them
    rendered: Lines = field(default_factory=Lines)  # prompts with special tokens in their text
    rendered_as: str = ""  # the first of these tokens
    doubled: Lines = field(default_factory=Lines)  # answers whose end token is in their text too
    doubled_as: str = ""  # the first of these tokens
    null_arguments: int = 0  # of calls, left out as the padding of tables

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_dict(content: dict[str, Any]) -> "Account":
        """Rebuild an account from the result of `as_dict`."""
        lines = {name: Lines(**content[name]) for name in LINES}
        lengths = [(upper, count) for upper, count in content["lengths"]]
        return Account(**{**content, **lines, "lengths": lengths})

    def note_row_(
        self, where: int | str, row: Conversation, special: str, unread: Sequence[str]
    ) -> None:
        """Record what the format and the template do not read of a row, and the special token in
        its prompts."""
        self.null_arguments += null_arguments(row.messages)
        for name in (*row.unread, *unread):
            self.unread[name] = self.unread.get(name, 0) + 1
        if special:
            self.rendered.add(where)
            self.rendered_as = self.rendered_as or special

    def note_doubled_(self, where: int | str, end: str) -> None:
        """Record the end token that an answer of a row brings itself, if it does."""
        if end:
            self.doubled.add(where)
            self.doubled_as = self.doubled_as or end

    def note_rendered_(self, texts: Sequence[Rendered]) -> None:
        """Record what the chat template does not write of a row, which may be several examples:
        an answer is the context of those that follow."""
        self.lost_thoughts += max((text.lost_thoughts for text in texts), default=0)
        self.lost_trained += sum(text.lost_trained for text in texts)
        self.unended += sum(text.unended for text in texts)
        for name in dict.fromkeys(name for text in texts for name in text.unread):
            name = f"messages[].{name}"
            self.unread[name] = self.unread.get(name, 0) + 1

    def add_(self, later: "Account") -> None:
        """Add what happened to the rows that follow; `measure_` is for all of them together."""
        for name in COUNTS:
            setattr(self, name, getattr(self, name) + getattr(later, name))
        for name in LINES:
            getattr(self, name).extend(getattr(later, name))
        for name, count in later.unread.items():
            self.unread[name] = self.unread.get(name, 0) + count
        self.rendered_as = self.rendered_as or later.rendered_as
        self.doubled_as = self.doubled_as or later.doubled_as
        if later.rows:
            self.format = later.format

    def measure_(self, found: Counter[int]) -> None:
        """Fill in the length statistics of all rows; `found` maps each length to its row count."""
        self.longest = max(found, default=0)
        self.keeps_99_percent = quantile(found, 0.99)
        self.lengths = histogram(found)


def quantile(found: Counter[int], share: float) -> int:
    """The smallest length that at least `share` of all rows do not exceed."""
    below, wanted = 0, share * found.total()
    for length in sorted(found):
        below += found[length]
        if below >= wanted:
            return length
    return 0


def histogram(found: Counter[int]) -> list[tuple[int, int]]:
    """At most ten bars of equal, round width, as (upper length, rows)."""
    longest = max(found, default=0)
    if not longest:
        return []
    raw = longest / BARS
    scale = 10 ** math.floor(math.log10(max(raw, 1)))
    width = next(int(scale * step) for step in (1, 2, 2.5, 5, 10) if int(scale * step) >= raw)
    bars = [0] * math.ceil(longest / width)
    for length, count in found.items():
        bars[max(0, math.ceil(length / width) - 1)] += count
    return [((number + 1) * width, count) for number, count in enumerate(bars)]


def advice(account: Account, positions: int | None) -> str:
    """The data.max_length that keeps nearly all rows whole, if the model has the positions."""
    if positions is not None and account.keeps_99_percent > positions:
        return (
            f"no data.max_length keeps 99% of the rows whole, as the model has only {positions}"
            " positions; split the rows"
        )
    return f"data.max_length {account.keeps_99_percent} would keep 99% of the rows whole"


def empty_answers(account: Account) -> str:
    """How many rows teach a model to say nothing, and where they are."""
    count = account.empty.count
    have = f"{counted(count, 'row')} {'have' if count > 1 else 'has'}"
    return (
        f"{have} an empty answer ({account.empty}), which teaches the model to say nothing; write"
        " the answers, or remove the rows"
    )


def warnings(account: Account, *, max_length: int, positions: int | None = None) -> list[str]:
    """What a user should know about an account before training, one line each."""
    notes = []
    cut = account.lost_answer.count
    keeps = f"; {advice(account, positions)}"
    for lines, what in (
        (
            account.truncated,
            f"cut to {max_length} tokens, {cut or 'none'} of them within an answer{keeps}",
        ),
        (account.dropped, f"left out: longer than {max_length} tokens{keeps}"),
        (account.untrained, f"left out: no trained tokens{_why_untrained(account, max_length)}"),
    ):
        if lines.count:
            more = keeps if lines is account.untrained and account.lost_whole else ""
            notes.append(f"{account.path}: {lines} {lines.are} {what}{more}")
    return [*notes, *(f"{account.path}: {note}" for _, note in oddities(account))]


def oddities(account: Account) -> Iterator[tuple[str, str]]:
    """(name, text) of what training does otherwise than the rows suggest, though it can go on."""
    if account.empty.count:
        yield "empty answers", empty_answers(account)
    if account.lost_thoughts:
        yield "thoughts", _dropped_thoughts(account)
    if account.unended:
        yield (
            "end",
            f"{account.unended:,} earlier answers are trained without their end, which the chat"
            " template writes in another way than that of a last answer; data.split_turns: true"
            " makes an example of each answer",
        )
    if account.rendered.count:
        yield (
            "rendered",
            f"{account.rendered}: a prompt holds {account.rendered_as!r}, as a conversation does"
            " that has been rendered; split it into messages, or train it whole as text",
        )
    if account.doubled.count:
        yield (
            "end token",
            f"in {counted(account.doubled.count, 'row')} ({account.doubled}) answers end with"
            f" {account.doubled_as!r} in their text, which the chat template writes again; remove"
            " it from the text",
        )
    if account.null_arguments:
        yield (
            "nulls",
            f"{counted(account.null_arguments, 'null argument')} of calls left out, as tables pad"
            " objects with null; write the arguments as JSON text to train them",
        )
    if account.unread:
        fields = ", ".join(f"{name} ({count:,})" for name, count in sorted(account.unread.items()))
        yield "unread", f"fields that nothing reads, and the rows that have them: {fields}"


def _dropped_thoughts(account: Account) -> str:
    """Which answers lose their reasoning, and what keeps it where that is trained."""
    text = (
        "the chat template drops the reasoning of"
        f" {counted(account.lost_thoughts, 'earlier answer')}"
    )
    if not account.lost_trained:
        return f"{text} that precede a trained one, as it does when the model answers"
    return (
        f"{text}, {account.lost_trained:,} of them trained without it; data.train_on: last trains"
        " the last answers only, data.split_turns: true makes an example of each answer"
    )


def _why_untrained(account: Account, max_length: int) -> str:
    if not account.lost_whole:
        return " (no assistant answer)"
    return f" (the whole answer of {account.lost_whole:,} of them is past {max_length} tokens)"
