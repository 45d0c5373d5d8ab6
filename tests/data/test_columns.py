"""Columns of foreign tables: which is the question, which the answer, and what they belong to."""

from typing import Any

import pytest

from loractl.data import columns

MANY = range(40)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([{"message": f"Parcel {i} is late.", "sentiment": ("good", "bad")[i % 2],
           "reply": f"We are sorry about parcel {i}."} for i in MANY],
         {"prompt": "message", "completion": "reply"}),
        ([{"subject": f"Order {i}", "body": f"I wait for order {i} since May.",
           "answer": f"It is on its way, number {i}.", "queue": ("a", "b")[i % 2]} for i in MANY],
         {"prompt": "body", "completion": "answer"}),
        ([{"text": f"A long report about year {i}.", "summary": f"Year {i}."} for i in MANY],
         {"prompt": "text", "completion": "summary"}),
        ([{"abschnitt": f"Der Turm {i} steht am Fluss und ist alt.", "frage": f"Wo steht {i}?",
           "antwort": f"Am Fluss, Turm {i}."} for i in MANY],
         {"prompt": "frage", "completion": "antwort"}),
        ([{"left": f"left text number {i:04}", "right": f"some other words {i:04}"} for i in MANY],
         {"prompt": "left", "completion": "right"}),
        ([{"page": f"https://example.org/{i}", "essay": f"Some text about {i}."} for i in MANY],
         {"text": "essay"}),
    ],
)  # fmt: skip
def test_an_answer_comes_before_a_class_and_a_question_before_longer_text(
    rows: list[dict[str, Any]], expected: dict[str, str]
) -> None:
    assert columns.propose(rows) == expected


def test_what_a_question_is_about_becomes_the_input() -> None:
    row = {"context": "The tower stands by the river.", "question": "Where?", "answer": "There."}
    found = columns.propose([row] * 3)
    assert found == {"instruction": "question", "input": "context", "output": "answer"}


@pytest.mark.parametrize(
    ("inner", "expected"),
    [
        ({"question": "q", "answer": "a"}, {"prompt": "d.question", "completion": "d.answer"}),
        ({"prompt": "q", "completion": "a"}, {"prompt": "d.prompt", "completion": "d.completion"}),
        ({"prompt": "q", "response": "a"}, {"prompt": "d.prompt", "completion": "d.response"}),
        ({"frage": "wie geht es?", "antwort": "es geht."},
         {"prompt": "d.frage", "completion": "d.antwort"}),
        ({"inner": {"question": "q", "answer": "a"}},
         {"prompt": "d.inner.question", "completion": "d.inner.answer"}),
        ({"messages": [{"role": "user", "content": "x"}]}, {"messages": "d.messages"}),
    ],
)  # fmt: skip
def test_columns_within_an_object_are_found(
    inner: dict[str, Any], expected: dict[str, str]
) -> None:
    assert columns.propose([{"id": i, "d": inner} for i in range(5)]) == expected


def test_the_parts_of_an_answer_are_no_question_and_answer() -> None:
    rows = [{"note": f"send {i} cups", "record": {"item": "cup", "who": "me"}} for i in MANY]
    assert columns.propose(rows) == {"text": "note"}  # which is then refused: it has a neighbour
    assert columns.structured_columns(rows) == ["record"]
