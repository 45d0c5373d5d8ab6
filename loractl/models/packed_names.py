"""Which layers of a model a quantization packs, and which it leaves as they are."""

from typing import TYPE_CHECKING

from torch import nn

from loractl.quant.kinds import Quantization

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def quantizable(model: "PreTrainedModel", chosen: Quantization) -> list[str]:
    """The paths of the layers that would be packed."""
    head = None if chosen.head else model.get_output_embeddings()  # type: ignore[no-untyped-call]
    return [
        path
        for path, module in model.named_modules()
        if type(module) is nn.Linear and module is not head
    ]
