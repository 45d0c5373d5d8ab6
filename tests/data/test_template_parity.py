"""That generation begins where training does is proved token by token, and what differs is said."""

from dataclasses import replace

import pytest
from tokenizers import pre_tokenizers

from loractl.data.encoding import encode
from loractl.data.parity import doubled_bos, n_prompted, token_parity
from loractl.data.rendering import TemplateError
from loractl.data.template import prompt_ids
from loractl.records import UNTRAINED, Conversation, Message
from tests.data.test_template_golden import CASES, CONVERSATIONS, TOOL, template_tokenizer

# A generation prompt that opens thoughts, where a rendered answer has none.
DIFFER = {
    "deepseek_r1.chat",
    "qwen3_prompted.chat",
    "qwen3_prompted.thoughts",
}


def of(name: str) -> Conversation:
    return Conversation(tuple(CONVERSATIONS[name]))


@pytest.mark.parametrize("case", CASES)
def test_what_is_trained_follows_what_generation_sees(case: str) -> None:
    name, conversation = case.split(".")
    tokenizer, messages = template_tokenizer(name), CONVERSATIONS[conversation]
    tools = (TOOL,) if conversation == "tools" else ()
    row = Conversation(tuple(messages), tools)
    found = token_parity(tokenizer, row)
    assert bool(found) == (case in DIFFER)
    ids, labels = encode(tokenizer, messages, train_on="last", tools=tools)
    first = next(n for n, label in enumerate(labels) if label != UNTRAINED)
    same = ids[:first] == prompt_ids(tokenizer, messages[:-1], tools)
    assert same == (not token_parity(tokenizer, row, train_on="last"))


def test_thoughts_that_only_a_prompt_opens_are_shown_for_each_answer() -> None:
    first, second = token_parity(template_tokenizer("deepseek_r1"), of("chat"))
    assert (first.number, first.prompt, first.trained) == (2, "<think>\n", "I")
    assert (second.number, second.prompt, second.trained) == (4, "<think>\n", "A")
    assert str(first) == (
        f"messages[2]: from token {first.at} on, generation sees '<think>\\n' and training 'I'"
    )
    (only,) = token_parity(template_tokenizer("qwen3_prompted"), of("chat"))
    assert only.number == 2, "the last answer has an empty block after the one the prompt opens"


def test_every_trained_answer_is_compared_and_no_other_is_counted() -> None:
    tokenizer, row = template_tokenizer("deepseek_r1"), of("chat")
    assert len(token_parity(tokenizer, row, train_on="all")) == n_prompted(row, "all") == 2
    spans = (*row.messages[:-1], replace(row.messages[-1], spans=((0, 1),)))
    assert len(token_parity(tokenizer, replace(row, messages=spans))) == 2
    assert len(token_parity(tokenizer, row, train_on="last")) == n_prompted(row, "last") == 1
    opening = Conversation((Message("assistant", "Hi"), *row.messages[1:]))
    assert n_prompted(opening, "assistant") == 2, "an answer without a prompt has nothing before it"


JOINING = (
    "{% for m in messages %}{{ m.role ~ ': ' ~ m.content ~ eos_token }}{% endfor %}"
    "{{ 'assistant: ' if add_generation_prompt }}"
)


@pytest.mark.parametrize("answer", ["is the fox", "is"])
def test_a_token_that_would_join_prompt_and_answer_is_cut_where_generation_begins(
    answer: str,
) -> None:
    tokenizer = template_tokenizer("chatml")
    tokenizer.chat_template = JOINING
    messages = [Message("user", "x"), Message("assistant", answer)]
    whole = tokenizer(f"user: x<|im_end|>assistant: {answer}<|im_end|>")["input_ids"]
    ids, labels = encode(tokenizer, messages, train_on="assistant")
    assert ids != whole and tokenizer.decode(ids) == tokenizer.decode(whole)
    assert tokenizer.decode([t for t in labels if t != UNTRAINED]) == f"{answer}<|im_end|>"
    prompt = prompt_ids(tokenizer, messages[:1])
    assert ids[: len(prompt)] == prompt and labels[len(prompt)] == ids[len(prompt)]
    assert token_parity(tokenizer, Conversation(tuple(messages))) == []


def test_where_it_cannot_be_cut_the_row_is_refused() -> None:
    tokenizer = template_tokenizer("chatml")
    tokenizer.chat_template = JOINING
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    messages = [Message("user", "x"), Message("assistant", "is the fox")]
    with pytest.raises(TemplateError, match="joins ' is the fo', the end of the prompt"):
        encode(tokenizer, messages, train_on="assistant")


def test_an_answer_that_opens_a_conversation_or_is_not_trained_has_nothing_to_prove() -> None:
    tokenizer = template_tokenizer("deepseek_r1")
    assert token_parity(tokenizer, Conversation((Message("assistant", "Hello."),))) == []
    quiet = [Message("user", "x"), Message("assistant", "y", weight=0.0)]
    assert token_parity(tokenizer, Conversation(tuple(quiet))) == []
    assert token_parity(tokenizer, Conversation((Message("", "Plain text."),))) == []


def test_without_a_template_the_completion_follows_its_prompt() -> None:
    tokenizer = template_tokenizer("chatml")
    tokenizer.chat_template = None
    row = [Message("user", "2 plus 2 is"), Message("assistant", " 4")]
    assert token_parity(tokenizer, Conversation(tuple(row))) == []
    joining = (Message("user", "a "), Message("assistant", "is it"))
    assert token_parity(tokenizer, Conversation(joining)) == []
    _, labels = encode(tokenizer, joining, train_on="assistant")
    assert tokenizer.decode([t for t in labels if t != UNTRAINED]) == "is it<|im_end|>"


def test_a_doubled_bos_is_seen() -> None:
    tokenizer = template_tokenizer("llama3")
    ids, _ = encode(tokenizer, CONVERSATIONS["chat"], train_on="assistant")
    assert ids.count(tokenizer.bos_token_id) == 1 and not doubled_bos(tokenizer, ids)
    tokenizer.chat_template = "{{ bos_token }}" + tokenizer.chat_template
    assert doubled_bos(tokenizer, encode(tokenizer, CONVERSATIONS["chat"], train_on="last")[0])
    mistral = template_tokenizer("mistral_v1")
    mistral.chat_template = "{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}"
    said = [Message("user", mistral.bos_token + "x"), Message("assistant", "y")]
    assert doubled_bos(mistral, prompt_ids(mistral, said[:1]))
    mistral.bos_token = None
    assert not doubled_bos(mistral, [1, 1])
