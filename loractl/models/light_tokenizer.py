"""A model's tokenizer with its chat template, without torch: for commands that only measure rows.

transformers' AutoTokenizer imports torch, which takes seconds; its class for a tokenizer.json does
not. Training loads the tokenizer with AutoTokenizer, in `load`.
"""

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from loractl.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer


def load_light(directory: Path) -> "Tokenizer":
    """The tokenizer that a directory's tokenizer.json describes. Raises ModelError."""
    path = directory / "tokenizer.json"
    if not path.is_file():
        raise ModelError(f"{path}: not found; it is needed to count tokens")
    from transformers import PreTrainedTokenizerFast

    logging.getLogger("transformers").setLevel(logging.ERROR)
    try:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(directory, local_files_only=True)
    except Exception as error:  # tokenizers raises nothing narrower
        raise ModelError(f"{path}: cannot be read: {error}") from None
    # A limit in the file would cut rows, and hide how long they are.
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    loaded: Tokenizer = tokenizer
    return loaded
