"""Which rows, tokenizers and settings share a store that is kept between runs."""

import copy
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

from loractl.data import examples
from loractl.data.encoding import encode
from loractl.data.reading import Reading
from loractl.data.store_cache import Cache
from loractl.records import Message
from tests.tiny import chat_rows, write_jsonl


def test_the_store_is_taken_again_until_rows_template_or_settings_change(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    path, cache = write_jsonl(tmp_path / "rows.jsonl", chat_rows(5)), Cache(tmp_path / "c")

    def made(tokenizer: Any = tokenizer, **options: Any) -> int:
        before = set(cache.root.glob("*"))
        settings = {
            "format": "auto", "max_length": 512, "train_on": "assistant", "too_long": "error"
        }  # fmt: skip
        examples.load(str(path), tokenizer, Reading(**{**settings, **options}), cache=cache)
        return len(set(cache.root.glob("*")) - before)

    assert [made(), made(), made(train_on="last"), made(max_length=500)] == [1, 0, 1, 1]
    other = copy.deepcopy(tokenizer)
    other.chat_template = other.chat_template.replace("assistant", "model")
    assert [made(other), made()] == [1, 0]
    write_jsonl(path, chat_rows(6))
    assert made() == 1


def test_a_store_is_of_one_tokenizer_with_all_its_settings(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    said = [Message("user", "<|im_end|>?"), Message("assistant", "a")]
    rows = [{"messages": [{"role": m.role, "content": m.content} for m in said]}]
    path, cache = write_jsonl(tmp_path / "rows.jsonl", rows), Cache(tmp_path / "c")
    plain = copy.deepcopy(tokenizer)
    plain.chat_template = "{{ pad_token }}" + str(plain.chat_template)
    padding, splitting, moved = (copy.deepcopy(plain) for _ in range(3))
    padding.pad_token = "<|endoftext|>"
    splitting.split_special_tokens = True
    moved.init_kwargs["name_or_path"] = "elsewhere"

    class Shouting(PreTrainedTokenizerFast):
        def __call__(self, text: Any, **options: Any) -> Any:
            return super().__call__([one.upper() for one in text], **options)

    shouting = copy.deepcopy(plain)
    shouting.__class__ = Shouting
    for one in (plain, padding, splitting, shouting):
        store, _ = examples.load(
            str(path), one, Reading("auto", 99, "assistant", "error"), cache=cache
        )
        assert store[0].ids == encode(one, said, train_on="assistant")[0]
    assert len(list(cache.root.iterdir())) == 4
    examples.load(str(path), moved, Reading("auto", 99, "assistant", "error"), cache=cache)
    assert len(list(cache.root.iterdir())) == 4, "where a tokenizer lies decides nothing"
