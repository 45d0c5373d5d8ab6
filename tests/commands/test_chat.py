"""`loractl chat`, by pipe and at a terminal: who answers, what is printed where, how it ends."""

import contextlib
import io
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from loractl.cli.main import main
from tests.tiny import CHATML, write_jsonl

SHORT = ("--max-new-tokens", "8", "--dtype", "float32")
Chat = Callable[..., tuple[str, str]]
Ask = Callable[..., str]


RANKS = {"thin": 2, "wide": 8}


@pytest.fixture
def adapters(base: Callable[..., Path], adapter_dir: Callable[..., Path]) -> dict[str, Path]:
    """Two random adapters of one base, of which one was trained with a template of its own."""
    made = {name: adapter_dir(base("llama"), name, rank=r, size=0.3) for name, r in RANKS.items()}
    shout = CHATML.replace("m['content']", "(m['content'] | upper)")
    (made["wide"] / "chat_template.jinja").write_text(shout)
    return made


@pytest.fixture
def flags(adapters: dict[str, Path]) -> list[str]:
    return [part for name, path in adapters.items() for part in ("--adapter", f"{name}={path}")]


@pytest.fixture
def chat(
    flags: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Chat:
    """chat("hi", "/use thin") -> stdout and stderr of these lines through a pipe."""

    def run(*lines: str, options: tuple[str, ...] = ()) -> tuple[str, str]:
        monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        capsys.readouterr()
        assert main(["chat", *SHORT, *flags, *options]) == 0
        out, err = capsys.readouterr()
        return out, err

    return run


@pytest.fixture
def ask(flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Ask:
    """ask("thin", "hi", "answer", "more") -> what `generate` gives for a conversation."""

    def run(name: str | None, *said: str) -> str:
        roles = ("user", "assistant")
        messages = [{"role": roles[i % 2], "content": text} for i, text in enumerate(said)]
        file = write_jsonl(tmp_path / "one.jsonl", [{"messages": messages, "adapter": name}])
        capsys.readouterr()
        assert main(["generate", *SHORT, *flags, "--prompts", str(file), "--json"]) == 0
        return str(json.loads(capsys.readouterr().out)["text"])

    return run


def test_the_first_adapter_answers_then_whoever_is_chosen_each_with_its_own_history(
    chat: Chat, ask: Ask
) -> None:
    out, err = chat("Is it 1?", "/use wide", "", "2?", "/base", "3?", "/use thin", "4?", "/base")
    one, two, three = ask("thin", "Is it 1?"), ask("wide", "2?"), ask(None, "3?")
    four = ask("thin", "Is it 1?", one, "4?")
    assert out == f"{one}\n{two}\n{three}\n{four}\n" and len({one, two, three, four}) == 4
    assert "thin is active; /help" in err and "wide is now active" in err
    assert err.count("base is now active") == 2 and "> " not in out + err


def test_compare_shows_the_base_and_every_adapter_and_leaves_the_conversation(
    chat: Chat, ask: Ask
) -> None:
    texts = {name: ask(name, "Is it 4?") for name in (None, "thin", "wide")}
    shown = "".join(f"[{name or 'base'}]\n{text}\n" for name, text in texts.items())
    assert chat("/compare Is it 4?")[0] == shown
    out, _ = chat("Is it 4?", "/compare", "/compare", "And 5?")
    assert (
        out
        == f"{texts['thin']}\n{shown}{shown}{ask('thin', 'Is it 4?', texts['thin'], 'And 5?')}\n"
    )


def test_reset_forgets_what_was_said(chat: Chat, ask: Ask) -> None:
    out, err = chat("much was said before", "/reset", "Is it 1?")
    assert out.endswith(f"\n{ask('thin', 'Is it 1?')}\n") and "conversation cleared" in err


def test_the_adapters_are_listed_with_rank_and_size_and_a_mark_on_who_answers(chat: Chat) -> None:
    out, _ = chat("/use wide", "/adapters")
    rows = {line.strip("* ").split()[0]: line for line in out.splitlines()}
    assert list(rows) == ["name", "base", "thin", "wide"]
    assert [name for name, line in rows.items() if line.startswith("*")] == ["wide"]
    for name, rank in RANKS.items():
        assert re.search(rf"{name} +{rank} +14 +[\d.]+ KiB$", rows[name])


def test_help_names_every_command_of_the_contract(chat: Chat) -> None:
    words = {line.split()[0] for line in chat("/help")[0].splitlines()}
    assert words >= {"/use", "/base", "/compare", "/adapters", "/reset", "/help", "/quit"}


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("/use thinn", ["/use thinn: no such adapter (did you mean thin?)", "thin, wide, base"]),
        ("/use", ["/use: which adapter?", "thin, wide, base"]),
        ("/comprae", ["/comprae: no such command (did you mean /compare?)"]),
        ("/xyz 3", ["/xyz: no such command; /help"]),
        ("/compare", ["/compare: nothing has been said yet; write /compare TEXT"]),
        ("much " * 600, ["512 positions"]),
    ],
)
def test_what_is_wrong_is_said_and_the_conversation_goes_on(
    line: str, words: list[str], chat: Chat, ask: Ask
) -> None:
    out, err = chat(line, "Is it 1?")
    (error,) = [said for said in err.splitlines() if said.startswith("error: ")]
    assert all(word in error for word in words)
    assert out == f"{ask('thin', 'Is it 1?')}\n"


