"""The only printer: what goes where, and plain text wherever nobody looks at a terminal."""

import io
import sys

import pytest

from loractl import console, text


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Gone(io.StringIO):
    """A stream whose reader has left."""

    def write(self, text: str) -> int:
        raise BrokenPipeError


def test_results_go_to_stdout_and_messages_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    console.result("42")
    console.note("working")
    out, err = capsys.readouterr()
    assert (out, err) == ("42\n", "working\n")


def test_a_terminal_gets_colour_unless_no_color_or_a_dumb_one_forbids_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert console.is_rich(Terminal()) and not console.is_rich(io.StringIO())
    monkeypatch.setattr(sys, "stderr", shown := Terminal())
    console.errors(["it broke"])
    assert shown.getvalue() == "\x1b[31merror:\x1b[0m it broke\n"
    monkeypatch.setenv("NO_COLOR", "1")
    assert not console.is_rich(Terminal())
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("TERM", "dumb")
    assert not console.is_rich(Terminal())


def test_ten_errors_are_shown_whole_and_of_eleven_ten_and_a_count(
    capsys: pytest.CaptureFixture[str],
) -> None:
    console.errors([f"e{i}" for i in range(10)])
    assert capsys.readouterr().err.splitlines() == [f"error: e{i}" for i in range(10)]
    console.errors([f"e{i}" for i in range(11)])
    lines = capsys.readouterr().err.splitlines()
    assert lines[:10] == [f"error: e{i}" for i in range(10)]
    assert lines[10:] == ["... and 1 more error (11 in all)"]


def test_messages_to_a_reader_who_has_left_are_dropped_and_the_work_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "stderr", Gone())
    console.note("nobody hears this")
    console.errors(["nor this"])


def test_a_table_lines_its_columns_up_with_numbers_to_the_right() -> None:
    assert text.table(["name", "n"], [["a", "5"], ["long", "12"]]) == (
        "name   n\na      5\nlong  12"
    )
    assert text.table(["name", "n"], []) == "name  n"
    assert text.table(["n"], [["5"], ["cpu"]], has_numbers=False) == "n\n5\ncpu"


@pytest.mark.parametrize(
    ("seconds", "written"),
    [(0.4, "0s"), (59.4, "59s"), (59.6, "1m00s"), (187, "3m07s"), (3600, "1h00m"), (7500, "2h05m")],
)
def test_durations_read_as_people_write_them(seconds: float, written: str) -> None:
    assert text.duration(seconds) == written


@pytest.mark.parametrize(
    ("n_bytes", "written"),
    [
        (512, "512 B"),
        (1023, "1023 B"),
        (1536, "1.5 MiB".replace("M", "K")),
        (1.5 * 2**20, "1.5 MiB"),
        (1023 * 1024, "1023 KiB"),
        (1023.9 * 2**20, "1024 MiB"),
        (2.25 * 2**30, "2.25 GiB"),
    ],
)
def test_sizes_have_binary_units_and_no_exponents(n_bytes: float, written: str) -> None:
    assert text.size(n_bytes) == written


def test_lines_are_read_as_they_come_where_nobody_types_and_nothing_is_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(" one \r\n\nthree"))
    assert [console.ask("> ") for _ in range(4)] == [" one ", "", "three", None]
    assert capsys.readouterr() == ("", "")


def test_pieces_of_a_result_are_printed_side_by_side(capsys: pytest.CaptureFixture[str]) -> None:
    console.piece("a")
    console.piece("b")
    console.result("c")
    assert capsys.readouterr() == ("abc\n", "")


def test_on_a_terminal_long_messages_break_between_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setattr(sys, "stderr", shown := Terminal())
    words = "word   " * 30
    path = "/a/" + "b" * 80
    console.note(f"note: {words.strip()}")
    console.errors([f"{path}: not found"])
    lines = shown.getvalue().splitlines()
    assert all(len(line) <= 60 for line in lines if path not in line)
    assert "word   word" in lines[0], "spaces that line things up stay"
    assert sum(line.count("word") for line in lines) == 30 and any(path in line for line in lines)
    monkeypatch.setattr(sys, "stderr", piped := io.StringIO())
    console.note(words.strip())
    assert len(piped.getvalue().splitlines()) == 1
