"""An adapter from its files into a hub, all of it or nothing."""

from torch import nn

from loractl.artifacts.peft.adapter import Adapter
from loractl.artifacts.peft.attach import load_
from loractl.lora.hub import Hub, StandIn, stand_ins
from loractl.lora.inject import remove_


def add_(hub: Hub, model: nn.Module, name: str, adapter: Adapter) -> None:
    """Put an adapter into the hub of this model.

    Raises ArtifactError, with the hub as it was, when adapter and model do not fit.
    """
    hub.add_(name, layers_of(adapter, model))


def layers_of(adapter: Adapter, model: nn.Module) -> dict[str, StandIn]:
    """What an adapter has in the place of modules of a model, by path; the model is as it was.

    Raises ArtifactError when the two do not fit.
    """
    load_(model, adapter)
    found = stand_ins(model)
    remove_(model)
    return found
