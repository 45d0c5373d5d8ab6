"""Where loractl does not run it says so, in one sentence, whatever it was asked."""

import subprocess
import sys

import pytest

from loractl import platforms

SAID = "error: loractl runs on Linux and macOS; on Windows, use WSL.\n"


def run_where(prepared: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The program in a Python that was made to look like another system's first."""
    code = f"import os, sys; {prepared}; from loractl.__main__ import entry; entry()"
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)


@pytest.mark.parametrize("arguments", [["train", "c.yaml"], ["doctor"], ["--help"], []])
@pytest.mark.parametrize(
    "prepared",
    [
        *(f"sys.modules[{name!r}] = None" for name in platforms.UNIX_MODULES),
        "sys.platform = 'win32'",
        "os.name = 'nt'",
        # Nothing of Unix at all, down to what the signals and the command line name
        "import signal; del signal.SIGHUP, os.O_NOFOLLOW, os.geteuid, os.sysconf;"
        " sys.modules.update(dict.fromkeys(['fcntl', 'resource', 'pwd', 'grp', 'termios']))",
    ],
)
def test_without_unix_it_names_the_systems_and_ends_with_two(
    prepared: str, arguments: list[str]
) -> None:
    done = run_where(prepared, *arguments)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", SAID)


def test_here_it_runs() -> None:
    assert platforms.is_supported()
    done = run_where("pass", "--version")
    assert (done.returncode, done.stderr) == (0, "")
