"""Decoders without gates, as transformers 5 builds them: GPT-2, GPT-NeoX, OPT, BLOOM, Falcon."""

from collections.abc import Iterable
from dataclasses import dataclass

from loractl.errors import ModelError
from loractl.models.shape.types import ModelShape, Module, Sizes


@dataclass(frozen=True)
class Names:
    """Paths of a plain decoder with biases and LayerNorms: GPT-2, GPT-NeoX, OPT, BLOOM, Falcon."""

    blocks: str
    qkv: tuple[str, ...]
    out: str
    fc1: str
    fc2: str
    embedding: str
    head: str = "lm_head"


def plain(
    size: Sizes, names: Names, *, hidden: int, layers: int, heads: int, inner: int, activation: str,
    tied: bool, kv: int | None = None, bias: bool = True, kind: str = "linear", extra: int = 0,
    norms: int = 2, final: bool = True, width: int | None = None, positions: int | None = None,
    more: Iterable[Module] = (), rotary: str = "none", parallel: bool = False, eager: bool = False,
) -> ModelShape:  # fmt: skip
    """A decoder without gates; `extra` counts other parameters, `width` is the embedding's."""
    kv, dim, vocabulary = kv or heads, hidden // heads, size("vocab_size")
    width = width or hidden
    q = heads * dim
    sizes = {"q": q, "k": kv * dim, "v": kv * dim, "qkv": q + 2 * kv * dim}
    roles = {"q_proj": "q", "k_proj": "k", "v_proj": "v"}
    modules = [Module(names.embedding, "embedding", vocabulary, width, "embedding"), *more]
    for layer in range(layers):
        at = f"{names.blocks}.{layer}"
        for path in names.qkv:
            role = roles.get(path.rpartition(".")[2], "qkv")
            modules.append(Module(f"{at}.{path}", kind, hidden, sizes[role], role, bias))
        modules.append(Module(f"{at}.{names.out}", kind, q, hidden, "o", bias))
        modules.append(Module(f"{at}.{names.fc1}", kind, hidden, inner, "fc1", bias))
        modules.append(Module(f"{at}.{names.fc2}", kind, inner, hidden, "fc2", bias))
    modules.append(Module(names.head, "linear", width, vocabulary, "head"))
    return ModelShape(
        architecture=size.config["model_type"],
        hidden=hidden, layers=layers, heads=heads, kv_heads=kv, head_dim=dim, intermediate=inner,
        vocabulary=vocabulary, tied=size.flag("tie_word_embeddings", tied),
        modules=tuple(modules),
        others=2 * hidden * (norms * layers + final) + extra,
        norm="layer", norms=norms, gated=False, activation=activation, positions=positions,
        rotary=rotary, parallel=parallel, eager=eager,
    )  # fmt: skip


def gpt2(size: Sizes) -> ModelShape:
    hidden, positions = size("n_embd"), size("n_positions")
    names = Names("transformer.h", ("attn.c_attn",), "attn.c_proj", "mlp.c_fc", "mlp.c_proj",
                  "transformer.wte")  # fmt: skip
    return plain(
        size, names, hidden=hidden, layers=size("n_layer"), heads=size("n_head"), kind="conv1d",
        inner=size("n_inner", 4 * hidden), tied=True, positions=positions,
        activation=size.text(("activation_function",), "gelu_new"),
        more=[Module("transformer.wpe", "embedding", positions, hidden, "other")],
    )  # fmt: skip


def gpt_neox(size: Sizes) -> ModelShape:
    names = Names("gpt_neox.layers", ("attention.query_key_value",), "attention.dense",
                  "mlp.dense_h_to_4h", "mlp.dense_4h_to_h", "gpt_neox.embed_in")  # fmt: skip
    if not size.flag("attention_bias", True):
        raise ModelError(f"{size.where}: attention_bias: false is not supported for gpt_neox")
    return plain(
        size, names, hidden=size("hidden_size"), layers=size("num_hidden_layers"),
        heads=size("num_attention_heads"), inner=size("intermediate_size"),
        activation=size.text(("hidden_act",), "gelu"), tied=False, rotary="part",
        parallel=size.flag("use_parallel_residual", True),
        positions=size.optional("max_position_embeddings"),
    )  # fmt: skip


def opt(size: Sizes) -> ModelShape:
    hidden, positions = size("hidden_size"), size("max_position_embeddings")
    width = size("word_embed_proj_dim", hidden)
    at = "model.decoder"
    names = Names(
        f"{at}.layers", ("self_attn.k_proj", "self_attn.v_proj", "self_attn.q_proj"),
        "self_attn.out_proj", "fc1", "fc2", f"{at}.embed_tokens",
    )  # fmt: skip
    between = [
        Module(f"{at}.project_out", "linear", hidden, width, "other"),
        Module(f"{at}.project_in", "linear", width, hidden, "other"),
    ]
    before = size.flag("do_layer_norm_before", True)
    return plain(
        size, names, hidden=hidden, layers=size("num_hidden_layers"), inner=size("ffn_dim"),
        heads=size("num_attention_heads"), activation=size.text(("activation_function",), "relu"),
        bias=size.flag("enable_bias", True), tied=True, width=width,
        final=before and not size.flag("_remove_final_layer_norm", False),
        extra=(positions + 2) * hidden,  # learned positions, which take no adapter
        positions=positions, more=between if width != hidden else (),
    )  # fmt: skip


BLOOM = Names(
    "transformer.h", ("self_attention.query_key_value",), "self_attention.dense",
    "mlp.dense_h_to_4h", "mlp.dense_4h_to_h", "transformer.word_embeddings",
)  # fmt: skip


def bloom(size: Sizes) -> ModelShape:
    hidden = size("hidden_size", size.optional("n_embed"))
    return plain(
        size, BLOOM, hidden=hidden, layers=size("n_layer", size.optional("num_hidden_layers")),
        heads=size("n_head", size.optional("num_attention_heads")), inner=4 * hidden, tied=True,
        activation="bloom_gelu", eager=True, extra=2 * hidden,  # the norm after the embedding
    )  # fmt: skip


def falcon(size: Sizes) -> ModelShape:
    hidden, layers, heads = (
        size("hidden_size"),
        size("num_hidden_layers", size.optional("n_layer")),
        size("num_attention_heads", size.optional("n_head")),
    )
    new = size.flag("new_decoder_architecture", False)
    if new:
        kv, norms = size("num_kv_heads", heads), size("num_ln_in_parallel_attn", 2)
    else:
        kv = 1 if size.flag("multi_query", True) else heads
        norms = 1 if size.flag("parallel_attn", True) else 2
    return plain(
        size, BLOOM, hidden=hidden, layers=layers, heads=heads, kv=kv, norms=norms,
        inner=size("ffn_hidden_size", 4 * hidden), bias=size.flag("bias", False), tied=True,
        activation=size.text(("activation",), "gelu"), parallel=norms == 1 or new,
        rotary="none" if size.flag("alibi", False) else "whole",
    )  # fmt: skip
