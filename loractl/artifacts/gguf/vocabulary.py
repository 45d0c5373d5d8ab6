"""The fields that describe a tokenizer in a GGUF file, from the tokenizer loaded by transformers.

llama.cpp has two tokenizers for these models. "gpt2" merges bytes by rank, after splitting the text
by rules that the file only names: those of a tokenizer.json are looked up in a table, and unknown
ones are refused. "llama" merges whichever neighbors form the best token, by a score of the token
alone: with scores derived from ranks it matches a tokenizer.json converted from SentencePiece.
"""

import json
from collections.abc import Iterator, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase as Tokenizer

from loractl.artifacts.gguf.layout import Field
from loractl.errors import ModelError

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # llama_token_type
NEVER = -1e9  # score of a token that no merge produces

GPT2 = "GPT-2"  # rules built into ByteLevel, which it does not write out
DIGITS = "each digit"
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPLITTING: dict[tuple[tuple[str, ...], bool], str] = {
    ((GPT2,), False): "gpt-2",
    ((DIGITS, GPT2), False): "smollm",
    ((LLAMA3.replace("{1,3}", ""),), False): "qwen2",
    ((LLAMA3,), True): "llama-bpe",
    ((LLAMA3,), False): "smaug-bpe",
}
"""Rules in order, and whether a word that is a token skips merging -> llama.cpp's name."""

KEEP_SPACE = {"<unk>", "<s>", "<|endoftext|>"}
"""llama.cpp drops the space after every other special token of models named phi-3."""
DROPS_SPACE = "phi-3"


class _Vocabulary:
    """A tokenizer.json of type BPE, and the errors about it."""

    def __init__(self, where: str, tokenizer: Tokenizer) -> None:
        backend: Any = tokenizer
        self.where = where
        self.core: dict[str, Any] = json.loads(backend.backend_tokenizer.to_str())
        self.model: dict[str, Any] = self.core["model"]
        self.added: list[dict[str, Any]] = self.core["added_tokens"]
        if self.model["type"] != "BPE" or self.model.get("dropout"):
            raise self.refusal(f"is a {self.model['type']} model, expected BPE without dropout")
        self.ids: dict[str, int] = self.model["vocab"]
        self.merges = [
            tuple(pair.split(" ")) if isinstance(pair, str) else tuple(pair)
            for pair in self.model["merges"]
        ]

    def refusal(self, what: str) -> ModelError:
        return ModelError(
            f"{self.where}: the tokenizer {what}; llama.cpp would tokenize text differently"
        )

    def steps(self, name: str) -> Iterator[dict[str, Any]]:
        """The parts of the normalizer or the pre_tokenizer, with sequences flattened."""
        step = self.core[name]
        inner = (step or {}).get("normalizers" if name == "normalizer" else "pretokenizers")
        yield from inner if inner is not None else [step] if step else []

    @property
    def drops_space(self) -> bool:
        """Whether special tokens absorb the space after them, as in Phi-3."""
        return any(token["rstrip"] for token in self.added)


def fields(
    where: str, tokenizer: Tokenizer, n_rows: int, *, stops: Sequence[int], rendered: str | None
) -> dict[str, Field]:
    """The tokenizer's fields for an embedding of `n_rows`, including the chat template.

    `stops` are the ids that end an answer, the most needed first; `rendered` is a conversation as
    text, if there is a chat template. Raises ModelError naming what llama.cpp's tokenizers do not
    support.
    """
    vocabulary = _Vocabulary(where, tokenizer)
    if len(tokenizer) > n_rows:
        raise vocabulary.refusal(f"has {len(tokenizer)} tokens, the embedding {n_rows} rows")
    _require_plain_added_tokens(vocabulary)
    special = {str(token["content"]) for token in vocabulary.added if token["special"]}
    found: dict[str, Field] = {"general.name": DROPS_SPACE} if vocabulary.drops_space else {}
    if vocabulary.model.get("byte_fallback"):
        found |= _character_fields(vocabulary, rendered)
    else:
        found |= byte_level_fields(vocabulary)
    tokens, types = _list_tokens(vocabulary, n_rows, special)
    found["tokenizer.ggml.tokens"] = tokens
    found["tokenizer.ggml.token_type"] = types
    if vocabulary.model.get("byte_fallback"):
        scores = _score_tokens(vocabulary)
        found["tokenizer.ggml.scores"] = [scores.get(token, NEVER) for token in tokens]
    return found | _role_fields(tokenizer, stops)


