"""torch's dtypes by the words that people and files have for them."""

import torch

from loractl.dtypes import SHORT, WIDTHS

DTYPES: dict[str, torch.dtype] = {word: getattr(torch, word) for word in WIDTHS}
"""By the words of settings and flags."""

FILE_DTYPES = {short: DTYPES[word] for word, short in SHORT.items()}
"""By the words of GGUF files, which `export` takes too."""

STORED_FLOATS = {"F64": torch.float64} | {w.upper(): dtype for w, dtype in FILE_DTYPES.items()}
"""The floating dtypes of safetensors files; those of eight bits and fewer stand beside scales."""


def dtype_word(dtype: torch.dtype) -> str:
    """float32 and the like, as torch.float32 is called elsewhere."""
    return str(dtype).removeprefix("torch.")


def short_word(dtype: torch.dtype) -> str | None:
    """f32 and the like; None for what the words of files do not name."""
    return next((word for word, found in FILE_DTYPES.items() if found == dtype), None)
