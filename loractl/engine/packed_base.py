"""How a base's linear layers are packed: as a config asks, or as adapters were trained on it."""

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

from loractl.errors import ModelError

if TYPE_CHECKING:
    import torch

    from loractl.artifacts.peft.adapter import Adapter
    from loractl.config.settings import ModelSection  # pydantic takes 0.1 s
    from loractl.models.load import Source


def as_configured(source: "Source", model: "ModelSection", dtype: "torch.dtype") -> "Source":
    """The base as a run holds it: packed as the config asks, or else as its files are."""
    from loractl.models.prequantized import kind_in_files
    from loractl.models.torch_dtypes import dtype_word
    from loractl.quant.kinds import Quantization

    kind: str = model.quantization
    if kind == "none":
        kind = (None if source.gguf else kind_in_files(source.directory)) or "none"
    if kind == "none":
        return source
    chosen = Quantization(kind, dtype_word(dtype), model.quantize_head)
    return replace(source, quantization=chosen)


def as_trained(source: "Source", adapters: Iterable["Adapter"]) -> "Source":
    """The base packed as it was when these adapters were trained on it.

    Raises ModelError if it was packed differently for some of them.
    """
    from loractl.models.prequantized import kind_in_files
    from loractl.quant.kinds import Quantization

    own = None if source.gguf else kind_in_files(source.directory)
    found = {
        Quantization(own, one.dtype or "bfloat16")
        if own and not one.quantization
        else one.quantization
        for one in adapters
    }
    if len(found) > 1:
        words = sorted(f"{one.kind} from {one.dtype}" if one else "none" for one in found)
        raise ModelError(
            f"{source.name}: the adapters were trained on it with different model.quantization"
            f" ({', '.join(words)}), expected one; use them one at a time"
        )
    return replace(source, quantization=found.pop()) if found else source


def about_packed(source: "Source") -> dict[str, object]:
    """What loractl.json says of it; empty for a base that is not packed."""
    chosen = source.quantization
    return {} if chosen is None else {"quantization": chosen.about()}
