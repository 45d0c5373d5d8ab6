"""What the layers of transformers keep for their backward pass, counted operation by operation.

Autograd keeps an operation's input where it needs it for a gradient that is asked for: a frozen
linear layer keeps nothing, an adapter its input, a norm, an activation and attention always.
"""

from collections.abc import Mapping

from loractl.models.shape.types import ModelShape, Module
from loractl.planning import fast_layer_bytes
from loractl.planning.frameworks import Framework
from loractl.planning.work import INTO_MLP, OUT_OF_MLP, QKV, Roles, Work

EXPERTS = ("experts_up", "experts_down")
KEPT_BY_ACTIVATION = {
    "gelu_new": 4, "gelu_accurate": 4, "gelu_python_tanh": 4, "gelu_python": 3, "gelu_fast": 7,
    "gelu_10": 2, "quick_gelu": 2,
}  # fmt: skip
"""Values kept a value, where it is not one: the steps of a formula written out in Python."""
BY_SEGMENTS = frozenset({
    "llama", "granite", "smollm3", "mistral", "mixtral", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe",
    "gemma", "gemma2", "gemma3_text", "olmo2", "phi3", "phi", "starcoder2", "gpt2", "gpt_neox",
})  # fmt: skip
"""Architectures that `models/segments/install.py` makes attend by segments."""


def _packed_inputs(shape: ModelShape, roles: Roles, work: Work, framework: Framework) -> float:
    """Inputs that bitsandbytes keeps of every 4-bit layer (MatMul4Bit: ctx.tensors = (A, B)), where
    no adapter keeps the same tensor already."""
    w, h = work.width, shape.hidden
    own = bool(work.dropout or framework.dropout or (framework.casts_input and w != 4))
    into = [QKV] if shape.norms == 1 else [QKV, INTO_MLP]
    total = sum(w * h for group in into if own or not any(role in roles for role in group))
    inner = shape.intermediate
    if shape.experts is None and (own or not any(role in roles for role in OUT_OF_MLP)):
        total += w * inner
    return total


def inputs_left(shape: ModelShape, work: Work) -> int:
    """Bytes a token of what MatMul4Bit has of one block after it went backward: its inputs hang at
    its nodes as attributes, which autograd does not free as it frees saved tensors."""
    into = 1 if shape.norms == 1 else 2
    inner = 0 if shape.experts else shape.intermediate
    return work.width * (into * shape.hidden + shape.heads * shape.head_dim + inner)


def before_first(shape: ModelShape, roles: Roles, work: Work, framework: Framework) -> float:
    """Bytes a token that the lowest adapted block does not keep: what stands before its first
    adapter needs no gradient."""
    # OLMo 2 has its norms behind attention and MLP.
    of_norm = 0 if shape.architecture == "olmo2" else norm(shape, work)
    of_mlp = any(role in INTO_MLP + OUT_OF_MLP for role in roles)
    if any(role in QKV for role in roles):
        if work.dropout or framework.dropout:  # nor is there a mask of what was dropped
            of_norm += _mask_bytes(work) * _values_read(
                {r: roles[r] for r in QKV if r in roles}, framework
            )
        return of_norm + (
            _mlp_bytes(shape, {}, work, framework) if shape.parallel and not of_mlp else 0
        )
    attention = _attention_bytes(shape, {}, work, framework)
    if "o" in roles:
        copied = work.eager or shape.eager or shape.rotary == "part"
        own = 0 if copied and not by_segments(shape, framework) else 1
        return of_norm + attention - own * work.width * shape.heads * shape.head_dim
    both = of_norm if shape.parallel else 2 * of_norm
    if any(role in INTO_MLP for role in roles):
        return both + attention
    return both + attention + _mlp_bytes(shape, {}, work, framework)


def norm(shape: ModelShape, work: Work) -> int:
    """Bytes a token: RMSNorm keeps its input in float32, LayerNorm as it comes; and statistics."""
    h = shape.hidden
    if shape.norm == "layer":
        return (4 if work.autocast else work.width) * h + 8
    scaled = (4 if work.autocast else work.width) * h if work.full else 0
    return 4 * h + 4 + scaled


