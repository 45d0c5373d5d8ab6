"""Tables: cells of every kind, the line of each row, and what is said of a bad one."""

import csv
import gzip
import io
import json
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from loractl.data import tables
from loractl.data.row_files import Row
from loractl.errors import DataError

TRICKY = [
    {"prompt": "a, b; c\td", "completion": 'he said "hi"'},
    {"prompt": "two\nlines", "completion": "\r\nand\rmore"},
    {"prompt": "東京 مرحبا 😀 \u2028 x", "completion": ""},
    {"prompt": "x" * 200_000, "completion": " spaces "},
]


def write(rows: list[dict[str, str]], **options: Any) -> str:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]), **options)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def rows_of(path: Path, content: bytes | str) -> list[Row]:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return list(tables.read_separated(path))


def refusal(path: Path, content: bytes | str) -> str:
    with pytest.raises(DataError) as caught:
        rows_of(path, content)
    (message,) = caught.value.messages
    assert message.startswith(str(path))
    return message.removeprefix(str(path))


@pytest.fixture
def csv_file(tmp_path: Path) -> Path:
    return tmp_path / "rows.csv"


@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_what_csv_writes_is_read_back_with_any_separator(
    tmp_path: Path, mark: str, end: str
) -> None:
    for name, delimiter in (("a.csv", ","), ("a.csv", ";"), ("a.csv", "\t"), ("a.tsv", "\t")):
        text = mark + write(TRICKY, delimiter=delimiter, lineterminator=end)
        assert [row.fields for row in rows_of(tmp_path / name, text)] == TRICKY
        packed = gzip.compress(text.encode())
        assert [row.fields for row in rows_of(tmp_path / f"{name}.gz", packed)] == TRICKY


def test_a_tsv_whose_header_has_no_tab_is_read_by_the_separator_that_it_has(
    tmp_path: Path,
) -> None:
    for delimiter in (";", ","):
        text = write(TRICKY, delimiter=delimiter)
        assert [row.fields for row in rows_of(tmp_path / "a.tsv", text)] == TRICKY
    assert [row.fields for row in rows_of(tmp_path / "a.tsv", "text\na; b, c\n")] == [
        {"text": "a; b, c"}
    ]
    (row,) = rows_of(tmp_path / "a.tsv", "a;b\tc\n1\t2\n")
    assert row.fields == {"a;b": "1", "c": "2"}


@given(
    st.lists(
        st.tuples(st.text(), st.text()).filter(lambda cells: any(map(str.strip, cells))),
        min_size=1,
    )
)
def test_any_text_comes_back_from_csv(
    tmp_path_factory: pytest.TempPathFactory, cells: list[tuple[str, str]]
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.csv"
    rows = [{"a": a, "b": b} for a, b in cells]
    assert [row.fields for row in rows_of(path, write(rows))] == rows


def test_a_row_has_the_line_on_which_it_begins_whatever_stands_in_quotes(csv_file: Path) -> None:
    text = '\n\na,b\n1,2\n"x\ny\r\nz",3\n  \n\n4,5'
    rows = rows_of(csv_file, text)
    assert [(row.line, row.fields["b"]) for row in rows] == [(4, "2"), (5, "3"), (10, "5")]


def test_lines_that_end_in_a_lone_carriage_return_are_lines(csv_file: Path) -> None:
    rows = rows_of(csv_file, "a,b\r1,2\r3,4\r")
    assert [(row.line, row.fields) for row in rows] == [
        (2, {"a": "1", "b": "2"}),
        (3, {"a": "3", "b": "4"}),
    ]


def test_a_single_column_and_a_nameless_index_are_read(csv_file: Path) -> None:
    assert [row.fields for row in rows_of(csv_file, "text\nhi ho\n")] == [{"text": "hi ho"}]
    assert [row.fields for row in rows_of(csv_file, ", a \n0,x\n")] == [{"": "0", "a": "x"}]


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ("1", "found 1 column, expected 2"),
        ("1,2,3", "found 3 columns, expected 2"),
        ('"1"x,2', "text follows a closing quote"),
        (b"Stra\xdfe,2", "a is not UTF-8"),
    ],
)
def test_a_bad_row_has_an_error_and_spoils_no_other(
    csv_file: Path, bad: str | bytes, words: str
) -> None:
    raw = bad if isinstance(bad, bytes) else bad.encode()
    first, wrong, last = rows_of(csv_file, b'a,b\n"1\n1",2\n' + raw + b"\n3,4\n")
    assert first.error is None and last == Row(5, {"a": "3", "b": "4"}, str(csv_file))
    assert (wrong.line, wrong.fields) == (4, {}) and words in (wrong.error or "")


def test_a_quote_that_is_never_closed_is_an_error_of_the_row_in_which_it_opens(
    csv_file: Path,
) -> None:
    first, wrong = rows_of(csv_file, 'a,b\n1,2\n"3,4\n5,6\n')
    assert first.error is None
    assert (wrong.line, wrong.error) == (3, "a quote that opens in this row is never closed")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a,b, a\n1,2,3\n", ":1: two columns are named 'a'"),
        ('\n"a\n', ":2: a quote that opens"),
        (b"a,Stra\xdfe\n1,2\n", ":1: the header is not UTF-8"),
    ],
)
def test_a_header_that_names_no_columns_is_refused(
    csv_file: Path, text: str | bytes, words: str
) -> None:
    assert words in refusal(csv_file, text)


@pytest.mark.parametrize("text", ["", "\n\n", "a,b\n", "a,b"])
def test_a_table_may_have_no_rows(csv_file: Path, text: str) -> None:
    assert rows_of(csv_file, text) == []


def test_parquet_gives_back_what_was_written_over_any_number_of_groups(tmp_path: Path) -> None:
    rows = [{"a": f"é {i}", "b": {"c": [i, None], "d": None}} for i in range(300)]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet", row_group_size=100)
    found = list(tables.read_parquet(tmp_path / "a.parquet"))
    assert [row.line for row in found] == list(range(1, 301))
    assert [row.fields for row in found] == [
        {"a": row["a"], "b": {"c": row["b"]["c"]}}  # type: ignore[index]
        for row in rows
    ]


def test_a_null_that_arrow_put_into_an_object_is_left_out_and_one_of_a_row_stays(
    tmp_path: Path,
) -> None:
    rows = [
        {"x": None, "m": [{"role": "user", "content": "hi"}]},
        {"x": 1, "m": [{"role": "assistant", "tool_calls": [{"name": "f"}]}]},
    ]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    assert [row.fields for row in tables.read_parquet(tmp_path / "a.parquet")] == rows


@pytest.mark.parametrize("content", [b"PAR1", b"", json.dumps({"a": 1}).encode()])
def test_what_is_no_parquet_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.parquet"
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"^{path}: not a readable Parquet file"):
        list(tables.read_parquet(path))


def test_parquet_with_a_broken_page_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    table = pyarrow.Table.from_pylist([{"a": str(i) * 50} for i in range(2000)])
    parquet.write_table(table, path, compression="snappy")
    content = bytearray(path.read_bytes())
    content[100:2000] = b"\xff" * 1900
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"^{path}: not a readable Parquet file"):
        list(tables.read_parquet(path))
