"""How each architecture is stored in a GGUF file: fields, and the names and order of tensors.

It follows what llama.cpp reads (src/models/*.cpp, at the version bundled with llama-cpp-python
0.3.36). Settings for which llama.cpp would compute something other than transformers are refused by
name, or the context is cut to where both agree. The tokenizer's fields are left to `vocabulary`,
the file itself to `write`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PretrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from loractl.errors import ModelError

Field = int | float | str | bool | list[int] | list[float] | list[str]
"""An int is written as u32, a float as f32."""


GELU = "gelu_pytorch_tanh"


@dataclass(frozen=True)
class Family:
    """What the model classes of one kind have in common."""

    architecture: str  # llama.cpp's name
    activation: str = "silu"
    rotates_pairs: bool = False  # rope turns values 2i, 2i+1: rows of q and k are reordered for it
    norm_shift: float = 0.0  # added to norm weights; the model class adds it itself
    window_every: int = 0  # every such layer sees all positions, the others a window; 0: no window
    own_head: bool = True  # whether the output head may differ from the embedding
    noise: float = 1e-4
    """Logits may differ by this x max(1, max |logit|) in float32. Measured: 2.4e-6 in SmolLM2-135M,
    1.1e-6 in tiny models; 6e-4 in Gemma, whose GELU llama.cpp looks up in a float16 table."""


FAMILIES: dict[str, Family] = {
    "llama": Family("llama", rotates_pairs=True),
    "mistral": Family("llama", rotates_pairs=True),
    "qwen2": Family("qwen2"),
    "qwen3": Family("qwen3"),
    "gemma2": Family("gemma2", GELU, norm_shift=1.0, window_every=2, own_head=False, noise=2e-3),
    "gemma3_text": Family("gemma3", GELU, norm_shift=1.0, window_every=6, noise=2e-3),
    "phi3": Family("phi3"),
}
"""Model types of transformers that can be written."""


@dataclass(frozen=True)
class Layout:
    """One model's fields, the tensors it needs beside its weights, and how weights are named."""

    family: Family
    fields: dict[str, Field]
    extra: dict[str, Tensor]  # by their names in the file
    name_of: Callable[[str], str]  # "model.layers.0.mlp.up_proj.weight" -> "blk.0.ffn_up.weight"
    heads: int
    kv_heads: int
    context_cut: bool  # whether the context is shorter than the model's own

    def row_order(self, name: str, rows: int) -> Tensor | None:
        """The order in which rows of q and k are written; None: unchanged.

        transformers rotates row i of a head with row i + d/2, llama.cpp's llama row 2i with 2i + 1.
        """
        part = next((p for p in ("q_proj", "k_proj") if name.split(".")[-2] == p), None)
        if not self.family.rotates_pairs or part is None:
            return None
        heads = self.heads if part == "q_proj" else self.kv_heads
        return torch.arange(rows).view(heads, 2, -1).transpose(1, 2).flatten()

    def shift(self, name: str) -> float:
        """The value added to a tensor: Gemma's norms compute with 1 + w."""
        return self.family.norm_shift if name.endswith("norm.weight") else 0.0


def layout(where: str, config: PretrainedConfig) -> Layout:
    """The layout of a model. Raises ModelError naming the part that a GGUF file cannot hold."""
    import gguf

    kind = str(config.model_type)
    family = FAMILIES.get(kind)
    if family is None:
        raise ModelError(
            f"{where}: model_type {kind} cannot be written as GGUF here, expected one of"
            f" {', '.join(sorted(FAMILIES))}"
        )
    _require_same_arithmetic(where, config, family)
    blocks = int(config.num_hidden_layers)
    arch = next(a for a, name in gguf.MODEL_ARCH_NAMES.items() if name == family.architecture)
    names = gguf.get_tensor_name_map(arch, blocks)

    def name_of(name: str) -> str:
        found: str | None = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if found is None:
            raise ModelError(
                f"{where}: {name} has no counterpart in GGUF's {family.architecture} layout"
            )
        return found

    own = {f"{family.architecture}.{key}": value for key, value in _shape_fields(config).items()}
    rope, extra = _rope_fields(where, config, family)
    context = _context_length(config, family)
    own[f"{family.architecture}.context_length"] = context
    own |= {f"{family.architecture}.{key}": value for key, value in rope.items()}
    return Layout(
        family=family,
        fields=own,
        extra=extra,
        name_of=name_of,
        heads=int(config.num_attention_heads),
        kv_heads=int(config.num_key_value_heads),
        context_cut=context < int(config.max_position_embeddings),
    )