def _require_plain_added_tokens(vocabulary: _Vocabulary) -> None:
    for token in vocabulary.added:
        if token["lstrip"] or token["single_word"]:
            raise vocabulary.refusal(f"has {token['content']!r} with lstrip or single_word")
    if vocabulary.drops_space:
        there = {str(token["content"]) for token in vocabulary.added}
        if missing := sorted({*KEEP_SPACE, "</s>"} - there):
            raise vocabulary.refusal(f"has tokens with rstrip, but no {missing[0]} as in Phi-3")
        for token in vocabulary.added:
            if token["rstrip"] == (token["content"] in KEEP_SPACE):
                raise vocabulary.refusal(f"has {token['content']!r} with rstrip: {token['rstrip']}")


def _list_tokens(
    vocabulary: _Vocabulary, n_rows: int, special: set[str]
) -> tuple[list[str], list[int]]:
    """The text and type of every id; rows of the embedding beyond the tokens are unused."""
    by_id = {index: token for token, index in vocabulary.ids.items()}
    added = {int(token["id"]): str(token["content"]) for token in vocabulary.added}
    pieces = bool(vocabulary.model.get("byte_fallback"))
    tokens, types = [], []
    for index in range(n_rows):
        token = added.get(index, by_id.get(index))
        kind = NORMAL
        if token is None:
            token, kind = f"[PAD{index}]", UNUSED
        elif index in added:
            kind = CONTROL if token in special else USER_DEFINED
        elif pieces and token == vocabulary.model.get("unk_token"):
            kind = UNKNOWN
        elif pieces and token in BYTES:
            kind = BYTE
        tokens.append(token)
        types.append(kind)
    if len(set(tokens)) < len(tokens):
        raise vocabulary.refusal("has two ids with the same text")
    return tokens, types


BYTES = {f"<0x{byte:02X}>" for byte in range(256)}


def byte_level_fields(vocabulary: _Vocabulary) -> dict[str, Field]:
    """A byte-level BPE: the name of its splitting rules, and its merges in order of rank."""
    for step in vocabulary.steps("normalizer"):
        if step["type"] != "NFC":  # changes nothing in composed text, as nearly all is
            raise vocabulary.refusal(f"normalizes text ({step['type']})")
    rules = []
    for step in vocabulary.steps("pre_tokenizer"):
        kind = step["type"]
        if kind == "Split" and step["behavior"] == "Isolated" and not step["invert"]:
            rules.append(str(step["pattern"].get("Regex")))
        elif kind == "Digits" and step["individual_digits"]:
            rules.append(DIGITS)
        elif kind == "ByteLevel" and not step["add_prefix_space"]:
            rules += [GPT2] if step["use_regex"] else []
        else:
            raise vocabulary.refusal(f"splits text by {json.dumps(step)[:120]}")
    last = next(reversed(list(vocabulary.steps("pre_tokenizer"))), {"type": "no rules"})
    name = SPLITTING.get((tuple(rules), bool(vocabulary.model.get("ignore_merges"))))
    if name is None or last["type"] != "ByteLevel":
        raise vocabulary.refusal(f"splits text by rules that llama.cpp has no name for: {rules}")
    if vocabulary.model.get("continuing_subword_prefix") or vocabulary.model.get(
        "end_of_word_suffix"
    ):
        raise vocabulary.refusal("marks parts of words")
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": name,
        "tokenizer.ggml.merges": [" ".join(pair) for pair in vocabulary.merges],
    }


