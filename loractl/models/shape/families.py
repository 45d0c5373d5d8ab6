"""How each architecture lays out its modules, as built by transformers 5. No torch.

A family is a function from the numbers in a config.json to a ModelShape. Tests build each one on
the meta device and compare every path, kind, size and the number of parameters.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from loractl.models.shape.plain import bloom, falcon, gpt2, gpt_neox, opt
from loractl.models.shape.types import Experts, ModelShape, Module, Sizes

GEMMA = ("hidden_activation", "hidden_act")


@dataclass(frozen=True)
class Llama:
    """How a descendant of Llama differs: biases, norms, and the defaults of its class."""

    qkv_bias: bool | str = False  # or the config's key for it
    o_bias: bool | str = False
    mlp_bias: bool | str = False
    norm: str = "rms"
    norms: int = 2
    norm_bias: bool = False
    qk_norm: str = ""  # "head": over a head's width; "whole": over all heads
    kv_like_heads: bool = False  # num_key_value_heads defaults to the number of heads
    own_head_dim: bool = False  # head_dim has no default and must be given
    tied: bool = False
    fused: bool = False
    gated: bool = True
    act_keys: tuple[str, ...] = ("hidden_act",)
    names: tuple[str, str, str] = ("o_proj", "up_proj", "down_proj")
    head_bias: bool = False
    rotary: str = "whole"

    def __call__(self, size: Sizes) -> ModelShape:
        hidden, layers, heads = (
            size(key) for key in ("hidden_size", "num_hidden_layers", "num_attention_heads")
        )
        kv = size("num_key_value_heads", heads if self.kv_like_heads else None)
        dim = size("head_dim", None if self.own_head_dim else hidden // heads)
        inner, vocabulary = size("intermediate_size"), size("vocab_size")
        modules = [Module("model.embed_tokens", "embedding", vocabulary, hidden, "embedding")]
        experts, sparse = mixture(size, layers)
        for layer in range(layers):
            at = f"model.layers.{layer}"
            modules += self.attention(size, f"{at}.self_attn", hidden, heads * dim, kv * dim)
            if experts and layer in sparse:
                modules += fused(experts, f"{at}.mlp.experts", hidden)
            else:
                modules += self.mlp(size, f"{at}.mlp", hidden, inner)
                continue
            if (shared := size.config.get("shared_expert_intermediate_size")) is not None:
                modules += self.mlp(size, f"{at}.mlp.shared_expert", hidden, int(shared))
                gate = f"{at}.mlp.shared_expert_gate"
                modules.append(Module(gate, "linear", hidden, 1, "other"))
        modules.append(Module("lm_head", "linear", hidden, vocabulary, "head", bias=self.head_bias))
        width = 2 if self.norm_bias else 1
        routers = experts.layers * experts.router if experts else 0
        of_qk = {"head": 2 * dim, "whole": (heads + kv) * dim, "": 0}[self.qk_norm]
        return ModelShape(
            architecture=size.config["model_type"],
            hidden=hidden, layers=layers, heads=heads, kv_heads=kv, head_dim=dim,
            intermediate=inner, vocabulary=vocabulary,
            tied=size.flag("tie_word_embeddings", self.tied),
            modules=tuple(modules),
            others=layers * (self.norms * width * hidden + of_qk) + width * hidden + routers,
            norm=self.norm, norms=self.norms, qk_norm=bool(self.qk_norm), gated=self.gated,
            activation=size.text(self.act_keys, "silu" if self.gated else "gelu_new"),
            rotary=self.rotary,
            parallel=self.norms == 1 or size.flag("use_parallel_residual", False),
            eager=size.config.get("attn_logit_softcapping") is not None,
            positions=size.optional("max_position_embeddings"),
            experts=experts,
            windows=windows(size, layers),
        )  # fmt: skip

    def attention(self, size: Sizes, at: str, hidden: int, q: int, kv: int) -> Iterable[Module]:
        bias, o_bias = told(size, self.qkv_bias), told(size, self.o_bias)
        out = Module(f"{at}.{self.names[0]}", "linear", q, hidden, "o", o_bias)
        if self.fused:
            return [out, Module(f"{at}.qkv_proj", "linear", hidden, q + 2 * kv, "qkv", bias)]
        return [
            Module(f"{at}.q_proj", "linear", hidden, q, "q", bias),
            Module(f"{at}.k_proj", "linear", hidden, kv, "k", bias),
            Module(f"{at}.v_proj", "linear", hidden, kv, "v", bias),
            out,
        ]

    def mlp(self, size: Sizes, at: str, hidden: int, inner: int) -> Iterable[Module]:
        bias = told(size, self.mlp_bias)
        _, up, down = self.names
        if not self.gated:
            return [
                Module(f"{at}.{up}", "linear", hidden, inner, "fc1", bias),
                Module(f"{at}.{down}", "linear", inner, hidden, "fc2", bias),
            ]
        last = Module(f"{at}.{down}", "linear", inner, hidden, "down", bias)
        if self.fused:
            return [Module(f"{at}.gate_up_proj", "linear", hidden, 2 * inner, "gate_up"), last]
        return [
            Module(f"{at}.gate_proj", "linear", hidden, inner, "gate", bias),
            Module(f"{at}.{up}", "linear", hidden, inner, "up", bias),
            last,
        ]


def windows(size: Sizes, layers: int) -> tuple[int | None, ...]:
    """The distinct windows of a config's layers: a number of tokens, or None for unlimited."""
    config, kind = size.config, size.config["model_type"]
    if kind == "mistral":
        return (config.get("sliding_window", 4096),)
    types = config.get("layer_types")
    if not isinstance(types, list):  # configs from before transformers wrote them out
        pattern = config.get("sliding_window_pattern") or 6
        every = {"gemma2": 2, "gemma3_text": pattern}.get(kind, 1)
        types = [
            "sliding_attention" if (n + 1) % every else "full_attention" for n in range(layers)
        ]
    slide = sorted({one == "sliding_attention" for one in types})
    return tuple(size("sliding_window", 4096) if slides else None for slides in slide) or (None,)


