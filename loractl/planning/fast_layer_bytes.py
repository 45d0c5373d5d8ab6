"""Memory that the hand-written layers of `ops/layer/` keep and use, counted from their code line
by line.

Sizes are values per token until the very end; only `scores` does not grow with the tokens. Not
counted here or anywhere else: without the C files, on processors that have AVX-512 but no bfloat16
support, oneDNN computes each bfloat16 product through a float32 copy.
"""

from collections.abc import Iterator, Mapping

from loractl.models.fast.architectures import MODEL_TYPES
from loractl.models.shape.types import ModelShape
from loractl.ops.chunks import examples_together, query_rows
from loractl.planning.frameworks import Framework
from loractl.planning.work import Roles, Work

ACTIVATIONS = frozenset({
    "silu", "swish", "gelu", "gelu_python", "gelu_pytorch_tanh", "gelu_python_tanh", "gelu_new",
    "gelu_fast", "gelu_accurate",
})  # fmt: skip
"""The activations in config.json that `models/fast/activations.py` turns into one operation."""
GROUPS = (("q", "k", "v"), ("o",), ("gate", "up"), ("down",))
"""Layers that share an input, and therefore one thin product."""
UNDER_WAY = 9
"""Temporary bytes per value while a mask is made: distances in int64, and which ones are hidden."""

OF_FINAL_NORM = 20
"""Bytes per value: five float32 tensors alive at once (torch 2.13, transformers 5.23)."""


def takes(shape: ModelShape, adapted: Mapping[str, int], work: Work, framework: Framework) -> bool:
    """Whether a run uses these layers; otherwise it uses those of transformers."""
    own_head = work.whole_head or shape.head in adapted  # then transformers' model runs as a whole
    return (
        framework.own_ops
        and work.fast
        and shape.architecture in MODEL_TYPES
        and shape.activation in ACTIVATIONS
        and work.formula in ("lora", "adalora")
        and not (work.full or own_head)
    )


def layer(shape: ModelShape, roles: Roles, work: Work) -> int:
    """Bytes per token that one layer keeps (`_Kept`), not counting its input."""
    q, kv = _head_widths(shape)
    values = q + 2 * kv + q  # q, k and v; the output of attention
    values += shape.hidden + 2 * shape.intermediate  # the sum after attention; gate and up
    values += sum(rank for rank, _, _ in roles.values())
    statistics = 2
    if shape.qk_norm:
        values += q + kv  # q and k before their norms
        statistics += shape.heads + shape.kv_heads
    if _has_four_norms(shape):
        values += 2 * shape.hidden
        statistics += 2
    if flash(shape, work) or (work.on_cpu and work.width == 4):
        statistics += shape.heads  # logsumexp; on the CPU if attention.c is used
    return work.width * values + 4 * statistics


def places(shape: ModelShape, work: Work) -> int:
    """Bytes per token for its position, shared by all layers: angles, and slots as int32."""
    kinds = len(shape.windows) if shape.architecture == "gemma3_text" else 1  # sets of angles
    slots = packed(shape) and not flash(shape, work)
    angles = 2 * kinds * 4 * shape.head_dim
    return angles + (2 * 4 * (shape.heads + shape.kv_heads) if slots else 0)


def factors(roles: Roles, work: Work) -> int:
    """Bytes of A and B in the form that products use (`Thin`): stacked, cast, B laid out like A."""
    values = 0
    for group in GROUPS:
        adapted = [roles[role] for role in group if role in roles]
        values += sum(rank * d_out for rank, _, d_out in adapted)
        # A single float32 A is the parameter itself, unless it is computed as a product or a sum.
        made = work.starts or work.formula == "adalora"
        if work.width != 4 or len(adapted) > 1 or made:
            values += sum(rank * d_in for rank, d_in, _ in adapted)
    return work.width * values


def temporaries(shape: ModelShape, roles: Roles, work: Work) -> int:
    """Peak bytes alive during the forward or backward pass of a layer, not counting what it keeps
    but counting the incoming gradient, or with checkpointing the recomputed output."""
    h, n = shape.hidden, work.real_tokens
    forward = 3 * h + shape.intermediate  # at the end: input and product of the MLP, its sum twice
    forward += h if _scales_residual(shape) else 0
    plain = 0 if work.on_cpu else 8 * shape.intermediate  # bytes: the gate in float32, twice
    again = h if work.checkpointing else 0
    moments = [work.width * (forward + again) * n + plain * n]
    moments += (work.width * again * n + one for one in _backward_moments(shape, roles, work))
    return max(moments)


