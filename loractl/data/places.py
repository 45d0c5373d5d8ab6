"""Where every content of a conversation stands in its rendered text, found with one rendering.

All contents are marked at once. Where the real texts in the places of the marks give the real
rendering again, character for character, each place is certain; elsewhere none is given.
"""

from collections.abc import Sequence

from loractl.data.message_parts import FIRST_MARK, LAST_MARK, Part, parts_of, text_of
from loractl.data.rendering import Renders, TemplateError

Places = dict[int, tuple[int, int]]


def places_of(renders: Renders) -> Places:
    """(start, end) of what each message says, its reasoning included, by its number; without those
    that the template leaves out. Empty where they cannot be told with one rendering."""
    parts = [part for part in parts_of(renders.messages) if part.kind in ("content", "thought")]
    known = set(renders.whole)
    free = [chr(code) for code in range(FIRST_MARK, LAST_MARK - 2) if chr(code) not in known]
    if len(free) < len(parts):
        return {}
    marks = dict(zip(free, parts, strict=False))
    try:
        marked = renders.with_parts_marked({part: mark for mark, part in marks.items()})
    except TemplateError:
        return {}
    at = [place for place, letter in enumerate(marked) if letter in marks]
    order = [marks[marked[place]] for place in at]
    if len(set(order)) < len(order):
        return {}
    ends = [*at, len(marked)]
    starts = [0, *(place + 1 for place in at)]
    between = [marked[start:end] for start, end in zip(starts, ends, strict=True)]
    return _aligned(renders, order, between)


def _aligned(renders: Renders, order: Sequence[Part], between: Sequence[str]) -> Places:
    """The places of the parts in the real text, with the template's own texts between them."""
    text, found = renders.whole, Places()
    at = len(between[0])
    if not text.startswith(between[0]):
        return {}
    for part, following in zip(order, between[1:], strict=True):
        said = text_of(renders.messages[part.number], part)
        forms = (said, said.strip(), said.lstrip(), said.rstrip())
        fitting = [form for form in forms if text.startswith(form + following, at)]
        if not fitting:
            return {}
        end = at + len(fitting[0])
        start = found.get(part.number, (at, end))[0]
        found[part.number] = (min(start, at), end)
        at = end + len(following)
    return found if at == len(text) else {}