def block(shape: ModelShape, roles: Roles, work: Work, framework: Framework) -> float:
    """Bytes a token that one block keeps."""
    return (
        _norm_bytes(shape, work)
        + _input_bytes(shape, roles, work, framework)
        + _attention_bytes(shape, roles, work, framework)
        + _mlp_bytes(shape, roles, work, framework)
        + _adapter_bytes(roles, work, framework)
        + (_packed_inputs(shape, roles, work, framework) if work.quantized else 0)
    )


def _norm_bytes(shape: ModelShape, work: Work) -> float:
    # Two norms side by side (GPT-NeoX, Falcon) keep the same input.
    total: float = norm(shape, work) * (1 if shape.parallel else shape.norms)
    if shape.qk_norm:
        values = (shape.heads + shape.kv_heads) * shape.head_dim
        total += 4 * values + 4 * (shape.heads + shape.kv_heads)
        total += work.width * values if work.full else 0
    return total


def _input_bytes(shape: ModelShape, roles: Roles, work: Work, framework: Framework) -> float:
    """Inputs of linear layers that a gradient of weights needs, apart from what is kept anyway."""
    w, h = work.width, shape.hidden
    if work.full:
        if work.autocast:
            # Each product casts its input anew: q, k and v three times the same.
            own = sum(m.role in QKV + INTO_MLP for m in shape.modules) / shape.layers
            return w * h * own
        return w * h if shape.norms == 1 else 2 * w * h
    dropout = work.dropout or framework.dropout
    if dropout or (framework.casts_input and w != 4):
        # Each adapter has a copy of its own, in float32 or with some values dropped; and the mask.
        copy = 4 if framework.casts_input else w
        mask = _mask_bytes(work) if dropout else 0
        return (copy + mask) * _values_read(roles, framework)
    groups = [any(role in roles for role in group) for group in (QKV, INTO_MLP)]
    # A block with one norm gives both the same input.
    return w * h * (max(groups) if shape.norms == 1 else sum(groups))


def _values_read(roles: Roles, framework: Framework) -> int:
    """Values that adapters read a token, each its own copy; a fused q, k and v has one adapter."""
    widths = [d_in for role, (_, d_in, _) in roles.items() if role not in QKV]
    of_qkv = [roles[role][1] for role in QKV if role in roles]
    return sum(widths) + (max(of_qkv, default=0) if framework.fused_qkv else sum(of_qkv))


def _mask_bytes(work: Work) -> int:
    """Bytes a value of what dropout keeps."""
    return work.width if work.on_cpu else 1


def _attention_bytes(shape: ModelShape, roles: Roles, work: Work, framework: Framework) -> float:
    w, q = work.width, shape.heads * shape.head_dim
    kv = shape.kv_heads * shape.head_dim
    falcon = shape.architecture == "falcon"  # repeats k and v, and always makes a mask
    segments = by_segments(shape, framework)
    eager = (work.eager or shape.eager) and not segments
    masked = (work.masked or falcon) and not eager and not segments
    repeated = kv != q and (masked or eager or framework.repeats_kv)
    keys = q if repeated else kv
    if not (framework.fused_qkv or _is_fused(shape)) or repeated or eager:
        values = q + 2 * keys
    elif shape.rotary == "none":
        values = q + 2 * kv  # all three are views of one product
    else:
        values = q + kv + (q + 2 * kv)  # rotated q and k, and the product that v is a view of
    adapts_out = work.full or "o" in roles
    total: float = w * values
    if segments:
        return total + w * q + (4 * shape.heads if fast_layer_bytes.flash(shape, work) else 0)
    if eager:
        # The softmax in float32, cast for the product with v; capped scores keep their tanh.
        copies = 4 + (w if w != 4 else 0) + (w if shape.architecture == "gemma2" else 0)
        return total + copies * shape.heads * work.length + (w * q if adapts_out else 0)
    total += w * q + 4 * shape.heads  # the output, and the logarithm of each row's sum
    # Attention lays its output out as q lies: the next layer's input is a copy where q was put
    # together anew.
    total += w * q if adapts_out and shape.rotary == "part" else 0
    return total + (w * work.length if masked else 0)


