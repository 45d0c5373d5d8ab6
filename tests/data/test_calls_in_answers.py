"""Answers with calls, in templates that render earlier turns otherwise: nothing of the result that
follows is trained, and what ends a call is."""

from typing import Any

import pytest

from loractl.data import rows
from loractl.data.rendering import TemplateError
from loractl.data.template import render_row
from tests.data import template_grid as grid

RESULT = grid.result(1, "warmth", "3 degrees")
THOUGHT = grid.says("", tool_calls=[grid.ONE], reasoning_content=grid.COLD)


def answers(template: str, *messages: dict[str, Any]) -> list[str]:
    path = grid.templates().get(f"trl: {template}")
    if path is None:
        pytest.skip(f"TRL, whose template {template} is tried here, is not installed")
    row = rows.read({"tools": grid.TOOLS, "messages": [grid.ASKED, *messages]}, "messages")
    found = render_row(grid.tokenizer_of(path), row, train_on="assistant")
    assert found.unended == ("<|end|>" in found.text and len(messages) > 3)
    return [found.text[slice(*span)] for span in found.spans]


ENDS = {
    "gptoss": '{"city": "Bern"}<|call|>',
    "gemma4": "<tool_call|><|tool_response>",
    "gemma4_v5": "<tool_call|><|tool_response>",
    "glm4moe": "</tool_call><|observation|>",
    "qwen3": "</tool_call><|im_end|>",
    "qwen3_6": "</tool_call><|im_end|>",
}


@pytest.mark.parametrize("template", ENDS)
@pytest.mark.parametrize("later", [(), (grid.AGAIN, grid.SECOND)], ids=["last", "earlier"])
def test_a_call_after_reasoning_is_trained_up_to_its_end(template: str, later: Any) -> None:
    call, final, *_ = answers(template, THOUGHT, RESULT, grid.ANSWER, *later)
    assert call.endswith(ENDS[template]) and "Bern" in call
    assert "3 degrees" not in call + final and "functions.warmth to" not in call
    assert grid.ANSWER["content"] in final


@pytest.mark.parametrize("template", ["gemma4", "gemma4_v3", "gemma4_v5", "diffusion_gemma"])
def test_an_answer_around_the_result_of_its_call_is_refused(template: str) -> None:
    looking = grid.says("Let me look.", tool_calls=[grid.ONE])
    with pytest.raises(TemplateError, match=r"messages\[1\]: .* inside this answer; give"):
        answers(template, looking, RESULT, grid.ANSWER)
    (said,) = answers(template, looking)
    assert "Let me look." in said and "Bern" in said
