"""Give a model of any architecture the segment attention of ops/attention, for training.

It is installed through transformers' two official interfaces, which nearly every model uses. The
Segments of a batch are passed as the keyword `segments` of `model(...)`; a call without them
computes the same as before, bit for bit.
"""

import inspect
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from loractl.models.segments.interface import (
    Options,
    Running,
    Watch,
    attention_over,
    mask_over,
    running,
)
from loractl.ops.segments import segments_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

OVER = {"sdpa": "loractl", "eager": "loractl-eager"}
"""A model's original implementation -> the name of ours, which falls back to it."""


def call_options(model: "PreTrainedModel", position_ids: Tensor) -> Options:
    """Extra keywords for `model(...)`, for a batch with these position ids (rows, length)."""
    name = model.config.get_text_config()._attn_implementation
    return {"segments": segments_of(position_ids)} if name in OVER.values() else {}


def use_segments_(model: "PreTrainedModel") -> bool:
    """Make a model attend by segments when it is given them. True if it now does.

    The model is left unchanged unless its forward passes keywords on to every layer, its masks are
    causal within segments or sliding windows of the width its layers report, and its logits for two
    short packed rows are the same both ways. Costs two short forward passes.
    """
    former = model.config.get_text_config()._attn_implementation
    if former not in OVER or not _can_change(model):
        return False
    _register()
    model.set_attn_implementation(OVER[former])
    watch = Watch()
    hooks = _hook_(model, watch)
    expected = _probe(model)
    for hook in hooks:
        hook.remove()
    if watch.fits and all(watch.fits):
        hooks = _hook_(model)
        if _agree(_probe(model), expected):
            return True
        for hook in hooks:
            hook.remove()
    model.set_attn_implementation(former)
    return False


def _register() -> None:
    from transformers import AttentionInterface, AttentionMaskInterface

    for base, name in OVER.items():
        # Excluded from compiled layers: loops over examples would be recompiled for each batch.
        attend = torch.compiler.disable(attention_over(base))  # type: ignore[no-untyped-call]
        AttentionInterface.register(name, attend)
        AttentionMaskInterface.register(name, mask_over(base))


def _can_change(model: "PreTrainedModel") -> bool:
    """Whether a model and all its submodels accept position ids and another attention."""
    taken = inspect.signature(model.forward).parameters
    takes_keywords = any(one.kind is inspect.Parameter.VAR_KEYWORD for one in taken.values())
    parts = _parts(model)
    return (
        takes_keywords
        and "position_ids" in taken
        and len({part.config._attn_implementation for part in parts}) == 1
        and all(part._can_set_attn_implementation() for part in parts)
    )


def _parts(model: nn.Module) -> "list[PreTrainedModel]":
    """A model and its submodels, such as the decoder below its head."""
    from transformers import PreTrainedModel

    return [part for part in model.modules() if isinstance(part, PreTrainedModel)]


class _Enter:
    """Makes the segments of a call available while it runs."""

    def __init__(self, watch: Watch | None) -> None:
        self.watch = watch

    def __call__(self, module: nn.Module, args: Any, options: Options) -> None:
        if "segments" in options:
            running.set(Running(options["segments"], self.watch, running.get()))


class _Leave:
    """Restores what was available before."""

    def __call__(self, module: nn.Module, args: Any, options: Options, output: Any) -> None:
        if "segments" in options:
            call = running.get()
            running.set(call and call.outer)


def carries_segments(hook: object) -> bool:
    """Whether a hook was installed by `use_segments_`; those change no number."""
    return isinstance(hook, _Enter | _Leave)


def _hook_(model: nn.Module, watch: Watch | None = None) -> list[RemovableHandle]:
    """Make the segments of a call available in every part of a model that can be called."""
    handles = []
    for part in _parts(model):
        handles.append(part.register_forward_pre_hook(_Enter(watch), with_kwargs=True))
        handles.append(part.register_forward_hook(_Leave(), with_kwargs=True, always_call=True))
    return handles


def _probe(model: "PreTrainedModel") -> Tensor:
    """Logits of two rows of 24 random tokens: one with three examples, one with a single one."""
    device = next(model.parameters()).device
    vocabulary = model.config.get_text_config().vocab_size
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, vocabulary, (2, 24), generator=generator).to(device)
    packed = torch.cat([torch.arange(n) for n in (11, 1, 12)])
    positions = torch.stack([packed, torch.arange(24)]).to(device)
    options = call_options(model, positions)
    was_training = model.training
    model.train(False)
    with torch.no_grad():
        logits: Tensor = model(
            input_ids=ids, position_ids=positions, attention_mask=None, use_cache=False, **options
        ).logits
    model.train(was_training)
    return logits


def _agree(found: Tensor, expected: Tensor) -> bool:
    """bfloat16 rounding moves logits by under 2 % of their size; another mask, by far more."""
    error = (found.float() - expected.float()).square().mean().sqrt()
    bound = 1e-4 if expected.dtype == torch.float32 else 0.05
    return bool(error <= bound * expected.float().square().mean().sqrt())
