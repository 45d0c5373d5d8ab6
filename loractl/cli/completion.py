"""The options of `loractl` itself, before any command: the version, and shell completion.

The shells' scripts are typer's; they ask the program, which answers without torch. The options for
them are ours, because typer's exit with 1, our code for a bug, in a shell that it does not know.
"""

import os
from typing import Annotated, Any

import typer
from typer import completion

from loractl import __version__, console
from loractl.errors import ConfigError

ASKED = "_LORACTL_COMPLETE"
"""The environment variable that a shell's script sets to ask for completions."""
SHELLS = ("bash", "zsh", "fish")


def answer_shell(command: Any) -> int:
    """Complete the words that the shell passes in the environment. The exit code tells fish whether
    there is anything to offer."""
    completion.get_completion_inspect_parameters()  # registers the shells
    try:
        command.main([], prog_name="loractl", standalone_mode=False)
    except SystemExit as answered:
        return int(answered.code or 0)
    return 0


def templates() -> list[str]:
    """The values of `init --template`."""
    from loractl.commands.init import TEMPLATES

    return list(TEMPLATES)


def formats() -> list[str]:
    """The values of `export --to`."""
    from loractl.commands.export import FORMATS

    return list(FORMATS)


def bases() -> list[str]:
    """The values of `merge --into`."""
    from loractl.engine.merge_bases import INTO

    return list(INTO)


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
    """The shell that this was typed into, or else the user's login shell. Raises ConfigError if
    there is no script for it."""
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
            help="Install completion for bash, zsh or fish.",
        ),
    ] = False,
    show_completion: Annotated[
        bool,
        typer.Option(
            "--show-completion",
            callback=_show,
            is_eager=True,
            help="Print the completion script and exit.",
        ),
    ] = False,
) -> None:
    """Declare the program's own options. Each one exits, so their values are never read."""
