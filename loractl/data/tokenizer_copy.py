"""A tokenizer as plain values, and the same tokenizer made of them in another process.

What rendering and tokenizing read of a fast tokenizer is its backend, its special tokens and its
chat template; a class that does any of this in its own way cannot be copied.
"""

import hashlib
import json
import logging
from typing import Any

from loractl.data.rendering import Tokenizer
from loractl.startup import libraries

_OURS = ("__call__", "_encode_plus", "_convert_encoding", "apply_chat_template",
         "get_chat_template", "added_tokens_encoder", "special_tokens_map")  # fmt: skip
"""What must be as transformers' own class of fast tokenizers has it."""


def values_of(tokenizer: Tokenizer) -> dict[str, Any] | None:
    """What a copy is made of, as JSON can hold it; None if the tokenizer cannot be copied."""
    plain, kind = _plain_class(), type(tokenizer)
    if not isinstance(tokenizer, plain):
        return None
    if any(getattr(kind, name) is not getattr(plain, name) for name in _OURS):
        return None
    return {
        "backend": tokenizer.backend_tokenizer.to_str(),
        "special": dict(tokenizer.special_tokens_map),
        "split_special": bool(tokenizer.split_special_tokens),
        "template": tokenizer.chat_template,
    }


def made_of(values: dict[str, Any]) -> Tokenizer:
    """The tokenizer that these are the values of."""
    plain = _plain_class()
    from tokenizers import Tokenizer as Backend
    from tokenizers import models

    logging.getLogger("transformers").setLevel(logging.ERROR)
    # Made around an empty backend, since the class copies what it is given and may add to it.
    tokenizer: Any = plain(
        tokenizer_object=Backend(models.BPE()),
        split_special_tokens=values["split_special"],
        **values["special"],
    )
    tokenizer._tokenizer = Backend.from_str(values["backend"])
    tokenizer.chat_template = values["template"]
    copied: Tokenizer = tokenizer
    return copied


def digest(values: dict[str, Any] | None) -> str:
    """A hash of the values of a tokenizer, by which two can be compared."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _plain_class() -> Any:
    with libraries.quickly():
        import transformers  # noqa: F401
        from transformers.tokenization_utils_tokenizers import TokenizersBackend
    return TokenizersBackend
