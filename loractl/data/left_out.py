"""How it is said that a chat template leaves out a part of a conversation."""

from loractl.data.argument_proof import Lost
from loractl.data.message_parts import Part, function_of
from loractl.data.rendering import CallsLostError, Renders, TemplateError
from loractl.data.verbatim import Vanished


def say_lost(renders: Renders, part: Part) -> TemplateError:
    """A content, or calls from one on."""
    message = renders.messages[part.number]
    if part.kind == "content":
        what = f"the content of this {message.role} message"
    elif part.at == 0:
        what = "the tool_calls of this message"
    else:
        name = function_of(message.tool_calls[part.at])["name"]
        what = f"the tool_calls of this message from number {part.at + 1} on ({name})"
        what += "; give each call a message of its own, followed by its result"
    error_of = CallsLostError if part.is_of_call or message.role == "tool" else TemplateError
    return error_of(f"messages[{part.number}]: the chat template leaves out {what}")


def say_argument_lost(renders: Renders, lost: Lost) -> TemplateError:
    """The name or the value of an argument."""
    call = function_of(renders.messages[lost.part.number].tool_calls[lost.part.at])
    what = "name" if lost.value.is_name else "value"
    return CallsLostError(
        f"messages[{lost.part.number}]: the chat template leaves out the {what} of the argument"
        f" {lost.value} of the call {call['name']}"
    )


def say_vanished(renders: Renders, vanished: Vanished) -> TemplateError:
    """Words that are lost though the part is written, since the template reads what is said."""
    part = vanished.part
    message = renders.messages[part.number]
    where = f"the content of this {message.role} message"
    if part.kind == "thought":
        where = "the reasoning of this answer"
    elif part.is_of_call:
        where = f"the call {function_of(message.tool_calls[part.at])['name']}"
    error_of = CallsLostError if part.is_of_call or message.role == "tool" else TemplateError
    cure = "" if error_of is CallsLostError else "; say it in other words, or set"
    cure += "" if error_of is CallsLostError else " data.chat_template to one that writes it"
    return error_of(
        f"messages[{part.number}]: the chat template leaves out {vanished.text!r} of {where},"
        f" because of what is said there{cure}"
    )