def _character_fields(vocabulary: _Vocabulary, rendered: str | None) -> dict[str, Field]:
    """A BPE on characters that falls back to bytes, as in SentencePiece."""
    if missing := sorted(BYTES - vocabulary.ids.keys()):
        raise vocabulary.refusal(f"has no token for the byte {missing[0]}")
    if vocabulary.model.get("ignore_merges"):
        raise vocabulary.refusal("keeps whole words unmerged")
    prefix = "never"
    for step in [*vocabulary.steps("normalizer"), *vocabulary.steps("pre_tokenizer")]:
        kind = step["type"]
        if kind == "Prepend" and step["prepend"] == "▁":
            prefix = "always"
        elif kind == "Metaspace" and not step["split"] and step["replacement"] == "▁":
            prefix = str(step["prepend_scheme"])
        elif kind == "Replace" and step["pattern"] == {"String": " "} and step["content"] == "▁":
            pass
        elif kind == "Split" and step["pattern"] == {"String": " "}:
            pass  # Gemma's: no spaces are left at this point
        else:
            raise vocabulary.refusal(f"transforms text by {json.dumps(step)[:120]}")
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.add_space_prefix": _prefixes_space(vocabulary, prefix, rendered),
    }


def _prefixes_space(vocabulary: _Vocabulary, prefix: str, rendered: str | None) -> bool:
    """Whether a space goes before text; llama.cpp then adds one after every special token too.

    With "first" transformers adds it only at the start of the text, unless there is one already.
    For a text that starts with a special token that means never; for one that holds none it is what
    llama.cpp does.
    """
    if prefix != "first":
        return prefix == "always"
    special = [str(token["content"]) for token in vocabulary.added]
    if rendered is None or any(rendered.startswith(token) for token in special):
        return False
    if any(token in rendered for token in special):
        raise vocabulary.refusal("puts a space only before the start of a conversation")
    return True


def _score_tokens(vocabulary: _Vocabulary) -> dict[str, float]:
    """The score of each token that merges produce: the earlier its merges, the better.

    Raises ModelError if the order of merges depends on more than the token they produce.
    """
    ranks: dict[str, list[int]] = {}
    for rank, (left, right) in enumerate(vocabulary.merges):
        ranks.setdefault(left + right, []).append(rank)
    last = -1
    for token, of_token in sorted(ranks.items(), key=lambda item: item[1][0]):
        if len(set(token)) == 1:
            continue  # runs of spaces: SentencePiece gives all of them one score
        if of_token[0] < last:
            raise vocabulary.refusal(f"produces {token!r} by merges of several ranks")
        last = of_token[-1]
    pairs = set(vocabulary.merges)
    ids = vocabulary.ids
    for token in ids.keys() - BYTES - {str(token["content"]) for token in vocabulary.added}:
        for cut in range(1, len(token)):
            pair = token[:cut], token[cut:]
            if pair not in pairs and pair[0] in ids and pair[1] in ids:
                raise vocabulary.refusal(f"does not merge {pair[0]!r} and {pair[1]!r}")
    return {token: -float(of_token[0]) for token, of_token in ranks.items()}


def _role_fields(tokenizer: Tokenizer, stops: Sequence[int]) -> dict[str, Field]:
    """The ids that open, end and pad a text, whether they are added, and the chat template."""
    found: dict[str, Field] = {}
    others = [stop for stop in stops if stop != tokenizer.eos_token_id]
    ids = {
        "bos": tokenizer.bos_token_id,
        "eos": tokenizer.eos_token_id,
        "eot": next(iter(others), None),
        "eom": next(iter(others[1:]), None),  # llama.cpp ends an answer at any of the three
        "unknown": tokenizer.unk_token_id,
        "padding": tokenizer.pad_token_id,
    }
    for role, index in ids.items():
        if isinstance(index, int):
            found[f"tokenizer.ggml.{role}_token_id"] = index
    whole = list(tokenizer("a")["input_ids"])
    found["tokenizer.ggml.add_bos_token"] = whole[0] == tokenizer.bos_token_id
    found["tokenizer.ggml.add_eos_token"] = whole[-1] == tokenizer.eos_token_id
    if isinstance(tokenizer.chat_template, str):
        found["tokenizer.chat_template"] = tokenizer.chat_template
    return found
