"""Progress: lines that stay everywhere, and a bar where somebody looks at a terminal."""

import io
import sys

import pytest

from loractl.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def color_terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """A color terminal as stderr, from now on."""
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    return stream


def test_progress_is_one_plain_line_every_so_many_steps_and_at_the_last(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with Progress(5, log_every=2) as progress:
        for step in range(1, 6):
            progress.step(step, f"loss {step}.0", seconds_left=5 - step)
        progress.say("held-out loss 1.0")
    assert capsys.readouterr().err.splitlines() == [
        "step 2/5  loss 2.0  eta 3s",
        "step 4/5  loss 4.0  eta 1s",
        "step 5/5  loss 5.0  eta 0s",
        "held-out loss 1.0",
    ]


def test_a_color_terminal_keeps_the_lines_above_the_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = color_terminal(monkeypatch)
    with Progress(5, log_every=2) as progress:
        for step in range(1, 6):
            progress.step(step, f"loss {step}.0", seconds_left=5 - step)
    kept = [line for line in shown.getvalue().splitlines() if "loss" in line]
    assert [line[line.index("loss") :][:8] for line in kept] == ["loss 2.0", "loss 4.0", "loss 5.0"]


def test_progress_on_a_terminal_is_live_and_leaves_it_as_it_was(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shown = color_terminal(monkeypatch)
    with pytest.raises(KeyboardInterrupt), Progress(3, start=1) as progress:
        progress.step(2, "loss [bold]1.0[/bold]", seconds_left=1)
        progress.say("held-out loss [1.0]")
        raise KeyboardInterrupt
    text = shown.getvalue()
    assert "2/3" in text and "held-out loss [1.0]" in text and "loss [bold]1.0[/bold]" in text
    assert text.rfind("\x1b[?25h") > text.rfind("\x1b[?25l") >= 0, "the cursor is back"


def test_no_color_has_a_bar_without_any_escape_sequence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shown = color_terminal(monkeypatch)
    monkeypatch.setenv("NO_COLOR", "1")
    with Progress(4, log_every=2) as progress:
        for step in range(1, 5):
            progress.step(step, f"loss {step}.0", seconds_left=4 - step)
        progress.say("saved")
    text = shown.getvalue()
    assert "\x1b" not in text and text.isascii()
    assert "[############------------]" in text
    assert screen(text) == ["step 2/4  loss 2.0  eta 2s", "step 4/4  loss 4.0  eta 0s", "saved"]


def screen(text: str) -> list[str]:
    """What a terminal shows of a text with carriage returns, spaces at the ends aside."""
    lines = []
    for line in text.split("\n"):
        cells: list[str] = []
        for part in line.split("\r"):
            cells[: len(part)] = part
        lines.append("".join(cells).rstrip())
    return [line for line in lines if line]


def test_a_dumb_terminal_gets_lines_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = color_terminal(monkeypatch)
    monkeypatch.setenv("TERM", "dumb")
    with Progress(1) as progress:
        progress.step(1, "loss 1.0", seconds_left=0)
    assert shown.getvalue() == "step 1/1  loss 1.0  eta 0s\n"
