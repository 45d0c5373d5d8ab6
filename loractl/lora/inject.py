"""Put adapters into a model and remove them; find what can carry one. Works on any nn.Module."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from loractl.lora.adalora import AdaloraConv1D, AdaloraEmbedding, AdaloraLinear
from loractl.lora.dense import MatrixSize, dense_weight_of, size_of
from loractl.lora.dora import DoraConv1D, DoraEmbedding, DoraLinear
from loractl.lora.experts import (
    AdaptedExperts,
    LoraExperts,
    LoraExpertsTransposed,
    packed,
    products_of,
)
from loractl.lora.init import INITS, PART_INITS, Init, PartInit, embedding, triplets
from loractl.lora.layer import LoraConv1D, LoraEmbedding, LoraLayer, LoraLinear
from loractl.lora.ranks import EXPERTS, ModuleRank
from loractl.lora.token_rows import TokenRows, saved_modules
from loractl.lora.whole import WholeModule
from loractl.quant.linear import PackedLinear

FORMULAS: dict[str, dict[str, type[LoraLayer]]] = {
    "lora": {
        "linear": LoraLinear,
        "conv1d": LoraConv1D,
        "embedding": LoraEmbedding,
        "experts": LoraExperts,
        "experts-transposed": LoraExpertsTransposed,
    },
    "dora": {"linear": DoraLinear, "conv1d": DoraConv1D, "embedding": DoraEmbedding},
    "adalora": {
        "linear": AdaloraLinear,
        "conv1d": AdaloraConv1D,
        "embedding": AdaloraEmbedding,
    },
}


def kind_of(module: nn.Module) -> str | None:
    """The kind of layer that could carry an adapter, or None.

    Conv1D belongs to transformers, which this package does not import: it is recognized by its name
    and attributes. An embedding that does more than look up and scale (OPT's positions take a mask)
    does not count.
    """
    if isinstance(module, nn.Linear | PackedLinear):
        return "linear"
    if isinstance(module, nn.Embedding):
        plain = type(module).forward is nn.Embedding.forward or hasattr(module, "embed_scale")
        return "embedding" if plain else None
    if type(module).__name__ == "Conv1D" and hasattr(module, "nf"):
        return "conv1d"
    return None


def adaptable(model: nn.Module) -> dict[str, str]:
    """Map the path of every layer that can carry an adapter to its kind, in the model's order.

    Fused experts are named by the path of their parameter.
    """
    found = {}
    for name, module in model.named_modules():
        if kind := kind_of(module):
            found[name] = kind
        found |= {f"{name}.{inner}": kind for inner, kind in products_of(module).items()}
    return found


def module_of(model: nn.Module, name: str, kind: str) -> tuple[nn.Module, str]:
    """The module that an adapter of this name applies to, and the name of the parameter."""
    if kind not in EXPERTS:
        return model.get_submodule(name), "weight"
    path, _, parameter = name.rpartition(".")
    return model.get_submodule(path), parameter


def sizes_of(model: nn.Module, names: Mapping[str, str]) -> dict[str, MatrixSize]:
    """The size of each layer, given names mapped to kinds; for fused experts, of one expert."""
    found = {}
    for name, kind in names.items():
        module, parameter = module_of(model, name, kind)
        found[name] = size_of(module, kind, parameter)
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

    Initial values depend only on the seed and the order of the modules, not on device or dtype;
    those of PiSSA and OLoRA depend on the weights instead. Returns the new layers by path.
    """
    freeze_(model)
    generator = torch.Generator().manual_seed(seed)
    kinds = adaptable(model)
    layers: dict[str, LoraLayer] = {}
    for name, size in ranks.items():
        assert name in kinds, f"{name} carries no adapter"
        kind = kinds[name]
        base, parameter = module_of(model, name, kind)
        layer_class = FORMULAS[formula][kind]
        if init in PART_INITS:
            weight = dense_weight_of(base, parameter).detach()
            A, B = _parts(layer_class, weight, PART_INITS[init], size)
        else:
            start, matrix = random_start(formula, init, kind), size_of(base, kind, parameter)
            rank = size.rank * matrix.stack
            A, B = start(rank, matrix.d_in, matrix.d_out, generator)
        options: dict[str, Any] = {"scale": size.scale, "dropout": dropout}
        if kind in EXPERTS:
            options["parameter"] = parameter
        layers[name] = layer_class(base, A, B, **options)
        if init in PART_INITS:
            layers[name].count_from_(A, B)
    _stand_in_(model, layers)
    return layers


def _parts(
    layer_class: type[LoraLayer], weight: torch.Tensor, init: PartInit, size: ModuleRank
) -> tuple[torch.Tensor, torch.Tensor]:
    """A and B as parts of a weight, or of each expert's weight."""
    W = weight.mT if layer_class.transposed else weight
    if W.dim() == 2:
        return init(W, size.rank, size.scale)
    pairs = [init(W_e, size.rank, size.scale) for W_e in W]
    return packed(torch.stack([A for A, _ in pairs]), torch.stack([B for _, B in pairs]))


def _stand_in_(model: nn.Module, layers: Mapping[str, LoraLayer]) -> None:
    """Put each layer in place; those of one experts module go into one `AdaptedExperts`."""
    experts: dict[str, dict[str, LoraExperts]] = {}
    for name, layer in layers.items():
        if isinstance(layer, LoraExperts):
            path, _, last = name.rpartition(".")
            experts.setdefault(path, {})[last] = layer
        else:
            _put(model, name, layer)
    for path, inner in experts.items():
        _put(model, path, AdaptedExperts(model.get_submodule(path), inner))


def random_start(formula: str, init: str, kind: str) -> Init:
    """How A and B of a new layer, or of new directions in one, are drawn."""
    if formula == "adalora":
        return triplets
    return embedding if kind == "embedding" else INITS[init]


def adapters(model: nn.Module) -> dict[str, LoraLayer]:
    """The adapted layers of a model by the path of the layer they replace."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}


def remove_(model: nn.Module) -> None:
    """Put every base module back in its place."""
    for name, module in list(model.named_modules()):
        if isinstance(module, LoraExperts):
            continue  # removed with its AdaptedExperts
        if isinstance(module, LoraLayer | AdaptedExperts | WholeModule | TokenRows):
            _put(model, name, module.base)


def merge_(model: nn.Module) -> None:
    """Put every base module back with the update merged, rounded once to its dtype.

    A weight that another module shares (a tied head) is replaced on this layer alone.
    """
    for layer in adapters(model).values():
        layer.swap_weight_(nn.Parameter(layer.merged_weight(), requires_grad=False))
    for module in saved_modules(model).values():
        module.swap_weights_()
    remove_(model)


def _put(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, module)
