"""Our masks against those of TRL, which marks what is trained in the templates themselves.

TRL ships for each model the original template and a twin with `{% generation %}` marks. We get the
twin without its marks, and must train the same tokens. Where we differ it is on principle: trained
is exactly what the model has to write, from where the generation prompt ends up to and including
the token that ends the turn. Not more (TRL also trains what the prompt has already written, and the
newline after the end), and not less. Each such difference stands in a table here.

Three twins cannot be compared: idefics3, smolvlm and llava_next read content as a list of images
and texts only, and drop or refuse the plain text that our rows are.
"""

import copy
import datetime
import importlib.util
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast
from transformers.utils import chat_template_utils

from loractl.data.encoding import encode, token_range
from loractl.data.rendering import TemplateError
from loractl.data.template import render
from loractl.records import UNTRAINED, Message
from tests.tiny import make_tokenizer

SPEC = importlib.util.find_spec("trl")  # importing it takes seconds, and only its files are needed
if SPEC is None or SPEC.origin is None:
    pytest.skip("TRL is not installed: its templates are the judge here", allow_module_level=True)
FOLDER = Path(SPEC.origin).parent / "chat_templates"

CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1, "b": "x"}}}
TOOL = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Adds.",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "integer", "description": "one"}},
            "required": ["a"],
        },
    },
}
TURNS = [
    Message("user", "What is 2?"),
    Message("assistant", "It is 4."),
    Message("user", "And 東京? <|im_end|>"),
    # Its last character is one token: transformers marks only the first token of the character that
    # ends a block.
    Message("assistant", "A city: naïve 🗼."),
]
CONVERSATIONS = {
    "single": TURNS[:2],
    "turns": TURNS,
    "system": [Message("system", "Be kind."), *TURNS],
    "thoughts": [
        TURNS[0],
        Message("assistant", "<think>\nTwo.\n</think>\n\nIt is 4."),
        TURNS[2],
        Message("assistant", "<think>\nTo, kyo.\n</think>\n\nA city: naïve 🗼."),
    ],
    "tools": [
        Message("system", "Be kind."),
        TURNS[0],
        Message("assistant", "", tool_calls=(CALL,)),
        Message("tool", "4"),
        Message("assistant", "It is 4."),
    ],
}

# What a twin also trains although the generation prompt has written it, or a part of it.
THINK, START = ("<think>",), ("<|start|>assistant",)
ALSO_BEFORE = {
    "deepseek_r1_distill": ("<｜Assistant｜>", "<｜tool▁outputs▁end｜>"),
    "deepseekv3": ("<｜Assistant｜>", "<｜tool▁outputs▁end｜>"),
    "gptoss": START,
    "muse_glimmer": START,
    "nemotron_3_5_lightning": THINK,
    "nemotron_3_nano": THINK,
    "nemotron_3_super": THINK,
    "nemotron_3_ultra": THINK,
    "qwen2_5": ("\n",),
    "qwen3_5_nothink": THINK,
    "qwen3_5_think": THINK,
    "qwen3_6": THINK,
    "qwen3_8": THINK,
}
# Twins that also train the newline after the token that ends the turn.
ALSO_NEWLINE = {
    "diffusion_gemma", "gemma", "gemma3",
    "lfm2", "lfm2_v2", "lfm2_2_5", "lfm2_2_5_v2", "lfm2_2_5_vl",
    "nemotron_3_5_lightning", "nemotron_3_nano", "nemotron_3_super", "nemotron_3_ultra", "phi3",
    "phi3_5", "qwen2_5", "qwen2_5_vl", "qwen3", "qwen3_5_nothink", "qwen3_5_think", "qwen3_6",
    "qwen3_8", "qwen3_instruct_2507", "qwen3_vl",
}  # fmt: skip
ALIKE = {"cohere", "cohere2", "glm4moe", "llama3"}
TWINS = sorted(ALIKE | ALSO_NEWLINE | set(ALSO_BEFORE))
# Twins that train an answer which we refuse.
DROPS_CALLS = "leaves out the tool_calls"  # what is trained would be an empty answer
REFUSED = {
    **{(name, "tools"): DROPS_CALLS for name in ("lfm2", "llama3", "phi3", "phi3_5", "qwen2_5_vl")},
    ("deepseek_r1_distill", "tools"): DROPS_CALLS,
    ("deepseekv3", "thoughts"): "leaves out the reasoning",
}


def tokenizer_for(name: str, *, markers: bool) -> PreTrainedTokenizerFast:
    """The test tokenizer with a template of TRL's; its role markers may be tokens of their own."""
    tokenizer = copy.deepcopy(make_tokenizer())
    path = FOLDER / f"{name}.jinja"
    if not path.exists():
        pytest.skip(f"this TRL has no {path.name}")
    tokenizer.chat_template = path.read_text("utf-8")
    if markers:
        pattern = (
            r"<\|[\w]+\|>|<\w+\|>|<\|\w+>|<｜[^｜]+｜>|</?think>|<\w+_of_turn>|\[gMASK\]|<sop>"
        )
        found = sorted(set(re.findall(pattern, tokenizer.chat_template)))
        tokenizer.add_special_tokens({"additional_special_tokens": found})
    return tokenizer


