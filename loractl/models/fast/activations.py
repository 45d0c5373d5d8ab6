"""The formulas behind the activations of transformers and torch, and a faster implementation.

transformers writes several as steps in Python, each of which makes a tensor; some keep tensors for
the backward pass: four for GPT-2's and Phi's gelu_new.
"""

from torch import Tensor, nn

from loractl.ops.activation import activate
from loractl.ops.pieces import Activation

NAMES: dict[str, Activation] = {
    "SiLU": "silu",
    "SiLUActivation": "silu",
    "GELUActivation": "gelu",
    # One formula; each multiplies 0.5, sqrt(2 / pi) and 0.044715 in a different order.
    "GELUTanh": "gelu_tanh",
    "NewGELUActivation": "gelu_tanh",
    "FastGELUActivation": "gelu_tanh",
    "AccurateGELUActivation": "gelu_tanh",
    "BloomGelu": "gelu_tanh",
}
"""Classes without settings, or whose settings change only the order of the steps."""


class Fused(nn.Module):
    """An activation as one operation, forward and backward, that keeps only its input."""

    def __init__(self, activation: Activation) -> None:
        super().__init__()
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        return activate(x, self.activation)


def activation_of(module: nn.Module) -> Activation | None:
    """The formula of an activation; None for an unknown module."""
    if isinstance(module, Fused):
        return module.activation
    if not type(module).__module__.startswith(("transformers.", "torch.nn.modules.")):
        return None
    if isinstance(module, nn.GELU):
        return "gelu_tanh" if module.approximate == "tanh" else "gelu"
    return None if getattr(module, "inplace", False) else NAMES.get(type(module).__name__)


def fuse_activations_(model: nn.Module) -> int:
    """Replace every known activation by `Fused`; return how many.

    They hold no weights, so nothing that is trained, saved or merged changes. An activation with a
    hook stays.
    """
    found = [
        (name, kind)
        for name, module in model.named_modules(remove_duplicate=False)
        if name and (kind := activation_of(module)) and not _hooked(module)
    ]
    for name, kind in found:
        path, _, last = name.rpartition(".")
        setattr(model.get_submodule(path), last, Fused(kind))
    return len(found)


def _hooked(module: nn.Module) -> bool:
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks)
    return any(hooks) or bool(module._backward_pre_hooks) or "forward" in vars(module)