def told(size: Sizes, bias: bool | str) -> bool:
    return size.flag(bias, False) if isinstance(bias, str) else bias


def mixture(size: Sizes, layers: int) -> tuple[Experts | None, set[int]]:
    """The experts of a config, and the blocks that have them instead of an MLP."""
    kind = size.config["model_type"]
    if kind not in ("mixtral", "qwen2_moe", "qwen3_moe"):
        return None, set()
    count = size("num_local_experts", size.optional("num_experts"))  # two names for one number
    inner = size("intermediate_size" if kind == "mixtral" else "moe_intermediate_size")
    step, dense = size("decoder_sparse_step", 1), size.config.get("mlp_only_layers") or ()
    sparse = {n for n in range(layers) if n not in dense and (n + 1) % step == 0}
    active, hidden = size("num_experts_per_tok"), size("hidden_size")
    return Experts(count, active, inner, len(sparse), count * hidden), sparse


def fused(experts: Experts, at: str, hidden: int) -> Iterable[Module]:
    """The two parameters of a block that hold the weights of all its experts."""
    up, down = f"{at}.gate_up_proj", f"{at}.down_proj"
    count, inner = experts.count, experts.intermediate
    return [
        Module(up, "experts", hidden, 2 * inner, "experts_up", stack=count),
        Module(down, "experts", inner, hidden, "experts_down", stack=count),
    ]


def qwen(size: Sizes) -> ModelShape:
    """Qwen 1, from its own code (modeling_qwen.py): its intermediate_size counts gate and up."""
    hidden, layers, heads = (
        size(key) for key in ("hidden_size", "num_hidden_layers", "num_attention_heads")
    )
    dim, inner, vocabulary = (
        size("kv_channels", 128),
        size("intermediate_size") // 2,
        size("vocab_size"),
    )
    q = heads * dim
    modules = [Module("transformer.wte", "embedding", vocabulary, hidden, "embedding")]
    for layer in range(layers):
        at = f"transformer.h.{layer}"
        modules += [
            Module(f"{at}.attn.c_attn", "linear", hidden, 3 * q, "qkv", True),
            Module(f"{at}.attn.c_proj", "linear", q, hidden, "o"),
            Module(f"{at}.mlp.w1", "linear", hidden, inner, "up"),
            Module(f"{at}.mlp.w2", "linear", hidden, inner, "gate"),
            Module(f"{at}.mlp.c_proj", "linear", inner, hidden, "down"),
        ]
    modules.append(Module("lm_head", "linear", hidden, vocabulary, "head"))
    return ModelShape(
        architecture="qwen", hidden=hidden, layers=layers, heads=heads, kv_heads=heads,
        head_dim=dim, intermediate=inner, vocabulary=vocabulary, tied=False,
        modules=tuple(modules), others=(2 * layers + 1) * hidden,
        positions=size.optional("seq_length"),
    )  # fmt: skip


def decoder(key: str = "attention_bias", **traits: Any) -> Llama:
    """A Llama whose attention has biases if its config says so under `key`."""
    return Llama(qkv_bias=key, o_bias=key, **traits)


UNPACKABLE = ("bloom", "falcon", "opt")
"""Architectures whose examples in a packed row would see or shift each other: they place tokens by
the mask or by ALiBi, or leave positions out."""

FAMILIES: dict[str, Callable[[Sizes], ModelShape]] = {
    "llama": decoder(mlp_bias="mlp_bias", kv_like_heads=True),
    "granite": decoder(mlp_bias="mlp_bias", kv_like_heads=True),
    "smollm3": decoder(mlp_bias="mlp_bias", kv_like_heads=True, tied=True),
    "mistral": Llama(),
    "mixtral": Llama(),
    "qwen2": Llama(qkv_bias=True),
    "qwen2_moe": Llama(qkv_bias=True),
    "qwen3": decoder(qk_norm="head", own_head_dim=True),
    "qwen3_moe": decoder(qk_norm="head", own_head_dim=True),
    "gemma": decoder(own_head_dim=True, tied=True, act_keys=GEMMA),
    "gemma2": decoder(own_head_dim=True, tied=True, act_keys=GEMMA, norms=4),
    "gemma3_text": decoder(
        own_head_dim=True, tied=True, act_keys=GEMMA, norms=4, qk_norm="head"
    ),
    "olmo2": decoder(kv_like_heads=True, qk_norm="whole"),
    "phi3": Llama(fused=True, kv_like_heads=True, rotary="part"),
    "phi": Llama(
        qkv_bias=True, o_bias=True, mlp_bias=True, norm="layer", norms=1, norm_bias=True,
        kv_like_heads=True, gated=False, names=("dense", "fc1", "fc2"), head_bias=True,
        rotary="part",
    ),
    "starcoder2": Llama(
        qkv_bias="use_bias", o_bias="use_bias", mlp_bias="use_bias", norm="layer", norm_bias=True,
        gated=False, names=("o_proj", "c_fc", "c_proj"), tied=True,
    ),
    "stablelm": Llama(qkv_bias="use_qkv_bias", norm="layer", norm_bias=True, rotary="part"),
    "gpt2": gpt2,
    "gpt_neox": gpt_neox,
    "opt": opt,
    "bloom": bloom,
    "falcon": falcon,
    "qwen": qwen,
}  # fmt: skip
