"""The output head of a model as the formula of `ops/cross_entropy.py`, verified on the model."""

from collections.abc import Iterator
from itertools import product
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from loractl.models.forward import trunk_of
from loractl.models.proving_run import ProvingRun
from loractl.models.segments.install import carries_segments
from loractl.ops.cross_entropy import Head
from loractl.ops.own_rows import OwnRows

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

SCALES = {
    "logit_scale": (1,),  # Cohere
    "logits_scaling": (-1, 1),  # Granite and MiniCPM3 divide by it, HyperCLOVA X multiplies
    "lm_head_multiplier": (1,),  # Falcon H1
    "output_multiplier": (1,),  # MuseSpark
}
"""Settings that scale logits after the head, and the powers to which they are raised."""
SOFTCAPS = (
    "final_logit_softcapping",  # Gemma 2, 3 and 4, VaultGemma, nanochat
    "logits_soft_cap",  # RecurrentGemma
    "output_logit_soft_cap",  # xLSTM
)


def head_of(model: "PreTrainedModel", run: ProvingRun | None = None) -> Head | None:
    """The head of a model if it is a plain linear layer, scaled and capped as its config says.

    A model may do anything with its logits, so this is verified: on the random tokens of `run`, the
    head applied to `hidden_states` must give the model's own logits. None if it does not, or if the
    head carries an adapter, a copy trained in full, or hooks; rows of its own are taken along.
    Passing a run that has already been made costs nothing more.
    """
    layer = plain_head(model)
    if layer is None or trunk_of(model) is None or _hooked(model):
        return None
    shown = (run or ProvingRun(model)).shown
    if shown.hidden.shape[-1] != layer.in_features:  # ELECTRA: a projection comes between
        return None
    with torch.no_grad():
        heads = _candidates(layer, own_rows(model), model.config.get_text_config())
        return next((one for one in heads if _agree(one.logits(shown.hidden), shown.logits)), None)


def plain_head(model: "PreTrainedModel") -> nn.Linear | None:
    """The frozen linear layer of a head, alone or with some rows of its own; None if it is another
    module, or one that runs more than its own forward."""
    layer = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    inner = layer.base if hasattr(layer, "own_rows") and layer.enabled else layer
    if type(inner) is not nn.Linear or _hooked(inner) or _hooked(layer):
        return None
    return inner


def own_rows(model: "PreTrainedModel") -> OwnRows | None:
    """The rows of a head that are trained in place of the frozen ones, if it has any."""
    layer: Any = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    return layer.own_rows() if hasattr(layer, "own_rows") else None


def _hooked(module: nn.Module) -> bool:
    """Whether calling a module runs more than its own forward, apart from segment hooks."""
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks)
    others = [one for kind in hooks for one in kind.values() if not carries_segments(one)]
    own = "forward" in vars(module)  # replaced on this object alone, as accelerate does
    return own or bool(others)


def _candidates(
    layer: nn.Linear, own: OwnRows | None, config: "PreTrainedConfig"
) -> Iterator[Head]:
    """Heads the config could mean: first with the settings it names, then without."""
    scales = [
        value**power
        for name, powers in SCALES.items()
        if isinstance(value := getattr(config, name, None), int | float) and value > 0
        for power in powers
    ]
    caps = [getattr(config, name, None) for name in SOFTCAPS]
    for scale, cap in product([*scales, 1.0], [*(cap for cap in caps if cap), None]):
        yield Head(layer.weight, layer.bias, scale, cap, own)


def _agree(found: Tensor, own: Tensor) -> bool:
    """Equal up to rounding in the model's dtype, which each step after the head repeats."""
    if found.shape != own.shape:
        return False
    tolerance = max(4 * torch.finfo(found.dtype).eps, 1e-5)
    difference = (found.float() - own.float()).square().mean().sqrt()
    return bool(difference <= tolerance * own.float().square().mean().sqrt())
