"""Tokenizers in GGUF files: llama.cpp gives the token ids of the tokenizer they were made from."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)
from transformers import PreTrainedTokenizerFast

from loractl.artifacts.gguf import (
    layout as gguf_layout,
)
from loractl.artifacts.gguf import (
    llamacpp,
)
from loractl.artifacts.gguf import (
    vocabulary as gguf_vocabulary,
)
from loractl.artifacts.gguf import (
    write as gguf,
)
from loractl.artifacts.gguf.vocabulary import DIGITS, GPT2, SPLITTING
from loractl.artifacts.model.plan import Plan
from loractl.errors import ModelError
from loractl.models import load
from tests.ggufbases import save

PROBES = [
    "I've told you: DON'T WE'LL they're 3.14159 1,000,000 12345678",
    "def f(x):\n    return x ** 2\n\n\n\t\tif x  >=  10:\r\n  pass   \n ",
    "Straße, café, naïve, 東京タワー, Привет мир, مرحبا, हिन्दी, ไทย, 🙂👩‍👩‍👧 ½ ² Ⅷ",
    " a  b   c    d!!! ?! ...--- \u00a0\u2009x \u200b",
    "<|im_start|>user\nHi there<|im_end|>\n<|im_start|> x<|im_end|>",
    "'s 'S it'ſ don't",
]
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CORPUS = [
    *PROBES,
    "the quick brown fox jumps over the lazy dog " * 3,
    "12 plus 7 is 19, is it not?",
]


def wrapped(core: Tokenizer) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token=SPECIAL[0], eos_token=SPECIAL[2], pad_token=SPECIAL[2]
    )


def byte_level(rules: tuple[str, ...], ignore_merges: bool) -> PreTrainedTokenizerFast:
    """A byte-level BPE that splits text by these rules."""
    steps: list[Any] = []
    for rule in rules:
        if rule == DIGITS:
            steps.append(pre_tokenizers.Digits(individual_digits=True))
        elif rule != GPT2:
            steps.append(pre_tokenizers.Split(Regex(rule), "isolated"))
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=GPT2 in rules))
    core = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    core.pre_tokenizer = pre_tokenizers.Sequence(steps)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(CORPUS, trainer)
    return wrapped(core)


def pieces(
    prefix: str | None, extra: tuple[str, ...] = (), **token: bool
) -> PreTrainedTokenizerFast:
    """A BPE in the manner of SentencePiece: every way to make a token is a merge, best token first.

    `prefix` says where a space goes before text: always, first, never; None: as Gemma has it.
    """
    words = sorted({f"▁{word}" for line in CORPUS for word in line.split()} | {"▁▁", "▁▁▁▁"})
    found = sorted(
        {word[:n] for word in words for n in range(2, min(len(word), 7))} | {"▁▁", "▁▁▁▁"}
    )
    found += sorted({word[1:][:n] for word in words for n in range(2, 5)} - set(found))
    characters = sorted({c for token in found for c in token})
    listed = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), *found]
    ids = {token: i for i, token in enumerate(dict.fromkeys([*listed, *characters]))}
    merges = [
        (token[:cut], token[cut:])
        for token in found
        for cut in range(1, len(token))
        if token[:cut] in ids and token[cut:] in ids
    ]
    core = Tokenizer(models.BPE(ids, merges, byte_fallback=True, fuse_unk=True))
    if prefix in ("always", None):
        steps: list[Any] = [normalizers.Prepend("▁")] if prefix else []
        core.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", "▁")])
        if prefix is None:
            core.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    else:
        core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prefix, split=False)
    core.add_special_tokens(
        [AddedToken(text, normalized=False, **token) for text in (*SPECIAL, *extra)]
    )
    return wrapped(core)


@pytest.fixture
def ids_in_llama_cpp(tmp_path: Path) -> Callable[..., list[list[int]]]:
    """ids_in_llama_cpp(tokenizer, texts) -> what a GGUF file with that tokenizer makes of them."""

    def ids(
        tokenizer: PreTrainedTokenizerFast, texts: list[str], rendered: str | None = None
    ) -> list[list[int]]:
        base = save(tmp_path / "base", "llama", tokenizer)
        source = load.locate(str(base))
        skeleton = load.load_skeleton(source)
        layout = gguf_layout.layout("here", skeleton.config)
        rows = int(skeleton.config.vocab_size)
        again = load.load_tokenizer(source)
        vocabulary = gguf_vocabulary.fields("here", again, rows, stops=[], rendered=rendered)
        weights = gguf.weights(source, skeleton, Plan({}, {}, {}, False), layout, "f16")
        gguf.write_model(tmp_path / "m.gguf", weights, layout, vocabulary, "f16")
        return llamacpp.ask(tmp_path / "m.gguf", texts=texts).ids

    return ids


def expected(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> list[list[int]]:
    return [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]


@pytest.mark.parametrize(("rules", "ignore_merges"), SPLITTING, ids=SPLITTING.values())
def test_text_is_split_by_each_rule_as_transformers_splits_it(
    rules: tuple[str, ...], ignore_merges: bool, ids_in_llama_cpp: Callable[..., Any]
) -> None:
    tokenizer = byte_level(rules, ignore_merges)
    assert ids_in_llama_cpp(tokenizer, PROBES) == expected(tokenizer, PROBES)


@pytest.mark.parametrize("prefix", ["always", "never", None])
def test_pieces_of_sentencepiece_are_found_by_scores_from_ranks(
    prefix: str | None, ids_in_llama_cpp: Callable[..., Any]
) -> None:
    tokenizer = pieces(prefix)
    assert ids_in_llama_cpp(tokenizer, PROBES) == expected(tokenizer, PROBES)


def test_a_space_before_the_start_alone_is_kept_as_conversations_need_it(
    ids_in_llama_cpp: Callable[..., Any],
) -> None:
    tokenizer = pieces("first")
    plain, turns = PROBES[:3], PROBES[4:5]
    assert ids_in_llama_cpp(tokenizer, turns, turns[0]) == expected(tokenizer, turns)
    assert ids_in_llama_cpp(tokenizer, plain, plain[0]) == expected(tokenizer, plain)
    with pytest.raises(ModelError, match="only before the start of a conversation"):
        ids_in_llama_cpp(tokenizer, plain, f"Hi {turns[0]}")


def refusal(tokenizer: PreTrainedTokenizerFast, rows: int = 4096) -> str:
    with pytest.raises(ModelError) as caught:
        gguf_vocabulary.fields("here", tokenizer, rows, stops=[], rendered=None)
    return str(caught.value)


def changed(tokenizer: PreTrainedTokenizerFast, change: Callable[[Any], None]) -> Any:
    core = json.loads(tokenizer.backend_tokenizer.to_str())
    change(core)
    return wrapped(Tokenizer.from_str(json.dumps(core)))


def test_rules_without_a_name_are_refused_with_the_rules() -> None:
    other = byte_level((r"\p{L}+|\P{L}+",), False)
    assert "splits text by rules that llama.cpp has no name for" in refusal(other)
    assert r"\\p{L}+|\\P{L}+" in refusal(other)
    assert "has no name for" in refusal(byte_level((DIGITS, GPT2), True))


def test_what_changes_text_before_it_is_split_is_refused() -> None:
    tokenizer = byte_level((GPT2,), False)
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    assert "normalizes text (Lowercase)" in refusal(tokenizer)
    tokenizer.backend_tokenizer.normalizer = normalizers.NFC()
    gguf_vocabulary.fields("here", tokenizer, 4096, stops=[], rendered=None)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    assert "splits text by" in refusal(tokenizer)


def test_a_bpe_whose_merges_depend_on_more_than_the_token_is_refused() -> None:
    fewer = changed(pieces("never"), lambda core: core["model"]["merges"].pop(-40))
    assert "does not merge" in refusal(fewer) or "of several ranks" in refusal(fewer)

    def apart(core: Any) -> None:
        merges = core["model"]["merges"]
        made = ["".join(pair) for pair in merges]
        twice = next(n for n in range(40, len(made)) if made[n] == made[n - 1])
        merges.insert(0, merges.pop(twice))

    assert "of several ranks" in refusal(changed(pieces("never"), apart))


def test_special_tokens_that_take_space_are_those_of_phi_3_or_refused(
    ids_in_llama_cpp: Callable[..., Any],
) -> None:
    tokenizer = changed(pieces("always", extra=("<unk>", "<s>", "</s>")), _strip_like_phi3)
    texts = ["<|im_start|> \n user<|im_end|>\n a", "<|endoftext|> a"]
    assert ids_in_llama_cpp(tokenizer, texts) == expected(tokenizer, texts)
    assert "but no </s> as in Phi-3" in refusal(pieces("always", rstrip=True))
    assert "with lstrip or single_word" in refusal(pieces("always", lstrip=True))


def _strip_like_phi3(core: Any) -> None:
    for token in core["added_tokens"]:
        token["rstrip"] = token["content"] not in ("<|endoftext|>", "<unk>", "<s>")


def test_more_tokens_than_the_embedding_has_rows_are_refused() -> None:
    assert "the embedding 300 rows" in refusal(byte_level((GPT2,), False), rows=300)
