"""Files of rows: what is read, on which line it stands, and what is said of a line that cannot
be."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loractl.data.sources import Row, file_hash, read, split
from loractl.errors import DataError


def rows_of(path: Path, content: bytes | str) -> list[Row]:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return list(read(path))


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
    assert rows_of(jsonl, '\n{"a": 1}\n\n  \n{"a": 2}') == [Row(2, {"a": 1}), Row(5, {"a": 2})]


def test_a_byte_order_mark_crlf_and_trailing_lines_change_nothing(jsonl: Path) -> None:
    text = '{"a": "Straße"}\n{"a": "東京"}\n'
    clean = rows_of(jsonl, text)
    odd = b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode() + b"\r\n \r\n\n"
    assert rows_of(jsonl, odd) == clean


def test_a_json_array_gives_the_rows_of_the_same_json_lines(tmp_path: Path) -> None:
    items = [json.dumps({"a": i, "b": ["é,\n", {"c": "[]"}]}) for i in range(5)]
    lines = rows_of(tmp_path / "a.jsonl", "\n" + "\n".join(items))
    for mark in ("", "\ufeff"):
        assert rows_of(tmp_path / "a.json", f"{mark}[\n" + ",\n".join(items) + "]") == lines
        packed = rows_of(tmp_path / "a.json", f"{mark} [" + " ,".join(items) + " ] \n")
        assert packed == [Row(1, row.fields) for row in lines]


def test_an_item_of_an_indented_array_has_the_line_on_which_it_begins(tmp_path: Path) -> None:
    text = json.dumps([{"a": 1, "b": [1, 2]}, {}, {"a": 2}], indent=2)
    rows = rows_of(tmp_path / "a.json", text)
    at = [i for i, line in enumerate(text.splitlines(), 1) if line.startswith("  {")]
    assert [row.line for row in rows] == at


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
    assert [row.fields for row in rows_of(path, text)] == rows


@pytest.mark.parametrize(
    ("bad", "line", "words"),
    [
        ('{"a": "cut', 3, "not valid JSON"),
        ('{"a": 1},', 3, "not valid JSON"),
        ("bare text", 3, "not valid JSON"),
        ('{"a": 1} {"a": 2}', 3, "Extra data"),
        ('["a"]', 3, "found list, expected a JSON object"),
        ("null", 3, "found NoneType, expected a JSON object"),
        ('"a"', 3, "found str, expected a JSON object"),
        ('{"a": ' + "[" * 100_000 + "}", 3, "too deep"),
        ('{"a": ' + "9" * 5000 + "}", 3, "not valid JSON"),
        ('{"a": "\\ud83d"}', 3, "half a character"),
        ('{"a": [{"\\udc00": 1}]}', 3, "half a character"),
    ],
)
def test_a_bad_line_is_named(jsonl: Path, bad: str, line: int, words: str) -> None:
    message = refusal(jsonl, f'{{"a": 0}}\n\n{bad}\n{{"a": 1}}\n')
    assert message.startswith(f":{line}: ") and words in message


def test_an_escaped_pair_of_surrogates_is_one_character(jsonl: Path) -> None:
    assert rows_of(jsonl, '{"a": "\\ud83d\\ude00"}') == [Row(1, {"a": "😀"})]


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ('[{"a": 1},\n{"a": 2},\n]', ":3: not valid JSON"),
        ('[{"a": 1},\n\n5]', ":3: found int, expected a JSON object"),
        ("[[1]]", ":1: found list, expected a JSON object"),
        ('[{"a": 1},\n {"a": "\\udc00"}]', ":2: a "),
        ("[" * 100_000, "too deep"),
        ("[" + "9" * 5000 + "]", "not valid JSON"),
        (b'[{"a": "Stra\xdfe"}]', "UTF-8"),
    ],
)
def test_a_bad_array_is_refused(tmp_path: Path, bad: bytes | str, words: str) -> None:
    assert words in refusal(tmp_path / "rows.json", bad)


def test_bytes_that_are_not_utf8_are_named_with_line_and_place(jsonl: Path) -> None:
    message = refusal(jsonl, b'{"a": 1}\n{"a": "Stra\xdfe"}\n')
    assert message.startswith(":2: byte 12 ") and "UTF-8" in message
    assert "UTF-8" in refusal(jsonl, '{"a": 1}\n'.encode("utf-16"))


@pytest.mark.parametrize("content", ["", "\n \r\n\n", "\ufeff", "[]", " [ ] "])
def test_a_file_without_rows_is_refused(jsonl: Path, content: str) -> None:
    assert "no examples" in refusal(jsonl, content)


def test_other_kinds_of_files_are_refused_by_name(tmp_path: Path) -> None:
    assert ".parquet" in refusal(tmp_path / "rows.parquet", b"PAR1")
    assert "such" in refusal(tmp_path / "rows", b"{}")
    with pytest.raises(DataError, match="a directory"):
        list(read(tmp_path))


ROWS = [Row(i, {"a": i % 40, "b": "x" * (i % 7)}) for i in range(400)]


def test_a_split_parts_the_rows_keeps_their_order_and_is_near_its_share() -> None:
    rows = [Row(i, {"a": i}) for i in range(1000)]
    train, held_out = split(rows, 0.2)
    assert sorted([*train, *held_out], key=lambda row: row.line) == rows
    assert train == sorted(train, key=lambda r: r.line) and 150 < len(held_out) < 250


def test_equal_rows_stay_together_and_a_row_stays_where_it_was_when_others_come() -> None:
    train, held_out = split(ROWS, 0.3)
    contents = [
        {json.dumps(row.fields, sort_keys=True) for row in part} for part in (train, held_out)
    ]
    assert not contents[0] & contents[1] and all(contents)
    assert split(ROWS[:50], 0.3)[1] == [row for row in held_out if row.line < 50]
    assert {r.line for r in split(ROWS, 0.1)[1]} <= {r.line for r in held_out}


def test_the_order_of_a_rows_fields_does_not_decide_where_it_goes() -> None:
    turned = [Row(row.line, dict(reversed(row.fields.items()))) for row in ROWS]
    assert [r.line for r in split(turned, 0.3)[1]] == [r.line for r in split(ROWS, 0.3)[1]]


def test_the_hash_is_of_the_bytes(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert file_hash(tmp_path / "a") == (
        # FIPS 180-2, appendix B.1
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    )
