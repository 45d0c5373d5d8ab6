"""Which layers of a model a quantization packs, and which it leaves as they are."""

from typing import TYPE_CHECKING

from torch import nn

from loractl.quant.kinds import Quantization

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def quantizable(model: "PreTrainedModel", chosen: Quantization | None) -> list[str]:
    """The paths of the layers that would be packed; None: by the files themselves."""
    packs_head = chosen is not None and chosen.head
    head = None if packs_head else model.get_output_embeddings()  # type: ignore[no-untyped-call]
    return [
        path
        for path, module in model.named_modules()
        if type(module) is nn.Linear and module is not head
    ]
