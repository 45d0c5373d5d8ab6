"""A chat template and a conversation -> text. Locating the answers in it is left to spans.py."""

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import date
from typing import Any, NamedTuple, Protocol

import jinja2

from loractl.data.limits import check_powers, within_seconds
from loractl.records import Message

DATE = date(2024, 7, 26)
"""The date given to templates as today: Llama 3's own default. A row read again tomorrow, or after
a resume, has the same token ids, and so does a generation prompt."""

LONGEST_RENDERING = 5.0
"""Seconds a template may take for one conversation; real ones take well under a millisecond."""

OTHER_DATE = date(2031, 12, 7)  # differs from DATE in every part

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


class Part(NamedTuple):
    """A part of a conversation that its text must have."""

    number: int  # of the message
    call: int = -1  # of the tool call in it; -1: the content
    name: str = "content"  # or of a call: name, arguments


def parts_of(messages: Sequence[Message]) -> Iterator[Part]:
    """Every part that holds something: contents, and the name and the arguments of each call."""
    for number, message in enumerate(messages):
        if message.content.strip():
            yield Part(number)
        for index, call in enumerate(message.tool_calls):
            yield Part(number, index, "name")
            if _function_of(call)["arguments"]:
                yield Part(number, index, "arguments")


def _function_of(call: Mapping[str, Any]) -> Mapping[str, Any]:
    function: Mapping[str, Any] = call.get("function", call)
    return function


def _with_parts_replaced(message: Message, number: int, parts: Mapping[Part, str]) -> Message:
    content = parts.get(Part(number), message.content)
    calls = tuple(
        _with_call_replaced(call, number, index, parts)
        for index, call in enumerate(message.tool_calls)
    )
    return replace(message, content=content, tool_calls=calls)


def _with_call_replaced(
    call: Mapping[str, Any], number: int, index: int, parts: Mapping[Part, str]
) -> Mapping[str, Any]:
    function = dict(_function_of(call))
    if name := parts.get(Part(number, index, "name")):
        function["name"] = name
    if text := parts.get(Part(number, index, "arguments")):
        function["arguments"] = dict.fromkeys(function["arguments"], text)
    return {**call, "function": function} if "function" in call else function


