"""What eval expects of an answer is what was trained of it, decoded as answers are."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from loractl.engine import evaluate
from loractl.engine.questions import Question, question_of, up_to_answer
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
    question = question_of(speech, row, thoughts)
    assert tokenizer.decode(question.prompt).endswith("<|im_start|>assistant\n")
    assert question.most is None
    return question.expected


@pytest.mark.parametrize("weight", [1.0, 0.5])
def test_it_has_what_the_template_writes_around_the_content(weight: float) -> None:
    answer = Message("assistant", "Cold.", weight=weight)
    assert expected("qwen3", answer) == "<think>\n\n</think>\n\nCold."
    assert expected("chatml", answer) == "Cold."


def test_it_has_the_calls_of_the_answer() -> None:
    text = expected("chatml_tools", Message("assistant", "", tool_calls=(CALL,)))
    assert '"weather"' in text and '"Oslo"' in text and "<|im_end|>" not in text


MASKED = Message("assistant", "No idea.", weight=0.0)
TRAINED = Message("assistant", "Cold.")


@pytest.mark.parametrize(
    ("answers", "train_on", "kept"),
    [
        ((TRAINED, ASK, MASKED), "assistant", 2),
        ((TRAINED, ASK, MASKED), "all", 2),
        ((TRAINED, ASK, MASKED), "last", None),
        ((MASKED, ASK, TRAINED, ASK), "last", 4),
        ((MASKED,), "assistant", None),
        ((replace(TRAINED, spans=()),), "assistant", None),
        ((replace(TRAINED, spans=((0, 2),)),), "assistant", 2),
        ((), "assistant", None),
    ],
)
def test_only_an_answer_that_is_trained_is_asked_for(
    answers: tuple[Message, ...], train_on: str, kept: int | None
) -> None:
    found = up_to_answer(Conversation((ASK, *answers)), train_on)
    assert (found and len(found.messages)) == kept
    assert up_to_answer(Conversation((TRAINED, ASK)), train_on) is None


def asked_with_spans(text: str, *trained: str) -> tuple[str, Question]:
    tokenizer = make_tokenizer()
    spans = tuple((text.index(one), text.index(one) + len(one)) for one in trained)
    row = Conversation((ASK, Message("assistant", text, spans=spans)))
    question = question_of(Speech(tokenizer, (tokenizer.eos_token_id,)), row, "auto")
    return tokenizer.decode(question.prompt), question


def test_of_spans_the_last_is_expected_after_what_stands_before_it() -> None:
    prompt, question = asked_with_spans("Let me see. It is 19 degrees.", "see", "19 degrees.")
    assert prompt.endswith("assistant\nLet me see. It is")
    assert question.expected.strip() == "19 degrees." and question.most is None
    prompt, question = asked_with_spans("Let me see. It is 19 degrees.", "It is 19")
    assert prompt.rstrip().endswith("assistant\nLet me see.")
    assert question.expected.strip() == "It is 19"
    assert question.most == len(make_tokenizer()("It is 19")["input_ids"])


def test_rows_without_a_call_do_not_count_for_tool_call(tmp_path: Path) -> None:
    found: Any = evaluate.Evaluated("base", where=[1, 2], scores={"tool_call": [None, 1.0]})
    asked = evaluate.EvalRequest(data=tmp_path, metrics=("tool_call",))
    evaluate.fill_figures_(found, found, asked)
    assert found.figures["tool_call"].value == 1.0
