"""What is said of the columns of a foreign table: how to map them, and what keeps `columns` from
choosing. Nothing is trained on a guess that would lose an answer.
"""

import re
import shlex
from collections.abc import Mapping, Sequence

from loractl.config import strict_yaml
from loractl.data import columns, rows
from loractl.data.columns import Sample
from loractl.data.row_files import Row

BESIDE = frozenset((
    "meta", "metadata", "info", "extra", "attributes", "provenance", "source", "sources", "url",
    "urls", "id", "ids", "tokens", "input_ids", "attention_mask", "embedding", "embeddings",
))  # fmt: skip
"""Names of columns whose objects and lists are about the text, not an answer to it."""

_SENTENCE = re.compile(r"\S+(\s+\S+){4,}|\S+(\s+\S+){2,}[.!?]")
"""Five words, or three that end a sentence: no usual name of a column."""

_TABLE = (".csv", ".tsv", ".csv.gz", ".tsv.gz")


def mapping(proposed: Mapping[str, str]) -> str:
    """How to map columns, in a config and on a command line."""
    keys = ", ".join(f"{ours}: {strict_yaml.scalar(name)}" for ours, name in proposed.items())
    return f"data.columns: {{{keys}}} in the config, or {options(proposed)}"


def options(proposed: Mapping[str, str]) -> str:
    """The same on a command line alone."""
    return " ".join(f"--columns {shlex.quote(f'{ours}={name}')}" for ours, name in proposed.items())


def hint(sample: Sequence[Row]) -> str:
    """What to do about rows whose fields are those of no format."""
    fields = [row.fields for row in sample if row.error is None]
    if not fields:
        return ""
    texts = [name for name in fields[0] if isinstance(fields[0][name], str)]
    found = ""
    if proposed := columns.propose(fields):
        found = f"; map them with {mapping(proposed)}"
    elif len(texts) > 1:
        example = dict(zip(("prompt", "completion"), texts, strict=False))
        found = f"; say where question and answer are, as with {mapping(example)}"
    note = headerless(sample)
    return f"{found}; {note}" if note else found


def headerless(sample: Sequence[Row]) -> str:
    """What to do about a table whose first row seems to be data; empty if it holds names."""
    if not sample or not sample[0].path.lower().endswith(_TABLE):
        return ""
    names = list(sample[0].fields)
    odd = next((name for name in names if _SENTENCE.fullmatch(name)), None)
    odd = odd or next((name for name in names if _is_value(sample, name)), None)
    if odd is None:
        return ""
    shown = odd if len(odd) <= 40 else f"{odd[:37]}..."
    return (
        f"the first row looks like data, not like names of columns ({shown!r}): if it is, add a"
        " row of names above it, such as prompt,completion"
    )


def _is_value(sample: Sequence[Row], name: str) -> bool:
    """Whether rows have the name of a column as their value in it."""
    return name.strip() != "" and any(row.fields.get(name) == name for row in sample)


def doubt(sample: Sample, chosen: Mapping[str, str]) -> str | None:
    """Why these columns cannot be trained on without being asked about, with the cures; or None."""
    try:
        fields = rows.rename(sample[0], chosen)
        format = rows.detect(fields, chosen)
    except rows.RowError:
        return None  # told where the rows are read
    odd = columns.structured_columns(sample)
    if lost := _lost_answer(fields, format, chosen, odd):
        what = "objects" if isinstance(sample[0].get(lost), dict) else "lists"
        return (
            f"data.columns: the column {lost} holds {what}, expected text as an answer; write each"
            f" as JSON text, as json.dumps does{_instead(sample[0], lost, format, chosen)}"
        )
    if format != "text":
        return None
    text = chosen.get("text", "text")
    others = [name for name in columns.several_texts(sample) if name != text]
    if not others:
        return None
    pair = options({"prompt": others[0], "completion": text})
    return (
        f"data.columns: found text in {' and '.join([text, *others[:3]])}, so it is not clear what"
        f" to train on; for pairs: {pair}; for {text} alone: {options({'text': text})}"
    )


def _instead(
    fields: Mapping[str, object], lost: str, format: str, chosen: Mapping[str, str]
) -> str:
    """What else may be trained on than a column of objects."""
    if format == "text":
        return f"; for plain text alone: {options({'text': chosen.get('text', 'text')})}"
    value = fields.get(lost)
    texts = [key for key in value if isinstance(value[key], str)] if isinstance(value, dict) else []
    ours = next((ours for ours, theirs in chosen.items() if theirs == lost), None)
    if ours is None or not texts:
        return ""
    return f"; for a part of it: {options({**chosen, ours: f'{lost}.{texts[0]}'})}"


def _lost_answer(
    fields: Mapping[str, object], format: str, chosen: Mapping[str, str], odd: Sequence[str]
) -> str | None:
    """A column of objects or lists that is the answer, or may be, and would not be trained."""
    for ours in columns.READ_AS_TEXT:
        is_turns = format == "prompt-completion" and isinstance(fields.get("prompt"), list)
        if ours in rows.reads(format) and chosen.get(ours, ours) in odd and not is_turns:
            return chosen.get(ours, ours)
    if format in ("messages", "sharegpt"):
        return None
    taken = {*chosen.values(), *(name.partition(".")[0] for name in chosen.values())}
    taken |= rows.reads(format) - chosen.keys()
    free = [name for name in odd if name not in taken]
    if format == "text":
        return next((name for name in free if name.lower() not in BESIDE), None)
    if not chosen:
        return None  # the fields of a format, which are meant as they are
    return next((name for name in free if columns.is_called_answer(name)), None)
