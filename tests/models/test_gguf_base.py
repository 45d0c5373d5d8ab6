"""A tokenizer made from a GGUF file splits text as the file says, or is refused."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from loractl.errors import ModelError
from loractl.models.load import load_tokenizer, locate

Make = Callable[..., Path]


def test_digits_are_split_off_one_by_one_where_the_file_says_smollm(
    gguf_base: Make,
) -> None:
    loaded = load_tokenizer(locate(str(gguf_base("llama", "smollm"))))
    pieces = [
        text for text, _ in loaded.backend_tokenizer.pre_tokenizer.pre_tokenize_str("In 2026 it")
    ]
    assert pieces == ["In", "\u0120", "2", "0", "2", "6", "\u0120it"]


def test_rules_that_are_lost_are_refused_by_name(gguf_base: Make) -> None:
    path = gguf_base("llama", "llama-bpe")
    with pytest.raises(ModelError, match="'llama-bpe'.*tokenizer.json"):
        load_tokenizer(locate(str(path)))


def test_a_tokenizer_beside_the_file_is_the_one_that_is_used(
    base: Make, gguf_base: Make, tokenizer: PreTrainedTokenizerFast
) -> None:
    path = gguf_base("llama", "llama-bpe")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copyfile(base("llama") / name, path.parent / name)
    loaded = load_tokenizer(locate(str(path)))
    text = "What is 12 plus 7?"
    assert loaded(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert loaded.chat_template == tokenizer.chat_template
