"""What is odd about a row though it can be trained on: prompts that are rendered already."""

import re
from collections.abc import Callable, Iterable

from loractl.records import Conversation

_RENDERED = (
    r"<\|im_start\|>", r"<\|start_header_id\|>", "<start_of_turn>", r"\[INST\]", r"<\|user\|>",
    r"### (?:Instruction|Response):", "\n\n(?:Human|Assistant): ",
)  # fmt: skip
"""The marks of well-known chat templates: a prompt that holds them is a rendered conversation."""


def finder(special: Iterable[str]) -> Callable[[Conversation], str]:
    """A function that finds the first special token, or the first mark of a chat template, in the
    prompts of a row; "" if there is none."""
    words = [re.escape(token) for token in special if len(token) > 2 and not token.isspace()]
    pattern = re.compile("|".join([*words, *_RENDERED]))

    def find(conversation: Conversation) -> str:
        for message in conversation.messages:
            if message.role in ("system", "user", "tool") and (
                found := pattern.search(message.content)
            ):
                return found[0].strip()
        return ""

    return find
