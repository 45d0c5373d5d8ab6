"""A pretend CUDA device for a CPU build of torch: real numbers, a device's rules, a count of what
would cost time.

Import it before torch. Tensors on the device are wrappers that claim to be on cuda:0; an operation
on them runs on the CPU, after the rules were kept: no operand on another device, no numpy, no
address given to C. It cannot show dtypes that CUDA lacks, the rounding of its kernels, atomics,
races, memory or speed.
"""

from tests.device import library

library.load()

import contextlib  # noqa: E402
import traceback  # noqa: E402
from collections import Counter  # noqa: E402
from collections.abc import Callable, Iterator  # noqa: E402
from typing import Any  # noqa: E402

import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402
from torch.utils._pytree import tree_leaves, tree_map  # noqa: E402

from tests.device import flash  # noqa: E402

DEVICE = torch.device("cuda", 0)
CPU = torch.device("cpu")
WAITS = frozenset({
    "_local_scalar_dense", "nonzero", "equal", "is_nonzero", "masked_select", "_unique2",
    "unique_dim", "unique_consecutive", "repeat_interleave",
})  # fmt: skip
"""Operations whose result, or the size of it, the host must wait for."""
FREE = frozenset({
    "alias", "as_strided", "chunk", "detach", "diagonal", "empty", "empty_like", "empty_strided",
    "expand", "lift_fresh", "narrow", "new_empty", "new_empty_strided", "permute", "reshape",
    "_reshape_alias", "select", "set_", "slice", "split", "split_with_sizes", "squeeze", "t",
    "transpose", "unbind", "unfold", "unsqueeze", "_unsafe_view", "view",
})  # fmt: skip
"""Operations that launch nothing: views, and memory without values."""
INDEXED = frozenset({"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"})
MOVES = frozenset({"_to_copy", "copy_"})


class DeviceRuleError(RuntimeError):
    """A device would not have done this."""


class Counts:
    """What an operation would have cost, by the line of loractl that asked for it."""

    def __init__(self) -> None:
        self.waits: Counter[str] = Counter()
        self.launches = 0

    def wait(self, what: str) -> None:
        self.waits[f"{_line()}  {what}"] += 1

    def clear(self) -> None:
        self.waits.clear()
        self.launches = 0


COUNTS = Counts()


def _line() -> str:
    """Where loractl, or else anybody, called what is under way."""
    beside = ("/tests/device/", "/startup/dynamo.py")
    stack = traceback.extract_stack()
    frames = [f for f in stack if not any(part in f.filename for part in beside)]
    ours = [f for f in frames if "/loractl/" in f.filename] or frames
    return f"{ours[-1].filename.rpartition('/loractl/')[2]}:{ours[-1].lineno}"


class OnDevice(Tensor):
    """A tensor that claims to be on the device; `held` has its values."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> "OnDevice":
        made: OnDevice = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, held.size(), strides=held.stride(), storage_offset=held.storage_offset(),
            dtype=held.dtype, layout=held.layout, device=DEVICE, requires_grad=False,
        )  # fmt: skip
        made.held = held
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})

    def tolist(self) -> Any:
        COUNTS.wait("tolist")
        return self.held.tolist()

    def numpy(self, **_: Any) -> Any:
        raise DeviceRuleError("numpy() of a tensor on cuda:0")

    __array__ = numpy

    def data_ptr(self) -> int:
        if (line := _line()).startswith(("ops/", "quant/")):
            raise DeviceRuleError(f"the address of a tensor on cuda:0, in {line}")
        return self.held.data_ptr()

    def untyped_storage(self) -> torch.UntypedStorage:
        return self.held.untyped_storage()

    def storage_offset(self) -> int:
        return int(self.held.storage_offset())

    @property  # type: ignore[override]
    def data(self) -> Tensor:
        return OnDevice(self.held.data)

    @data.setter
    def data(self, value: Tensor) -> None:
        assert isinstance(value, OnDevice)
        Tensor.data.__set__(self, value)  # type: ignore[attr-defined]
        self.held = value.held

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        copy: Tensor = OnDevice(self.held.detach().clone())
        if isinstance(self, nn.Parameter):
            copy = nn.Parameter(copy, requires_grad=self.requires_grad)
        memo[id(self)] = copy.requires_grad_(self.requires_grad)
        return copy

    def __repr__(self, **_: Any) -> str:
        return f"OnDevice({self.held!r})"


class _OnDevice(TorchDispatchMode):
    """Takes operations that make a tensor on the device, or have one among their operands."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        if _wants_device(given) or any(isinstance(x, OnDevice) for x in tree_leaves((args, given))):
            return run(func, args, given)
        return func(*args, **given)


def _wants_device(kwargs: dict[str, Any]) -> bool:
    return kwargs.get("device") is not None and torch.device(kwargs["device"]).type == "cuda"


def _inner(value: Any) -> Any:
    return value.held if isinstance(value, OnDevice) else value


