"""Names of dtypes and their sizes. The torch dtypes are in `torch_dtypes`."""

WIDTHS = {"float32": 4, "bfloat16": 2, "float16": 2}
"""Bytes per value, by the names used in settings, flags and config.json."""

SHORT = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}
"""The same dtypes as named in files: GGUF and, in capitals, safetensors."""
