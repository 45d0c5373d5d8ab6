"""A fixed day for chat templates that write today's date."""

from collections.abc import Iterator
from datetime import date

DATE = date(2024, 7, 26)
"""The date given to templates as today: Llama 3's own default. A row read again tomorrow, or after
a resume, has the same token ids, and so does a generation prompt."""

OTHER_DATE = date(2031, 12, 7)  # differs from DATE in every part

# transformers gives templates the clock as a global, and turns functions that are passed with the
# messages into text ("<function>"), so a macro before the template shadows the global. The one
# newline after the last block is trimmed: nothing is added to the text.
FIXED_DATE = (
    "{% macro strftime_now(format) %}{% set ns = namespace(text=format) %}"
    "{% for name, value in date_parts %}"
    "{% set ns.text = ns.text.replace(name, value) %}{% endfor %}"
    "{{ ns.text }}{% endmacro %}\n"
)


def date_parts(day: date) -> Iterator[tuple[str, str]]:
    """The value of each part of a strftime format, with English names on every machine."""
    months = "January February March April May June July August September October November December"
    weekdays = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday"
    month, weekday = months.split()[day.month - 1], weekdays.split()[day.weekday()]
    yield from (("%-d", str(day.day)), ("%-m", str(day.month)), ("%e", f"{day.day:>2}"))
    yield from (("%d", f"{day.day:02}"), ("%m", f"{day.month:02}"), ("%Y", str(day.year)))
    yield from (("%y", f"{day.year % 100:02}"), ("%B", month), ("%b", month[:3]))
    yield from (("%A", weekday), ("%a", weekday[:3]), ("%F", day.isoformat()))
    yield from (("%j", f"{day.timetuple().tm_yday:03}"), ("%x", f"{day:%m/%d/%y}"))
    yield from (("%H", "12"), ("%I", "12"), ("%M", "00"), ("%S", "00"), ("%p", "PM"))
    yield ("%%", "%")
