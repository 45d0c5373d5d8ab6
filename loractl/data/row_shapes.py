"""What rows look like, counted one after another: a classification, conversations, calls, text."""

import json
from collections import Counter
from collections.abc import Iterable
from typing import Any

from loractl.data import sources
from loractl.data.reading import Found
from loractl.data.rendering import Tokenizer, writes_tools
from loractl.records import Conversation

MOST_LABELS = 50
"""Different answers of a classification, at most; each must also occur three times on average."""


class Seen:
    """What has been counted so far."""

    def __init__(self) -> None:
        self.format = ""
        self.measured: list[tuple[int, float]] = []  # (tokens, place)
        self.answers: Counter[int] = Counter()  # by hash: a file may have millions
        self.longest_answer = 0
        self.json = self.tools = self.turns = 0
        self.declaring: Conversation | None = None  # the first row that declares tools

    def add_(self, batch: Iterable[Found], lengths: Iterable[int | None]) -> None:
        for (_, conversation, format), length in zip(batch, lengths, strict=True):
            self.format = format
            if length is None:
                continue
            self.measured.append((length, sources.place_of(conversation)))
            said = [m for m in conversation.messages if m.role == "assistant"]
            text = said[-1].content.strip() if said else ""
            self.answers[hash(text)] += 1
            self.longest_answer = max(self.longest_answer, len(text))
            self.json += _is_json(text)
            self.tools += bool(conversation.tools or any(m.tool_calls for m in said))
            if conversation.tools and self.declaring is None:
                self.declaring = conversation
            self.turns = max(self.turns, len(said))

    def drops(self, tokenizer: Tokenizer) -> bool:
        """Whether the tools of a row do not reach the model."""
        row = self.declaring
        if row is None or not tokenizer.chat_template:
            return row is not None
        return not writes_tools(tokenizer, row.messages, row.tools)

    def shape(self) -> str:
        n_rows = len(self.measured)
        if self.format == "text":
            return "continued-pretraining"
        if 2 * self.tools > n_rows:
            return "tool-calls"
        if self.turns == 1 and self.json == n_rows:
            return "json-extraction"
        few = 1 < len(self.answers) <= min(MOST_LABELS, n_rows / 3)
        if self.turns == 1 and few and self.longest_answer < 100:
            return "classification"
        return "chat"


def _is_json(text: str) -> bool:
    if text[:1] not in ("{", "["):
        return False
    try:
        parsed: Any = json.loads(text)
    except (ValueError, RecursionError):
        return False
    return isinstance(parsed, dict | list)
