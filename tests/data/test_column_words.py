"""What is said of columns that leave open what to train on: the cures work as they are written."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from loractl.commands.arguments import parse_columns
from loractl.config import strict_yaml
from loractl.data import columns, rows
from loractl.data.column_words import doubt, hint
from loractl.data.reading import Reading, conversations
from loractl.data.survey import survey
from loractl.errors import DataError
from tests.tiny import write_jsonl

MANY = range(40)


def refusal(sample: list[dict[str, Any]]) -> str:
    """Why these rows are not trained on as they are."""
    found = doubt(sample, columns.propose(sample))
    assert found is not None
    return found


def cures(text: str) -> list[dict[str, str]]:
    """The columns of every command line in a text."""
    parts = [part for part in text.split(": ") if "--columns" in part]
    words = [shlex.split(part.partition(";")[0]) for part in parts]
    return [parse_columns([w for w in one if w != "--columns"]) for one in words]


@pytest.mark.parametrize("value", [{"n": 1}, {"who": "me"}, ["a", "b"], [{"n": 1}]])
@pytest.mark.parametrize(
    "names", [("text", "label"), ("input", "output"), ("note", "record"), ("question", "answer")]
)
def test_objects_and_lists_as_answers_are_refused_not_left_out(
    names: tuple[str, str], value: Any
) -> None:
    asked, answer = names
    found = refusal([{asked: f"{i} cups of tea", answer: value} for i in MANY])
    what = "objects" if isinstance(value, dict) else "lists"
    assert f"the column {answer} holds {what}, expected text" in found
    assert "write each as JSON text, as json.dumps does" in found


def test_the_answers_of_a_quiz_are_not_replaced_by_its_questions() -> None:
    found = refusal(
        [{"context": f"Some text {i}.", "question": f"Why {i}?", "answers": {"text": ["x"]}}
         for i in MANY]
    )  # fmt: skip
    assert "the column answers holds objects" in found


def test_objects_beside_a_text_of_another_name_are_not_left_out() -> None:
    sample = [{"text": {"said": "so"}, "note": ("yes", "no")[i % 2]} for i in MANY]
    assert "the column text holds objects" in refusal(sample)


def test_a_part_of_an_answer_can_be_named() -> None:
    sample = [{"question": f"Why {i}?", "answer": {"text": "So."}} for i in MANY]
    (cure,) = cures(refusal(sample))
    assert cure == {"prompt": "question", "completion": "answer.text"}
    assert rows.prompt_completion(rows.rename(sample[0], cure)).messages[1].content == "So."


def test_messages_and_what_is_about_a_text_are_no_lost_answers() -> None:
    turns = [{"role": "user", "content": "x"}]
    for row in (
        {"messages": turns, "answers": ["a"]},
        {"prompt": turns, "completion": turns},
        {"text": "some text", "meta": {"lang": "en"}},
        {"text": "some text", "url": "https://example.org", "n": 4, "language": "en"},
        {"prompt": "x", "completion": "y", "history": ["z"]},
    ):
        sample = [{**row, "id": i} for i in MANY]
        assert doubt(sample, columns.propose(sample)) is None, row


@pytest.mark.parametrize("names", [("title", "text"), ("headline", "content")])
def test_two_columns_of_text_are_never_taken_for_plain_text(
    names: tuple[str, str], tmp_path: Path
) -> None:
    one, other = names
    sample: list[dict[str, object]] = [
        {one: f"Town {i}", other: f"The town {i} lies by a river."} for i in MANY
    ]
    found = refusal(sample)
    assert f"found text in {other} and {one}" in found
    pair, alone = cures(found)
    assert pair == {"prompt": one, "completion": other} and alone == {"text": other}
    path = str(write_jsonl(tmp_path / "rows.jsonl", sample))
    with pytest.raises(DataError, match="not clear what to train on"):
        survey(path, None)
    for cure, format in ((pair, "prompt-completion"), (alone, "text")):
        assert survey(path, None, columns=cure).format == format


def test_names_that_tell_nothing_are_answered_with_the_line_to_write(tmp_path: Path) -> None:
    path = tmp_path / "same_len.csv"
    path.write_text("left,right\n" + "".join(f"q{i:04},a{i:04}\n" for i in MANY))
    with pytest.raises(DataError) as caught:
        survey(str(path), None)
    line = re.search(r"data.columns: (\{.*\})", str(caught.value))
    assert line is not None
    assert strict_yaml.parse(line[1]).value == {"prompt": "left", "completion": "right"}
    assert survey(str(path), None, columns={"prompt": "left", "completion": "right"}).rows == 40


@pytest.mark.parametrize(
    "first",
    [
        "I was charged twice for my order.,billing",
        "Where is it?,shipping",
        "all is well now,billing",
    ],
)
def test_a_table_without_a_row_of_names_is_noted(first: str, tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    rest = [f"order {i} is late again,{('billing', 'shipping')[i % 2]}" for i in MANY]
    path.write_text("\n".join([first, *rest]))
    assert "the first row looks like data" in survey(str(path), None).note
    path.write_text("\n".join(["message,team", *rest]))
    assert survey(str(path), None).note == ""


def test_training_on_a_table_without_a_row_of_names_says_so_too(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("".join(f"This is the text number {i} of all.,yes {i}\n" for i in MANY))
    reading = Reading("auto", max_length=9, train_on="assistant", too_long="error")
    with pytest.raises(DataError, match=r"data.columns: .*; the first row looks like data"):
        list(conversations(str(path), reading, print))
    assert hint([]) == ""
