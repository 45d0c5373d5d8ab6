"""Every chat template of TRL, and ours, with every kind of conversation: what becomes of it.

Each cell is judged by transformers' `apply_chat_template` on the row in its normal form, which is
made here by other code than loractl's. `python -m tests.data.template_grid` writes the table of
outcomes to .github/TEMPLATES.md.
"""

import copy
import datetime
import importlib.metadata
import importlib.util
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

from transformers import PreTrainedTokenizerFast
from transformers.utils import chat_template_utils

import loractl.data
from loractl.data import rows
from loractl.data.dates import DATE
from loractl.data.encoding import encode
from loractl.data.rendering import TemplateError
from loractl.data.template import Rendered, render_row
from loractl.records import UNTRAINED, Conversation
from tests.fixtures.templates.freeze import FIXTURES
from tests.tiny import make_tokenizer

ROOT = Path(__file__).parents[2]
TABLE = ROOT / ".github" / "TEMPLATES.md"
BUILT_IN = Path(loractl.data.__file__).parent / "templates"
MARKERS = r"<\|[\w]+\|>|<\w+\|>|<\|\w+>|<｜[^｜]+｜>|</?think>|<\w+_of_turn>|\[gMASK\]|<sop>"

OUTCOMES = {
    "=": "the ids are transformers', and every answer is trained whole",
    "+": "the same, and an end after the last answer, for which the template writes nothing",
    "t": "the same, but the template drops the reasoning of earlier answers, which is counted",
    "x": "refused, since transformers cannot render the row",
    "-": "refused, since the template leaves out a part of the row",
}


def tool(name: str, **more: Any) -> dict[str, Any]:
    properties = {"city": {"type": "string", "description": "a city"}, **more}
    parameters = {"type": "object", "properties": properties, "required": ["city"]}
    function = {"name": name, "description": "looks it up", "parameters": parameters}
    return {"type": "function", "function": function}


def call(number: int, name: str, city: str) -> dict[str, Any]:
    function = {"name": name, "arguments": json.dumps({"city": city})}
    return {"id": f"call0000{number}", "type": "function", "function": function}


def says(content: Any, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **more}


def asks(content: Any, **more: Any) -> dict[str, Any]:
    return {"role": "user", "content": content, **more}


def result(number: int, name: str, text: str) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": f"call0000{number}", "name": name, "content": text}