def run(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run an operation by the device's rules, and count what it costs."""
    name = func.overloadpacket.__name__
    leaves = tree_leaves((args, kwargs))
    there = [x for x in leaves if isinstance(x, OnDevice)]
    here = [x for x in leaves if isinstance(x, Tensor) and not isinstance(x, OnDevice)]
    COUNTS.launches += name not in FREE and name not in WAITS
    _require_one_device(name, args, there, here)
    _count_waits(name, args, kwargs, there, here)
    if name.startswith("_fused_adam"):
        _require_one_layout(args)
    to_device = _wants_device(kwargs) or (bool(there) and kwargs.get("device") is None)
    given = dict(kwargs)
    if kwargs.get("device") is not None and to_device:
        given["device"] = CPU
    given.pop("pin_memory", None)
    inner_args, inner = tree_map(_inner, args), tree_map(_inner, given)
    made = flash.KERNELS.get(name, func)(*inner_args, **inner)
    if name == "_to_copy" and isinstance(made, Tensor) and made.numel():
        source = inner_args[0]
        made = made.clone() if made.data_ptr() == source.data_ptr() else made
    if not to_device:
        return made
    same = {id(x.held): x for x in there}  # what was changed in place is the same tensor after it

    def wrapped(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return same[id(value)] if id(value) in same else OnDevice(value)

    return tree_map(wrapped, made)


def _require_one_device(
    name: str, args: tuple[Any, ...], there: list[OnDevice], here: list[Tensor]
) -> None:
    if not there or name in MOVES:
        return
    others = [x for x in here if x.dim() > 0]  # a number may come from the CPU
    if name in INDEXED:  # and so may an index
        others = [x for x in others if x is args[0] or (name != "index" and x is args[2])]
    if others:
        shapes = [tuple(x.shape) for x in others]
        raise DeviceRuleError(
            f"Expected all tensors to be on the same device: {name} with {shapes} on the CPU"
        )


def _count_waits(
    name: str, args: tuple[Any, ...], kwargs: dict[str, Any], there: list[OnDevice],
    here: list[Tensor],
) -> None:  # fmt: skip
    if not there:
        return
    if name in WAITS:
        COUNTS.wait(name)
    elif name in INDEXED:
        if any(isinstance(x, Tensor) and x.dtype in (torch.bool, torch.uint8) for x in args[1]):
            COUNTS.wait(f"{name} with a mask")
    elif name == "copy_":
        if here and not isinstance(args[0], OnDevice):
            COUNTS.wait("copy to the CPU")
    elif name == "_to_copy" and kwargs.get("device") is not None and not _wants_device(kwargs):
        COUNTS.wait("copy to the CPU")


def _require_one_layout(args: tuple[Any, ...]) -> None:
    """Fused Adam takes parameter, gradient and averages of one layout alone."""
    for group in zip(*args[:4], strict=True):
        if len({x.stride() for x in group}) > 1:
            strides = [x.stride() for x in group]
            raise DeviceRuleError(f"parameter, gradient and averages of strides {strides}")


class _Generator(torch._C.Generator):
    """A generator of the device, which draws on the CPU."""

    def __new__(cls, device: object = "cpu") -> "_Generator":
        return super().__new__(cls)  # type: ignore[call-arg]

    def __init__(self, device: object = "cpu") -> None:
        pass


@contextlib.contextmanager
def device() -> Iterator[Counts]:
    """One GPU, as far as torch and transformers can tell; for the rest of the process in part."""
    with answers(), _OnDevice():
        yield COUNTS


@contextlib.contextmanager
def answers(capability: tuple[int, int] = (9, 0), free: int = 100 << 30) -> Iterator[None]:
    """What torch.cuda says of one GPU; it goes on saying so afterwards."""
    torch.__future__.set_swap_module_params_on_conversion(True)
    torch._C._set_only_lift_cpu_tensors(True)  # type: ignore[attr-defined]
    said: dict[str, Callable[..., Any]] = {
        "_lazy_init": lambda: None,
        "current_device": lambda: 0,
        "device_count": lambda: 1,
        "empty_cache": lambda: None,
        "get_device_capability": lambda device=None: capability,
        "get_rng_state": lambda device=None: torch.get_rng_state(),
        "get_device_name": lambda device=None: "Pretend GPU",
        "is_available": lambda: True,
        "is_bf16_supported": lambda including_emulation=True: (
            including_emulation or capability >= (8, 0)
        ),
        "is_initialized": lambda: False,
        "manual_seed": lambda seed: None,
        "manual_seed_all": lambda seed: None,
        "max_memory_allocated": lambda device=None: 1 << 30,
        "mem_get_info": lambda device=None: (free, 139 << 30),
        "memory_allocated": lambda device=None: 1 << 30,
        "set_rng_state": lambda state, device=None: torch.set_rng_state(state),
        "set_device": lambda device: None,
        "synchronize": lambda device=None: None,
    }
    for name, answer in said.items():
        setattr(torch.cuda, name, answer)
    torch._C._cuda_getDeviceCount = lambda: 1  # type: ignore[attr-defined]
    torch._C._cuda_getCurrentRawStream = lambda index: 0  # type: ignore[attr-defined]
    torch.Generator = _Generator  # type: ignore[misc,assignment]
    yield