class Clock(datetime.datetime):
    """The clock that transformers gives to a template, at the day that we give."""

    @classmethod
    def now(cls, tz: datetime.tzinfo | None = None) -> "Clock":
        return cls(2024, 7, 26)


def plain(messages: Sequence[Message]) -> list[dict[str, Any]]:
    return [
        {"role": m.role, "content": m.content, **({"tool_calls": [CALL]} if m.tool_calls else {})}
        for m in messages
    ]


def twin_file(name: str) -> str:
    """Where the marks are: some originals have them already."""
    return name if name.startswith("lfm2_2_5") else f"{name}_training"


def without_marks(template: str) -> str:
    """The template with blocks in place of the marks that do nothing but keep the white space."""
    opened = re.sub(r"(\{%-?\s*)generation(\s*-?%\})", r"\1if true\2", template)
    return re.sub(r"(\{%-?\s*)endgeneration(\s*-?%\})", r"\1endif\2", opened)


def as_the_twin_trains(name: str, text: str, span: tuple[int, int]) -> tuple[int, int]:
    """Our span, with what the twin of this template trains beside it by the tables above."""
    start, end = span
    for opener in ALSO_BEFORE.get(name, ()):
        before = text.rfind(opener, max(span[0] - 40, 0), span[0])
        start = before if start == span[0] else max(start, before)
    assert (start < span[0]) == (name in ALSO_BEFORE)
    if name == "gptoss" and text.startswith("<|end|>", end):
        end += len("<|end|>")  # it is not the end that a model has to write after its answer
    if name in ALSO_NEWLINE and text.startswith("\n", end):
        end += 1
    return start, end


@pytest.mark.parametrize("markers", [False, True], ids=["words", "markers"])
@pytest.mark.parametrize("conversation", CONVERSATIONS)
@pytest.mark.parametrize("name", TWINS)
def test_we_train_the_tokens_that_the_marks_of_the_twin_train(
    name: str, conversation: str, markers: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chat_template_utils, "datetime", Clock)
    messages = CONVERSATIONS[conversation]
    tools = (TOOL,) if conversation == "tools" else ()
    twin, ours = (tokenizer_for(twin_file(name), markers=markers) for _ in range(2))
    ours.chat_template = without_marks(ours.chat_template)
    assert not re.search(r"\{%-?\s*(end)?generation", ours.chat_template)
    try:
        theirs = twin.apply_chat_template(
            plain(messages),
            tools=list(tools) or None,
            return_dict=True,
            return_assistant_tokens_mask=True,
        )
    except Exception as error:  # the template's own refusal of a system role or of tools
        with pytest.raises(TemplateError, match=re.escape(str(error))):
            encode(ours, messages, train_on="assistant", tools=tools)
        return
    if (name, conversation) in REFUSED:
        with pytest.raises(TemplateError, match=REFUSED[name, conversation]):
            encode(ours, messages, train_on="assistant", tools=tools)
        return
    rendered = render(ours, messages, train_on="assistant", tools=tools)
    ids, labels = encode(ours, messages, train_on="assistant", tools=tools)
    assert ids == theirs["input_ids"]
    if (name, conversation) == ("diffusion_gemma", "tools"):
        check_diffusion_gemma(rendered.text, rendered.spans)
        return
    expected = [0] * len(ids)
    offsets = ours(rendered.text, add_special_tokens=False, return_offsets_mapping=True)
    for span in rendered.spans:
        wider = as_the_twin_trains(name, rendered.text, span)
        first, last = token_range(offsets["offset_mapping"], *wider)
        expected[first:last] = [1] * (last - first)
    assert theirs["assistant_masks"] == expected
    if name in ALIKE:
        assert theirs["assistant_masks"] == [int(label != UNTRAINED) for label in labels]


def check_diffusion_gemma(text: str, spans: Sequence[tuple[int, int]]) -> None:
    """After a tool's response its generation prompt is empty: the model opens its own turn.

    And what ends a call is the opening of the response, by which generation stops; the twin trains
    neither.
    """
    assert [text[a:b] for a, b in spans] == [
        '<|tool_call>call:add{a:1,b:<|"|>x<|"|>}<tool_call|><|tool_response>',
        "<|turn>model\nIt is 4.<turn|>",
    ]


def test_at_least_20_twins_are_compared() -> None:
    assert len(TWINS) >= 20
    files = {path.stem.removesuffix("_training") for path in FOLDER.glob("*_training.jinja")}
    assert files - set(TWINS) <= {"idefics3", "smolvlm", "llava_next"}