def test_a_conversation_that_grew_too_long_is_told_to_begin_anew(chat: Chat, ask: Ask) -> None:
    out, err = chat("Is it 1?", "much " * 600, "/reset", "Is it 1?")
    assert "512 positions; shorten it; /reset clears the conversation" in err
    assert out == f"{ask('thin', 'Is it 1?')}\n" * 2


def test_a_line_after_a_space_is_said_though_it_looks_like_a_command(chat: Chat, ask: Ask) -> None:
    assert chat(" /quit is a word")[0] == f"{ask('thin', '/quit is a word')}\n"


def test_quit_leaves_at_once(chat: Chat) -> None:
    assert chat("/quit", "Is it 1?")[0] == ""


def test_a_base_alone_can_be_talked_with(
    base: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("hi\n/adapters"))
    assert main(["chat", *SHORT, "--model", str(base("llama"))]) == 0
    out, err = capsys.readouterr()
    assert "base is active; /help" in err and out.splitlines()[-1] == "*  base"


def test_a_model_without_a_template_says_that_it_continues_text(
    base: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import shutil

    shutil.copytree(base("gpt2"), tmp_path / "bare")
    (tmp_path / "bare" / "chat_template.jinja").unlink()
    monkeypatch.setattr(sys, "stdin", io.StringIO("What is\n"))
    assert main(["chat", *SHORT, "--model", str(tmp_path / "bare")]) == 0
    out, err = capsys.readouterr()
    assert "no chat template; your input is continued as plain text" in err and len(out) > 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "no model to chat with; give --adapter NAME=DIR or --model"),
        (["--adapter", "base=x"], "'base' is reserved for the base"),
        (["--adapter", "a=NOWHERE"], "NOWHERE: no such directory"),
        (["--model", "NOWHERE"], "NOWHERE"),
        (["--model", "x", "--dtype", "float8"], "--dtype"),
    ],
)
def test_what_cannot_be_talked_with_is_said(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["chat", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and words in err


def test_an_adapter_of_another_model_is_refused_before_anything_is_asked(
    base: Any, adapter_dir: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    other = adapter_dir(base("gpt2"), "other")
    assert main(["chat", "--model", str(base("llama")), "--adapter", f"other={other}"]) == 2
    assert "0 of 16 tensors match" in capsys.readouterr().err


def test_bytes_that_are_no_text_are_refused(
    flags: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for errors in ("strict", "surrogateescape"):
        stdin = io.TextIOWrapper(io.BytesIO(b"\xff\xfe\n"), "utf-8", errors)
        monkeypatch.setattr(sys, "stdin", stdin)
        assert main(["chat", *SHORT, *flags]) == 2
        assert "error: stdin: found bytes that are not UTF-8" in capsys.readouterr().err


class Terminal:
    """A process that believes that a person sits at its terminal."""

    def __init__(self, *arguments: str) -> None:
        self.end, inner = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "loractl", *arguments],
            stdin=inner, stdout=inner, stderr=inner, start_new_session=True,
            preexec_fn=own_terminal, env={**os.environ, "TERM": "dumb"},
        )  # fmt: skip
        os.close(inner)
        self.seen = ""

    def type(self, text: str) -> None:
        self.seen = ""
        os.write(self.end, text.encode())

    def wait_for(self, words: str, *, more: int = 0) -> str:
        """What is shown since something was last typed, up to these words and some characters."""
        until = time.monotonic() + 60
        while words not in self.seen or len(self.seen.partition(words)[2]) < more:
            assert time.monotonic() < until, f"no {words!r} in {self.seen!r}"
            if select.select([self.end], [], [], 0.2)[0]:
                self.seen += os.read(self.end, 4096).decode(errors="replace")
        return self.seen


def own_terminal() -> None:
    import fcntl
    import termios

    hear_ctrl_c()
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def hear_ctrl_c() -> None:
    """A shell lets what it starts in the background ignore SIGINT, and so do their children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_at_a_terminal_ctrl_c_stops_an_answer_and_at_the_prompt_it_leaves(
    adapters: dict[str, Path],
) -> None:
    pages = ("--adapter", f"thin={adapters['thin']}", "--max-new-tokens", "480")
    screen = Terminal("chat", "--dtype", "float32", *pages)
    screen.wait_for("thin> ")
    screen.type("hi\n")
    screen.wait_for("hi\r\n", more=5)  # the answer has begun
    screen.type("\x03")
    assert "stopped" in screen.wait_for("thin> ")
    screen.type("/base\n")
    screen.wait_for("base> ")
    screen.type("half a line\x03")
    # A signal just before readline waits for keys is seen at the next key: press again, as one does
    for _ in range(60):
        with contextlib.suppress(subprocess.TimeoutExpired):
            screen.process.wait(1)
            break
        screen.type("\x03")
    assert screen.process.poll() == 130


@pytest.mark.slow
def test_through_a_pipe_ctrl_c_ends_the_whole_conversation(adapters: dict[str, Path]) -> None:
    pages = ("--adapter", f"thin={adapters['thin']}", "--max-new-tokens", "480")
    process = subprocess.Popen(
        [sys.executable, "-m", "loractl", "chat", "--dtype", "float32", *pages],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        preexec_fn=hear_ctrl_c,
    )  # fmt: skip
    assert process.stdin and process.stdout
    process.stdin.write(b"hi\nand then?\n")
    process.stdin.flush()
    os.read(process.stdout.fileno(), 1)  # the answer has begun
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and b"Traceback" not in err
