"""What a file of rows holds: columns of foreign tables, real lengths, kinds of answers."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from loractl.data import columns
from loractl.data.chat_templates import built_in, with_template
from loractl.data.examples import load
from loractl.data.reading import Reading
from loractl.data.store_cache import Cache
from loractl.data.survey import survey
from loractl.errors import DataError
from loractl.models.light_tokenizer import load_light
from tests.tiny import CHATML, chat_rows, make_tokenizer, write_jsonl

TICKETS = [
    {"id": f"T-{i}", "opened": f"2026-01-{1 + i % 28:02}", "priority": ("low", "high")[i % 2],
     "kundenanfrage": f"My parcel number {i} has not arrived.", "kategorie": "abcde"[i % 5] * 4}
    for i in range(40)
]  # fmt: skip


def table(path: Path, rows: list[dict[str, str]]) -> str:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return str(path)


def test_the_columns_of_a_foreign_table_are_found_by_what_they_hold(tmp_path: Path) -> None:
    found = survey(table(tmp_path / "t.csv", TICKETS), None)
    assert found.columns == {"prompt": "kundenanfrage", "completion": "kategorie"}
    assert (found.format, found.shape, found.rows) == ("prompt-completion", "classification", 40)
    assert found.unused == ("id", "opened", "priority")
    assert found.estimated and found.answers == 5


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"question": "q", "answer": "a"}, {"prompt": "question", "completion": "answer"}),
        ({"prompt": "q", "completion": "a"}, {}),
        ({"frage": "Wie geht es dir?", "antwort": "Mir geht es gut."},
         {"prompt": "frage", "completion": "antwort"}),
        ({"antwort": "Mir geht es gut.", "frage": "Wie geht es dir?"},
         {"prompt": "frage", "completion": "antwort"}),
        ({"text": "some long text"}, {}),
        ({"abstract": "some long text"}, {"text": "abstract"}),
        ({"n": "12", "day": "2026-01-01"}, {}),
        ({"dialogue": [{"role": "user", "content": "x"}]}, {"messages": "dialogue"}),
    ],
)  # fmt: skip
def test_names_tell_which_column_is_the_answer(
    row: dict[str, Any], expected: dict[str, str]
) -> None:
    assert columns.propose([row] * 3) == expected


def test_json_without_spaces_is_an_answer_and_no_identifier() -> None:
    rows = [{"id": f"x-{i}", "note": f"send {i} cups", "record": f'{{"n":{i}}}'} for i in range(9)]
    assert columns.propose(rows) == {"prompt": "note", "completion": "record"}


def test_text_beside_a_label_is_a_question_and_its_answer() -> None:
    rows = [
        {"text": f"This film was seen {i} times", "label": ("good", "bad")[i % 2]} for i in range(9)
    ]
    assert columns.propose(rows) == {"prompt": "text", "completion": "label"}
    assert columns.propose([{"content": row["text"], "label": row["label"]} for row in rows]) == {
        "prompt": "content",
        "completion": "label",
    }
    assert columns.propose([{**row, "label": str(i)} for i, row in enumerate(rows)]) == {}


def test_lengths_are_those_that_training_finds(
    tmp_path: Path, base: Any, tokenizer: PreTrainedTokenizerFast
) -> None:
    path = str(write_jsonl(tmp_path / "chat.jsonl", chat_rows(30)))
    found = survey(path, load_light(base("llama")))
    reading = Reading("auto", max_length=4096, train_on="assistant", too_long="error")
    store, account = load(path, tokenizer, reading, cache=Cache.default())
    assert found.lengths == sorted(len(example.ids) for example in store)
    assert found.longest == account.longest and not found.estimated
    held = Reading(**{**reading.__dict__, "held_out": 0.3, "part": "eval"})
    assert found.n_below(0.3) == load(path, tokenizer, held, cache=Cache.default())[1].rows


@pytest.mark.parametrize(
    ("answers", "shape"),
    [
        (['{"a": 1}', '[{"b": 2}]', "{}"] * 3, "json-extraction"),
        (["yes", "no"] * 5, "classification"),
        (["all alike"] * 9, "chat"),
        ([f"answer {i}" for i in range(9)], "chat"),
    ],
)
def test_the_shape_follows_from_the_answers(tmp_path: Path, answers: list[str], shape: str) -> None:
    rows = [{"prompt": f"q{i}", "completion": answer} for i, answer in enumerate(answers)]
    assert survey(str(write_jsonl(tmp_path / "r.jsonl", rows)), None).shape == shape  # type: ignore[arg-type]


def test_tools_and_text_have_shapes_of_their_own(tmp_path: Path) -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    asked = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    rows: list[dict[str, object]] = [{"messages": asked, "tools": [tool]}]
    assert survey(str(write_jsonl(tmp_path / "a.jsonl", rows)), None).shape == "tool-calls"
    plain: list[dict[str, object]] = [{"text": "once upon a time"}]
    found = survey(str(write_jsonl(tmp_path / "b.jsonl", plain)), None)
    assert found.shape == "continued-pretraining"


def test_a_template_is_replaced_for_calls_and_for_no_other_refusal(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    call = {"function": {"name": "f", "arguments": {"x": 1}}}
    turns = [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
    ]
    called = str(write_jsonl(tmp_path / "a.jsonl", [{"messages": turns}]))
    found = survey(called, tokenizer)
    assert found.chat_template == "chatml-tools" and "the model's own" in found.why_template
    strict = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    own = with_template(tokenizer, strict + built_in("chatml-tools"))
    found = survey(called, own)
    assert (found.chat_template, found.why_template) == (None, "")
    system = [{"role": "system", "content": "s"}, *turns]
    with pytest.raises(DataError, match="no system") as told:
        survey(str(write_jsonl(tmp_path / "b.jsonl", [{"messages": system}])), own)
    assert "data.chat_template" not in str(told.value)


def test_rows_without_an_answer_are_refused_as_training_refuses_them(
    tmp_path: Path, base: Any, tokenizer: PreTrainedTokenizerFast
) -> None:
    asked = {"messages": [{"role": "user", "content": "Are you there?"}]}
    path = str(write_jsonl(tmp_path / "asked.jsonl", [asked] * 3))
    reading = Reading("auto", max_length=64, train_on="assistant", too_long="error")
    with pytest.raises(DataError) as told:
        load(path, tokenizer, reading, cache=Cache(tmp_path / "c"))
    for known in (None, load_light(base("llama"))):
        with pytest.raises(DataError) as caught:
            survey(path, known)
        assert caught.value.messages == told.value.messages


@pytest.mark.parametrize("known", [True, False])
def test_rows_that_training_leaves_out_are_not_counted(
    known: bool, tmp_path: Path, base: Any
) -> None:
    asked = {"messages": [{"role": "user", "content": "Are you there?"}]}
    path = str(write_jsonl(tmp_path / "rows.jsonl", [*chat_rows(5), asked, *chat_rows(7)[5:]]))
    found = survey(path, load_light(base("llama")) if known else None)
    assert found.rows == len(found.places) == 7 and found.n_below(1) == 7


def test_copies_are_counted_once_among_the_rows_held_out(tmp_path: Path) -> None:
    found = survey(str(write_jsonl(tmp_path / "rows.jsonl", chat_rows(9) * 3)), None)
    assert (found.n_below(1), found.n_different_below(1)) == (27, 9)


def test_rows_within_a_length_keep_their_places(tmp_path: Path) -> None:
    rows = [{"prompt": "word " * n, "completion": "yes"} for n in (1, 200, 3)]
    found = survey(str(write_jsonl(tmp_path / "rows.jsonl", rows)), None)
    short = survey(str(write_jsonl(tmp_path / "short.jsonl", rows[::2])), None)
    kept = found.within(100)
    assert (kept.lengths, kept.places) == (short.lengths, short.places)
    assert found.within(found.longest) == found


def test_columns_that_the_format_does_not_read_are_told(tmp_path: Path) -> None:
    rows = [{**row, "id": i, "source": "x"} for i, row in enumerate(chat_rows(3))]
    found = survey(str(write_jsonl(tmp_path / "rows.jsonl", rows)), None)
    assert found.unused == ("id", "source")
    nested = [{"n": 1, "data": {"question": f"q{i}", "answer": "a"}} for i in range(3)]
    assert survey(str(write_jsonl(tmp_path / "b.jsonl", nested)), None).unused == ("n",)


def test_columns_that_are_given_are_not_chosen(tmp_path: Path) -> None:
    path = table(tmp_path / "t.csv", TICKETS)
    found = survey(path, None, columns={"text": "kundenanfrage"})
    assert (found.format, found.columns) == ("text", {"text": "kundenanfrage"})


def test_bad_rows_are_all_counted_and_ten_are_named(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [{"prompt": i, "completion": "a"} for i in range(1, 35)]
    path = write_jsonl(tmp_path / "bad.jsonl", [{"prompt": "q", "completion": "a"}, *rows])
    with pytest.raises(DataError) as caught:
        survey(str(path), None)
    assert len(caught.value.messages) == 10
    assert caught.value.messages[-1].endswith("and 24 more bad rows (34 in all)")


def test_bad_rows_are_refused_with_their_lines(tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(json.dumps({"prompt": "q", "completion": "a"}) + '\n{"prompt": "q"}\n')
    with pytest.raises(DataError, match="bad.jsonl:2: no field completion"):
        survey(str(path), None)


CONTENT = "m['content']"
ANSWER = f"{CONTENT}.split('</think>')[-1]"


@pytest.mark.parametrize(
    ("writes", "expected"),
    [
        (CONTENT, [("data.thoughts", "keep")]),
        (
            f"({CONTENT} if loop.last else {ANSWER})",
            [("data.thoughts", "keep"), ("data.split_turns", True)],
        ),
        (ANSWER, [("data.thoughts", "drop")]),
        (f"(m.reasoning_content or '') + {CONTENT}", []),
    ],
)
def test_settings_for_reasoning_are_chosen_that_lose_the_least_of_it(
    writes: str, expected: list[tuple[str, Any]], tmp_path: Path
) -> None:
    asked = {"role": "user", "content": "2 + 2?"}
    said = {"role": "assistant", "content": "4", "reasoning_content": "two and two"}
    path = write_jsonl(tmp_path / "t.jsonl", [{"messages": [asked, said, asked, said]}])
    tokenizer = with_template(make_tokenizer(), CHATML.replace(CONTENT, writes))
    found = survey(str(path), tokenizer)
    assert [(key, value) for key, value, _ in found.choices] == expected
    assert found.rows == (2 if len(expected) == 2 else 1)
