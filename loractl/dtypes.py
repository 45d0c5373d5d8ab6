"""The words for dtypes, and the bytes that a value takes. What torch calls them: `torch_dtypes`."""

WIDTHS = {"float32": 4, "bfloat16": 2, "float16": 2}
"""Bytes of a value, by the words that settings, flags and config.json use."""

SHORT = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}
"""The same dtypes in the words of files: GGUF and, in capitals, safetensors."""
