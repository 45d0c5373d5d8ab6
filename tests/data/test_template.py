"""Masks by rendering: exactly the answers and what ends them are trained, for any chat template."""

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from loractl.data.encoding import encode
from loractl.data.rendering import TemplateError
from loractl.data.template import prompt_ids, render
from loractl.data.thoughts import without_thoughts
from loractl.records import UNTRAINED, Message
from tests.tiny import CHATML, make_tokenizer

# Each template in the manner of a family, with the text that ends an answer.
LLAMA3 = (
    "{{ '<|im_start|>' }}{% for m in messages %}"
    "{{ '<h>' + m.role + '</h>\n\n' + m.content|trim + '<|im_end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<h>assistant</h>\n\n' }}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}"
    "{% else %}{{ ' ' + m.content + eos_token }}{% endif %}{% endfor %}"
)
ZEPHYR = (
    "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + '<|im_end|>\n' }}"
    "{% if loop.last and add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}{% endfor %}"
)
DEFAULT_SYSTEM = (
    "{% if messages[0].role != 'system' %}"
    "{{ '<|im_start|>system\nBe kind.<|im_end|>\n' }}{% endif %}" + CHATML
)  # SmolLM2, Qwen2.5
LINES = (
    "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
REWRITING = (  # Qwen3, DeepSeek-R1: the thoughts of earlier answers are left out
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
    "{% if m.role == 'assistant' and not loop.last %}{{ m.content.split('</think>')[-1] }}"
    "{% else %}{{ m.content }}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
ENDS = {
    "chatml": (CHATML, "<|im_end|>"),
    "llama3": (LLAMA3, "<|im_end|>"),
    "mistral": (MISTRAL, "<|im_end|>"),
    "zephyr": (ZEPHYR, "<|im_end|>"),
    "default-system": (DEFAULT_SYSTEM, "<|im_end|>"),
    "lines": (LINES, "\n"),
}
CONVERSATION = [
    Message("user", "What is 2 plus 2?"),
    Message("assistant", "2 plus 2 is 4."),
    Message("user", "And 3 plus 3? 2 plus 2 is 4."),
    Message("assistant", "6, 東京 naïve"),
]
NASTY = [
    "<|im_end|>",
    "<|im_start|>assistant\n",
    "[/INST] I",
    "<|assistant|>\nno",
    "assistant: x\n",
    "",
    " ",
    ">",
    "<h>assistant</h>\n\n",
    "\n",
    "a",
    "é東",
]


def with_template(template: str | None) -> PreTrainedTokenizerFast:
    tokenizer = copy.deepcopy(TOKENIZER)
    tokenizer.chat_template = template
    return tokenizer


TOKENIZER = make_tokenizer()
OF = {name: with_template(template) for name, (template, _) in ENDS.items()}


def trained(tokenizer: Any, messages: Sequence[Message], train_on: str = "assistant") -> str:
    """The text of the trained tokens, spans parted by | where untrained tokens stand between."""
    ids, labels = encode(tokenizer, messages, train_on=train_on)
    assert len(ids) == len(labels)
    assert all(label in (token, UNTRAINED) for token, label in zip(ids, labels, strict=True))
    assert labels[0] == UNTRAINED, "nothing predicts the first token"
    spans: list[list[int]] = []
    for place, label in enumerate(labels):
        if label != UNTRAINED:
            if not place or labels[place - 1] == UNTRAINED:
                spans.append([])
            spans[-1].append(label)
    return "|".join(tokenizer.decode(span) for span in spans)


@pytest.mark.parametrize("name", ENDS)
def test_each_answer_and_its_end_are_trained_once_and_nothing_else(name: str) -> None:
    end = ENDS[name][1]
    start = " " if name == "mistral" else ""  # there the space before an answer is the model's
    answers = [f"{start}{m.content}{end}" for m in CONVERSATION if m.role == "assistant"]
    assert trained(OF[name], CONVERSATION) == "|".join(answers)
    assert trained(OF[name], CONVERSATION, "last") == answers[-1]


@pytest.mark.parametrize("name", ENDS)
def test_ids_are_those_of_the_templates_own_tokenisation(name: str) -> None:
    plain = [{"role": m.role, "content": m.content} for m in CONVERSATION]
    theirs = OF[name].apply_chat_template(plain, tokenize=True, return_dict=True)["input_ids"]
    assert encode(OF[name], CONVERSATION, train_on="assistant")[0] == theirs
    if name in (
        "llama3",
        "mistral",
    ):  # which begin a text with this token, and the tokenizer with none
        assert theirs.count(TOKENIZER.bos_token_id) == 1


def test_our_mask_is_the_one_that_generation_marks_give() -> None:
    marked = CHATML.replace(
        "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}",
        "{{ '<|im_start|>' + m['role'] + '\n' }}{% if m['role'] == 'assistant' %}{% generation %}"
        "{{ m['content'] + '<|im_end|>' }}{% endgeneration %}"
        "{% else %}{{ m['content'] + '<|im_end|>' }}"
        "{% endif %}{{ '\n' }}",
    )
    plain = [{"role": m.role, "content": m.content} for m in CONVERSATION]
    theirs = with_template(marked).apply_chat_template(
        plain, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    ids, labels = encode(OF["chatml"], CONVERSATION, train_on="assistant")
    assert ids == theirs["input_ids"]
    assert [int(label != UNTRAINED) for label in labels] == theirs["assistant_masks"]


def test_train_on_all_trains_every_token_but_the_first() -> None:
    ids, labels = encode(OF["llama3"], CONVERSATION, train_on="all")
    assert labels == [UNTRAINED, *ids[1:]]


def test_train_on_last_means_the_last_answer_also_when_a_question_follows_it() -> None:
    longer = [*CONVERSATION, Message("user", "Thanks.")]
    assert trained(OF["chatml"], longer, "last") == "6, 東京 naïve<|im_end|>"


def test_an_answer_marked_train_false_is_seen_and_not_trained() -> None:
    first = Message("assistant", "2 plus 2 is 4.", weight=0.0)
    quiet = [CONVERSATION[0], first, *CONVERSATION[2:]]
    assert trained(OF["chatml"], quiet) == "6, 東京 naïve<|im_end|>"
    loud = encode(OF["chatml"], CONVERSATION, train_on="assistant")[0]
    assert encode(OF["chatml"], quiet, train_on="assistant")[0] == loud
    last = [*CONVERSATION[:3], Message("assistant", "6", weight=0.0)]
    assert trained(OF["chatml"], last, "last") == ""


def test_only_answers_are_trained_not_what_tools_or_system_say() -> None:
    messages = [
        Message("system", "S"),
        Message("user", "U"),
        Message("tool", "T"),
        Message("assistant", "A"),
    ]
    assert trained(OF["chatml"], messages) == "A<|im_end|>"


def test_a_conversation_that_an_answer_opens_trains_it_without_its_role_marker() -> None:
    messages = [Message("assistant", "Welcome."), *CONVERSATION[:2]]
    assert trained(OF["chatml"], messages) == "Welcome.<|im_end|>|2 plus 2 is 4.<|im_end|>"


@given(
    st.lists(
        st.tuples(st.sampled_from(NASTY) | st.text(max_size=6), st.sampled_from(NASTY)),
        min_size=1,
        max_size=3,
    )
)
def test_no_text_of_a_user_or_an_answer_moves_the_mask(turns: list[tuple[str, str]]) -> None:
    messages = []
    for question, answer in turns:
        messages += [Message("user", question), Message("assistant", f"[{answer}]")]
    expected = "|".join(f"[{answer}]<|im_end|>" for _, answer in turns)
    for name in ("chatml", "default-system", "zephyr"):
        assert trained(OF[name], messages) == expected


@pytest.mark.parametrize("answer", NASTY)
@pytest.mark.parametrize("name", ["chatml", "llama3", "zephyr"])
def test_any_answer_is_trained_to_its_end_token_and_no_further(name: str, answer: str) -> None:
    messages = [Message("user", "x"), Message("assistant", answer), Message("user", "y")]
    shown = answer.strip() if name == "llama3" else answer
    assert trained(OF[name], messages).endswith(f"{shown.lstrip()}<|im_end|>")


@pytest.mark.parametrize("name", ENDS)
def test_the_ids_of_a_prompt_are_how_its_training_row_begins(name: str) -> None:
    for number in (1, 3):
        ids, labels = encode(OF[name], CONVERSATION[: number + 1], train_on="last")
        prompt = prompt_ids(OF[name], CONVERSATION[:number])
        assert ids[: len(prompt)] == prompt
        assert (
            labels[: len(prompt)] == [UNTRAINED] * len(prompt) and labels[len(prompt)] != UNTRAINED
        )


def test_padding_like_the_end_token_takes_nothing_from_the_mask() -> None:
    assert TOKENIZER.pad_token_id == TOKENIZER.eos_token_id
    ids, labels = encode(OF["chatml"], CONVERSATION, train_on="assistant")
    assert labels.count(TOKENIZER.eos_token_id) == 2 < ids.count(TOKENIZER.eos_token_id)


def test_a_template_that_rewrites_earlier_turns_trains_them_as_it_writes_them() -> None:
    tokenizer = with_template(REWRITING)
    thoughts = [Message("user", "a"), Message("assistant", "<think>t</think>b")]
    longer = [*thoughts, Message("user", "c"), Message("assistant", "<think>t</think>d")]
    assert trained(tokenizer, longer) == "b<|im_end|>|<think>t</think>d<|im_end|>"
    assert trained(tokenizer, longer, "last") == "<think>t</think>d<|im_end|>"
    assert trained(tokenizer, thoughts) == "<think>t</think>b<|im_end|>"


@pytest.mark.parametrize(
    "template",
    [
        "{{ raise_exception('roles must alternate') }}",
        "{{ messages[0].tools[3].x }}",
        "{{ 'a' + 1 }}",
        "{% if %}",
    ],
)
def test_what_a_template_refuses_is_said(template: str) -> None:
    tokenizer = with_template(template)
    for use in (prompt_ids, trained):
        with pytest.raises(TemplateError, match="the chat template rejects the row: "):
            use(tokenizer, CONVERSATION[:3])


def test_without_a_template_a_prompt_and_its_completion_are_joined() -> None:
    bare = with_template(None)
    row = [Message("user", "2 plus 2 is"), Message("assistant", " 4")]
    assert trained(bare, row) == " 4<|im_end|>"
    ids, _ = encode(bare, row, train_on="assistant")
    prompt = prompt_ids(bare, row[:1])
    assert ids[: len(prompt)] == prompt
    assert trained(bare, [row[0], Message("assistant", " 4", weight=0.0)]) == ""
    for longer in (CONVERSATION, row[:1], [Message("system", "x"), *row]):
        with pytest.raises(TemplateError, match="no chat template"):
            trained(bare, longer)


def test_without_a_template_no_reasoning_and_no_field_is_lost_unnoticed() -> None:
    bare = with_template(None)
    asked = Message("user", "2 plus 2 is", extra={"name": "bob", "empty": ""})
    thinks = Message("assistant", " 4", extra={"reasoning_content": "add"})
    for train_on in ("assistant", "last", "all"):
        with pytest.raises(
            TemplateError, match=r"messages\[1\]: reasoning_content .* drop to train"
        ):
            render(bare, [asked, thinks], train_on=train_on)
    plain = render(bare, [asked, without_thoughts(thinks)], train_on="assistant")
    assert (plain.unread, plain.lost_thoughts) == (("name",), 0)
    quiet = render(bare, [asked, replace(thinks, weight=0.0)], train_on="assistant")
    assert (quiet.unread, quiet.lost_thoughts) == (("name",), 1)


def test_plain_text_is_trained_whole_up_to_the_end_token() -> None:
    for tokenizer in (OF["chatml"], with_template(None)):
        ids, labels = encode(tokenizer, [Message("", "The fox.")], train_on="assistant")
        assert labels == [UNTRAINED, *ids[1:]]
        assert tokenizer.decode(ids) == "The fox.<|im_end|>"


def test_a_tokenizer_that_begins_texts_with_a_token_begins_plain_text_with_it_once() -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer = with_template(None)
    tokenizer._tokenizer.post_processor = TemplateProcessing(  # as Llama and OPT have it
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", tokenizer.bos_token_id)]
    )
    ids, labels = encode(tokenizer, [Message("", "The fox.")], train_on="assistant")
    assert ids == [*tokenizer("The fox.")["input_ids"], tokenizer.eos_token_id]
    assert ids.count(tokenizer.bos_token_id) == 1 and labels == [UNTRAINED, *ids[1:]]
    assert prompt_ids(tokenizer, [Message("user", "The fox.")]) == ids[:-1]
    tokenizer.chat_template = LLAMA3
    assert encode(tokenizer, CONVERSATION, train_on="all")[0].count(tokenizer.bos_token_id) == 1
    assert prompt_ids(tokenizer, CONVERSATION[:1]).count(tokenizer.bos_token_id) == 1


def test_spans_are_places_in_the_rendered_text() -> None:
    rendered = render(OF["chatml"], CONVERSATION, train_on="assistant")
    assert [rendered.text[a:b] for a, b in rendered.spans] == [
        "2 plus 2 is 4.<|im_end|>",
        "6, 東京 naïve<|im_end|>",
    ]
