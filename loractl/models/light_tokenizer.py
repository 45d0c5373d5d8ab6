"""The tokenizer that training will load, but without torch: for planning, which counts tokens.

`load.load_tokenizer` asks AutoTokenizer, which imports torch (6 s on two busy cores, against 1 s to
2 s here) only to learn the model's type. The choice of a class is repeated here for the
architectures of `models.shape`, and a test compares every case with AutoTokenizer's.
"""

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loractl.errors import ModelError
from loractl.startup import libraries

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer

PLAIN = "TokenizersBackend"  # reads tokenizer.json as it is
REGISTERED = {
    "gemma": "GemmaTokenizer", "gemma2": "GemmaTokenizer", "gemma3_text": "GemmaTokenizer",
    "gpt2": "GPT2Tokenizer", "gpt_neox": "GPTNeoXTokenizer", "opt": "GPT2Tokenizer",
    "phi": "GPT2Tokenizer", "starcoder2": "GPT2Tokenizer",
    "qwen2": "Qwen2Tokenizer", "qwen2_moe": "Qwen2Tokenizer", "qwen3": "Qwen2Tokenizer",
    "qwen3_moe": "Qwen2Tokenizer",
    **dict.fromkeys(("granite", "mistral", "mixtral", "olmo2", "phi3", "stablelm"), PLAIN),
}  # fmt: skip
"""The class that transformers registers for each architecture; those left out have none."""


def load_light(directory: Path) -> "Tokenizer":
    """The tokenizer in a directory, with its chat template. Raises ModelError."""
    path = directory / "tokenizer.json"
    if not path.is_file():
        raise ModelError(f"{path}: not found; it is needed to count tokens")
    with libraries.quickly():
        import transformers
        from transformers.tokenization_utils_tokenizers import TokenizersBackend
    logging.getLogger("transformers").setLevel(logging.ERROR)
    chosen: Any = getattr(transformers, class_name(directory), None)
    if chosen is None or not issubclass(chosen, TokenizersBackend):
        chosen = TokenizersBackend
    try:
        tokenizer: Tokenizer = chosen.from_pretrained(directory, local_files_only=True)
    except Exception as error:  # tokenizers raises nothing narrower
        first = str(error).strip().partition("\n")[0]
        raise ModelError(f"{path}: cannot be read: {first[:300]}") from None
    # A limit in the file would cut rows, and hide how long they are.
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    return tokenizer


def class_name(directory: Path) -> str:
    """The class that AutoTokenizer takes: the declared one, unless transformers knows better."""
    config = _read_object(directory / "config.json")
    declared = _read_object(directory / "tokenizer_config.json").get("tokenizer_class")
    declared = str(declared or config.get("tokenizer_class") or "").removesuffix("Fast")
    kind = config.get("model_type")
    registered = REGISTERED.get(str(kind), "")
    if not declared or registered == PLAIN:
        return registered or PLAIN
    if declared == "LlamaTokenizer" and kind != "qwen2" and _splits_bytes(directory):
        return PLAIN  # Llama 3, whose files name the class of Llama 2
    return registered if kind == "qwen2" else declared


def _splits_bytes(directory: Path) -> bool:
    content = _read_object(directory / "tokenizer.json")
    return '"ByteLevel"' in json.dumps([content.get("pre_tokenizer"), content.get("decoder")])


def _read_object(path: Path) -> dict[str, Any]:
    """A JSON object, empty if there is no such file. Raises ModelError."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path}: cannot be read: {error}") from None
    return found if isinstance(found, dict) else {}
