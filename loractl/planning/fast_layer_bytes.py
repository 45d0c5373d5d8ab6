"""What the hand-written layers of `ops/layer/` keep and take, counted line by line of its code.

Sizes are in values a token until the last moment; `scores` alone does not grow with the tokens.
Not counted, here nor anywhere: without the C files, on processors with AVX-512 that do not know
bfloat16, oneDNN makes each product of bfloat16 in a float32 copy first.
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
"""Those of config.json that `models/fast/activations.py` makes one operation of."""
GROUPS = (("q", "k", "v"), ("o",), ("gate", "up"), ("down",))
"""Layers that share an input, and so one thin product."""
UNDER_WAY = 9
"""Bytes a value of a mask that are gone when it is made: distances in int64, and what is hidden."""

OF_FINAL_NORM = 20
"""Bytes a value: five tensors in float32 that live together (torch 2.13, transformers 5.23)."""


def takes(shape: ModelShape, adapted: Mapping[str, int], work: Work, framework: Framework) -> bool:
    """Whether a run goes through these layers; where not, through those of transformers."""
    special = work.full or work.quantized
    own_head = work.whole_head or shape.head in adapted  # then transformers' model runs as a whole
    return (
        framework.own_ops
        and work.fast
        and shape.architecture in MODEL_TYPES
        and shape.activation in ACTIVATIONS
        and work.formula in ("lora", "adalora")
        and not (special or own_head)
    )


def layer(shape: ModelShape, roles: Roles, work: Work) -> int:
    """Bytes a token that one layer keeps (`_Kept`), apart from its input."""
    q, kv = _head_widths(shape)
    values = q + 2 * kv + q  # q, k and v; what attention gave
    values += shape.hidden + 2 * shape.intermediate  # the sum after attention; gate and up
    values += sum(rank for rank, _, _ in roles.values())
    statistics = 2
    if shape.qk_norm:
        values += q + kv  # as they were before their norms
        statistics += shape.heads + shape.kv_heads
    if _has_four_norms(shape):
        values += 2 * shape.hidden
        statistics += 2
    if flash(shape, work) or (work.on_cpu and work.width == 4):
        statistics += shape.heads  # logsumexp; on the CPU of what attention.c serves for
    return work.width * values + 4 * statistics


def places(shape: ModelShape, work: Work) -> int:
    """Bytes a token that tell all layers where it stands: its angles, and its slots as int32."""
    kinds = len(shape.windows) if shape.architecture == "gemma3_text" else 1  # sets of angles
    slots = packed(shape) and not flash(shape, work)
    angles = 2 * kinds * 4 * shape.head_dim
    return angles + (2 * 4 * (shape.heads + shape.kv_heads) if slots else 0)


def factors(roles: Roles, work: Work) -> int:
    """Bytes of A and B as products take them (`Thin`): stacked, cast, and B laid out as A."""
    values = 0
    for group in GROUPS:
        adapted = [roles[role] for role in group if role in roles]
        values += sum(rank * d_out for rank, _, d_out in adapted)
        # A float32 A that stands alone is the parameter itself, unless it is a product or a sum.
        made = work.starts or work.formula == "adalora"
        if work.width != 4 or len(adapted) > 1 or made:
            values += sum(rank * d_in for rank, d_in, _ in adapted)
    return work.width * values


def temporaries(shape: ModelShape, roles: Roles, work: Work) -> int:
    """Bytes that live together, at most, while a layer goes forward or backward, apart from what it
    keeps: the gradient that comes in, or with checkpointing the output that is made again, too."""
    h, n = shape.hidden, work.real_tokens
    forward = 3 * h + shape.intermediate  # at the end: input and product of the MLP, twice its sum
    forward += h if _scales_residual(shape) else 0
    plain = 0 if work.on_cpu else 8 * shape.intermediate  # bytes: the gate in float32, twice
    again = h if work.checkpointing else 0
    moments = [work.width * (forward + again) * n + plain * n]
    moments += (work.width * again * n + one for one in _backward_moments(shape, roles, work))
    return max(moments)


def _backward_moments(shape: ModelShape, roles: Roles, work: Work) -> Iterator[int]:
    """Bytes of the moments of `_layer_backward` that can be its worst."""
    h, n, w = shape.hidden, work.real_tokens, work.width
    q, kv = _head_widths(shape)
    of_qkv, of_o, of_mlp, of_down = (
        sum(roles[role][0] for role in group if role in roles) for group in GROUPS
    )
    drop_qkv, drop_o, drop_mlp, drop_down = (_dropout_bytes(roles, group, work) for group in GROUPS)
    dy = h
    d_out = h if _scales_residual(shape) or _has_four_norms(shape) else 0
    # Formulas of torch in place of the loops of kernels.c, as on CUDA: their float32 steps.
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
    """Bytes a token that layers of one input take, one after another, while the gradient of that
    input is made: what goes through the adapter; in formulas of torch also it with dropout, and
    the mask."""
    d_in = max((roles[role][1] for role in group if role in roles), default=0)
    if not work.dropout:
        return 0
    return d_in * (work.width if work.on_cpu else 2 * work.width + 1)


def _formula_bytes(width: int) -> tuple[int, int, int]:
    """Bytes a value that `pieces.py` takes in torch's own formulas for the gradients of a norm, of
    a gated activation and of a rotation."""
    return (12, 20, 12) if width == 4 else (16, 18, 16)


def _attention_backward(shape: ModelShape, work: Work) -> int:
    """Bytes that the gradients of attention take with their own, dq, dk and dv."""
    (q, kv), n, w = _head_widths(shape), work.real_tokens, work.width
    if flash(shape, work):
        repeated = 2 * q if kv != q else 0
        return (w * (q + 2 * kv + repeated) + 4 * q + 4 * shape.heads) * n  # and dq in float32
    # Query heads that share a kv head: all is put into slots (`attention.packing.Pack`).
    slots = 3 * q + 4 * kv if packed(shape) else q + 2 * kv
    found = 0
    for window in shape.windows:
        scores, masks, making = _score_bytes(shape, work, window)
        found = max(found, w * slots * n + scores + masks + making)
    return found


def packed(shape: ModelShape) -> bool:
    """Whether examples of like length attend together."""
    return shape.kv_heads < shape.heads


def _score_bytes(shape: ModelShape, work: Work, window: int | None) -> tuple[int, int, int]:
    """Bytes of the scores of a block of queries, their gradients and a product of them
    (`attention.blocks.Scratch`), of the masks of all kinds of blocks, and of one mask while it is
    made."""
    longest = work.longest_example
    block = min(query_rows(work.width), longest)
    if window is None or window >= longest:
        widest, sizes = longest, {(block, 0)}
    else:
        widest = min(longest, window + block - 1)
        starts = range(0, longest, block)
        sizes = {(min(block, longest - at), min(at, window - 1)) for at in starts}
    count = 3 if shape.eager else 2  # with a cap its slope
    masks = [queries * (queries + before) for queries, before in sizes]
    scores = work.width * count * shape.heads * block * widest
    if packed(shape):
        of_one = work.width * shape.heads * block * longest
        scores *= examples_together(of_one, work.real_tokens // longest)
    elif work.on_cpu and work.width == 4:
        scores += work.width * shape.heads * max(block, widest) * shape.head_dim
    return scores, work.width * sum(masks), UNDER_WAY * max(masks)


def flash(shape: ModelShape, work: Work) -> bool:
    """Whether attention goes to torch's kernel for CUDA (`ops/attention/varlen.py`)."""
    narrow = shape.head_dim % 8 == 0 and shape.head_dim <= 256
    return not work.on_cpu and work.width == 2 and not shape.eager and narrow


def final_norm(shape: ModelShape, work: Work) -> int:
    """Bytes at most while the norm above the layers goes backward, which autograd does, apart from
    what it kept; what entered the head is gone by then."""
    gone = work.width * work.trained_share * work.tokens
    return round(shape.hidden * (OF_FINAL_NORM * work.real_tokens - gone))


def _head_widths(shape: ModelShape) -> tuple[int, int]:
    """Of q, and of k or v, all heads together."""
    return shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim


def _has_four_norms(shape: ModelShape) -> bool:
    return shape.norms == 4


def _scales_residual(shape: ModelShape) -> bool:
    """Whether attention and MLP are multiplied before they are added (`Shape.residual`)."""
    return shape.architecture == "granite"
