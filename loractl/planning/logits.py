"""Memory of head and loss: one chunk of logits if the head is plain, else all of them."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from loractl.models.shape.types import ModelShape
from loractl.ops.chunks import chunk_rows
from loractl.planning.frameworks import Framework

if TYPE_CHECKING:
    from loractl.planning.work import Work


def peak(shape: ModelShape, adapted: Mapping[str, int], work: "Work", framework: Framework) -> int:
    """Peak bytes during the forward and backward pass of the loss."""
    if not _in_chunks(shape, adapted, work, framework):
        strip = framework.logits_strip * work.batch * min(framework.strip, work.length)
        of_all = framework.logits_peak * losses(work, framework)
        return round(shape.vocabulary * (of_all + strip))
    n = round(losses(work, framework))
    # A float32 copy of a chunk, and the slope of Gemma 2's cap; the CPU kernel needs neither.
    copies = 0 if work.on_cpu else 1 + (shape.architecture == "gemma2")
    copied = 4 * shape.vocabulary * _rows_together(shape, work, n) * copies
    of_weight = 4 * shape.vocabulary * shape.hidden if work.full else 0
    rows = work.width * shape.hidden * n  # the input
    return _chunk_bytes(shape, work, framework) + copied + of_weight + rows


def kept(shape: ModelShape, adapted: Mapping[str, int], work: "Work", framework: Framework) -> int:
    """Bytes of logits alive during the blocks' backward pass: on a CPU the memory of one chunk,
    which the next step reuses (ops/held_memory.py)."""
    if _in_chunks(shape, adapted, work, framework):
        return _chunk_bytes(shape, work, framework) if work.on_cpu else 0
    return round(framework.logits_kept * shape.vocabulary * losses(work, framework))


def input_kept(
    shape: ModelShape, adapted: Mapping[str, int], work: "Work", framework: Framework
) -> float:
    """Bytes per token kept for the head's input: its gradient, if it is computed together with the
    loss; or the input itself, if the head needs a gradient or is quantized."""
    of_all = work.width * shape.hidden
    if _in_chunks(shape, adapted, work, framework):
        return of_all * work.trained_share
    packed = work.quantized and framework.quantizes == "head"
    return of_all if work.full or packed or shape.head in adapted else 0


def losses(work: "Work", framework: Framework) -> float:
    """Tokens for which logits are computed."""
    return work.tokens * (work.trained_share if framework.trained_only else 1)


def _chunk_bytes(shape: ModelShape, work: "Work", framework: Framework) -> int:
    n = round(losses(work, framework))
    return work.width * shape.vocabulary * _rows_together(shape, work, n)


def _rows_together(shape: ModelShape, work: "Work", n: int) -> int:
    return min(n, chunk_rows(n, shape.vocabulary, work.width, on_cpu=work.on_cpu))


def _in_chunks(
    shape: ModelShape, adapted: Mapping[str, int], work: "Work", framework: Framework
) -> bool:
    """Whether head and loss are one operation: `Objective` does that if nothing adapts the head
    and the weights are stored in the dtype of the products."""
    own = work.whole_head or shape.head in adapted or work.autocast
    return framework.in_chunks and not own
