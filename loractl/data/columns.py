"""Which columns of a foreign table hold the question and the answer: by their names, else by what
they hold. `rows.guess_columns` knows the names that other formats use.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from loractl.data import rows

LABELS = (
    "label", "labels", "category", "class", "intent", "topic", "tag", "sentiment", "department",
    "queue", "team", "target", "answer", "response", "solution", "reply", "kategorie", "klasse",
    "thema", "abteilung", "antwort", "categorie", "catégorie", "réponse", "reponse", "étiquette",
    "categoria", "categoría", "respuesta", "etiqueta", "risposta", "resposta", "output", "result",
)  # fmt: skip
"""Names of columns that hold what a model should answer, alone or as a word of a longer name."""

FEW = 0.5
"""A column with at most this many different values per row may hold labels."""

_NUMBER_OR_DATE = re.compile(r"[\d\s.,:/TZ+%€$£-]*")
_ID = re.compile(r"[\w.:/#@-]{1,64}")


def propose(sample: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """The `data.columns` for rows whose fields are those of no format, or text beside a label.

    Empty if the fields need no mapping, or none can be found.
    """
    fields = sample[0]
    try:
        format = rows.detect(fields)
    except rows.RowError:
        guess = rows.guess_columns(fields)
        is_whole = guess and (set(guess) != {"text"} or not _labels_beside(sample, guess["text"]))
        return guess if is_whole else _by_content(sample)
    return _by_content(sample) if format == "text" and _labels_beside(sample, "text") else {}


def _by_content(sample: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    texts = [name for name in sample[0] if _is_text(_values(sample, name))]
    labels = _label_columns(sample, texts)
    long = [
        name for name in texts if _mean_length(_values(sample, name)) > 0 and name not in labels
    ]
    named = [name for name in texts if _is_called_label(name)]
    if labels and (rest := [name for name in texts if name != labels[0]]):
        asked = max(long or rest, key=lambda name: _mean_length(_values(sample, name)))
        return {"prompt": asked, "completion": labels[0]}
    if len(long) >= 2:
        answer = named[-1] if named and named != long else long[1]
        return {"prompt": next(name for name in long if name != answer), "completion": answer}
    return {"text": long[0]} if long and long[0] != "text" else {}


def _labels_beside(sample: Sequence[Mapping[str, Any]], text: str) -> bool:
    others = [name for name in sample[0] if name != text and _is_text(_values(sample, name))]
    return bool(_label_columns(sample, others))


def _label_columns(sample: Sequence[Mapping[str, Any]], names: Sequence[str]) -> list[str]:
    """The columns with few different short values, the likeliest answer first."""
    found = []
    for name in names:
        values = _values(sample, name)
        several = 2 <= len(set(values)) <= max(2, FEW * len(values))
        if several and _mean_length(values) < 60:
            found.append(name)
    return sorted(reversed(found), key=lambda name: not _is_called_label(name))


def _is_called_label(name: str) -> bool:
    return bool(set(re.split(r"[^\w]|_", name.lower())) & set(LABELS))


def _is_text(values: Sequence[str]) -> bool:
    """Whether a column holds text: not numbers, dates, or one word that is new in every row."""
    if not values or all(_NUMBER_OR_DATE.fullmatch(value) for value in values):
        return False
    is_id = len(set(values)) == len(values) > 2 and all(map(_ID.fullmatch, values))
    return not (is_id and any(char.isdigit() for value in values for char in value))


def _values(sample: Sequence[Mapping[str, Any]], name: str) -> list[str]:
    """The texts in a column; none if it also holds something else, or is mostly empty."""
    found = [fields.get(name) for fields in sample]
    if any(value is not None and not isinstance(value, str) for value in found):
        return []
    texts = [value for value in found if isinstance(value, str) and value.strip()]
    return texts if 2 * len(texts) >= len(found) else []


def _mean_length(values: Sequence[str]) -> float:
    return sum(map(len, values)) / max(1, len(values))
