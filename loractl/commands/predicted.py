"""What planning predicts of a run whose model is loaded: for `check`, and before a run starts."""

from dataclasses import replace
from typing import TYPE_CHECKING

from loractl.config import RunConfig
from loractl.errors import ModelError
from loractl.models import forward, shape
from loractl.planning.request import chosen, memory_of, of_config

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def beside_the_weights(
    model: "PreTrainedModel",
    config: RunConfig,
    *,
    rows: int,
    length: int,
    trained_share: float = 1.0,
) -> int:
    """Bytes that a step takes at its peak beside the weights, which are there already.

    An architecture whose shape cannot be derived gets a rough figure: its activations alone.
    """
    device = next(model.parameters()).device.type
    dtype = str(model.dtype).removeprefix("torch.")
    request = replace(
        of_config(config, dtype=dtype),
        batch=rows,
        length=length,
        trained_share=trained_share,
        eager=model.config._attn_implementation == "eager",
        checkpointing=_recomputes(model),
    )
    try:
        found = shape.from_config(model.config.get_text_config().to_dict(), where="config.json")
    except ModelError:
        return forward.activation_bytes(model, rows, length)
    memory = memory_of(found, request, chosen(request), on_cpu=device == "cpu")
    phases = {name: parts for name, parts in memory.phases.items() if name != "load"}
    return max(sum(parts.values()) - parts["weights"] for parts in phases.values())


def _recomputes(model: "PreTrainedModel") -> bool:
    """Whether gradient checkpointing is on; before transformers 5.23 the name was another."""
    now = getattr(type(model), "is_activation_checkpointing", None)
    name = "is_activation_checkpointing" if now is not None else "is_gradient_checkpointing"
    return bool(getattr(model, name))