class Renders:
    """The texts of one conversation, each rendered once. Every method may raise TemplateError."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        self.messages = tuple(messages)
        self._tokenizer = tokenizer
        self._tools = tools
        self._texts: dict[tuple[int, bool, int, bool], str] = {}
        self._mark = ""

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
                messages[marked] = replace(messages[marked], content=self.mark)
            if without_calls:
                messages[-1] = replace(messages[-1], tool_calls=())
            self._texts[key] = apply(self._tokenizer, messages, self._tools, prompt=prompt)
        return self._texts[key]

    @property
    def whole(self) -> str:
        return self.text(len(self.messages))

    @property
    def mark(self) -> str:
        """A character that occurs nowhere in this conversation."""
        if not self._mark:
            known = "".join([self.whole, *(m.content for m in self.messages)])
            self._mark = next(chr(c) for c in range(0xE000, 0xF900) if chr(c) not in known)
        return self._mark

    def with_parts_marked(self, parts: Mapping["Part", str]) -> str:
        """The whole conversation with another text in the place of some parts."""
        messages = [
            _with_parts_replaced(message, number, parts)
            for number, message in enumerate(self.messages)
        ]
        return apply(self._tokenizer, messages, self._tools)

    @property
    def template(self) -> str:
        """What renders this conversation."""
        return str(self._tokenizer.chat_template)

    @property
    def has_tools(self) -> bool:
        return bool(self._tools)


def apply(
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    tools: Sequence[Mapping[str, Any]] = (),
    *,
    prompt: bool = False,
    today: date = DATE,
) -> str:
    """Render messages, with `prompt` also the opening of the next answer. Raises TemplateError."""
    try:
        return _render_text(tokenizer, messages, tools, prompt, today)
    except jinja2.TemplateSyntaxError as error:
        raise TemplateError(f"the chat template rejects the row: {error}") from None
    except REFUSALS as error:
        if any(message.tool_calls for message in messages):
            # Some templates join arguments to other text, as OpenAI's API has them (DeepSeek V3)
            with contextlib.suppress(*REFUSALS):
                written = [_with_arguments_as_text(message) for message in messages]
                return _render_text(tokenizer, written, tools, prompt, today)
        for n in range(1, len(messages)):
            if str(error) in _refusal_text(tokenizer, messages[:n], tools, today):
                break
        else:
            n = len(messages)
        raise TemplateError(
            f"messages[{n - 1}]: the chat template rejects the row: {error}"
        ) from None


def _with_arguments_as_text(message: Message) -> Message:
    return replace(message, tool_calls=tuple(map(_call_with_text, message.tool_calls)))


def _call_with_text(call: Mapping[str, Any]) -> Mapping[str, Any]:
    if "function" in call:
        return {**call, "function": _call_with_text(call["function"])}
    return {**call, "arguments": json.dumps(call["arguments"], ensure_ascii=False)}


def _refusal_text(
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    tools: Sequence[Mapping[str, Any]],
    today: date,
) -> str:
    try:
        _render_text(tokenizer, messages, tools, False, today)
    except REFUSALS as error:
        return str(error)
    return ""


def _render_text(
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    tools: Sequence[Mapping[str, Any]],
    prompt: bool,
    today: date,
) -> str:
    options: dict[str, Any] = {}
    if tools:
        options["tools"] = [dict(tool) for tool in tools]
    if "strftime_now" in str(tokenizer.chat_template):
        template = tokenizer.get_chat_template(None, options.get("tools"))
        options["chat_template"] = FIXED_DATE + template
        options["date_parts"] = list(_date_parts(today))
    check_powers(tokenizer.chat_template)
    with within_seconds(LONGEST_RENDERING, "the chat template"):
        text: str = tokenizer.apply_chat_template(
            [_plain_message(message) for message in messages],
            tokenize=False,
            add_generation_prompt=prompt,
            **options,
        )
    return text


def _plain_message(message: Message) -> dict[str, Any]:
    plain: dict[str, Any] = {"role": message.role, "content": message.content, **message.extra}
    if message.tool_calls:
        plain["tool_calls"] = [dict(call) for call in message.tool_calls]
    return plain


# transformers gives templates the clock as a global, and turns functions that are passed with the
# messages into text ("<function>"), so a macro before the template shadows the global. The one
# newline after the last block is trimmed: nothing is added to the text.
FIXED_DATE = (
    "{% macro strftime_now(format) %}{% set ns = namespace(text=format) %}"
    "{% for name, value in date_parts %}"
    "{% set ns.text = ns.text.replace(name, value) %}{% endfor %}"
    "{{ ns.text }}{% endmacro %}\n"
)


def _date_parts(day: date) -> Iterator[tuple[str, str]]:
    """The value of each part of a strftime format, with English names on every machine."""
    months = "January February March April May June July August September October November December"
    weekdays = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday"
    month, weekday = months.split()[day.month - 1], weekdays.split()[day.weekday()]
    yield from (("%-d", str(day.day)), ("%-m", str(day.month)), ("%e", f"{day.day:>2}"))
    yield from (("%d", f"{day.day:02}"), ("%m", f"{day.month:02}"), ("%Y", str(day.year)))
    yield from (("%y", f"{day.year % 100:02}"), ("%B", month), ("%b", month[:3]))
    yield from (("%A", weekday), ("%a", weekday[:3]), ("%F", day.isoformat()))
    yield from (("%j", f"{day.timetuple().tm_yday:03}"), ("%x", f"{day:%m/%d/%y}"))
    yield from (("%H", "12"), ("%I", "12"), ("%M", "00"), ("%S", "00"), ("%p", "PM"))
    yield ("%%", "%")


def writes_date(
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    tools: Sequence[Mapping[str, Any]] = (),
) -> bool:
    """Whether the template writes today's date into this conversation. Raises TemplateError.

    Here it writes DATE instead; other programs that serve the model will write the current date.
    """
    if "strftime_now" not in str(tokenizer.chat_template):
        return False
    texts = {apply(tokenizer, messages, tools, today=day) for day in (DATE, OTHER_DATE)}
    return len(texts) > 1


def writes_tools(
    tokenizer: Tokenizer, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]
) -> bool:
    """Whether the template tells the model about the tools of this conversation.

    Many templates do not support tools and silently leave them out. Raises TemplateError.
    """
    return apply(tokenizer, messages, tools) != apply(tokenizer, messages)