def parts(*texts: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": text} for text in texts]


TOOLS = [tool("warmth"), tool("rainfall")]
ONE = call(1, "warmth", "Bern")
TWO = call(2, "rainfall", "Rome")
ASKED, ANSWER = asks("Is it cold there?"), says("It freezes.")
AGAIN, SECOND = asks("And further south?"), says("Mild all year.")
COLD, MILD = "Mountains are high.", "Seas are near."

KINDS: dict[str, dict[str, Any]] = {
    "plain": {"messages": [ASKED, ANSWER, AGAIN, SECOND]},
    "system": {"messages": [{"role": "system", "content": "Be brief."}, ASKED, ANSWER]},
    "one call": {"tools": TOOLS, "messages": [ASKED, says(None, tool_calls=[ONE])]},
    "parallel calls": {"tools": TOOLS, "messages": [ASKED, says(None, tool_calls=[ONE, TWO])]},
    "results": {
        "tools": TOOLS,
        "messages": [
            ASKED, says(None, tool_calls=[ONE]), result(1, "warmth", "3 degrees"), ANSWER,
            AGAIN, says(None, tool_calls=[TWO]), result(2, "rainfall", "20 mm"), SECOND,
        ],
    },
    "parallel results": {
        "tools": TOOLS,
        "messages": [
            ASKED, says(None, tool_calls=[ONE, TWO]), result(1, "warmth", "3 degrees"),
            result(2, "rainfall", "20 mm"), ANSWER,
        ],
    },
    "last thoughts in content": {
        "messages": [ASKED, says(f"<think>\n{COLD}\n</think>\n\n{ANSWER['content']}")]
    },
    "last reasoning_content": {"messages": [ASKED, {**ANSWER, "reasoning_content": COLD}]},
    "last thinking": {"messages": [ASKED, {**ANSWER, "thinking": COLD}]},
    "earlier thoughts in content": {
        "messages": [
            ASKED, says(f"<think>\n{COLD}\n</think>\n\n{ANSWER['content']}"),
            AGAIN, says(f"<think>\n{MILD}\n</think>\n\n{SECOND['content']}"),
        ]
    },
    "earlier reasoning_content": {
        "messages": [
            ASKED, {**ANSWER, "reasoning_content": COLD},
            AGAIN, {**SECOND, "reasoning_content": MILD},
        ]
    },
    "earlier reasoning alone": {
        "messages": [ASKED, {**ANSWER, "reasoning_content": COLD}, AGAIN, SECOND]
    },
    "list content": {
        "messages": [asks(parts("Is it cold ", "there?")), says(parts("It freezes.", " Often."))]
    },
    "null padding": {
        "tools": [tool("warmth", until=None)],
        "messages": [
            {**ASKED, "tool_calls": None, "name": None},
            {**ANSWER, "tool_calls": None, "reasoning_content": None},
        ],
    },
}  # fmt: skip


class Clock(datetime.datetime):
    """The clock that transformers gives to a template, at the day that loractl gives."""

    @classmethod
    def now(cls, tz: datetime.tzinfo | None = None) -> "Clock":
        return cls(DATE.year, DATE.month, DATE.day)


def templates() -> dict[str, Path]:
    """Every template by a name: TRL's, those built in, and those of the fixtures."""
    spec = importlib.util.find_spec("trl")  # importing it takes seconds; only its files are needed
    found = {}
    for owner, folder in (
        ("trl", Path(spec.origin).parent / "chat_templates" if spec and spec.origin else None),
        ("built in", BUILT_IN),
        ("fixture", FIXTURES),
    ):
        paths = sorted(folder.glob("*.jinja")) if folder else []
        found |= {f"{owner}: {path.stem}": path for path in paths}
    return found


def tokenizer_of(path: Path) -> PreTrainedTokenizerFast:
    """The test tokenizer with this template, whose markers are tokens of their own."""
    tokenizer = copy.deepcopy(make_tokenizer())
    tokenizer.chat_template = path.read_text("utf-8")
    found = sorted(set(re.findall(MARKERS, tokenizer.chat_template)))
    tokenizer.add_special_tokens({"additional_special_tokens": found})
    return tokenizer


@dataclass
class Cell:
    """What became of one conversation in one template."""

    outcome: str  # a key of OUTCOMES
    why: str = ""  # it is refused


def cell(tokenizer: PreTrainedTokenizerFast, row: Mapping[str, Any]) -> Cell:
    """Encode a row and judge it. Raises AssertionError for an outcome that may not be."""
    theirs, their_text = _rendered_by_transformers(tokenizer, row)
    conversation = rows.read(row, "messages")
    try:
        ours = render_row(tokenizer, conversation, train_on="assistant")
        ids, labels = encode(
            tokenizer, conversation.messages, train_on="assistant", tools=conversation.tools
        )
    except TemplateError as error:
        if theirs is None:
            return Cell("x", str(error))
        needed = [*_needed(row), *_written_in_no_turn(tokenizer, row)]
        lost = [text for _, text in needed if text not in their_text]
        assert lost, f"refused, though nothing is lost: {error}"
        return Cell("-", str(error))
    assert theirs is not None, "not refused, though transformers cannot render it"
    added = ids[len(theirs) :]
    assert ids[: len(theirs)] == theirs, "other ids than transformers'"
    assert not added or tokenizer.decode(added) == tokenizer.eos_token
    assert not list(_written_in_no_turn(tokenizer, row)), "reasoning of a trained answer is lost"
    lost = _check_trained(tokenizer, row, conversation, ours, labels)
    assert ours.lost_thoughts == lost, "lost reasoning is not counted"
    return Cell("t" if lost else "+" if added else "=")


def _check_trained(
    tokenizer: PreTrainedTokenizerFast,
    row: Mapping[str, Any],
    conversation: Conversation,
    ours: Rendered,
    labels: list[int],
) -> int:
    """Every part of an answer is trained and nothing else; the number of answers without their
    reasoning."""
    runs = re.findall(r"1+", "".join(str(int(label != UNTRAINED)) for label in labels))
    answers = sum(message.role == "assistant" for message in conversation.messages)
    assert len(runs) == len(ours.spans) == answers
    trained = tokenizer.decode([label for label in labels if label != UNTRAINED])
    for role, text in _needed(row):
        assert (text in trained) == (role == "assistant"), f"{text!r} of {role}"
    thoughts = [text for text in (COLD, MILD) if text in json.dumps(row)]
    if thoughts and thoughts[-1] in json.dumps(row["messages"][-1]):
        assert thoughts[-1] in trained
    return sum(text not in ours.text for text in thoughts)


def _needed(row: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(role, text) of what a row says, without the reasoning of answers before the last."""
    messages = row["messages"]
    for number, message in enumerate(messages):
        content = message["content"]
        texts = [p["text"] for p in content] if isinstance(content, list) else [content or ""]
        for text in texts:
            yield message["role"], text.rpartition("</think>")[2].strip()
        if number == len(messages) - 1:
            for field in ("reasoning_content", "thinking"):
                yield message["role"], message.get(field) or ""
            if "</think>" in texts[0]:
                yield message["role"], texts[0][len("<think>") : texts[0].index("</think>")].strip()
        for one in message.get("tool_calls") or []:
            yield message["role"], one["function"]["name"]
            yield message["role"], json.loads(one["function"]["arguments"])["city"]


def _written_in_no_turn(
    tokenizer: PreTrainedTokenizerFast, row: Mapping[str, Any]
) -> Iterator[tuple[str, str]]:
    """(role, text) of the reasoning of earlier answers that the template would not write either if
    they were the last."""
    for number, message in enumerate(row["messages"][:-1]):
        text = next((text for text in (COLD, MILD) if text in json.dumps(message)), "")
        until = {**row, "messages": row["messages"][: number + 1]}
        if text and text not in _rendered_by_transformers(tokenizer, until)[1]:
            yield "assistant", text


def _rendered_by_transformers(
    tokenizer: PreTrainedTokenizerFast, row: Mapping[str, Any]
) -> tuple[list[int] | None, str]:
    """The ids and the text of a row in its normal form, or None and why there are none.

    Nulls are dropped; arguments are objects, or JSON text where the template takes only that;
    contents are lists where the template reads them, else texts.
    """
    tried = []
    for lists in (True, False) if "[{" in json.dumps(row["messages"]) else (False,):
        for change in (json.loads, str):
            normal = _normal(row, lists, change)
            try:
                with mock.patch.object(chat_template_utils, "datetime", Clock):
                    text = tokenizer.apply_chat_template(
                        normal["messages"], tools=normal.get("tools"), tokenize=False
                    )
            except Exception as error:  # whatever a template raises
                tried.append(f"{type(error).__name__}: {error}")
                continue
            printed = lists and re.search(r"['\"]type['\"]: ['\"]text", text)
            dropped = lists and any(said not in text for _, said in _needed(row))
            if printed or dropped or "{'city'" in text:
                continue  # it takes another form
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
            return list(ids), text
    return None, "; ".join(tried)


def _normal(row: Mapping[str, Any], lists: bool, change: Callable[[str], Any]) -> dict[str, Any]:
    found = _without_nulls(json.loads(json.dumps(row)))
    for message in found["messages"]:
        content = message.setdefault("content", "")
        if isinstance(content, list) and not lists:
            message["content"] = "".join(part["text"] for part in content)
        for one in message.get("tool_calls", []):
            one["function"]["arguments"] = change(one["function"]["arguments"])
    return found


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(one) for key, one in value.items() if one is not None}
    return [_without_nulls(one) for one in value] if isinstance(value, list) else value


@cache
def outcomes() -> dict[str, dict[str, str]]:
    """The outcome of each kind of conversation, by template."""
    found = {}
    for name, path in templates().items():
        tokenizer = tokenizer_of(path)
        found[name] = {kind: cell(tokenizer, row).outcome for kind, row in KINDS.items()}
    return found


def table(found: Mapping[str, Mapping[str, str]]) -> str:
    """The outcomes as the contributors' document has them."""
    counts = Counter(outcome for row in found.values() for outcome in row.values())
    total = counts.total()
    refused = counts["x"] + counts["-"]
    lines = [
        "# What becomes of conversations in chat templates",
        "",
        f"{len(found)} templates (those of TRL {importlib.metadata.version('trl')}, the built-in"
        f" ones and those of the tests), {len(KINDS)} kinds of conversations, {total:,} cells;"
        f" {refused:,} are refused ({refused / total:.0%}). Written by"
        " `python -m tests.data.template_grid`; `tests/data/test_template_grid.py` checks it.",
        "",
        *(f"- `{mark}` {text} ({counts[mark]:,})" for mark, text in OUTCOMES.items()),
        "",
        "| template | " + " | ".join(KINDS) + " |",
        "|---|" + "---|" * len(KINDS),
    ]
    for name, row in found.items():
        lines.append(f"| {name} | " + " | ".join(f"`{row[kind]}`" for kind in KINDS) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    TABLE.write_text(table(outcomes()), "utf-8")
