"""What a base model in a GGUF file needs beyond what transformers 5.23 does."""

import copy
import functools
from pathlib import Path
from typing import Any

from tokenizers import pre_tokenizers
from transformers import AutoConfig, GgufConfig, PretrainedConfig
from transformers import PreTrainedTokenizerBase as Tokenizer

from loractl.errors import ModelError
from loractl.models.gguf_file import Header, read_header

GPT2_SPLITTING = (None, "gpt-2", "default")
"""Names of pre-tokenizer rules in GGUF files that are GPT-2's."""

ROWS_WHOLE = frozenset({"llama", "qwen2", "qwen3", "gemma2", "gemma3", "phi3"})
"""Architectures of which llama.cpp's converter leaves the rows of matrices whole, in whatever
order: what puts them back in place does so with the bytes of blocks too."""


def with_blocks(path: Path) -> Header | None:
    """The header of a file whose weights can stay in its blocks; None: they must be dense.

    Raises ValueError, struct.error.
    """
    header = read_header(path)
    return header if header.architecture in ROWS_WHOLE else None


def config_of(path: Path) -> PretrainedConfig:
    """The config that transformers makes of a file's fields; reading them takes it seconds."""
    return copy.deepcopy(_config(path, path.stat().st_mtime_ns))


@functools.lru_cache(maxsize=2)
def _config(path: Path, changed_ns: int) -> PretrainedConfig:
    found: PretrainedConfig = AutoConfig.from_pretrained(
        path.parent, gguf_file=path.name, trust_remote_code=False, local_files_only=True
    )
    return found


def unpacking() -> dict[str, Any]:
    """Options that load plain weights; without them some layers may stay packed."""
    return {"quantization_config": GgufConfig(dequantize=True)}


def restore_splitting_(tokenizer: Tokenizer, path: Path) -> None:
    """Restore how a tokenizer built from a GGUF file splits text before it merges bytes.

    transformers gives every byte-pair tokenizer of a GGUF file the rules of GPT-2, whatever rules
    the file names; if they differ, the token ids would be silently wrong. Raises ModelError for
    rules that cannot be restored here.
    """
    from gguf import GGUFReader  # an extra; transformers has already required it at this point

    reader = GGUFReader(path)
    kind, rules = (
        field.contents() if (field := reader.get_field(f"tokenizer.ggml.{key}")) else None
        for key in ("model", "pre")
    )
    if kind != "gpt2" or rules in GPT2_SPLITTING:
        return
    if rules != "smollm":
        raise ModelError(
            f"model {path}: its tokenizer splits text by the rules {rules!r}, which are lost when"
            " a GGUF file is loaded; put the model's own tokenizer.json and tokenizer_config.json"
            " beside it"
        )
    core: Any = tokenizer
    core.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
