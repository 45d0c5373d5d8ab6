"""Memory that the layers of transformers keep for their backward pass, operation by operation.

Autograd keeps an operation's input if a requested gradient needs it: a frozen linear layer keeps
nothing and an adapter its input; norms, activations and attention always keep theirs.
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
"""Values kept per value, if not one: the steps of a formula written out in Python."""
BY_SEGMENTS = frozenset({
    "llama", "granite", "smollm3", "mistral", "mixtral", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe",
    "gemma", "gemma2", "gemma3_text", "olmo2", "phi3", "phi", "starcoder2", "gpt2", "gpt_neox",
})  # fmt: skip
"""Architectures to which `models/segments/install.py` gives attention by segments."""


def _packed_inputs(shape: ModelShape, roles: Roles, work: Work, framework: Framework) -> float:
    """Bytes per token of the inputs that bitsandbytes keeps for 4-bit layers (MatMul4Bit:
    ctx.tensors = (A, B)), unless an adapter already keeps the same tensor."""
    w, h = work.width, shape.hidden
    own = bool(work.dropout or framework.dropout or (framework.casts_input and w != 4))
    into = [QKV] if shape.norms == 1 else [QKV, INTO_MLP]
    total = sum(w * h for group in into if own or not any(role in roles for role in group))
    inner = shape.intermediate
    if shape.experts is None and (own or not any(role in roles for role in OUT_OF_MLP)):
        total += w * inner
    return total


def inputs_left(shape: ModelShape, work: Work) -> int:
    """Bytes per token that MatMul4Bit still holds after the backward pass of a block: the inputs
    are attributes of its graph nodes, which autograd does not free as it frees saved tensors."""
    into = 1 if shape.norms == 1 else 2
    inner = 0 if shape.experts else shape.intermediate
    return work.width * (into * shape.hidden + shape.heads * shape.head_dim + inner)


def before_first(shape: ModelShape, roles: Roles, work: Work, framework: Framework) -> float:
    """Bytes per token that the lowest adapted block does not keep: nothing before its first adapter
    needs a gradient."""
    # OLMo 2 has its norms after attention and MLP.
    of_norm = 0 if shape.architecture == "olmo2" else norm(shape, work)
    of_mlp = any(role in INTO_MLP + OUT_OF_MLP for role in roles)
    if any(role in QKV for role in roles):
        if work.dropout or framework.dropout:  # no dropout mask either
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
    """Bytes per token: the input, in float32 for RMSNorm and as it is for LayerNorm; statistics."""
    h = shape.hidden
    if shape.norm == "layer":
        return (4 if work.autocast else work.width) * h + 8
    scaled = (4 if work.autocast else work.width) * h if work.full else 0
    return 4 * h + 4 + scaled


def block(shape: ModelShape, roles: Roles, work: Work, framework: Framework) -> float:
    """Bytes per token that one block keeps."""
    return (
        _norm_bytes(shape, work)
        + _input_bytes(shape, roles, work, framework)
        + _attention_bytes(shape, roles, work, framework)
        + _mlp_bytes(shape, roles, work, framework)
        + _adapter_bytes(roles, work, framework)
        + (_packed_inputs(shape, roles, work, framework) if work.quantized else 0)
    )


def _norm_bytes(shape: ModelShape, work: Work) -> float:
    # Two parallel norms (GPT-NeoX, Falcon) keep the same input.
    total: float = norm(shape, work) * (1 if shape.parallel else shape.norms)
    if shape.qk_norm:
        values = (shape.heads + shape.kv_heads) * shape.head_dim
        total += 4 * values + 4 * (shape.heads + shape.kv_heads)
        total += work.width * values if work.full else 0
    return total


def _input_bytes(shape: ModelShape, roles: Roles, work: Work, framework: Framework) -> float:
    """Bytes per token of linear layers' inputs kept for weight gradients and not kept anyway."""
    w, h = work.width, shape.hidden
    if work.full:
        if work.autocast:
            # Each product makes its own cast of its input: q, k and v three times the same one.
            own = sum(m.role in QKV + INTO_MLP for m in shape.modules) / shape.layers
            return w * h * own
        return w * h if shape.norms == 1 else 2 * w * h
    dropout = work.dropout or framework.dropout
    if dropout or (framework.casts_input and w != 4):
        # Each adapter has its own copy, in float32 or with some values dropped; and the mask.
        copy = 4 if framework.casts_input else w
        mask = _mask_bytes(work) if dropout else 0
        return (copy + mask) * _values_read(roles, framework)
    groups = [any(role in roles for role in group) for group in (QKV, INTO_MLP)]
    # A block with one norm gives both the same input.
    return w * h * (max(groups) if shape.norms == 1 else sum(groups))


