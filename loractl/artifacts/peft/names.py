"""The tensors of an adapter under PEFT's names.

As PEFT 0.21 writes them: `base_model.model.<module>.lora_A.weight` (r, d_in) and `.lora_B.weight`
(d_out, r); for embeddings `.lora_embedding_A` (r, vocabulary) and `.lora_embedding_B` (width, r);
with DoRA `.lora_magnitude_vector` (d_out). AdaLoRA has `.lora_A`, `.lora_B` and `.lora_E` (r, 1).
Fused experts are named after their module: its last adapted parameter directly, each earlier one
with one more `.base_layer`. A module trained whole keeps its own names; rows of an embedding or a
head that are trained are `.token_adapter.trainable_tokens_delta` (k, width).

An adapter that starts at parts of the base (PiSSA, OLoRA) is checkpointed as A, B and their initial
values, `.lora_A0.weight` and so on, and published as an update of the plain base of twice the rank.
"""

from collections.abc import Iterable, Mapping

from torch import Tensor, nn

from loractl.lora.adalora import AdaloraLayer
from loractl.lora.dora import DoraLayer
from loractl.lora.experts import LoraExperts
from loractl.lora.layer import LoraLayer
from loractl.lora.ranks import EXPERTS
from loractl.lora.token_rows import Saved, TokenRows, only_whole

PREFIX = "base_model.model."
LINEAR_ENDS = ("lora_A.weight", "lora_B.weight")
SUFFIXES = {
    **dict.fromkeys(("linear", "conv1d", *EXPERTS), LINEAR_ENDS),
    "embedding": ("lora_embedding_A", "lora_embedding_B"),
}
STARTS = {
    **dict.fromkeys(("linear", "conv1d", *EXPERTS), ("lora_A0.weight", "lora_B0.weight")),
    "embedding": ("lora_embedding_A0", "lora_embedding_B0"),
}
TRIPLETS = {
    **dict.fromkeys(("linear", "conv1d"), ("lora_A", "lora_B", "lora_E")),
    "embedding": ("lora_embedding_A", "lora_embedding_B", "lora_embedding_E"),
}
MAGNITUDE = "lora_magnitude_vector"
ROWS = "token_adapter.trainable_tokens_delta"


def stems(kinds: Mapping[str, str], order: Iterable[str]) -> dict[str, str]:
    """The part before the suffixes for each adapted module, by its path.

    `kinds` maps the adapted paths to their kinds; `order` gives every path that could be adapted,
    in the model's order, which tells the first parameter of an experts module from the last.
    """
    found = {}
    inner: dict[str, list[str]] = {}
    for name in order:
        if name not in kinds:
            continue
        found[name] = f"{PREFIX}{name}"
        if kinds[name] in EXPERTS:
            inner.setdefault(name.rpartition(".")[0], []).append(name)
    for module, names in inner.items():
        for behind, name in enumerate(reversed(names)):
            found[name] = PREFIX + module + ".base_layer" * behind
    return found


def stems_of(layers: Mapping[str, LoraLayer]) -> dict[str, str]:
    """`stems` of the adapted layers of a model."""
    order: dict[str, None] = {}
    for name, layer in layers.items():
        module = name.rpartition(".")[0]
        if isinstance(layer, LoraExperts):
            inner = [part for part, _ in layer.base.named_parameters(recurse=False)]
            order |= dict.fromkeys(f"{module}.{part}" for part in inner)
        order[name] = None
    return stems({name: layer.kind for name, layer in layers.items()}, order)


def parameters(
    layers: Mapping[str, LoraLayer], whole: Mapping[str, Saved] | None = None
) -> dict[str, nn.Parameter]:
    """The trained tensors of adapted layers, and of what is saved beside them, by PEFT's names."""
    named: dict[str, nn.Parameter] = {}
    for name, stem in stems_of(layers).items():
        layer = layers[name]
        if isinstance(layer, AdaloraLayer):
            values = (layer.A, layer.B, layer.E)
            pairs = zip(TRIPLETS[layer.kind], values, strict=True)
            named |= {f"{stem}.{suffix}": value for suffix, value in pairs}
            continue
        suffix_A, suffix_B = SUFFIXES[layer.kind]
        named[f"{stem}.{suffix_A}"] = layer.A
        named[f"{stem}.{suffix_B}"] = layer.B
        if isinstance(layer, DoraLayer):
            named[f"{stem}.{MAGNITUDE}"] = layer.m
    for path, module in (whole or {}).items():
        if isinstance(module, TokenRows):
            named[f"{PREFIX}{path}.{ROWS}"] = module.rows
            continue
        named |= {f"{PREFIX}{path}.{inner}": p for inner, p in module.tuned.named_parameters()}
    return named


def buffers(whole: Mapping[str, Saved]) -> dict[str, Tensor]:
    """Everything but parameters in modules trained whole, which PEFT saves with them."""
    found: dict[str, Tensor] = {}
    for path, module in only_whole(whole).items():
        trained = {inner for inner, _ in module.tuned.named_parameters(remove_duplicate=False)}
        rest = {n: t for n, t in module.tuned.state_dict().items() if n not in trained}
        found |= {f"{PREFIX}{path}.{inner}": tensor for inner, tensor in rest.items()}
    return found


def checkpoint_tensors(
    layers: Mapping[str, LoraLayer], whole: Mapping[str, Saved] | None = None
) -> dict[str, Tensor]:
    """Tensors that restore adapted layers bit for bit: the trained ones and their start values."""
    named: dict[str, Tensor] = {**parameters(layers, whole), **buffers(whole or {})}
    for name, stem in stems_of(layers).items():
        layer = layers[name]
        for suffix, start in zip(STARTS[layer.kind], (layer.A0, layer.B0), strict=True):
            if start is not None:
                named[f"{stem}.{suffix}"] = start
    return named


def plain_tensors(
    layers: Mapping[str, LoraLayer], whole: Mapping[str, Saved] | None = None
) -> dict[str, Tensor]:
    """Adapted layers as an update of the plain base; twice the rank when they have starts.

    `config.doubled` gives the matching config for those. Not for AdaLoRA, whose ranks are handled
    in `adalora_files`.
    """
    named: dict[str, Tensor] = {**parameters(layers, whole), **buffers(whole or {})}
    for name, stem in stems_of(layers).items():
        layer = layers[name]
        for suffix, factor in zip(SUFFIXES[layer.kind], layer.factors(), strict=True):
            named[f"{stem}.{suffix}"] = factor.detach()
    return named
