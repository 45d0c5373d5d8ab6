"""A chat template and a conversation -> text. Locating the answers in it is left to spans.py."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import date
from functools import cached_property
from itertools import islice
from typing import Any, Protocol

import jinja2

from loractl.data import message_forms
from loractl.data.dates import DATE, FIXED_DATE, OTHER_DATE, date_parts
from loractl.data.limits import check_powers, within_seconds
from loractl.data.message_parts import Part, free_marks, with_marks
from loractl.records import Message

Fields = Mapping[str, Any]

LONGEST_RENDERING = 5.0
"""Seconds a template may take for one conversation; real ones take well under a millisecond."""

# What jinja, the sandbox and the filters raise when a template cannot render a conversation.
REFUSALS = (
    jinja2.TemplateError, ArithmeticError, AttributeError, LookupError, MemoryError,
    RecursionError, TypeError, ValueError,
)  # fmt: skip


class Tokenizer(Protocol):
    """The parts of a tokenizer used here."""

    chat_template: Any
    eos_token: str | None
    bos_token: str | None
    bos_token_id: int | None
    added_tokens_encoder: dict[str, int]

    def apply_chat_template(self, conversation: Any, **options: Any) -> Any: ...

    def get_chat_template(self, chat_template: Any = None, tools: Any = None) -> str: ...

    def decode(self, token_ids: Any, **options: Any) -> Any: ...

    def __call__(self, text: Any, **options: Any) -> Any: ...


class TemplateError(ValueError):
    """A conversation that the chat template cannot render, or not with identifiable answers."""


class CallsLostError(TemplateError):
    """A conversation whose tool calls or results the chat template cannot write."""


class Renders:
    """The texts of one conversation, each rendered once. Every method may raise TemplateError."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        messages: Sequence[Message],
        tools: Sequence[Fields] = (),
        variables: Fields | None = None,
    ) -> None:
        self.messages = tuple(messages)
        self.tools = tools
        self.variables = variables or {}
        self._tokenizer = tokenizer
        self._texts: dict[tuple[int, bool, int, bool], str] = {}

    def text(
        self, n: int, *, prompt: bool = False, marked: int = -1, without_calls: bool = False
    ) -> str:
        """The first n messages as the template writes them.

        `prompt` adds the opening of the next answer; `marked` puts `mark` in place of that
        message's content; `without_calls` omits the tool calls of the last message.
        """
        key = (n, prompt, marked, without_calls)
        if key not in self._texts:
            messages = list(self.messages[:n])
            if marked >= 0:
                messages[marked] = _with_content(messages[marked], self.mark)
            if without_calls:
                messages[-1] = replace(messages[-1], tool_calls=())
            self._texts[key] = self.of(messages, prompt=prompt)
        return self._texts[key]

    def of(self, messages: Sequence[Message], *, prompt: bool = False) -> str:
        """Other messages, rendered with the tools and variables of this conversation."""
        return apply(self._tokenizer, messages, self.tools, self.variables, prompt=prompt)

    def like(self, messages: Sequence[Message]) -> "Renders":
        """The renders of other messages with the same tools and variables."""
        return Renders(self._tokenizer, messages, self.tools, self.variables)

    def with_tools(self, tools: Sequence[Fields]) -> "Renders":
        """The renders of the same messages with other tools."""
        return Renders(self._tokenizer, self.messages, tools, self.variables)

    @property
    def whole(self) -> str:
        return self.text(len(self.messages))

    @property
    def mark(self) -> str:
        """A character that occurs nowhere in this conversation."""
        return self._two_marks[0]

    @property
    def other_mark(self) -> str:
        """Another one."""
        return self._two_marks[1]

    @cached_property
    def _two_marks(self) -> list[str]:
        return list(islice(free_marks(self.whole, *(m.content for m in self.messages)), 2))

    def with_parts_marked(self, marks: Mapping[Part, str]) -> str:
        """The whole conversation with another text in the place of some parts."""
        return self.of(with_marks(self.messages, marks))

    @property
    def template(self) -> str:
        """What renders this conversation."""
        return str(self._tokenizer.chat_template)


def _with_content(message: Message, text: str) -> Message:
    return replace(message, content=text, parts=(text,) if message.parts else ())


def apply(
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    tools: Sequence[Fields] = (),
    variables: Fields | None = None,
    *,
    prompt: bool = False,
    today: date = DATE,
) -> str:
    """Render messages, with `prompt` also the opening of the next answer. Raises TemplateError."""

    def render(plain: Sequence[Fields]) -> str:
        return _render_text(tokenizer, plain, tools, variables or {}, prompt, today)

    template = str(tokenizer.chat_template)
    plain = message_forms.fitting(messages, template, render, REFUSALS)
    try:
        return render(plain)
    except jinja2.TemplateSyntaxError as error:
        raise TemplateError(f"the chat template rejects the row: {error}") from None
    except REFUSALS as error:
        why = str(error)
    for n in range(1, len(messages)):
        if why in _refusal_of(render, plain[:n]):
            break
    else:
        n = len(messages)
    of_calls = messages[n - 1].role == "tool" or messages[n - 1].tool_calls
    error_of = CallsLostError if of_calls else TemplateError
    raise error_of(f"messages[{n - 1}]: the chat template rejects the row: {why}")


def _refusal_of(render: message_forms.Render, plain: Sequence[Fields]) -> str:
    try:
        render(plain)
    except REFUSALS as error:
        return str(error)
    return ""


def _render_text(
    tokenizer: Tokenizer,
    plain: Sequence[Fields],
    tools: Sequence[Fields],
    variables: Fields,
    prompt: bool,
    today: date,
) -> str:
    options = dict(variables)
    if tools:
        options["tools"] = [dict(tool) for tool in tools]
    if "strftime_now" in str(tokenizer.chat_template):
        template = tokenizer.get_chat_template(None, options.get("tools"))
        options["chat_template"] = FIXED_DATE + template
        options["date_parts"] = list(date_parts(today))
    check_powers(tokenizer.chat_template)
    with within_seconds(LONGEST_RENDERING, "the chat template"):
        text: str = tokenizer.apply_chat_template(
            list(plain), tokenize=False, add_generation_prompt=prompt, **options
        )
    return text


def writes_date(
    tokenizer: Tokenizer, messages: Sequence[Message], tools: Sequence[Fields] = ()
) -> bool:
    """Whether the template writes today's date into this conversation. Raises TemplateError.

    Here it writes DATE instead; other programs that serve the model will write the current date.
    """
    if "strftime_now" not in str(tokenizer.chat_template):
        return False
    texts = {apply(tokenizer, messages, tools, today=day) for day in (DATE, OTHER_DATE)}
    return len(texts) > 1


def writes_tools(
    tokenizer: Tokenizer, messages: Sequence[Message], tools: Sequence[Fields]
) -> bool:
    """Whether the template tells the model about the tools of this conversation.

    Many templates do not support tools and silently leave them out. Raises TemplateError.
    """
    return apply(tokenizer, messages, tools) != apply(tokenizer, messages)
