"""The ops that `bench ops` times, each with the plain formula that it stands for.

A new op is a function here, which makes both from a dtype and a number of tokens, and a line in
OPS. Sizes are SmolLM2-135M's. Ops are imported where they are used: what this checkout lacks is
left out.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

HIDDEN, INNER, HEADS, KV_HEADS, HEAD, VOCABULARY, RANK = 576, 1536, 9, 3, 64, 49152, 8
EPS, SCALE = 1e-5, 2.0
EXAMPLE = 217  # tokens, GSM8K's mean
WITHIN = {torch.float32: 1e-4, torch.bfloat16: 0.05}
"""How far results may lie apart, over the largest value of the tensor."""


@dataclass(frozen=True)
class Twins:
    """Two ways to the same outputs and gradients, given what `fresh` makes, which is not timed."""

    setting: str
    fast: Callable[[Any], list[Tensor]]
    naive: Callable[[Any], list[Tensor]]
    fresh: Callable[[], Any] = lambda: None


def differentiated(
    compute: Callable[..., Tensor], inputs: Sequence[Tensor], direction: Tensor
) -> Callable[[Any], list[Tensor]]:
    """The output and the gradients of those of its inputs that want one."""

    def run(_: Any) -> list[Tensor]:
        y = compute(*inputs)
        wanted = [x for x in inputs if x.requires_grad]
        return [y, *torch.autograd.grad(y, wanted, direction)]

    return run


def drawn(*shape: int, dtype: torch.dtype, size: float = 1.0, grad: bool = False) -> Tensor:
    return (torch.randn(*shape) * size).to(dtype).requires_grad_(grad)


def linear(dtype: torch.dtype, tokens: int, *, d_in: int, d_out: int) -> Twins:
    """Base and adapter in one pass, against two products more."""
    from loractl.ops.lora_linear import Linear, lora_linear

    x, W = drawn(tokens, d_in, dtype=dtype, grad=True), drawn(d_out, d_in, dtype=dtype, size=0.05)
    shapes = (RANK, d_in), (d_out, RANK)
    A, B = (drawn(*shape, dtype=torch.float32, size=0.05, grad=True) for shape in shapes)

    def formula(x: Tensor, A: Tensor, B: Tensor) -> Tensor:
        return F.linear(x, W) + SCALE * F.linear(F.linear(x, A.to(dtype)), B.to(dtype))

    layer = Linear(W, factors=lambda: (A, B), scale=SCALE)
    dy = drawn(tokens, d_out, dtype=dtype)
    return Twins(
        f"{d_in} to {d_out}, rank {RANK}",
        differentiated(lambda x, *_: lora_linear(x, layer), (x, A, B), dy),
        differentiated(formula, (x, A, B), dy),
    )


def head(dtype: torch.dtype, tokens: int) -> Twins:
    """Head and cross-entropy in chunks, against all logits."""
    from loractl.ops.cross_entropy import Head, head_loss

    h, W = drawn(tokens, HIDDEN, dtype=dtype, grad=True), drawn(VOCABULARY, HIDDEN, dtype=dtype)
    W.mul_(0.05)
    targets, one = torch.randint(0, VOCABULARY, (tokens,)), torch.ones(())

    def formula(h: Tensor) -> Tensor:
        return F.cross_entropy(F.linear(h, W).float(), targets, reduction="sum")

    return Twins(
        f"{HIDDEN} to {VOCABULARY}",
        differentiated(lambda h: head_loss(h, Head(W), targets), (h,), one),
        differentiated(formula, (h,), one),
    )


def attention(dtype: torch.dtype, tokens: int, *, example: int | None) -> Twins:
    """Attention within examples, against SDPA over the row (with a mask where it is packed)."""
    from loractl.ops.attention.autograd import segment_attention
    from loractl.ops.segments import segments_of

    size = min(example or tokens, tokens)
    segments = segments_of((torch.arange(tokens) % size)[None])
    heads = HEADS, KV_HEADS, KV_HEADS
    q, k, v = (drawn(tokens, n, HEAD, dtype=dtype, grad=True) for n in heads)
    scale = HEAD**-0.5
    mask = segments.mask(None, q.device) if size < tokens else None

    def formula(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))  # (1, heads, tokens, HEAD)
        k, v = (x.repeat_interleave(HEADS // KV_HEADS, 1) for x in (k, v))
        options = {"attn_mask": mask, "is_causal": mask is None, "scale": scale}
        out = F.scaled_dot_product_attention(q, k, v, **options)
        return out[0].transpose(0, 1)  # (tokens, HEADS, HEAD)

    own = partial(segment_attention, segments=segments, scale=scale)
    return Twins(
        f"{HEADS} heads of {HEAD}, {f'examples of {size}' if size < tokens else 'one example'}",
        differentiated(own, (q, k, v), dy_of(q)),
        differentiated(formula, (q, k, v), dy_of(q)),
    )


def dy_of(x: Tensor) -> Tensor:
    """A gradient for an output of this shape, the same each time."""
    return torch.randn(x.shape, generator=torch.Generator().manual_seed(1)).to(x.dtype)


def rms_norm(dtype: torch.dtype, tokens: int) -> Twins:
    from loractl.ops import pieces

    x, weight = drawn(tokens, HIDDEN, dtype=dtype, grad=True), drawn(HIDDEN, dtype=dtype)
    plain, dy = x.detach(), dy_of(x)

    def fast(dx: Tensor) -> list[Tensor]:
        y, rstd = pieces.rms_norm(plain, weight, EPS)
        pieces.rms_norm_backward_(dx, dy, plain, rstd, weight)
        return [y, dx]

    def formula(x: Tensor) -> Tensor:
        wide = x.float()
        normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + EPS)
        return weight * normed.to(dtype)

    naive = differentiated(formula, (x,), dy)
    return Twins(f"width {HIDDEN}", fast, naive, lambda: torch.zeros_like(plain))


def rotary(dtype: torch.dtype, tokens: int) -> Twins:
    from loractl.ops import pieces

    x = drawn(tokens, HEADS, HEAD, dtype=dtype, grad=True)
    angles = torch.arange(tokens)[:, None] * 10000 ** (-torch.arange(0, HEAD, 2) / HEAD)
    cos, sin = (f(torch.cat([angles, angles], -1)).to(dtype) for f in (torch.cos, torch.sin))
    dy = dy_of(x)

    def fast(given: tuple[Tensor, Tensor]) -> list[Tensor]:
        y, dx = given
        pieces.rotary_(y, cos, sin)
        pieces.rotary_(dx, cos, sin, inverse=True)
        return [y, dx]

    def formula(x: Tensor) -> Tensor:
        a, b = x.chunk(2, -1)
        return x * cos[:, None] + torch.cat([-b, a], -1) * sin[:, None]

    naive = differentiated(formula, (x,), dy)
    return Twins(f"{HEADS} heads of {HEAD}", fast, naive, lambda: (x.detach().clone(), dy.clone()))


def gated(dtype: torch.dtype, tokens: int) -> Twins:
    from loractl.ops import pieces

    gate, up = (drawn(tokens, INNER, dtype=dtype, grad=True) for _ in range(2))
    dy = dy_of(gate)

    def fresh() -> list[Tensor]:
        return [x.detach().clone() for x in (gate, up, dy)]

    def fast(given: list[Tensor]) -> list[Tensor]:
        g, u, d = given
        y = pieces.gated(g, u, activation="silu")
        pieces.gated_backward_(d, g, u, activation="silu")
        return [y, g, u]

    naive = differentiated(lambda gate, up: F.silu(gate) * up, (gate, up), dy)
    return Twins(f"SwiGLU, width {INNER}", fast, naive, fresh)


def softmax_loss(dtype: torch.dtype, tokens: int) -> Twins:
    from loractl.ops import pieces

    rows = min(tokens, 256)
    logits = drawn(rows, VOCABULARY, dtype=dtype, size=3.0, grad=True)
    targets = torch.randint(0, VOCABULARY, (rows,))

    def fast(given: Tensor) -> list[Tensor]:
        return [pieces.softmax_loss_(given, targets).sum(), given]

    def formula(x: Tensor) -> Tensor:
        return F.cross_entropy(x.float(), targets, reduction="sum")

    naive = differentiated(formula, (logits,), torch.ones(()))
    setting = f"{rows} rows of {VOCABULARY} logits"
    return Twins(setting, fast, naive, lambda: logits.detach().clone())


def layer(dtype: torch.dtype, tokens: int) -> Twins:
    """A whole decoder layer with adapters on its seven linear layers, against transformers' own."""
    import copy

    from transformers import LlamaConfig, LlamaForCausalLM

    from loractl.lora.inject import adaptable, inject_
    from loractl.lora.layer import LoraLayer
    from loractl.lora.ranks import ModuleRank
    from loractl.models.fast.read_layer import read_layer
    from loractl.ops.layer.block import Place, block
    from loractl.ops.segments import segments_of

    config = LlamaConfig(
        vocab_size=8, hidden_size=HIDDEN, intermediate_size=INNER, num_hidden_layers=1,
        num_attention_heads=HEADS, num_key_value_heads=KV_HEADS, attn_implementation="sdpa",
    )  # fmt: skip
    model = LlamaForCausalLM(config).to(dtype)
    paths = [path for path, kind in adaptable(model).items() if ".layers." in path]
    inject_(model, {path: ModuleRank(RANK, SCALE * RANK, SCALE) for path in paths})
    plain = copy.deepcopy(model)
    for module in plain.modules():
        if isinstance(module, LoraLayer):
            module.forward = partial(_formula, module)
    x = drawn(1, tokens, HIDDEN, dtype=dtype, grad=True)
    positions = torch.arange(tokens)[None]
    cos, sin = model.model.rotary_emb(x, positions)
    fast_layer = read_layer(model.model.layers[0], "layers.0")
    place = Place(segments_of(positions), cos[0], sin[0])
    ours, theirs = (
        [p for p in one.model.layers[0].parameters() if p.requires_grad] for one in (model, plain)
    )
    for a, b in zip(ours, theirs, strict=True):
        value = torch.randn(a.shape) * 0.05
        a.data.copy_(value)
        b.data.copy_(value)

    def fast(x: Tensor, *_: Tensor) -> Tensor:
        return block(x[0], fast_layer, place)[None]

    def formula(x: Tensor, *_: Tensor) -> Tensor:
        found = plain.model.layers[0](x, position_embeddings=(cos, sin), attention_mask=None)
        return found[0] if isinstance(found, tuple) else found

    dy = dy_of(x)
    return Twins(
        f"hidden {HIDDEN}, MLP {INNER}, rank {RANK}, one example",
        differentiated(fast, (x, *ours), dy),
        differentiated(formula, (x, *theirs), dy),
    )


def _formula(layer: Any, x: Tensor) -> Tensor:
    A, B = layer.A.to(x.dtype), layer.B.to(x.dtype)
    return layer.base(x) + layer.scale * F.linear(F.linear(x, A), B)


OPS: dict[str, Callable[[torch.dtype, int], Twins]] = {
    "lora_linear, q": partial(linear, d_in=HIDDEN, d_out=HIDDEN),
    "lora_linear, up": partial(linear, d_in=HIDDEN, d_out=INNER),
    "lora_linear, down": partial(linear, d_in=INNER, d_out=HIDDEN),
    "head_loss": head,
    "segment_attention, packed": partial(attention, example=EXAMPLE),
    "segment_attention, one example": partial(attention, example=None),
    "rms_norm": rms_norm,
    "rotary": rotary,
    "gated": gated,
    "softmax_loss": softmax_loss,
    "block": layer,
}
