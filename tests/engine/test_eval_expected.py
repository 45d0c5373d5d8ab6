"""What eval expects of an answer is what was trained of it, decoded as answers are."""

from pathlib import Path
from typing import Any

import pytest

from loractl.engine import evaluate
from loractl.generation.speech import Speech
from loractl.records import Conversation, Message
from tests.data.test_template_golden import TOOL, template_tokenizer
from tests.tiny import make_tokenizer

ASK = Message("user", "Weather in Oslo?")
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}


def expected(template: str, *answers: Message, thoughts: str = "auto") -> str:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = template_tokenizer(template).chat_template
    row = Conversation((ASK, *answers), (TOOL,))
    speech = Speech(tokenizer, (tokenizer.eos_token_id,))
    prompt, text = evaluate.asked_and_expected(speech, row, thoughts)
    assert tokenizer.decode(prompt).endswith("<|im_start|>assistant\n")
    return text


@pytest.mark.parametrize("train", [True, False])
def test_it_has_what_the_template_writes_around_the_content(train: bool) -> None:
    answer = Message("assistant", "Cold.", weight=float(train))
    assert expected("qwen3", answer) == "<think>\n\n</think>\n\nCold."
    assert expected("chatml", answer) == "Cold."


def test_it_has_the_calls_of_the_answer() -> None:
    text = expected("chatml_tools", Message("assistant", "", tool_calls=(CALL,)))
    assert '"weather"' in text and '"Oslo"' in text and "<|im_end|>" not in text


def test_rows_without_a_call_do_not_count_for_tool_call(tmp_path: Path) -> None:
    found: Any = evaluate.Evaluated("base", where=[1, 2], scores={"tool_call": [None, 1.0]})
    asked = evaluate.EvalRequest(data=tmp_path, metrics=("tool_call",))
    evaluate.fill_figures_(found, found, asked)
    assert found.figures["tool_call"].value == 1.0