def _require_same_arithmetic(where: str, config: PretrainedConfig, family: Family) -> None:
    """Raise ModelError for settings under which llama.cpp's graph computes something else."""

    def refuse(key: str, expected: object) -> ModelError:
        found = getattr(config, key, None)
        return ModelError(
            f"{where}: {key} is {found}, expected {expected}: llama.cpp's {family.architecture}"
            " supports nothing else"
        )

    key = "hidden_activation" if hasattr(config, "hidden_activation") else "hidden_act"
    if getattr(config, key) != family.activation:
        raise refuse(key, family.activation)
    if family.norm_shift:
        scalar, width = config.query_pre_attn_scalar, _head_dim(config)
        # The graph of the 27B models, recognized by their layer count, has its own scale.
        if config.num_hidden_layers in (46, 62):
            width = config.hidden_size // config.num_attention_heads
        if scalar != width:
            raise refuse("query_pre_attn_scalar", width)
        if getattr(config, "use_bidirectional_attention", None):
            raise refuse("use_bidirectional_attention", False)
    if family.architecture == "gemma3" and config.attn_logit_softcapping:
        raise refuse("attn_logit_softcapping", None)
    if family.window_every:
        expected = [
            "full_attention" if (i + 1) % family.window_every == 0 else "sliding_attention"
            for i in range(config.num_hidden_layers)
        ]
        if list(config.layer_types) != expected:
            raise refuse("layer_types", f"full_attention in every {family.window_every}th layer")


def _head_dim(config: PretrainedConfig) -> int:
    return int(
        getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    )


def _shape_fields(config: PretrainedConfig) -> dict[str, Field]:
    fields: dict[str, Field] = {
        "vocab_size": int(config.vocab_size),
        "block_count": int(config.num_hidden_layers),
        "embedding_length": int(config.hidden_size),
        "feed_forward_length": int(config.intermediate_size),
        "attention.head_count": int(config.num_attention_heads),
        "attention.head_count_kv": int(config.num_key_value_heads),
        "attention.key_length": _head_dim(config),
        "attention.value_length": _head_dim(config),
        "attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
    }
    if cap := getattr(config, "attn_logit_softcapping", None):
        fields["attn_logit_softcapping"] = float(cap)
    if cap := getattr(config, "final_logit_softcapping", None):
        fields["final_logit_softcapping"] = float(cap)
    return fields


def _context_length(config: PretrainedConfig, family: Family) -> int:
    """Positions of the model, cut to its window where llama.cpp's graph has none."""
    positions = int(config.max_position_embeddings)
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None) or ["sliding_attention"]
    if not window or family.window_every or "sliding_attention" not in kinds:
        return positions
    return min(positions, int(window))


def _rope_fields(
    where: str, config: PretrainedConfig, family: Family
) -> tuple[dict[str, Field], dict[str, Tensor]]:
    """The fields of the rotary embedding, and its per-frequency factors as tensors."""
    parameters: dict[str, Any] = dict(config.rope_parameters)
    fields: dict[str, Field] = {}
    if family.window_every:
        fields["attention.sliding_window"] = int(config.sliding_window)
    if "full_attention" in parameters:
        local, parameters = parameters["sliding_attention"], parameters["full_attention"]
        if local["rope_type"] != "default":
            raise _no_rope(where, f"of type {local['rope_type']} in sliding layers")
        fields["rope.freq_base_swa"] = float(local["rope_theta"])
    share = float(parameters.get("partial_rotary_factor") or 1.0)
    if share != 1.0 and family.architecture != "phi3":
        raise _no_rope(where, f"of {share} of each head")
    fields["rope.freq_base"] = float(parameters["rope_theta"])
    fields["rope.dimension_count"] = int(share * _head_dim(config))
    kind = str(parameters["rope_type"])
    more, extra = _scaled_rope(where, config, kind, parameters, family)
    return fields | more, extra


def _no_rope(where: str, what: str) -> ModelError:
    return ModelError(f"{where}: rotary embeddings {what} cannot be written as GGUF here")


def _scaled_rope(
    where: str, config: PretrainedConfig, kind: str, parameters: dict[str, Any], family: Family
) -> tuple[dict[str, Field], dict[str, Tensor]]:
    if kind == "default":
        return {}, {}
    if kind == "linear":
        return {
            "rope.scaling.type": "linear",
            "rope.scaling.factor": parameters["factor"] + 0.0,
        }, {}
    if kind == "llama3" and family.architecture == "llama":
        # Each frequency is divided by its own factor; transformers has the formula.
        scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
        d = _head_dim(config)
        plain = parameters["rope_theta"] ** -(torch.arange(0, d, 2, dtype=torch.float64) / d)
        return {}, {"rope_freqs.weight": (plain / scaled.double()).float()}
    if kind == "yarn" and "attention_factor" not in parameters and "mscale" not in parameters:
        return {
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": float(parameters["factor"]),
            "rope.scaling.original_context_length": int(
                parameters.get("original_max_position_embeddings") or config.max_position_embeddings
            ),
            "rope.scaling.yarn_beta_fast": float(parameters.get("beta_fast") or 32.0),
            "rope.scaling.yarn_beta_slow": float(parameters.get("beta_slow") or 1.0),
        }, {}
    if kind == "longrope" and family.architecture == "phi3":
        original = int(parameters["original_max_position_embeddings"])
        scale = int(config.max_position_embeddings) / original
        gain = parameters.get("attention_factor")
        if gain is None:  # LongRoPE, arXiv 2402.13753, as transformers computes it
            gain = math.sqrt(1 + math.log(scale) / math.log(original)) if scale > 1 else 1.0
        return {
            "rope.scaling.original_context_length": original,
            "rope.scaling.attn_factor": float(gain),
        }, {
            "rope_factors_long.weight": torch.tensor(parameters["long_factor"]).float(),
            "rope_factors_short.weight": torch.tensor(parameters["short_factor"]).float(),
        }
    raise _no_rope(where, f"of type {kind} in a {family.architecture} model")
