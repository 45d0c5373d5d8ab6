"""Many rows at once, plain text, ends that no template writes, and tokenizers of other kinds."""

import copy
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from loractl.data.chat_templates import with_template
from loractl.data.encoding import encode, encode_many, require_offsets
from loractl.data.rendering import TemplateError
from loractl.data.template import prompt_ids, render
from loractl.records import UNTRAINED, Conversation, Message
from tests.data.test_template_golden import CONVERSATIONS, TOOL, template_tokenizer
from tests.tiny import CHATML, TEXT, make_tokenizer


def trained(tokenizer: Any, messages: list[Message], train_on: str = "assistant") -> str:
    ids, labels = encode(tokenizer, messages, train_on=train_on)
    assert labels[0] == UNTRAINED and len(ids) == len(labels)
    text: str = tokenizer.decode([t for t in labels if t != UNTRAINED])
    return text


@pytest.mark.parametrize("train_on", ["assistant", "last", "all"])
def test_many_rows_at_once_are_each_row_alone_and_a_bad_one_says_why(train_on: str) -> None:
    tokenizer = template_tokenizer("chatml_tools")
    rows = [
        Conversation(tuple(messages), (TOOL,) if name == "tools" else ())
        for name, messages in CONVERSATIONS.items()
    ]
    rows.insert(2, Conversation((Message("tool", "x"),)))  # the template looks at what is before
    rows.append(Conversation((Message("", "Plain text."),)))
    found = encode_many(tokenizer, rows, train_on=train_on)
    assert len(found) == len(rows)
    for row, one in zip(rows, found, strict=True):
        if isinstance(one, TemplateError):
            assert row is rows[2] and "messages[0]: the chat template rejects the row" in str(one)
            assert one.__traceback__ is one.__context__ is None, (
                "it would keep the texts of the row alive"
            )
        else:
            alone = encode(tokenizer, row.messages, train_on=train_on, tools=row.tools)
            assert (one.ids, one.labels, one.weights) == (*alone, None)
    assert encode_many(tokenizer, [], train_on=train_on) == []
    assert [type(e) for e in encode_many(tokenizer, [rows[2]], train_on=train_on)] == [
        TemplateError
    ]


def test_each_text_of_a_row_is_rendered_once_and_its_form_once_more_for_all_rows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tokenizer, texts = template_tokenizer("chatml"), []
    tokenizer.chat_template = f"{tokenizer.chat_template}{{# of this test alone #}}"
    real = tokenizer.apply_chat_template

    def counted(conversation: Any, **options: Any) -> Any:
        texts.append((len(conversation), options["add_generation_prompt"]))
        return real(conversation, **options)

    monkeypatch.setattr(tokenizer, "apply_chat_template", counted)
    marked = (3, False)  # all parts at once, so that none is left out unseen
    for proof in ([marked], []):
        texts.clear()
        encode(tokenizer, CONVERSATIONS["one"], train_on="assistant")
        assert texts == [(3, False), *proof, (2, True)]
    encode(tokenizer, CONVERSATIONS["chat"], train_on="assistant")
    texts.clear()
    encode(tokenizer, CONVERSATIONS["chat"], train_on="assistant")
    assert len(texts) == len(set(texts)) == 4
    texts.clear()
    encode(tokenizer, CONVERSATIONS["chat"], train_on="all")
    assert texts == [(5, False)]


def test_a_tokenizer_without_offsets_is_refused() -> None:
    class Slow:
        is_fast = False
        chat_template = CHATML

    with pytest.raises(TemplateError, match=r"Slow.* gives no token offsets"):
        require_offsets(Slow())  # type: ignore[arg-type]
    (error,) = encode_many(
        Slow(),  # type: ignore[arg-type]
        [Conversation((Message("user", "x"), Message("assistant", "y")))],
        train_on="last",
    )
    assert isinstance(error, TemplateError)
    require_offsets(make_tokenizer())


def test_an_answer_that_nothing_ends_is_ended_by_eos_or_by_the_token_of_the_next_role() -> None:
    falcon, glm = template_tokenizer("falcon"), template_tokenizer("glm4")
    one, chat = CONVERSATIONS["one"], CONVERSATIONS["chat"]
    assert trained(falcon, one) == " It is 4.<|im_end|>"
    assert trained(falcon, chat, "last") == " A city: naïve café 🗼<|im_end|>"
    ids, labels = encode(falcon, chat, train_on="all")
    assert ids[-1] == labels[-1] == falcon.eos_token_id
    assert trained(glm, chat[:4]) == "It is 4.<|user|>"
    assert encode(glm, chat[:4], train_on="all")[0][-1] != glm.eos_token_id, "a question ends it"
    glm.eos_token = None
    with pytest.raises(TemplateError, match=r"messages\[2\]: .* nothing to end this answer"):
        encode(glm, one, train_on="assistant")


