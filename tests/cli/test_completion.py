"""What the program takes before a command: its version, -h, and completion in a real bash."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import loractl
from loractl.cli import completion
from loractl.cli.main import app, main
from loractl.commands.init import TEMPLATES

NAMES = [command.name or command.callback.__name__ for command in app.registered_commands]  # type: ignore[union-attr]
PROGRAM = """\
#!{python}
import sys
sys.modules["torch"] = None
sys.path.insert(0, {source!r})
from loractl.__main__ import entry
entry()
"""
ASK = """
eval "$(loractl --show-completion)"
complete -p loractl
COMP_WORDS=({words}) COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
_loractl_completion loractl
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


@pytest.fixture
def shell(tmp_path: Path) -> dict[str, str]:
    """The environment of a shell that finds a `loractl`, which could not import torch."""
    program = tmp_path / "bin" / "loractl"
    program.parent.mkdir()
    source = str(Path(loractl.__file__).parents[1])
    program.write_text(PROGRAM.format(python=sys.executable, source=source))
    program.chmod(0o755)
    path = f"{program.parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "HOME": str(tmp_path), "SHELL": "/bin/bash"}


def bash(script: str, env: dict[str, str], *options: str) -> subprocess.CompletedProcess[str]:
    found = shutil.which("bash")
    assert found, "the scripts of this repository need bash too"
    return subprocess.run(
        [found, "--norc", *options, "-c", script], capture_output=True, text=True, env=env
    )


def test_the_version_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr() == (f"loractl {loractl.__version__}\n", "")
    assert re.fullmatch(r"\d+\.\d+\.\d+", loractl.__version__)


@pytest.mark.parametrize("command", [[], *([name] for name in NAMES), ["adapters", "resize"]])
def test_h_is_help_everywhere(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command, "-h"]) == 0
    short = capsys.readouterr()
    assert main([*command, "--help"]) == 0
    assert short == capsys.readouterr() and "-h, --help" in short.out and short.err == ""


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("loractl tra", ["train"]),
        ("loractl ''", [*NAMES, "adapters"]),
        ("loractl adapters ''", ["resize", "combine", "extract"]),
        ("loractl train c.yaml --res", ["--resume"]),
        ("loractl --v", ["--version"]),
        ("loractl init --template ''", list(TEMPLATES)),
        ("loractl export runs/a --to p", ["peft"]),
        ("loractl merge runs/a --into o", ["original"]),
        ("loractl train my", [""]),  # nothing of ours, so that bash completes files
        ("loractl train c.yaml --set ''", [""]),
    ],
)
def test_bash_completes_by_the_printed_script_without_torch(
    words: str, found: list[str], shell: dict[str, str]
) -> None:
    done = bash(ASK.format(words=words), shell)
    rule, *completed = done.stdout.splitlines()
    assert done.stderr == "" and "-o default" in rule
    assert sorted(completed) == sorted(found)


def test_fish_learns_by_the_exit_code_whether_to_complete_files(shell: dict[str, str]) -> None:
    def code(words: str) -> int:
        asked = {completion.ASKED: "complete_fish", "_TYPER_COMPLETE_FISH_ACTION": "is-args"}
        env = {**shell, **asked, "_TYPER_COMPLETE_ARGS": words}
        return subprocess.run(["loractl"], capture_output=True, env=env).returncode

    assert (code("loractl tra"), code("loractl train my")) == (0, 1)


def test_what_is_installed_works_in_the_next_shell(shell: dict[str, str]) -> None:
    done = bash("loractl --install-completion; exit $?", shell)
    assert (done.returncode, done.stderr) == (0, "") and "\x1b" not in done.stdout
    script = 'source "$HOME/.bashrc"; COMP_WORDS=(loractl mer) COMP_CWORD=1;'
    assert bash(f"{script} _loractl_completion loractl; echo $COMPREPLY", shell).stdout == "merge\n"


@pytest.mark.parametrize("option", ["--install-completion", "--show-completion"])
def test_a_shell_without_a_script_is_named(
    option: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("shellingham.detect_shell", lambda: ("tcsh", "/bin/tcsh"))
    assert main([option]) == 2
    assert capsys.readouterr() == (
        "",
        f"error: {option}: found tcsh; run it from bash, zsh or fish\n",
    )
