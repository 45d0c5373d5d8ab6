"""What `loractl` itself takes, before any command: its version, and completion for shells.

The scripts for the shells are typer's. They ask the program, which answers without torch.
"""

import os
from typing import Annotated, Any

import typer
from typer import completion

from loractl import __version__, console
from loractl.errors import ConfigError

ASKED = "_LORACTL_COMPLETE"
"""The environment variable by which a shell's script asks for completions."""
SHELLS = ("bash", "zsh", "fish")


def answer_shell(command: Any) -> int:
    """Complete the words that the shell passes in the environment; the exit code tells fish whether
    there are any."""
    completion.get_completion_inspect_parameters()  # makes the shells known
    try:
        command.main([], prog_name="loractl", standalone_mode=False)
    except SystemExit as answered:
        return int(answered.code or 0)
    return 0


def _tell_version(asked: bool) -> None:
    if asked:
        console.result(f"loractl {__version__}")
        raise typer.Exit


def _install(context: typer.Context, option: typer.CallbackParam, asked: bool) -> None:
    if asked:
        context.color = console.shows_colour()
        completion.install_callback(context, option, _running_shell(option))


def _show(context: typer.Context, option: typer.CallbackParam, asked: bool) -> None:
    if asked:
        completion.show_callback(context, option, _running_shell(option))


def _running_shell(option: typer.CallbackParam) -> str:
    """The shell that this was typed into, else the user's. Raises ConfigError for one without a
    script."""
    import shellingham  # type: ignore[import-untyped]  # typer brings it

    try:
        found: str = shellingham.detect_shell()[0]
    except shellingham.ShellDetectionFailure:
        found = os.path.basename(os.environ.get("SHELL", ""))
    if found not in SHELLS:
        what = f"found {found}" if found else "no shell found"
        raise ConfigError(f"{option.opts[0]}: {what}; run it from bash, zsh or fish")
    return found


def options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_tell_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
    install_completion: Annotated[
        bool,
        typer.Option(
            "--install-completion",
            callback=_install,
            is_eager=True,
            help="Turn on tab completion in this shell (bash, zsh or fish).",
        ),
    ] = False,
    show_completion: Annotated[
        bool,
        typer.Option(
            "--show-completion",
            callback=_show,
            is_eager=True,
            help="Print the completion script instead.",
        ),
    ] = False,
) -> None:
    """The options of the program itself; each ends it, so no command ever reads them."""
