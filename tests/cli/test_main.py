"""The command line: exit codes, plain errors, help that answers with an example."""

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import loractl
from loractl.cli.main import NOT_YET, app, main
from loractl.errors import (
    ArtifactError,
    ConfigError,
    DataError,
    LoractlError,
    ModelError,
    NumericError,
    ProcessError,
    StateError,
    Stopped,
    StorageError,
)

COMMANDS = [
    "init", "check", "train", "merge", "export", "generate", "chat", "eval", "adapters", "inspect",
    "plot", "report", "estimate", "recommend", "explain", "schema", "doctor",
]  # fmt: skip
LATER = ["sweep"]
BOXES = set("─│╭╮╰╯━┃\x1b")


def piped(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "loractl", *arguments],
        capture_output=True,
        text=True,
        env={**{k: v for k, v in os.environ.items() if k != "NO_COLOR"}, **env},
    )


def test_every_command_of_the_contract_is_served_or_named_as_of_a_later_version() -> None:
    served = [c.name or c.callback.__name__ for c in app.registered_commands if c.callback]
    served += [group.name or "" for group in app.registered_groups]
    assert sorted(served) == sorted(COMMANDS)
    assert sorted(NOT_YET) == sorted(LATER)


@pytest.mark.parametrize("command", LATER)
def test_a_command_of_a_later_version_says_so(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command, "x", "--json"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err == f"error: loractl {command}: not available in this version\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_an_example_that_names_the_command(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command, "--help"]) == 0
    out, err = capsys.readouterr()
    assert err == "" and f"Example: loractl {command}" in " ".join(out.split())


@pytest.mark.parametrize("command", COMMANDS)
def test_help_names_values_with_plain_words(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command, "--help"]) == 0
    out = capsys.readouterr().out
    assert "<" not in out.replace("<=", ""), "a Python type"
    assert "--set " not in out or "--set KEY=VALUE" in out
    assert "--data " not in out or "--data FILE" in out


def test_the_list_of_commands_cuts_no_sentence_off(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["-h"]) == 0
    listed = capsys.readouterr().out.partition("Commands:")[2]
    assert "init " in listed and "..." not in listed


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([], ["no command", "loractl --help"]),
        (["trian"], ["trian", "train"]),
        (["--verbose"], ["--verbose"]),
        (["train"], ["config", "loractl train --help"]),
        (["train", "c.yaml", "--resum"], ["--resum", "--resume"]),
        (["train", "c.yaml", "d.yaml"], ["d.yaml"]),
        (["merge", "a"], ["--out"]),
        (["generate", "--prompt", "x", "--max-new-tokens", "0"], ["--max-new-tokens", "1"]),
        (["generate", "--prompt", "x", "--temperature", "hot"], ["--temperature", "number"]),
        (["generate", "--prompt", "x", "--seed", str(2**70)], ["--seed"]),
    ],
)
def test_usage_errors_are_one_plain_line_and_exit_two(
    argv: list[str], words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(argv) == 2
    out, err = capsys.readouterr()
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert out == "" and len(errors) == 1 and ".;" not in errors[0]
    assert all(word in errors[0] for word in words), errors


def test_help_and_errors_have_no_boxes_or_colour_when_piped_even_if_color_is_forced() -> None:
    for arguments in (["--help"], ["train", "--help"], ["trian"], ["train", "--bogus"]):
        done = piped(*arguments, FORCE_COLOR="1", TERM="xterm-256color", COLUMNS="100")
        assert not BOXES & set(done.stdout + done.stderr), done


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("x"), 2), (DataError("x"), 2), (ModelError("x"), 2), (ArtifactError("x"), 2),
        (StateError("x"), 3), (NumericError("x"), 4), (StorageError("x"), 5),
        (ProcessError("x"), 5),
        (OSError(errno.ENOSPC, "No space left on device", "out.bin"), 5),
        (OSError(errno.EACCES, "Permission denied", "out.bin"), 5),
        (OSError(errno.EROFS, "Read-only file system", "out.bin"), 5),
    ],
)  # fmt: skip
def test_each_kind_of_error_has_its_exit_code(
    error: Exception, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    raise_in_schema(monkeypatch, error)
    assert main(["schema"]) == code
    err = capsys.readouterr().err
    assert err.startswith("error: ") and "Traceback" not in err
    assert not isinstance(error, OSError) or "out.bin" in err


def raise_in_schema(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """Let `loractl schema`, the lightest command, meet an error."""

    def run() -> int:
        raise error

    monkeypatch.setattr("loractl.commands.schema.run", run)


def test_an_error_that_is_ours_is_raised_not_worded(monkeypatch: pytest.MonkeyPatch) -> None:
    for bug in (KeyError("bug"), OSError(errno.EBADF, "Bad file descriptor"), RuntimeError("bug")):
        raise_in_schema(monkeypatch, bug)
        with pytest.raises(type(bug)):
            main(["schema"])


@pytest.mark.parametrize(
    ("stop", "code", "said"),
    [
        (Stopped(130), 130, ""), (Stopped(143), 143, ""),
        (KeyboardInterrupt(), 130, "interrupted\n"),
    ],
)  # fmt: skip
def test_signals_leave_with_the_codes_of_the_shell(
    stop: BaseException,
    code: int,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    raise_in_schema(monkeypatch, stop)
    assert main(["schema"]) == code and capsys.readouterr().err == said


@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM"])
def test_a_signal_while_the_process_ends_changes_nothing(number: str) -> None:
    """As torch is taken down again, which can take a second."""
    late = f"import atexit, signal; atexit.register(signal.raise_signal, signal.{number})"
    done = subprocess.run(
        [sys.executable, "-c", f"{late}; from loractl.cli.main import entry; entry()", "schema"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and done.stdout and not done.stderr


def test_of_more_than_ten_errors_ten_and_a_count_are_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("model: {name_or_path: x}\n" + "".join(f"wrong_{i}: 1\n" for i in range(15)))
    assert main(["train", str(path)]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert sum(line.startswith("error: ") for line in lines) == 10
    assert "in all)" in lines[-1]


def test_a_reader_who_leaves_early_is_met_with_silence() -> None:
    command = f"{sys.executable} -m loractl schema | head -c 1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "{", "")


def test_the_module_and_the_program_are_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    done = piped("schema")
    assert main(["schema"]) == 0
    assert (done.returncode, done.stdout) == (0, capsys.readouterr().out)


def test_errors_know_their_codes_and_the_base_class_is_never_raised() -> None:
    def below(kind: type[LoractlError]) -> list[type[LoractlError]]:
        return [kind, *(inner for sub in kind.__subclasses__() for inner in below(sub))]

    kinds: list[Any] = below(LoractlError)[1:]
    assert {kind.exit_code for kind in kinds} == {2, 3, 4, 5}
    source = "".join(path.read_text() for path in Path(loractl.__file__).parent.rglob("*.py"))
    assert "raise LoractlError" not in source
