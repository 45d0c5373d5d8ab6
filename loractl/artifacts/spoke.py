"""An adapter from its files into a hub, all of it or nothing."""

import torch
from torch import nn

from loractl.artifacts.adapter import Adapter, ranks_of, restore_
from loractl.lora.hub import Hub
from loractl.lora.inject import FORMULAS, kind_of, sizes
from loractl.lora.layer import LoraLayer


def add_(hub: Hub, model: nn.Module, name: str, adapter: Adapter) -> None:
    """Put an adapter into the hub of this model.

    Raises ArtifactError, with the hub as it was, when adapter and model do not fit.
    """
    hub.add_(name, layers_of(adapter, model))


def layers_of(adapter: Adapter, model: nn.Module) -> dict[str, LoraLayer]:
    """An adapter's layers over the modules of a model, by path; the model is left alone.

    Raises ArtifactError when the two do not fit.
    """
    layers = {}
    for path, size in ranks_of(adapter, model).items():
        base = model.get_submodule(path)
        kind, weight = kind_of(base), base.weight
        assert kind is not None and isinstance(weight, torch.Tensor), f"{path} carries no adapter"
        d_in, d_out = sizes(kind, weight)
        # Memory of their own: what was read may be a map of the file, which can change.
        A, B = torch.empty(size.rank, d_in), torch.empty(d_out, size.rank)
        layers[path] = FORMULAS[adapter.formula][kind](base, A, B, scale=size.scale)
    restore_(layers, adapter.tensors)
    return layers
