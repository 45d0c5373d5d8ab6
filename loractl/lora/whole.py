"""Modules that are trained whole beside an adapter (`lora.modules_to_save`): a norm, a head."""

import copy
from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call

from loractl.lora.ranks import is_named


class WholeModule(nn.Module):
    """Stands in the place of a module: the frozen one, and a copy in float32 that is trained.

    The copy computes in the dtypes of the frozen module. A weight that the frozen module shares (a
    tied head) is not shared by the copy.
    """

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base
        self.tuned = copy.deepcopy(base).float().requires_grad_(True)
        if any(parameter.is_meta for parameter in base.parameters()):
            self.tuned.to_empty(device="cpu")  # values are then read from a file
        self.enabled = True

    def __getattr__(self, name: str) -> Any:
        """What models ask of the module beside the forward pass, such as its weight."""
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
        """The tuned parameters, each in the dtype of the frozen one, with their gradients."""
        dtypes = {name: parameter.dtype for name, parameter in self.base.named_parameters()}
        return {name: p.to(dtypes[name]) for name, p in self.tuned.named_parameters()}

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if not self.enabled:
            return self.base(*args, **kwargs)
        return functional_call(self.tuned, self.rounded(), args, kwargs)

    def swap_weights_(self) -> dict[str, nn.Parameter]:
        """Put copies of the tuned values into the frozen module; return what stood there."""
        old = dict(self.base.named_parameters())
        for name, values in self.rounded().items():
            set_parameter_(self.base, name, nn.Parameter(values.detach().clone(), False))
        return old


def set_parameter_(module: nn.Module, name: str, parameter: nn.Parameter) -> None:
    """Put a parameter in the place of the one of this name, on this module alone."""
    path, _, last = name.rpartition(".")
    setattr(module.get_submodule(path), last, parameter)


def matching(model: nn.Module, names: Iterable[str]) -> dict[str, list[str]]:
    """For each name the paths of the modules with parameters that it means: whole, or the end."""
    paths = [path for path, module in model.named_modules() if path and any_parameter(module)]
    return {name: [path for path in paths if is_named(path, name)] for name in names}


def any_parameter(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None


def as_peft_matches(model: nn.Module, names: Iterable[str]) -> list[str]:
    """The paths that PEFT 0.21.2 takes for these `modules_to_save`: those that end so, dot or no
    dot. One within another is the outer one's."""
    found: list[str] = []
    for path, module in model.named_modules():
        inside = any(path.startswith(f"{outer}.") for outer in found)
        if any(path.endswith(name) for name in names) and any_parameter(module) and not inside:
            found.append(path)
    return found


def train_whole_(model: nn.Module, paths: Iterable[str]) -> dict[str, WholeModule]:
    """Put a WholeModule in the place of each module named by its path; return them by path."""
    found = {path: WholeModule(model.get_submodule(path)) for path in paths}
    for path, module in found.items():
        parent, _, last = path.rpartition(".")
        setattr(model.get_submodule(parent), last, module)
    return found


def wholes(model: nn.Module) -> dict[str, WholeModule]:
    """The modules of a model that are trained whole, by the path of the one they stand for."""
    return {path: m for path, m in model.named_modules() if isinstance(m, WholeModule)}