@pytest.mark.parametrize("name", ["idefics3", "smolvlm", "llava_next"])
def test_templates_that_only_read_lists_of_images_and_texts_are_refused(name: str) -> None:
    why = "leaves out the content of this user message|rejects the row"
    with pytest.raises(TemplateError, match=why):
        encode(tokenizer_for(name, markers=False), TURNS, train_on="assistant")


ENDS = {
    "cohere": "<|END_OF_TURN_TOKEN|>", "cohere2": "<|END_OF_TURN_TOKEN|>",
    "deepseek_r1_distill": "<｜end▁of▁sentence｜>", "deepseekv3": "<｜end▁of▁sentence｜>",
    "diffusion_gemma": "<turn|>", "gemma": "<end_of_turn>", "gemma3": "<end_of_turn>",
    "gemma4": "<turn|>", "gemma4_v2": "<turn|>", "gemma4_v3": "<turn|>", "gemma4_v4": "<turn|>",
    "gemma4_v5": "<turn|>", "glm4moe": "<|user|>", "gptoss": "<|return|>", "lfm2": "<|im_end|>",
    "lfm2_2_5": "<|im_end|>", "lfm2_2_5_v2": "<|im_end|>", "lfm2_2_5_vl": "<|im_end|>",
    "lfm2_v2": "<|im_end|>", "llama3": "<|eot_id|>", "llama3_1": "<|eot_id|>",
    "llama3_2": "<|eot_id|>", "muse_glimmer": "<|eot|>",
    "nemotron_3_5_lightning": "<|im_end|>", "nemotron_3_nano": "<|im_end|>",
    "nemotron_3_super": "<|im_end|>", "nemotron_3_ultra": "<|im_end|>", "phi3": "<|end|>",
    "phi3_5": "<|end|>", "qwen2_5": "<|im_end|>", "qwen2_5_vl": "<|im_end|>",
    "qwen3": "<|im_end|>", "qwen3_5_nothink": "<|im_end|>", "qwen3_5_think": "<|im_end|>",
    "qwen3_6": "<|im_end|>", "qwen3_8": "<|im_end|>", "qwen3_instruct_2507": "<|im_end|>",
    "qwen3_vl": "<|im_end|>",
}  # fmt: skip
LAST_ENDS = {
    "glm4moe": "<|im_end|>",
    "phi3": "<|end|>\n<|im_end|>",
    "phi3_5": "<|end|>\n<|im_end|>",
}
CALL_ENDS = {  # the token after which somebody else goes on
    **dict.fromkeys(("gemma4", "gemma4_v3", "gemma4_v4", "gemma4_v5"), "<|tool_response>"),
    "diffusion_gemma": "<|tool_response>",
    "glm4moe": "<|observation|>",
    "gptoss": "<|call|>",
}
NO_TOOLS = "rejects the row|leaves out the tool_calls"
ORIGINALS_REFUSE = {
    ("gemma", "system"): "System role not supported",
    **{key: why for key, why in REFUSED.items() if key[0] != "deepseek_r1_distill"},
    ("deepseek_r1_distill", "thoughts"): "leaves out the reasoning",
    **{
        (name, "tools"): NO_TOOLS
        for name in ("cohere", "cohere2", "deepseek_r1_distill", "gemma", "gemma3")
    },
}


@pytest.mark.parametrize("conversation", CONVERSATIONS)
@pytest.mark.parametrize("name", ENDS)
def test_with_the_original_template_each_answer_is_trained_up_to_its_one_end(
    name: str, conversation: str
) -> None:
    tokenizer, messages = tokenizer_for(name, markers=True), CONVERSATIONS[conversation]
    tools = (TOOL,) if conversation == "tools" else ()
    if (name, conversation) in ORIGINALS_REFUSE:
        why = rf"^messages\[\d\]: .*({ORIGINALS_REFUSE[name, conversation]})"
        with pytest.raises(TemplateError, match=why):
            encode(tokenizer, messages, train_on="assistant", tools=tools)
        return
    ids, labels = encode(tokenizer, messages, train_on="assistant", tools=tools)
    runs: list[list[int]] = []
    for place, label in enumerate(labels):
        if label != UNTRAINED:
            if labels[place - 1] == UNTRAINED:
                runs.append([])
            runs[-1].append(label)
    answers = [m for m in messages if m.role == "assistant"]
    assert len(runs) == len(answers)
    for run, message in zip(runs, answers, strict=True):
        text = tokenizer.decode(run)
        if name == "gptoss" and message is not answers[-1] and not message.tool_calls:
            # What ends it here, <|end|>, a model that has answered must not write.
            assert text.endswith(message.content) and "<|end|>" not in text
            continue
        last = message is answers[-1]
        end = LAST_ENDS.get(name, ENDS[name]) if last else ENDS[name]
        end = CALL_ENDS.get(name, end) if message.tool_calls else end
        assert text.endswith(end)
        assert text.count(end.split("\n")[0]) == 1
        assert message.content.split("</think>")[-1].strip() in text
        assert all(ours not in text for ours in ("What is 2?", "And 東京?", "Be kind."))
        if message.tool_calls:
            assert "add" in text
