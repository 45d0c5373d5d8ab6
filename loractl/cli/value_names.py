"""What help calls the value of an option: a plain word, where typer names a Python type."""

from typing import Any


def name_values_(command: Any) -> None:
    """Give every option of a command and of its subcommands a word for its value, unless it has
    one. Arguments are named by what they are, and need no type beside that."""
    for other in getattr(command, "commands", {}).values():
        name_values_(other)
    for one in command.params:
        if one.param_type_name == "argument":
            one.display_type_rich = _no_type
        elif one.metavar is None and not one.is_flag:
            one.metavar = _word_of(one.type_descriptor)


def _no_type(ctx: Any) -> None:
    return None


def _word_of(found: Any) -> str:
    if found.is_path:
        return "PATH"
    return "NUMBER" if found.is_ranged or found.annotation in (int, float) else "TEXT"
