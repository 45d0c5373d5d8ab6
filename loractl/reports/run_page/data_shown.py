"""The data of a run as it was trained: counts, lengths, what was cut, and rows with their masks."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from loractl.data.account import Account, warnings
from loractl.reports.page import svg
from loractl.reports.run_page.content import RunContent
from loractl.reports.run_page.numbers import number
from loractl.text import counted, printable

WIDTH, HEIGHT = 340.0, 150.0
BOTTOM, TOP = 118.0, 18.0


@dataclass(frozen=True)
class Source:
    """One source of rows: its name and place, its counts in words, its lengths drawn."""

    name: str
    path: str
    counts: str
    share: str
    lengths: Markup | None
    warnings: list[str]


def sources(run: RunContent) -> list[Source]:
    """The sources that data.json describes, those of training first; a damaged account is left
    out."""
    limit = number(run.settings.get("data.max_length")) or 0
    names = sorted(run.accounts, key=lambda name: not name.startswith("train"))
    return list(_sources({name: run.accounts[name] for name in names}, int(limit)))


def _sources(accounts: Mapping[str, Any], max_length: int) -> Iterator[Source]:
    for name, content in accounts.items():
        try:
            account = Account.from_dict(content)
            said = [printable(line) for line in warnings(account, max_length=max_length)]
            yield Source(
                name=printable(name),
                path=printable(account.path),
                counts=f"{counted(account.rows, 'row')}, {counted(account.examples, 'example')},"
                f" {counted(account.tokens, 'token')}",
                share=f"{account.trained_tokens:,} trained"
                + (f" ({account.trained_tokens / account.tokens:.0%})" if account.tokens else ""),
                lengths=_histogram(account, max_length),
                warnings=said,
            )
        except (KeyError, TypeError, ValueError, AttributeError):
            continue  # edited, or of a version that counted other things


def _histogram(account: Account, max_length: int) -> Markup | None:
    """Rows by their length in tokens, with data.max_length where it is in sight."""
    bars = account.lengths
    if not bars:
        return None
    most, longest = max(count for _, count in bars), bars[-1][0]
    to_x = svg.linear(0, longest, 2, WIDTH - 14)
    parts, lower = [], 0
    for upper, count in bars:
        height = (BOTTOM - TOP) * count / most
        what = f"{lower + 1:,} to {upper:,} tokens: {counted(count, 'row')}"
        parts.append(
            svg.element("rect", svg.element("title", what), x=to_x(lower) + 1, y=BOTTOM - height,
                        width=to_x(upper) - to_x(lower) - 2, height=max(height, 0.0), class_="lora")
        )  # fmt: skip
        lower = upper
    parts.append(svg.element("line", x1=2.0, x2=WIDTH - 14, y1=BOTTOM, y2=BOTTOM, class_="axis"))
    for x in svg.ticks(0, longest, most=5):
        parts.append(svg.element("text", f"{x:g}", x=to_x(x), y=BOTTOM + 17, class_="muted",
                                 text_anchor="start" if x == 0 else "middle"))  # fmt: skip
    if 0 < max_length <= longest:
        x = to_x(max_length)
        parts += [
            svg.element("line", x1=x, x2=x, y1=TOP - 4, y2=BOTTOM, class_="axis limit"),
            svg.element(
                "text", "max_length", x=x - 4, y=TOP + 4, text_anchor="end", class_="muted"
            ),
        ]
    label = f"rows by length in tokens; the longest has {account.longest:,}"
    parts.append(svg.element("text", "tokens", x=WIDTH - 14, y=HEIGHT - 2, text_anchor="end",
                             class_="muted"))  # fmt: skip
    return svg.picture(WIDTH, HEIGHT, label, *parts)
