"""Modules trained in full alongside an adapter (`lora.modules_to_save`), e.g. a norm or head."""

import copy
from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call

from loractl.lora.ranks import is_named


class WholeModule(nn.Module):
    """Replaces a module: holds the frozen one and a float32 copy that is trained.

    The copy computes in the dtypes of the frozen module. It does not share weights that the frozen
    module shares (a tied head).
    """

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base
        self.tuned = copy.deepcopy(base).float().requires_grad_(True)
        if any(parameter.is_meta for parameter in base.parameters()):
            self.tuned.to_empty(device="cpu")  # the values are read from a file later
        self.enabled = True

    def __getattr__(self, name: str) -> Any:
        """Attributes that models read besides the forward pass, such as the weight."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name in ("base", "tuned"):
                raise
            value = getattr(self.tuned if self.enabled else self.base, name)
            if self.enabled and isinstance(value, nn.Parameter):
                return value.to(getattr(self.base, name).dtype)
            return value

    def rounded(self) -> dict[str, Tensor]:
        """The tuned parameters in the dtypes of the frozen ones, differentiable."""
        dtypes = {name: parameter.dtype for name, parameter in self.base.named_parameters()}
        return {name: p.to(dtypes[name]) for name, p in self.tuned.named_parameters()}

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if not self.enabled:
            return self.base(*args, **kwargs)
        return functional_call(self.tuned, self.rounded(), args, kwargs)

    def swap_weights_(self) -> dict[str, nn.Parameter]:
        """Put copies of the tuned values into the frozen module; return the previous ones."""
        old = dict(self.base.named_parameters())
        for name, values in self.rounded().items():
            set_parameter_(self.base, name, nn.Parameter(values.detach().clone(), False))
        return old


def set_parameter_(module: nn.Module, name: str, parameter: nn.Parameter) -> None:
    """Replace the parameter of this name, on this module alone."""
    path, _, last = name.rpartition(".")
    setattr(module.get_submodule(path), last, parameter)


def matching(model: nn.Module, names: Iterable[str]) -> dict[str, list[str]]:
    """For each name, the paths of modules with parameters that are or end with this name."""
    paths = [path for path, module in model.named_modules() if path and any_parameter(module)]
    return {name: [path for path in paths if is_named(path, name)] for name in names}


def any_parameter(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None


def as_peft_matches(model: nn.Module, names: Iterable[str]) -> list[str]:
    """The paths that PEFT 0.21.2 selects for these `modules_to_save`: those that end with a name,
    dot or no dot. A module inside a selected one belongs to that one."""
    found: list[str] = []
    for path, module in model.named_modules():
        inside = any(path.startswith(f"{outer}.") for outer in found)
        if any(path.endswith(name) for name in names) and any_parameter(module) and not inside:
            found.append(path)
    return found


def train_whole_(model: nn.Module, paths: Iterable[str]) -> dict[str, WholeModule]:
    """Replace each module at these paths by a WholeModule; return them by path."""
    found = {path: WholeModule(model.get_submodule(path)) for path in paths}
    for path, module in found.items():
        parent, _, last = path.rpartition(".")
        setattr(model.get_submodule(parent), last, module)
    return found


def wholes(model: nn.Module) -> dict[str, WholeModule]:
    """The modules of a model that are trained in full, by the path of the one they replace."""
    return {path: m for path, m in model.named_modules() if isinstance(m, WholeModule)}
