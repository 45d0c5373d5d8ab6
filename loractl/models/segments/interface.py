"""The two functions that transformers calls: one makes masks, the other computes attention.

Both work by segments if a call was given them and the mask matches them; otherwise they defer to
another implementation, with the same kernel and the same mask as if nothing had been registered.
install.py decides which models get segments.
"""

import sys
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from loractl.ops.attention.autograd import segment_attention
from loractl.ops.segments import Segments

SAMPLED = 64
"""How many of a batch's examples, longest first, have their mask rows checked."""
OTHER = ("s_aux", "position_bias", "cache")
"""Keywords of attention functions that change the result: sinks, biases, a paged cache."""

Options = dict[str, Any]
Attend = Callable[..., tuple[Tensor, Tensor | None]]
MakeMask = Callable[..., Tensor | None]


@dataclass
class Watch:
    """What a model does with its masks, recorded in one call before any mask is omitted."""

    masks: dict[int, tuple[bool, int | None]] = field(default_factory=dict)
    """Data pointer of a mask -> whether it matches the segments, and its window."""
    kept: list[Tensor] = field(default_factory=list)  # so that no two share an address
    fits: list[bool] = field(default_factory=list)  # one per attention call

    def note(self, mask: Tensor | None, given: Options) -> None:
        """Check one attention call: it needs the segments, their mask, and the mask's window."""
        place = None if mask is None else mask.data_ptr()
        of_segments, window = self.masks.get(place, (False, None)) if place else (False, None)
        told = given.get("segments") is not None and given.get("sliding_window") == window
        self.fits.append(told and of_segments and not _has_other(given))


@dataclass(frozen=True)
class Running:
    """A call of a model that was given segments."""

    segments: Segments
    watch: Watch | None
    outer: "Running | None"  # the call that contains it


running: ContextVar[Running | None] = ContextVar("loractl_segments", default=None)
"""transformers passes the keywords of a call to its layers, but not to the mask function."""


def mask_over(base: str) -> MakeMask:
    """The mask function: no mask if it would be that of the segments, else `base`'s own."""
    from transformers.masking_utils import eager_mask, sdpa_mask

    make: MakeMask = sdpa_mask if base == "sdpa" else eager_mask

    def mask(**given: Any) -> Tensor | None:
        call = running.get()
        if call is None:
            return make(**given)
        window = given.get("local_size")
        by_segments = is_of_segments(call.segments, window, given)
        if call.watch is None:
            return None if by_segments else make(**given)
        made = make(**{**given, "allow_is_causal_skip": False})
        if made is not None:
            call.watch.masks[made.data_ptr()] = by_segments, window
            call.watch.kept.append(made)
        return made

    return mask


def is_of_segments(segments: Segments, window: int | None, given: Options) -> bool:
    """Whether a mask lets each token see its segment up to itself, or `window` tokens of that.

    Only a few places are computed, where chunks, blocks that look ahead and masks of other lengths
    would show: the first, middle and last token of the longest segments, against all tokens of the
    row.
    """
    rows, length = segments.rows, segments.length
    shape = (given["batch_size"], given["q_length"], given["kv_length"])
    if shape != (rows, length, length) or given["attention_mask"] is not None or given["use_vmap"]:
        return False  # for a cache, with padding, or not a function of indices
    spans = sorted(segments.spans, key=lambda span: span[0] - span[1])[:SAMPLED]
    places = [
        (start // length, at % length, start % length)
        for start, stop in spans
        for at in (start, (start + stop) // 2, stop - 1)
    ]
    row, query, start = torch.tensor(places, device=given["device"]).T[:, :, None]  # (places, 1)
    key = torch.arange(length, device=given["device"])
    seen = given["mask_function"](row, torch.zeros_like(row), query, key)  # (places, length)
    expected = (key >= start) & (key <= query) & (query - key < (window or length))
    return torch.equal(seen.expand_as(expected), expected)


def attention_over(base: str) -> Attend:
    """The attention function: by segments where possible, else that of `base`."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    def attention(
        module: nn.Module,
        query: Tensor,  # (rows, heads, length, d)
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        dropout: float = 0.0,
        scaling: float | None = None,
        **given: Any,
    ) -> tuple[Tensor, Tensor | None]:
        segments: Segments | None = given.get("segments")
        window = given.get("sliding_window")
        call = running.get()
        if call is not None and call.watch is not None:
            call.watch.note(attention_mask, given)
        if segments is not None and attention_mask is None and _is_of(segments, query, key):
            causal = given.get("is_causal")
            if getattr(module, "is_causal", True) if causal is None else causal:
                if not dropout and not _has_other(given):
                    out = _by_segments(query, key, value, segments, scaling, given)
                    return out, None
                # There is no mask, since segments were expected to replace it.
                attention_mask = _dense(base, segments, window, query)
        attend: Attend = sdpa_attention_forward if base == "sdpa" else _eager_of(module)
        return attend(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **given
        )

    return attention


def _has_other(given: Options) -> bool:
    return any(given.get(name) is not None for name in OTHER)


def _is_of(segments: Segments, query: Tensor, key: Tensor) -> bool:
    """Whether the tokens are those of the segments, not of a cache or of another submodel."""
    (rows, _, length, _), keys = query.shape, key.shape[2]
    return (rows, length, keys) == (segments.rows, segments.length, segments.length)


def _by_segments(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    segments: Segments,
    scaling: float | None,
    given: Options,
) -> Tensor:
    """(rows, heads, length, d) in, (rows, length, heads, d) out, as for attention functions."""
    q, k, v = (x.transpose(1, 2).flatten(0, 1) for x in (query, key, value))  # (tokens, heads, d)
    out = segment_attention(
        q,
        k,
        v,
        segments,
        scale=q.shape[2] ** -0.5 if scaling is None else scaling,
        window=given.get("sliding_window"),
        softcap=given.get("softcap"),
    )
    return out.view(segments.rows, segments.length, *out.shape[1:])


def _dense(base: str, segments: Segments, window: int | None, query: Tensor) -> Tensor:
    """The mask that `base` takes, (rows, 1, length, length)."""
    mask = segments.mask(window, query.device)
    if base == "sdpa":
        return mask
    hidden = torch.finfo(query.dtype).min
    return torch.zeros_like(mask, dtype=query.dtype).masked_fill_(~mask, hidden)


def _eager_of(module: nn.Module) -> Attend:
    """An architecture's eager attention, which is in its module file under the same name in all."""
    found: Attend = sys.modules[type(module).__module__].eager_attention_forward
    return found
