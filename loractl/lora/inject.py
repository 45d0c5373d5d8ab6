"""Put adapters into a model and take them out; find what can carry one. Works on any nn.Module."""

from collections.abc import Iterable, Mapping

import torch
from torch import nn

from loractl.lora.dora import DoraConv1D, DoraEmbedding, DoraLinear
from loractl.lora.init import INITS, PART_INITS, embedding
from loractl.lora.layer import LoraConv1D, LoraEmbedding, LoraLayer, LoraLinear
from loractl.lora.ranks import ModuleRank

FORMULAS: dict[str, dict[str, type[LoraLayer]]] = {
    "lora": {"linear": LoraLinear, "conv1d": LoraConv1D, "embedding": LoraEmbedding},
    "dora": {"linear": DoraLinear, "conv1d": DoraConv1D, "embedding": DoraEmbedding},
}


def kind_of(module: nn.Module) -> str | None:
    """The kind of layer that could carry an adapter, or None.

    Conv1D belongs to transformers, which this room does not know: it is told by its name and shape.
    An embedding that does more than look up and scale (OPT's positions are given a mask) is none.
    """
    if isinstance(module, nn.Linear):
        return "linear"
    if isinstance(module, nn.Embedding):
        plain = type(module).forward is nn.Embedding.forward or hasattr(module, "embed_scale")
        return "embedding" if plain else None
    if type(module).__name__ == "Conv1D" and hasattr(module, "nf"):
        return "conv1d"
    return None


def adaptable(model: nn.Module) -> dict[str, str]:
    """Map the path of every layer that can carry an adapter to its kind, in the model's order."""
    return {name: kind for name, module in model.named_modules() if (kind := kind_of(module))}


def sizes(kind: str, weight: torch.Tensor) -> tuple[int, int]:
    """(d_in, d_out) of a layer of this kind: for an embedding (vocabulary, width)."""
    rows, columns = weight.shape
    return (columns, rows) if kind == "linear" else (rows, columns)


def shapes(model: nn.Module, names: Iterable[str]) -> dict[str, tuple[int, int]]:
    """The shape of each named module's weight, as it lies."""
    found = {}
    for name in names:
        rows, columns = model.get_parameter(f"{name}.weight").shape
        found[name] = (rows, columns)
    return found


def freeze_(model: nn.Module) -> None:
    """Turn off the gradient of every parameter."""
    for parameter in model.parameters():
        parameter.requires_grad_(False)


def inject_(
    model: nn.Module,
    ranks: Mapping[str, ModuleRank],
    *,
    formula: str = "lora",
    init: str = "default",
    dropout: float = 0.0,
    seed: int = 0,
) -> dict[str, LoraLayer]:
    """Freeze the model and swap an adapted layer in for each module that `ranks` names.

    Initial values depend on the seed and the order of the modules alone, not on device or dtype;
    those of PiSSA and OLoRA on the weights instead. Returns the new layers by path.
    """
    freeze_(model)
    generator = torch.Generator().manual_seed(seed)
    layers: dict[str, LoraLayer] = {}
    for name, size in ranks.items():
        base = model.get_submodule(name)
        kind = kind_of(base)
        assert kind is not None, f"{name} is a {type(base).__name__}, which carries no adapter"
        weight = base.weight
        assert isinstance(weight, torch.Tensor)
        layer_class = FORMULAS[formula][kind]
        if init in PART_INITS:
            W = weight.detach().T if layer_class.transposed else weight.detach()
            A, B = PART_INITS[init](W, size.rank, size.scale)
        else:
            start = embedding if kind == "embedding" else INITS[init]
            A, B = start(size.rank, *sizes(kind, weight), generator)
        layers[name] = layer_class(base, A, B, scale=size.scale, dropout=dropout)
        if init in PART_INITS:
            layers[name].count_from_(A, B)
    for name, layer in layers.items():
        _put(model, name, layer)
    return layers


def adapters(model: nn.Module) -> dict[str, LoraLayer]:
    """The adapted layers of a model by the path of the layer they stand for."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}


def remove_(model: nn.Module) -> None:
    """Put every base layer back in its place."""
    for name, layer in adapters(model).items():
        _put(model, name, layer.base)


def merge_(model: nn.Module) -> None:
    """Put every base layer back with the update in its weight, rounded once to the weight's dtype.

    A weight that another module shares (a tied head) is replaced on this layer alone.
    """
    for name, layer in adapters(model).items():
        layer.base.weight = nn.Parameter(layer.merged_weight(), requires_grad=False)
        _put(model, name, layer.base)


def _put(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, module)