def _values_read(roles: Roles, framework: Framework) -> int:
    """Values per token that adapters read, each its own copy; fused q, k and v share an adapter."""
    widths = [d_in for role, (_, d_in, _) in roles.items() if role not in QKV]
    of_qkv = [roles[role][1] for role in QKV if role in roles]
    return sum(widths) + (max(of_qkv, default=0) if framework.fused_qkv else sum(of_qkv))


def _mask_bytes(work: Work) -> int:
    """Bytes per value of the dropout mask."""
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
        values = q + 2 * kv  # all three are views of the same product
    else:
        values = q + kv + (q + 2 * kv)  # rotated q and k, and the product that v is a view of
    adapts_out = work.full or "o" in roles
    total: float = w * values
    if segments:
        return total + w * q + (4 * shape.heads if fast_layer_bytes.flash(shape, work) else 0)
    if eager:
        # The softmax in float32, and cast for the product with v; capped scores keep their tanh.
        copies = 4 + (w if w != 4 else 0) + (w if shape.architecture == "gemma2" else 0)
        return total + copies * shape.heads * work.length + (w * q if adapts_out else 0)
    total += w * q + 4 * shape.heads  # the output, and each row's logsumexp
    # The output of attention has the memory layout of q: if q was reassembled, the next layer's
    # input is a copy.
    total += w * q if adapts_out and shape.rotary == "part" else 0
    return total + (w * work.length if masked else 0)


def by_segments(shape: ModelShape, framework: Framework) -> bool:
    """Whether attention is that of `ops/attention`, which keeps only its three inputs and its
    output, and needs neither a mask nor repeated k and v."""
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
        # For each active expert: gate, activation and up, and the output to be weighted.
        one = 3 * shape.experts.intermediate + shape.hidden
        one += shape.experts.intermediate + shape.hidden if work.full else 0
        # Adapters keep their inputs and their thin products.
        one += sum(roles[r][0] + roles[r][1] for r in EXPERTS if r in roles)
        return w * one * shape.experts.active + 4 * shape.experts.count
    fused = framework.own_ops and work.fused and shape.activation in fast_layer_bytes.ACTIVATIONS
    factor = 1 if fused else KEPT_BY_ACTIVATION.get(shape.activation, 1)
    if shape.gated:
        return w * inner * (factor + 2 + (1 if last else 0))
    # relu keeps its output, which is the input that the next layer would keep.
    return w * inner * (factor + (1 if last and shape.activation != "relu" else 0))


def _adapter_bytes(roles: Roles, work: Work, framework: Framework) -> float:
    w = 4 if framework.casts_input else work.width
    total = 0.0
    for role, (rank, _, d_out) in roles.items():
        if role in EXPERTS:
            continue  # counted in `_mlp_bytes`, since a token goes through several
        total += w * rank
        if work.formula == "dora":
            total += work.width * d_out  # the factor that the gain multiplies
        if framework.scatters and role in QKV:
            total += work.width * d_out
    return total


def casts(shape: ModelShape, adapted: Mapping[str, int], work: Work, framework: Framework) -> int:
    """Bytes of 16-bit copies of float32 weights that products keep: adapters, or all weights."""
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
    """The same for one adapter: `lora_linear` casts again in the backward pass and keeps A and B,
    which are separate tensors if they are computed from others."""
    of_A, of_B, w = rank * module.d_in, rank * module.d_out, work.width
    if module.role in ("embedding", *EXPERTS):
        of_A = 0 if module.role == "embedding" else of_A  # a table lookup keeps nothing
        return 0 if w == 4 else w * (of_A + of_B) * module.stack
    made = 4 * (of_A + of_B) if work.starts else 4 * of_A if work.formula == "adalora" else 0
    dora = work.formula == "dora"
    if not (dora or work.dropout):
        return made
    times = 2 if dora and work.dropout else 1  # once with and once without dropout
    return times * (w * of_B + (made if w == 4 else w * of_A))  # float32 B is rearranged too


def temporaries(shape: ModelShape, work: Work) -> int:
    """Bytes per token of the gradients alive together in an MLP: of its input, output and sum."""
    inner = shape.intermediate * (3 if shape.gated else 2)
    return work.width * (inner + 2 * shape.hidden)
