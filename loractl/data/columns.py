"""Which columns of a foreign table hold the question and the answer: by their names, else by what
they hold. `rows.guess_columns` knows the names that other formats use.

What is said of a table that leaves this open is in `column_words`.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from loractl.data import rows

ANSWERS = (
    "answer", "answers", "response", "responses", "reply", "solution", "output", "outputs",
    "result", "completion", "summary", "translation", "antwort", "lösung", "réponse", "reponse",
    "respuesta", "risposta", "resposta",
)  # fmt: skip
"""Names of columns that hold what a model should say, alone or as a word of a longer name."""

LABELS = (
    "label", "labels", "category", "class", "intent", "topic", "tag", "sentiment", "department",
    "queue", "team", "target", "kategorie", "klasse", "thema", "abteilung", "categorie",
    "catégorie", "étiquette", "categoria", "categoría", "etiqueta",
)  # fmt: skip
"""Names of columns that hold a class. Where a table has an answer too, that is what is trained."""

QUESTIONS = (
    "question", "query", "prompt", "instruction", "request", "frage", "anfrage", "pregunta",
    "domanda", "pergunta", "demande",
)  # fmt: skip

SAMPLE = 200
"""Rows whose columns are looked at."""
FEW = 0.5
"""A column with at most this many different values per row may hold labels."""
READ_AS_TEXT = ("prompt", "completion", "instruction", "input", "output", "text")

_NUMBER_OR_DATE = re.compile(r"[\d\s.,:/TZ+%€$£-]*")
_ID = re.compile(r"[\w.:/#@-]{1,64}")
_URL = re.compile(r"https?://\S+")

Sample = Sequence[Mapping[str, Any]]


def propose(sample: Sample) -> dict[str, str]:
    """The `data.columns` for rows whose fields are those of no format, or text beside an answer.

    Empty if the fields need no mapping, or none can be found.
    """
    fields = sample[0]
    try:
        format = rows.detect(fields)
    except rows.RowError:
        guess = rows.guess_columns(fields)
        is_whole = guess and (set(guess) != {"text"} or not _answer_beside(sample, guess["text"]))
        return guess if is_whole else _nested(sample) or _by_content(sample)
    return _by_content(sample) if format == "text" and _answer_beside(sample, "text") else {}


def _nested(sample: Sample) -> dict[str, str]:
    """Columns of an object that every row holds, such as data.question and data.answer."""
    is_alone = not text_columns(sample)
    for name in sample[0]:
        inner = [value for row in sample if isinstance(value := row.get(name), Mapping) and value]
        if len(inner) < len(sample) or "." in name:
            continue
        try:
            format = rows.detect(inner[0])
            found = {field: field for field in sorted(rows.reads(format)) if field in inner[0]}
        except rows.RowError:
            found = rows.guess_columns(inner[0])
            found |= {ours: ours for ours in _fields_besides(inner[0], found)}
        if not found and is_alone:
            found = _nested(inner) or _by_content(inner)
        if found and (is_alone or set(found) != {"text"}):
            return {ours: f"{name}.{theirs}" for ours, theirs in found.items()}
    return {}


def _fields_besides(fields: Mapping[str, Any], guess: Mapping[str, str]) -> list[str]:
    """The fields that need no other name at the top of a row, and do within an object."""
    if not guess:
        return []
    format = rows.detect(rows.rename(fields, guess), guess)
    return [name for name in sorted(rows.reads(format)) if name in fields and name not in guess]


def _by_content(sample: Sample) -> dict[str, str]:
    texts = text_columns(sample)
    labels = _label_columns(sample, texts)
    long = [name for name in texts if name not in labels]
    named = _called(ANSWERS, texts)
    answers = named or labels or _called(LABELS, texts)[-1:] or long[1:2]
    if answers and (rest := [name for name in texts if name != answers[0]]):
        asked = [name for name in long if name != answers[0]] or rest
        asked = _called(QUESTIONS, asked) or asked
        longest = max(asked, key=lambda name: _mean_length(_values(sample, name)))
        return {"prompt": longest, "completion": answers[0]}
    return {"text": texts[0]} if texts and texts[0] != "text" else {}


def _answer_beside(sample: Sample, text: str) -> bool:
    others = [name for name in text_columns(sample) if name != text]
    return bool(_called(ANSWERS, others) or _label_columns(sample, others))


def _label_columns(sample: Sample, names: Sequence[str]) -> list[str]:
    """The columns with few different short values, the likeliest answer first."""
    found = []
    for name in names:
        values = _values(sample, name)
        several = 2 <= len(set(values)) <= max(2, FEW * len(values))
        if several and len(set(values)) < len(values) and _mean_length(values) < 60:
            found.append(name)
    return sorted(reversed(found), key=lambda name: not _called((*ANSWERS, *LABELS), [name]))


def _called(words: Sequence[str], names: Sequence[str]) -> list[str]:
    """The columns that have one of these words as their name, then those that have it in it."""
    found = [name for name in names if set(re.split(r"[^\w]|_", name.lower())) & set(words)]
    return sorted(found, key=lambda name: name.lower() not in words)


def is_called_answer(name: str) -> bool:
    """Whether a column is named like what a model should say."""
    return bool(_called((*ANSWERS, *LABELS), [name]))


def text_columns(sample: Sample) -> list[str]:
    """The columns that hold text: not numbers, dates, addresses, or one word new in every row."""
    return [name for name in sample[0] if _is_text(_values(sample, name))]


def several_texts(sample: Sample) -> list[str]:
    """Those of them that say something: not the same in every row."""
    names = text_columns(sample)
    return [name for name in names if len(sample) <= 3 or len(set(_values(sample, name))) > 1]


def structured_columns(sample: Sample) -> list[str]:
    """The columns that hold objects or lists in most rows."""
    return [
        name
        for name in sample[0]
        if 2 * sum(bool(isinstance(row.get(name), dict | list) and row[name]) for row in sample)
        >= len(sample)
    ]


def _is_text(values: Sequence[str]) -> bool:
    if not values or all(_NUMBER_OR_DATE.fullmatch(value) for value in values):
        return False
    if all(_URL.fullmatch(value) for value in values):
        return False
    is_id = len(set(values)) == len(values) > 2 and all(map(_ID.fullmatch, values))
    return not (is_id and any(char.isdigit() for value in values for char in value))


def _values(sample: Sample, name: str) -> list[str]:
    """The texts in a column; none if it also holds something else, or is mostly empty."""
    found = [fields.get(name) for fields in sample]
    if any(value is not None and not isinstance(value, str) for value in found):
        return []
    texts = [value for value in found if isinstance(value, str) and value.strip()]
    return texts if 2 * len(texts) >= len(found) else []


def _mean_length(values: Sequence[str]) -> float:
    return sum(map(len, values)) / max(1, len(values))
