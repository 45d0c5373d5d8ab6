"""Convert the decoder layers of transformers' Llama family into the descriptions in `ops/layer`.

Any deviation from what the family does raises `Unusual`, and the model then runs with transformers'
own layers.
"""

from collections.abc import Mapping
from typing import Any

from torch import nn

from loractl.models.fast.activations import activation_of
from loractl.models.fast.architectures import LAYERS
from loractl.models.layer_stream import Arrival
from loractl.ops.layer.description import Layer, Norm, Shape
from loractl.ops.lora_linear import Linear
from loractl.quant.linear import PackedLinear


class Unusual(Exception):
    """Why the fast layers cannot be used, in words."""


def read_layer(layer: nn.Module, path: str) -> Layer:
    """One decoder layer. Raises Unusual."""
    name = type(layer).__name__
    if name not in LAYERS or not type(layer).__module__.startswith("transformers.models."):
        raise Unusual(f"{path} is a {name}")
    attention, mlp = _child(layer, "self_attn", path), _child(layer, "mlp", path)
    arrival = next((h for h in layer._forward_pre_hooks.values() if isinstance(h, Arrival)), None)
    _require_unhooked(layer, path)
    if attention.config.attention_dropout and attention.training:
        raise Unusual(f"{path}.self_attn has dropout")
    sandwiched = LAYERS[name].is_sandwiched
    norms = {
        "before_attention": "input_layernorm",
        "before_mlp": "pre_feedforward_layernorm" if sandwiched else "post_attention_layernorm",
    }
    if sandwiched:
        norms |= {
            "after_attention": "post_attention_layernorm",
            "after_mlp": "post_feedforward_layernorm",
        }
    read: dict[str, Any] = {role: _norm(layer, norm, path) for role, norm in norms.items()}
    if hasattr(attention, "q_norm"):
        inner = f"{path}.self_attn"
        read |= {one: _norm(attention, one, inner) for one in ("q_norm", "k_norm")}
    for role in "qkvo":
        read[role] = _linear(attention, f"{role}_proj", f"{path}.self_attn")
    for role in ("gate", "up", "down"):
        read[role] = _linear(mlp, f"{role}_proj", f"{path}.mlp")
    return Layer(shape=_shape(layer, attention, mlp, path), arrive=arrival, **read)


def _shape(layer: Any, attention: Any, mlp: Any, path: str) -> Shape:
    config = attention.config
    activation = activation_of(mlp.act_fn)
    if activation is None:
        raise Unusual(f"{path}.mlp uses {type(mlp.act_fn).__name__}")
    if not getattr(attention, "is_causal", True):
        raise Unusual(f"{path}.self_attn is not causal")
    if type(layer).__name__ == "MistralDecoderLayer":
        window = config.sliding_window
    else:
        window = getattr(attention, "sliding_window", None)
    # Gemma 3 keeps the attribute and never applies it
    capped = type(layer).__name__ == "Gemma2DecoderLayer"
    return Shape(
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        head_dim=attention.head_dim,
        scaling=attention.scaling,
        activation=activation,
        rotary=bool(getattr(attention, "use_rope", True)),
        window=window,
        softcap=attention.attn_logit_softcapping if capped else None,
        residual=getattr(layer, "residual_multiplier", 1.0),
    )


def _child(parent: nn.Module, name: str, path: str) -> Any:
    child = getattr(parent, name)
    if not type(child).__module__.startswith("transformers.models."):
        raise Unusual(f"{path}.{name} is a {type(child).__name__}")
    _require_unhooked(child, f"{path}.{name}")
    return child


def _require_unhooked(module: nn.Module, path: str) -> None:
    kinds: tuple[Mapping[Any, Any], ...] = (
        module._forward_hooks,
        module._forward_pre_hooks,
        module._backward_hooks,
        module._backward_pre_hooks,
    )
    hooks = (hook for kind in kinds for hook in kind.values())
    if any(not isinstance(hook, Arrival) for hook in hooks) or "forward" in vars(module):
        raise Unusual(f"{path} has a hook")


def _norm(parent: nn.Module, name: str, path: str) -> Norm:
    norm = _child(parent, name, path)
    kind = type(norm).__name__
    if not kind.endswith("RMSNorm") or norm.weight.requires_grad:
        raise Unusual(f"{path}.{name} is {'trained' if norm.weight.requires_grad else kind}")
    is_gemma = kind.startswith("Gemma")
    eps = norm.eps if is_gemma else norm.variance_epsilon
    return Norm(norm.weight, eps, 1.0 if is_gemma else 0.0)


def _linear(parent: nn.Module, name: str, path: str) -> Linear:
    module: Any = getattr(parent, name)
    is_packed = isinstance(module, PackedLinear)
    if type(module) is nn.Linear or is_packed:
        _require_unhooked(module, f"{path}.{name}")
        if any(parameter.requires_grad for parameter in module.parameters()):
            raise Unusual(f"{path}.{name} is trained")
        return Linear(module.packed if is_packed else module.weight, module.bias)
    # An adapted layer knows itself whether it is just one product with a thin update.
    as_linear = getattr(module, "as_linear", None)
    linear: Linear | None = as_linear() if as_linear is not None else None
    if linear is None:
        raise Unusual(f"{path}.{name} is a {type(module).__name__} with more than a thin update")
    return linear
