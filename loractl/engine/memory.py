"""What planning predicts for a run with its model loaded: for `check`, and before a run starts."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from loractl.config.settings import RunConfig
from loractl.errors import ModelError
from loractl.models import forward
from loractl.models.fast.shared_start import once, shared_start
from loractl.models.segments.install import OVER
from loractl.models.shape import read as shapes
from loractl.models.torch_dtypes import dtype_word
from loractl.planning.request import chosen, memory_of, of_settings
from loractl.records import UNTRAINED, Batch

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Size:
    """What determines the memory of a micro-batch; unknown values count as the largest possible."""

    rows: int
    length: int  # tokens per row, padding included
    trained_share: float = 1.0  # of those tokens
    real: int | None = None  # tokens that fast layers compute: no padding, a shared prefix once
    longest: int | None = None  # tokens of the longest example

    @staticmethod
    def of(batch: Batch) -> "Size":
        """The size of a given batch."""
        rows, length = batch.input_ids.shape
        share = int((batch.labels != UNTRAINED).sum()) / batch.labels.numel()
        flat = batch.without_padding()
        longest = int(flat.position_ids.max()) + 1
        shared = shared_start(flat)
        computed = once(flat, shared)[0].input_ids.numel() if shared else batch.n_tokens
        return Size(rows, length, share, computed, longest)


def beside_the_weights(
    model: "PreTrainedModel",
    config: RunConfig,
    size: Size,
    *,
    fast: bool = True,
    checkpointing: bool | None = None,
) -> int:
    """Peak bytes that a step needs in addition to the weights, which are already loaded.

    `fast` is False if the hand-written layers are known not to apply; `checkpointing` overrides
    the model's present setting. An architecture whose shape cannot be derived gets a rough figure:
    its activations only, without checkpointing.
    """
    device = next(model.parameters()).device.type
    planned = of_settings(
        config.model,
        config.method,
        config.lora,
        config.data,
        config.train,
        dtype=dtype_word(model.dtype),
    )
    request = replace(
        planned,
        batch=size.rows,
        length=size.length,
        trained_share=size.trained_share,
        real_tokens=size.real,
        longest=size.longest,
        eager=model.config._attn_implementation in ("eager", OVER["eager"]),
        fast=fast and planned.fast,
        checkpointing=recomputes(model) if checkpointing is None else checkpointing,
    )
    try:
        found = shapes.from_config(model.config.get_text_config().to_dict(), where="config.json")
    except ModelError:
        return forward.activation_bytes(model, size.rows, size.length)
    memory = memory_of(found, request, chosen(request), on_cpu=device == "cpu")
    phases = {name: parts for name, parts in memory.phases.items() if name != "load"}
    return max(sum(parts.values()) - parts["weights"] for parts in phases.values())


def recomputes(model: "PreTrainedModel") -> bool:
    """Whether gradient checkpointing is on; transformers before 5.23 used another name."""
    now = getattr(type(model), "is_activation_checkpointing", None)
    name = "is_activation_checkpointing" if now is not None else "is_gradient_checkpointing"
    return bool(getattr(model, name))
