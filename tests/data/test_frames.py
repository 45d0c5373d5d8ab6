"""Rows and parts arrive as they were sent; rows that would not are never sent."""

import math
from datetime import date
from socket import socketpair
from threading import Thread
from typing import Any

import pytest

from loractl.data import frames
from loractl.data.account import Account
from loractl.data.row_files import Row
from loractl.data.stretch import Part

ROWS = [
    Row(1, {"text": "Straße 🙂", "n": 1.5, "deep": {"b": [None, True, 10**30]}}, "a/\udcff.jsonl"),
    Row(2, {}, "a.jsonl", "not valid JSON: x"),
]


def sent(value: bytes) -> Any:
    ours, theirs = socketpair()
    with ours, theirs:
        sender = Thread(target=frames.send, args=(ours, value, b"data"))
        sender.start()
        found = frames.receive(theirs)
        sender.join()
    assert found is not None and found[1] == b"data"
    return found[0]


def test_rows_arrive_as_they_were_sent() -> None:
    text = frames.text_of_rows(ROWS, "messages")
    assert text is not None
    format, rows = sent(text)
    assert format == "messages" and frames.rows_of(rows) == ROWS


@pytest.mark.parametrize("value", [date(2026, 1, 1), (1, 2), {1: "a"}, math.nan, b"bytes"], ids=str)
def test_rows_that_json_would_change_are_not_sent(value: Any) -> None:
    assert frames.text_of_rows([Row(1, {"a": value}, "a.parquet")], "messages") is None


def test_a_part_is_the_same_after_the_way_through_a_frame() -> None:
    part = Part(Account("a.jsonl", "", "messages", rows=3, unread={"b": 2, "a": 1}))
    part.bad.add("a.jsonl:1: bad")
    part.lengths = [3, 2]
    part.examples.add([5, 6, 7], [-100, 6, 7], "a.jsonl", 2, [0.0, 0.1, 1.0])
    part.examples.add([8, 9], [-100, 9], "b.jsonl", 3)
    part.account.truncated.add("b.jsonl:3")
    value, data = frames.of_part(part)
    found = frames.part_of((value, data))
    assert found.account == part.account and list(found.account.unread) == ["b", "a"]
    assert (found.bad.count, found.bad.messages) == (1, ["a.jsonl:1: bad"])
    assert found.lengths == [3, 2] and found.examples.weights == {0: [0.0, 0.1, 1.0]}
    assert [one.tolist() for one in found.examples.tokens] == [[~5, 6, 7], [~8, 9]]
    assert (found.examples.lines, found.examples.paths) == ([2, 3], ["a.jsonl", "b.jsonl"])


def test_nothing_is_received_from_an_end_that_is_gone() -> None:
    ours, theirs = socketpair()
    with theirs:
        ours.sendall(b"\x08\0\0")
        ours.close()
        assert frames.receive(theirs) is None
