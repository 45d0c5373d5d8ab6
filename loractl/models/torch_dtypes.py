"""torch's dtypes by the names that users and files have for them."""

import torch

from loractl.dtypes import SHORT, WIDTHS

DTYPES: dict[str, torch.dtype] = {word: getattr(torch, word) for word in WIDTHS}
"""By the names in settings and flags."""

FILE_DTYPES = {short: DTYPES[word] for word, short in SHORT.items()}
"""By the names in GGUF files, which `export` accepts too."""

STORED_FLOATS = {"F64": torch.float64} | {w.upper(): dtype for w, dtype in FILE_DTYPES.items()}
"""The floating-point dtypes of safetensors files; those of eight bits or fewer come with scales."""


def dtype_word(dtype: torch.dtype) -> str:
    """The name without the prefix: float32 for torch.float32."""
    return str(dtype).removeprefix("torch.")


def short_word(dtype: torch.dtype) -> str | None:
    """f32 for torch.float32; None for a dtype without a name in files."""
    return next((word for word, found in FILE_DTYPES.items() if found == dtype), None)
