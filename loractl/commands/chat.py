"""`loractl chat`: one base in memory and adapters around it, at a terminal or through a pipe."""

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
    """Read lines until the end of the input or /quit; the first adapter answers at first.

    What a person can fix is printed, and the conversation goes on. Ctrl-C stops an answer, and
    leaves when there is none; it always leaves when nobody sits at the terminal.
    """
    options.check()
    directories = parse_adapters(adapters)
    if BASE in directories:
        raise ConfigError(f"--adapter: {BASE!r} means the model alone; take another name")
    if model is None and not directories:
        raise ConfigError("nothing to talk with: give --adapter NAME=DIR, or --model")
    from loractl.engine.base import open_hub

    opened = open_hub(model, directories, options.dtype)
    from loractl.generation.chat_session import ChatSession

    talk = ChatSession(opened, options.sampling, active=next(iter(directories), None))
    console.note(f"{_title_of(talk.active)} answers; /help lists the commands, Ctrl-D leaves")
    if not opened.tokenizers[talk.active].chat_template:
        console.note("note: there is no chat template; what you write is continued as plain text")
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
    """Carry out a command, or say something. Returns the exit code to leave with, None to stay."""
    if line.startswith("/"):
        return _obey_command(talk, line)
    if text := line.strip():
        _say_text(talk, text)
    return None


def _say_text(talk: "ChatSession", text: str) -> None:
    """Ask, and print the answer as it comes."""
    told = False

    def tell(piece: str) -> None:
        nonlocal told
        told = True
        console.piece(piece)

    try:
        with _errors_with_advice(talk):
            talk.ask(text, tell)
            told = True  # an answer without a word is a line too
    finally:
        if told:
            console.result("")


@contextmanager
def _errors_with_advice(talk: "ChatSession") -> Iterator[None]:
    """Say of a conversation that cannot be answered how to go on."""
    from loractl.data.template import TemplateError

    try:
        yield
    except TemplateError as error:
        raise DataError(f"{_title_of(talk.active)}: {error}") from None
    except ModelError as error:
        after = "; /reset forgets what was said before" if talk.messages else ""
        raise ModelError(f"{error}{after}") from None


def _obey_command(talk: "ChatSession", line: str) -> int | None:
    word, _, rest = line.strip().partition(" ")
    if word not in COMMANDS:
        raise ConfigError(
            f"{word}: no such command{_hint_nearest(word, COMMANDS)}; /help lists them, and a line"
            " that begins with a space is said as it is"
        )
    return COMMANDS[word].obey(talk, rest.strip())


def _hint_nearest(word: str, words: Iterable[str]) -> str:
    found = closest(word, words)
    return f" (did you mean {found}?)" if found else ""


def _use_adapter(talk: "ChatSession", name: str) -> None:
    names = [*talk.speakers.hub.names, BASE]
    if name not in names:
        what = f"/use {name}: no such adapter" if name else "/use: which adapter?"
        raise ConfigError(f"{what}{_hint_nearest(name, names)}; there are {', '.join(names)}")
    talk.active = None if name == BASE else name
    console.note(f"{name} answers from now on")


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
    console.note("the conversation is forgotten")


def _show_help(talk: "ChatSession", rest: str) -> None:
    lines = [(f"{word} {one.argument}", one.does) for word, one in COMMANDS.items()]
    console.result("\n".join(f"{usage:<16} {does}" for usage, does in lines))


def _quit_talk(talk: "ChatSession", rest: str) -> int:
    return 0


@dataclass(frozen=True)
class Command:
    """What follows its word, what it does in words, and what carries it out."""

    argument: str
    does: str
    obey: Callable[["ChatSession", str], int | None]


COMMANDS = {
    "/use": Command("NAME", "this adapter answers from now on; what was said stays", _use_adapter),
    "/base": Command("", "the base answers from now on", _use_base),
    "/compare": Command(
        "[TEXT]", "base and adapters answer TEXT, or what was last said", _compare_answers
    ),
    "/adapters": Command("", "who is there; * answers", _list_adapters),
    "/reset": Command("", "forget what was said", _reset_talk),
    "/help": Command("", "this list", _show_help),
    "/quit": Command("", "leave, as Ctrl-D does; Ctrl-C stops an answer", _quit_talk),
}
