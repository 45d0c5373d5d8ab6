"""Files of JSON: which rows are read, on which line they stand, and what is said of a bad one."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loractl.data import json_files
from loractl.data.row_files import Row
from loractl.errors import DataError

ODD = [
    {"a": "Straße, 東京, مرحبا, 😀", "b": ["é,\n", {"c": '[]{}\\"'}]},
    {"a": "line\u2028separator\u0085next\x1c", "b": None},
    {"a": "x" * 100_000, "b": -1.5e-7},
    {},
]


def rows_of(path: Path, content: bytes | str) -> list[Row]:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return list(json_files.read(path))


def fields_of(path: Path, content: bytes | str) -> list[dict[str, Any]]:
    rows = rows_of(path, content)
    assert [row.error for row in rows] == [None] * len(rows)
    return [row.fields for row in rows]


def refusal(path: Path, content: bytes | str) -> str:
    with pytest.raises(DataError) as caught:
        rows_of(path, content)
    (message,) = caught.value.messages
    assert message.startswith(str(path))
    return message.removeprefix(str(path))


@pytest.fixture
def jsonl(tmp_path: Path) -> Path:
    return tmp_path / "rows.jsonl"


def test_a_row_knows_its_line_whatever_blank_lines_stand_before_it(jsonl: Path) -> None:
    rows = rows_of(jsonl, '\n{"a": 1}\n\n  \n{"a": 2}')
    assert rows == [Row(2, {"a": 1}, str(jsonl)), Row(5, {"a": 2}, str(jsonl))]


def test_a_byte_order_mark_crlf_and_trailing_lines_change_nothing(jsonl: Path) -> None:
    text = '{"a": "Straße"}\n{"a": "東京"}\n'
    clean = rows_of(jsonl, text)
    odd = b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode() + b"\r\n \r\n\n"
    assert rows_of(jsonl, odd) == clean


@pytest.mark.parametrize("chunk", [1, 7, 1 << 18])
@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("ascii_only", [True, False])
def test_an_array_a_wrapped_one_and_lines_give_the_same_rows_packed_or_not(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    chunk: int,
    indent: int | None,
    ascii_only: bool,
) -> None:
    monkeypatch.setattr(json_files, "CHUNK", chunk)
    rows = ODD if chunk > 1 else [ODD[0], ODD[1], ODD[3]]

    def text(value: Any, indent: int | None = indent) -> str:
        return json.dumps(value, ensure_ascii=ascii_only, indent=indent)

    lines = "\n".join(text(row, None) for row in rows)
    assert fields_of(tmp_path / "a.jsonl", lines) == rows
    assert fields_of(tmp_path / "a.json", lines) == rows
    assert fields_of(tmp_path / "a.json", text(rows)) == rows
    assert fields_of(tmp_path / "a.jsonl", " \n\t" + text(rows) + "\r\n") == rows
    assert fields_of(tmp_path / "a.json", "\ufeff" + text(rows)) == rows
    before = {"version": "1.0", "n": 3, "ok": True, "data": rows, "after": [{"data": [1]}]}
    assert fields_of(tmp_path / "a.json", text(before)) == rows
    packed = gzip.compress(text(before).encode())
    assert fields_of(tmp_path / "a.json.gz", packed) == rows


@pytest.mark.parametrize("chunk", [1, 2, 3, 5, 8, 13, 64])
def test_no_place_at_which_an_array_is_cut_into_chunks_changes_what_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    monkeypatch.setattr(json_files, "CHUNK", chunk)
    rows = [{"a": -12.5e3, "b": [True, None, 1e5], "é": '\\"\n\U0001f600'}, {"k": float("-inf")}]
    text = "[" + " ,\n ".join(json.dumps(row) for row in rows) + ", 12.5e-3, -1, null]"
    found = rows_of(tmp_path / "a.json", text)
    assert [row.fields for row in found] == [*rows, {}, {}, {}]
    assert [row.error is None for row in found] == [True, True, False, False, False]


def test_an_item_of_an_indented_array_has_the_line_on_which_it_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "\n" + json.dumps([{"a": 1, "b": [1, 2]}, {}, {"a": 2}], indent=2)
    at = [i for i, line in enumerate(text.splitlines(), 1) if line.startswith("  {")]
    for chunk in (1, 10, 1000):
        monkeypatch.setattr(json_files, "CHUNK", chunk)
        assert [row.line for row in rows_of(tmp_path / "a.json", text)] == at


def test_a_field_named_data_makes_no_wrapped_array_of_json_lines(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"id": 1, "data": ["q", "a"]}, {"id": 2, "data": ["q", "a"]}]
    lines = "\n".join(json.dumps(row) for row in rows)
    assert fields_of(tmp_path / "a.json", lines) == rows
    one: list[dict[str, Any]] = [{"data": [{"a": 1}]}] * 2
    assert fields_of(tmp_path / "a.jsonl", "\n".join(json.dumps(row) for row in one)) == one


@given(
    st.lists(st.dictionaries(st.text(), st.text() | st.integers() | st.none()), min_size=1),
    st.booleans(),
)
def test_what_json_writes_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, object]], ascii_only: bool
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.jsonl"
    # Text of hypothesis has no lone surrogates. U+2028, U+0085 and the like end no line of JSON.
    text = "\n".join(json.dumps(row, ensure_ascii=ascii_only) for row in rows)
    assert fields_of(path, text) == rows
    assert fields_of(path, json.dumps(rows, ensure_ascii=ascii_only)) == rows


BAD_ROWS = [
    ('["a"]', "found list, expected a JSON object"),
    ("null", "found null, expected a JSON object"),
    ('"a"', "found str, expected a JSON object"),
    ('{"a": "\\ud83d"}', "half a character"),
    ('{"a": [{"\\udc00": 1}]}', "half a character"),
    ('{"a": 1, "b": 2, "a": 3}', "the key 'a' appears twice"),
    ('{"m": [{"role": "user", "role": "user"}]}', "the key 'role' appears twice"),
]


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        *BAD_ROWS,
        ('{"a": "cut', "not valid JSON"),
        ('{"a": 1},', "not valid JSON"),
        ("bare text", "not valid JSON"),
        ('{"a": 1} {"a": 2}', "Extra data"),
        ('{"a": 1}\r{"a": 2}', "end in CR only"),
        ('{"a": ' + "[" * 100_000 + "}", "too deeply"),
        ('{"a": ' + "9" * 5000 + "}", "not valid JSON"),
        (b'{"a": "Stra\xdfe"}', "byte 12 is not UTF-8"),
    ],
)
def test_a_bad_line_has_an_error_and_spoils_no_other(
    jsonl: Path, bad: str | bytes, words: str
) -> None:
    raw = bad if isinstance(bad, bytes) else bad.encode()
    first, wrong, last = rows_of(jsonl, b'{"a": 0}\n\n' + raw + b'\n{"a": 1}\n')
    assert (first.fields, last.fields) == ({"a": 0}, {"a": 1})
    assert first.error is None and last.error is None
    assert (wrong.line, wrong.fields) == (3, {}) and words in (wrong.error or "")


@pytest.mark.parametrize("chunk", [1, 1 << 18])
@pytest.mark.parametrize(("bad", "words"), BAD_ROWS)
def test_a_bad_item_of_an_array_has_an_error_and_spoils_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bad: str, words: str, chunk: int
) -> None:
    monkeypatch.setattr(json_files, "CHUNK", chunk)
    first, wrong, last = rows_of(tmp_path / "a.json", f'[{{"a": 0}},\n{bad},\n{{"a": 1}}]')
    assert (first.fields, last.fields) == ({"a": 0}, {"a": 1})
    assert (wrong.line, wrong.fields) == (2, {}) and words in (wrong.error or "")


def test_an_escaped_pair_of_surrogates_is_one_character(jsonl: Path) -> None:
    assert fields_of(jsonl, '{"a": "\\ud83d\\ude00"}') == [{"a": "😀"}]


@pytest.mark.parametrize("chunk", [1, 1 << 18])
@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ('[{"a": 1},\n{"a": 2},\n]', ":3: not valid JSON"),
        ('[{"a": 1},\n{"a": 2}', ":2: not valid JSON"),
        ('[{"a": 1},\n{"a": "cut', ":2: not valid JSON"),
        ('[{"a": 1}\n{"a": 2}]', ":2: not valid JSON"),
        ('[{"a": 1,\n "b": 5 "c": 6}]', ":2: not valid JSON"),
        ('[{"a": 1}]\n{"a": 2}', ":2: not valid JSON: Extra data"),
        ("[" * 100_000, "too deeply"),
        ("[" + "9" * 5000 + "]", "not valid JSON"),
        (b'[{"a": 1},\n{"a": "Stra\xdfe"}]', ":2: the byte 0xdf is not UTF-8"),
        ('{"data": [{"a": 1}], "b"}', ":1: not valid JSON"),
        ('{"data": [{"a": 1}]}\n{"data": [{"a": 1}]}', ":2: not valid JSON: Extra data"),
    ],
)
def test_a_broken_array_is_refused_with_the_line_of_its_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bad: bytes | str, words: str, chunk: int
) -> None:
    monkeypatch.setattr(json_files, "CHUNK", chunk)
    assert words in refusal(tmp_path / "rows.json", bad)


def test_objects_spread_over_lines_are_refused_with_what_to_write(jsonl: Path) -> None:
    message = refusal(jsonl, '\n{\n "a": 1\n}\n{\n "a": 2\n}\n')
    assert message.startswith(":2: not JSON lines") and "jq -c ." in message


@pytest.mark.parametrize("content", ["", "\n \r\n\n", "\ufeff", "[]", " [ ] "])
def test_a_file_may_have_no_rows(jsonl: Path, content: str) -> None:
    assert rows_of(jsonl, content) == []