def by_segments(shape: ModelShape, framework: Framework) -> bool:
    """Whether attention is that of `ops/attention`, which keeps its three inputs and its output
    alone, and needs neither a mask nor k and v repeated."""
    return framework.own_ops and shape.architecture in BY_SEGMENTS


def _is_fused(shape: ModelShape) -> bool:
    return any(module.role == "qkv" for module in shape.modules[:8])


def _mlp_bytes(shape: ModelShape, roles: Roles, work: Work, framework: Framework) -> float:
    w, inner = work.width, shape.intermediate
    last = work.full or any(role in roles for role in OUT_OF_MLP)
    if framework.own_ops and work.dropout:
        last = (
            False  # the adapter keeps a copy with some values dropped, which `_input_bytes` counts
        )
    if shape.experts:
        # Of each active expert: gate, activation and up, and the output that is weighted.
        one = 3 * shape.experts.intermediate + shape.hidden
        one += shape.experts.intermediate + shape.hidden if work.full else 0
        # Adapters keep what enters them, and their thin products.
        one += sum(roles[r][0] + roles[r][1] for r in EXPERTS if r in roles)
        return w * one * shape.experts.active + 4 * shape.experts.count
    fused = framework.own_ops and work.fused and shape.activation in fast_layer_bytes.ACTIVATIONS
    factor = 1 if fused else KEPT_BY_ACTIVATION.get(shape.activation, 1)
    if shape.gated:
        return w * inner * (factor + 2 + (1 if last else 0))
    # What relu keeps is its output, which is what the next layer would keep.
    return w * inner * (factor + (1 if last and shape.activation != "relu" else 0))


def _adapter_bytes(roles: Roles, work: Work, framework: Framework) -> float:
    w = 4 if framework.casts_input else work.width
    total = 0.0
    for role, (rank, _, d_out) in roles.items():
        if role in EXPERTS:
            continue  # `_mlp_bytes` counts them: a token goes through several
        total += w * rank
        if work.formula == "dora":
            total += work.width * d_out  # what its gain multiplies
        if framework.scatters and role in QKV:
            total += work.width * d_out
    return total


def casts(shape: ModelShape, adapted: Mapping[str, int], work: Work, framework: Framework) -> int:
    """Copies of float32 weights in 16 bit, which products keep: of adapters, or of all weights."""
    if work.full:
        return work.width * shape.active_parameters if work.autocast else 0
    if framework.own_ops:
        return sum(_own_casts(shape.by_path[path], rank, work) for path, rank in adapted.items())
    if work.width == 4 or framework.casts_input or framework.adapter_width is None:
        return 0
    modules = (shape.by_path[path] for path in adapted)
    return work.width * sum(
        rank * (m.d_in + m.d_out) * m.stack
        for m, rank in zip(modules, adapted.values(), strict=True)
    )


def _own_casts(module: Module, rank: int, work: Work) -> int:
    """Of one adapter: `lora_linear` casts anew when it goes backward, and keeps A and B, which are
    tensors of their own where they are made of others."""
    of_A, of_B, w = rank * module.d_in, rank * module.d_out, work.width
    if module.role in ("embedding", *EXPERTS):
        of_A = 0 if module.role == "embedding" else of_A  # a table is looked up, and not kept
        return 0 if w == 4 else w * (of_A + of_B) * module.stack
    made = 4 * (of_A + of_B) if work.starts else 4 * of_A if work.formula == "adalora" else 0
    dora = work.formula == "dora"
    if not (dora or work.dropout or work.quantized):
        return made
    times = 2 if dora and work.dropout else 1  # what is dropped stands beside what is not
    return times * (w * of_B + (made if w == 4 else w * of_A))  # B is laid out anew in float32 too


def temporaries(shape: ModelShape, work: Work) -> int:
    """Bytes a token of the gradients that live together in an MLP: into it, out of it, the sum."""
    inner = shape.intermediate * (3 if shape.gated else 2)
    return work.width * (inner + 2 * shape.hidden)
