"""A conversation -> text, and which spans of it are trained, for any chat template.

Prompts for generation are rendered here too: training and generation share one path to token ids.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from loractl.data import answer_pieces, spans
from loractl.data.message_parts import parts_of
from loractl.data.rendering import CallsLostError, Renders, TemplateError, Tokenizer, apply
from loractl.data.thoughts import has_thoughts
from loractl.data.tool_proof import missing_tool
from loractl.data.written import lost_thoughts, what_is_written, with_all_thoughts
from loractl.records import Conversation, Message


@dataclass(frozen=True)
class Rendered:
    """A conversation as text, with the character spans that are trained."""

    text: str
    spans: tuple[tuple[int, int], ...]  # (start, end)
    numbers: tuple[int, ...] = ()  # the message of each span, if spans are single answers
    weights: tuple[tuple[int, int, float], ...] = ()  # (start, end, weight) where it is not 1
    pieces: tuple[tuple[int, int, int], ...] = ()  # (start, end, start of its answer), train_spans
    lost_thoughts: int = 0  # answers whose reasoning the template drops, as in earlier turns
    lost_trained: int = 0  # of these, the answers that are trained
    unread: tuple[str, ...] = ()  # fields of messages that the template does not read
    unended: int = 0  # answers trained without their end, see spans.Span


def render(
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    *,
    train_on: str,
    tools: Sequence[Mapping[str, Any]] = (),
) -> Rendered:
    """Render messages and find the text that is trained. Raises TemplateError."""
    return render_row(tokenizer, Conversation(tuple(messages), tuple(tools)), train_on=train_on)


def with_thoughts(tokenizer: Tokenizer, row: Conversation, setting: str) -> Conversation:
    """The row with its reasoning where the template reads it, if `data.thoughts` is keep.

    Raises TemplateError if that is nowhere.
    """
    if setting != "keep" or not tokenizer.chat_template or not any(map(has_thoughts, row.messages)):
        return row
    renders = Renders(tokenizer, row.messages, row.tools, row.variables)
    return replace(row, messages=with_all_thoughts(renders).messages)


def render_row(tokenizer: Tokenizer, row: Conversation, *, train_on: str) -> Rendered:
    """Render a row and find the text that is trained, end-of-turn tokens included.

    Raises TemplateError.
    """
    messages = row.messages
    if messages[0].role == "":  # plain text, trained whole
        text = _with_eos(tokenizer, _with_bos(tokenizer, messages[0].content))
        return Rendered(text, ((0, len(text)),))
    if not tokenizer.chat_template:
        return _without_template(tokenizer, messages, train_on)
    renders = Renders(tokenizer, messages, row.tools, row.variables)
    written = what_is_written(renders)
    if (tool := missing_tool(renders)) is not None:
        raise CallsLostError(f"tools: the chat template leaves out the tool {tool}")
    trained = trained_answers(messages, train_on)
    lost = lost_thoughts(renders, written, trained)
    lost_trained = len({part.number for part in written.thoughts} & set(trained))
    text = renders.whole
    if messages[-1].role == "assistant" and not spans.is_ended(renders, len(messages) - 1):
        text += tokenizer.eos_token or ""  # or a model would never learn to stop
    if train_on == "all":
        found = _all_but(text, list(spans.unequal(renders, len(text))))
        trained = tuple(number for number in trained if messages[number].spans is not None)
    answers = [_with_end(tokenizer, text, spans.find_answer(renders, n)) for n in trained]
    pieces = tuple(piece for answer in answers for piece in answer_pieces.pieces(renders, answer))
    if train_on == "all":
        found = replace(found, pieces=pieces, unread=written.unread)
        return replace(found, lost_thoughts=lost, lost_trained=lost_trained)
    whole = [answer for answer in answers if messages[answer.number].spans is None]
    return Rendered(
        text,
        tuple((answer.start, answer.end) for answer in whole),
        tuple(answer.number for answer in whole),
        _weigh([(a.start, a.end) for a in answers], [messages[a.number] for a in answers]),
        pieces,
        lost,
        lost_trained,
        written.unread,
        unended=sum(answer.ending == "untrained" for answer in answers),
    )


def trained_answers(messages: Sequence[Message], train_on: str) -> tuple[int, ...]:
    """The numbers of the answers that are trained."""
    answers = [number for number, m in enumerate(messages) if m.role == "assistant"]
    if train_on == "last":
        answers = answers[-1:]
    return tuple(number for number in answers if messages[number].train)


def is_trained(messages: Sequence[Message], train_on: str) -> bool:
    """Whether training would take anything from these messages, by their roles and marks alone."""
    if messages[0].role == "" or train_on == "all":
        return any(message.train for message in messages)
    return bool(trained_answers(messages, train_on))


def _weigh(
    trained: Sequence[tuple[int, int]], messages: Sequence[Message]
) -> tuple[tuple[int, int, float], ...]:
    """The spans of messages that do not weigh 1, with their weights."""
    pairs = zip(trained, messages, strict=True)
    return tuple((start, end, m.weight) for (start, end), m in pairs if m.weight != 1)


def _all_but(text: str, marked: Sequence[tuple[int, int, float]]) -> Rendered:
    """A text that is trained whole, but for the weights of some spans: 0 is untrained."""
    left_out = [(start, end) for start, end, weight in marked if not weight]
    weighed = tuple(one for one in marked if one[2])
    return Rendered(text, tuple(spans.between(left_out, len(text))), weights=weighed)


def _with_end(tokenizer: Tokenizer, text: str, span: spans.Span) -> spans.Span:
    """The span, extended by what ends the answer if the template writes nothing for that.

    After the last answer this is the eos token; before another turn (GLM) it is the role token
    that opens it: the model stops by writing it. Where there is neither, the end is not trained;
    raises TemplateError if the text ends there.
    """
    if span.ending != "missing":
        return span
    ends = [*tokenizer.added_tokens_encoder, tokenizer.eos_token or ""]
    length = max((len(end) for end in ends if text.startswith(end, span.end)), default=0)
    if not length and span.end == len(text):
        raise TemplateError(
            f"messages[{span.number}]: the chat template writes nothing to end this answer, and the"
            " tokenizer has no eos token, so a model would not learn to stop"
        )
    ending: Literal["trained", "untrained"] = "trained" if length else "untrained"
    return replace(span, end=span.end + length, ending=ending)


def _without_template(tokenizer: Tokenizer, messages: Sequence[Message], train_on: str) -> Rendered:
    if [m.role for m in messages] != ["user", "assistant"] or messages[1].tool_calls:
        raise TemplateError(
            "the tokenizer has no chat template, so a conversation cannot be rendered; set"
            " data.chat_template (chatml, or a file), use a model with one, or prompt and"
            " completion rows"
        )
    lost, unread = _fields_beside(messages, train_on)
    prompt = _with_bos(tokenizer, messages[0].content)
    text = prompt + _with_eos(tokenizer, messages[1].content)
    answer = (len(prompt), len(text))
    content, start, has_spans = messages[1].content, len(prompt), messages[1].spans is not None
    pieces = tuple(
        (start + first, len(text) if last == len(content) else start + last, start)
        for first, last in messages[1].spans or ()
    )
    if train_on == "all":
        asked = (start - len(messages[0].content), start)
        untrained = [(*answer, 0.0)] if has_spans else []
        found = _all_but(text, [*_weigh((asked, answer), messages), *untrained])
        found = replace(found, pieces=pieces)
    elif not messages[1].train:
        found = Rendered(text, ())
    elif has_spans:
        found = Rendered(text, (), (), _weigh([answer], messages[1:]), pieces)
    else:
        found = Rendered(text, (answer,), (1,), _weigh([answer], messages[1:]))
    return replace(found, lost_thoughts=lost, unread=unread)


def _fields_beside(messages: Sequence[Message], train_on: str) -> tuple[int, tuple[str, ...]]:
    """How many answers have reasoning in a field, and which other fields there are: without a chat
    template nothing reads either. Raises TemplateError for reasoning of a trained answer."""
    parts = [part for part in parts_of(messages) if part.field]
    thoughts = {part.number: part.field for part in parts if part.kind == "thought"}
    for number in trained_answers(messages, train_on):
        if number in thoughts:
            raise TemplateError(
                f"messages[{number}]: {thoughts[number]} of this answer, which is trained, cannot"
                " be written, since the tokenizer has no chat template; set data.thoughts: drop to"
                " train without it, or data.chat_template to one that writes it"
            )
    unread = dict.fromkeys(part.field for part in parts if part.kind == "field")
    return len(thoughts), tuple(unread)


def prompt_ids(
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    tools: Sequence[Mapping[str, Any]] = (),
    variables: Mapping[str, Any] | None = None,
) -> list[int]:
    """Token ids of a conversation up to where the model's answer begins. Raises TemplateError."""
    if tokenizer.chat_template:
        text = apply(tokenizer, messages, tools, variables, prompt=True)
    else:
        text = _with_bos(tokenizer, "".join(m.content for m in messages))
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _with_bos(tokenizer: Tokenizer, text: str) -> str:
    """The text after a beginning-of-sequence token, if this tokenizer puts one before text."""
    bos = tokenizer.bos_token or ""
    if text.startswith(bos) or list(tokenizer("")["input_ids"])[:1] != [tokenizer.bos_token_id]:
        return text
    return bos + text


def _with_eos(tokenizer: Tokenizer, text: str) -> str:
    """The text with one eos token at its end."""
    eos = tokenizer.eos_token or ""
    return text if text.endswith(eos) else text + eos
