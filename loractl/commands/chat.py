"""`loractl chat`: one base in memory with several adapters, at a terminal or through a pipe."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from loractl import console, text
from loractl.commands.arguments import GenerationOptions, parse_adapters
from loractl.errors import ConfigError, DataError, LoractlError, ModelError
from loractl.text import closest

if TYPE_CHECKING:
    from loractl.generation.chat_session import ChatSession

BASE = "base"


def run(*, model: str | None, adapters: Sequence[str], options: GenerationOptions) -> int:
    """Read lines until the end of the input or /quit; the first adapter is active at the start.

    Errors that a user can fix are printed, and the conversation goes on. Ctrl-C stops an answer,
    or leaves at the prompt; without a terminal it always leaves.
    """
    options.check()
    directories = parse_adapters(adapters)
    if BASE in directories:
        raise ConfigError(f"--adapter: {BASE!r} is reserved for the base; choose another name")
    if model is None and not directories:
        raise ConfigError("no model to chat with; give --adapter NAME=DIR or --model")
    from loractl.engine.speakers import open_hub

    opened = open_hub(model, directories, options.dtype)
    from loractl.generation.chat_session import ChatSession

    talk = ChatSession(opened, options.sampling, active=next(iter(directories), None))
    console.note(f"{_title_of(talk.active)} is active; /help lists the commands, Ctrl-D leaves")
    if not opened.tokenizers[talk.active].chat_template:
        console.note("note: there is no chat template; your input is continued as plain text")
    while (line := console.ask(f"{_title_of(talk.active)}> ")) is not None:
        try:
            code = _take_turn(talk, line)
        except KeyboardInterrupt:
            if not console.is_interactive():
                raise
            console.note("stopped")
        except LoractlError as error:
            console.errors(error.messages)
        else:
            if code is not None:
                return code
    return 0


def _title_of(name: str | None) -> str:
    return BASE if name is None else name


def _take_turn(talk: "ChatSession", line: str) -> int | None:
    """Run a command or send a message. Returns the exit code to leave with, or None to go on."""
    if line.startswith("/"):
        return _obey_command(talk, line)
    if text := line.strip():
        _say_text(talk, text)
    return None


def _say_text(talk: "ChatSession", text: str) -> None:
    """Send a message and print the answer as it is generated."""
    told = False

    def tell(piece: str) -> None:
        nonlocal told
        told = True
        console.piece(piece)

    try:
        with _errors_with_advice(talk):
            talk.ask(text, tell)
            told = True  # an empty answer is a line too
    finally:
        if told:
            console.result("")


@contextmanager
def _errors_with_advice(talk: "ChatSession") -> Iterator[None]:
    """Add advice to the errors of a conversation that cannot be answered."""
    from loractl.data.rendering import TemplateError

    try:
        yield
    except TemplateError as error:
        raise DataError(f"{_title_of(talk.active)}: {error}") from None
    except ModelError as error:
        after = "; /reset clears the conversation" if talk.messages else ""
        raise ModelError(f"{error}{after}") from None


def _obey_command(talk: "ChatSession", line: str) -> int | None:
    word, _, rest = line.strip().partition(" ")
    if word not in COMMANDS:
        raise ConfigError(
            f"{word}: no such command{_hint_nearest(word, COMMANDS)}; /help lists them; to send"
            " the line as text, begin it with a space"
        )
    return COMMANDS[word].obey(talk, rest.strip())


def _hint_nearest(word: str, words: Iterable[str]) -> str:
    found = closest(word, words)
    return f" (did you mean {found}?)" if found else ""


def _use_adapter(talk: "ChatSession", name: str) -> None:
    names = [*talk.speakers.hub.names, BASE]
    if name not in names:
        what = f"/use {name}: no such adapter" if name else "/use: which adapter?"
        raise ConfigError(f"{what}{_hint_nearest(name, names)}; expected one of {', '.join(names)}")
    talk.active = None if name == BASE else name
    console.note(f"{name} is now active")


def _use_base(talk: "ChatSession", rest: str) -> None:
    _use_adapter(talk, BASE)


def _compare_answers(talk: "ChatSession", text: str) -> None:
    with _errors_with_advice(talk):
        try:
            answers = talk.compare(text or None)
        except ValueError as error:
            raise ConfigError(f"/compare: {error}; write /compare TEXT") from None
    for name, answer in answers.items():
        console.result(f"[{_title_of(name)}]\n{answer}")


def _list_adapters(talk: "ChatSession", rest: str) -> None:
    hub = talk.speakers.hub
    rows = [[_title_of(None), "", "", ""]]
    for name in hub.names:
        ranks = hub.ranks(name)
        span = str(ranks[0]) if len(ranks) == 1 else f"{ranks[0]}-{ranks[-1]}"
        rows.append([name, span, str(len(hub.layers(name))), text.size(hub.n_bytes(name))])
    marked = [["*" if row[0] == _title_of(talk.active) else "", *row] for row in rows]
    console.result(text.table(["", "name", "rank", "modules", "memory"], marked))


def _reset_talk(talk: "ChatSession", rest: str) -> None:
    talk.reset()
    console.note("conversation cleared")


def _show_help(talk: "ChatSession", rest: str) -> None:
    lines = [(f"{word} {one.argument}", one.does) for word, one in COMMANDS.items()]
    console.result("\n".join(f"{usage:<16} {does}" for usage, does in lines))


def _quit_talk(talk: "ChatSession", rest: str) -> int:
    return 0


@dataclass(frozen=True)
class Command:
    """The argument of a command, its description, and the function that runs it."""

    argument: str
    does: str
    obey: Callable[["ChatSession", str], int | None]


COMMANDS = {
    "/use": Command("NAME", "switch to this adapter and the conversation with it", _use_adapter),
    "/base": Command("", "switch to the base model and the conversation with it", _use_base),
    "/compare": Command(
        "[TEXT]",
        "let all answer TEXT, or the last message, after this conversation",
        _compare_answers,
    ),
    "/adapters": Command("", "list the adapters; * marks the active one", _list_adapters),
    "/reset": Command("", "clear this conversation", _reset_talk),
    "/help": Command("", "show this list", _show_help),
    "/quit": Command("", "leave, like Ctrl-D; Ctrl-C stops an answer", _quit_talk),
}