def _backward_moments(shape: ModelShape, roles: Roles, work: Work) -> Iterator[int]:
    """Bytes at each point of `_layer_backward` that may be its peak."""
    h, n, w = shape.hidden, work.real_tokens, work.width
    q, kv = _head_widths(shape)
    of_qkv, of_o, of_mlp, of_down = (
        sum(roles[role][0] for role in group if role in roles) for group in GROUPS
    )
    drop_qkv, drop_o, drop_mlp, drop_down = (_dropout_bytes(roles, group, work) for group in GROUPS)
    dy = h
    d_out = h if _scales_residual(shape) or _has_four_norms(shape) else 0
    # Where torch formulas replace the loops of kernels.c, as on CUDA: their float32 steps.
    of_norm, of_gate, of_rotary = (0, 0, 0) if work.on_cpu else _formula_bytes(w)
    yield (w * (dy + d_out + of_down + shape.intermediate) + of_gate * shape.intermediate) * n
    yield (w * (dy + d_out + of_down + shape.intermediate) + drop_down) * n
    yield (w * (dy + d_out + of_mlp + 2 * h) + drop_mlp) * n
    yield (w * (dy + d_out + of_mlp + 3 * h) + of_norm * h) * n  # d_middle, the norm, its gradient
    before = dy + h + d_out + of_o + q  # with d_middle and d_attended
    yield (w * before + drop_o) * n
    yield w * before * n + _attention_backward(shape, work)
    after = before + q + 2 * kv  # dq, dk, dv
    yield (w * after + of_rotary * q) * n
    if shape.qk_norm:
        yield (w * (after + q) + of_norm * q) * n
    yield (w * (dy + h + q + 2 * kv + of_qkv + 2 * h) + max(of_norm * h, drop_qkv)) * n


def _dropout_bytes(roles: Roles, group: tuple[str, ...], work: Work) -> int:
    """Bytes per token that layers with one input use, one after another, while the gradient of that
    input is computed: the adapter's input gradient; in torch formulas also its dropped-out form and
    the mask."""
    d_in = max((roles[role][1] for role in group if role in roles), default=0)
    if not work.dropout:
        return 0
    return d_in * (work.width if work.on_cpu else 2 * work.width + 1)


def _formula_bytes(width: int) -> tuple[int, int, int]:
    """Bytes per value that the torch formulas in `pieces.py` use for the gradients of a norm, a
    gated activation and a rotation."""
    return (12, 20, 12) if width == 4 else (16, 18, 16)


def _attention_backward(shape: ModelShape, work: Work) -> int:
    """Bytes used to compute the gradients of attention, with dq, dk and dv themselves."""
    (q, kv), n, w = _head_widths(shape), work.real_tokens, work.width
    if flash(shape, work):
        repeated = 2 * q if kv != q else 0
        return (w * (q + 2 * kv + repeated) + 4 * q + 4 * shape.heads) * n  # and dq in float32
    # Query heads that share a kv head: everything is put into slots (`attention.packing.Pack`).
    slots = 3 * q + 4 * kv if packed(shape) else q + 2 * kv
    found = 0
    for window in shape.windows:
        scores, masks, making = _score_bytes(shape, work, window)
        found = max(found, w * slots * n + scores + masks + making)
    return found


def packed(shape: ModelShape) -> bool:
    """Whether examples of similar length go through attention together."""
    return shape.kv_heads < shape.heads


def _score_bytes(shape: ModelShape, work: Work, window: int | None) -> tuple[int, int, int]:
    """Bytes of a query block's scores, their gradients and the product of both
    (`attention.blocks.Scratch`); of the masks for all kinds of blocks; and of making one mask."""
    longest = work.longest_example
    block = min(query_rows(work.width), longest)
    if window is None or window >= longest:
        widest, sizes = longest, {(block, 0)}
    else:
        widest = min(longest, window + block - 1)
        starts = range(0, longest, block)
        sizes = {(min(block, longest - at), min(at, window - 1)) for at in starts}
    count = 3 if shape.eager else 2  # with a cap, its slope too
    masks = [queries * (queries + before) for queries, before in sizes]
    scores = work.width * count * shape.heads * block * widest
    if packed(shape):
        of_one = work.width * shape.heads * block * longest
        scores *= examples_together(of_one, work.real_tokens // longest)
    elif work.on_cpu and work.width == 4:
        scores += work.width * shape.heads * max(block, widest) * shape.head_dim
    return scores, work.width * sum(masks), UNDER_WAY * max(masks)


def flash(shape: ModelShape, work: Work) -> bool:
    """Whether attention runs in torch's CUDA kernel (`ops/attention/varlen.py`)."""
    narrow = shape.head_dim % 8 == 0 and shape.head_dim <= 256
    return not work.on_cpu and work.width == 2 and not shape.eager and narrow


def final_norm(shape: ModelShape, work: Work) -> int:
    """Peak bytes during the backward pass of the final norm, which autograd runs, not counting
    what the norm kept; the head's input is already freed."""
    gone = work.width * work.trained_share * work.tokens
    return round(shape.hidden * (OF_FINAL_NORM * work.real_tokens - gone))


def _head_widths(shape: ModelShape) -> tuple[int, int]:
    """Widths of q, and of k or v, over all heads."""
    return shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim


def _has_four_norms(shape: ModelShape) -> bool:
    return shape.norms == 4


def _scales_residual(shape: ModelShape) -> bool:
    """Whether attention's and MLP's outputs are scaled before they are added (`Shape.residual`)."""
    return shape.architecture == "granite"