def test_an_answer_that_ends_like_an_end_is_still_ended() -> None:
    falcon = template_tokenizer("falcon")
    for answer in ("<|im_end|>", "a >", "|>"):
        row = [Message("user", "x"), Message("assistant", answer)]
        assert trained(falcon, row) == f" {answer}<|im_end|>"
        assert trained(template_tokenizer("chatml"), row) == f"{answer}<|im_end|>"
        assert trained(template_tokenizer("phi3"), row) == f"{answer}<|end|>\n<|im_end|>"


def test_plain_text_that_has_its_first_and_last_token_does_not_get_them_twice() -> None:
    tokenizer = template_tokenizer("chatml")
    tokenizer._tokenizer.post_processor = processors.TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", tokenizer.bos_token_id)]
    )
    bare = encode(tokenizer, [Message("", "The fox.")], train_on="all")
    for text in ("<|im_start|>The fox.", "The fox.<|im_end|>", "<|im_start|>The fox.<|im_end|>"):
        assert encode(tokenizer, [Message("", text)], train_on="all") == bare
    tokenizer.chat_template = None
    row = [Message("user", "<|im_start|>The"), Message("assistant", " fox.<|im_end|>")]
    assert encode(tokenizer, row, train_on="all") == bare
    assert prompt_ids(tokenizer, row[:1]) == prompt_ids(tokenizer, [Message("user", "The")])


def test_without_a_template_train_on_decides_too() -> None:
    tokenizer = template_tokenizer("chatml")
    tokenizer.chat_template = None
    row = [Message("user", "2 plus 2 is"), Message("assistant", " 4")]
    ids, labels = encode(tokenizer, row, train_on="all")
    assert labels == [UNTRAINED, *ids[1:]]
    called = [row[0], Message("assistant", "", tool_calls=({"name": "f"},))]
    with pytest.raises(TemplateError, match="no chat template"):
        encode(tokenizer, called, train_on="all")


def spaced(kind: str) -> PreTrainedTokenizerFast:
    """Tokenizers that mark spaces otherwise: SentencePiece's, and offsets that leave spaces out."""
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    if kind == "trimmed":
        core = Tokenizer(models.BPE())
        core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        core.decoder = decoders.ByteLevel()
        core.post_processor = processors.ByteLevel(trim_offsets=True)
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    else:
        core = Tokenizer(models.BPE(byte_fallback=True))
        core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=kind)
        core.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
        )
        special += [f"<0x{n:02X}>" for n in range(256)]
        alphabet = []
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    core.train_from_iterator(TEXT, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        unk_token="<|endoftext|>",
        chat_template=CHATML,
    )


@pytest.mark.parametrize("kind", ["trimmed", "always", "first"])
def test_spaces_of_an_answer_are_trained_however_the_tokenizer_marks_them(kind: str) -> None:
    tokenizer = spaced(kind)
    for answer in ("  It  is 4. é 🗼 ", "is", " ", "x \n \n y  "):
        row = [Message("user", " a  b "), Message("assistant", answer), Message("user", "c")]
        assert trained(tokenizer, row) == f"{answer}<|im_end|>"


def test_render_says_which_message_each_span_is() -> None:
    quiet = copy.deepcopy(CONVERSATIONS["chat"])
    quiet[2] = Message("assistant", "It is 4.", weight=0.0)
    rendered = render(template_tokenizer("chatml"), quiet, train_on="assistant")
    assert rendered.numbers == (4,) and len(rendered.spans) == 1


def test_another_template_is_that_of_a_copy_and_an_empty_one_is_none() -> None:
    tokenizer = make_tokenizer()
    own = tokenizer.chat_template
    assert with_template(tokenizer, "") is with_template(tokenizer, None) is tokenizer
    other = with_template(tokenizer, "{{ messages[0].content }}")
    said = [Message("user", "The fox.")]
    assert prompt_ids(other, said) != prompt_ids(tokenizer, said)
    assert tokenizer.chat_template == own
