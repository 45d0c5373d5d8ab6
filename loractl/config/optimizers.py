"""The optimizers by name, and the state each keeps per trained parameter. No torch: training builds
them; training, rank schedules, checkpoints and planning all read this table."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal

OptimizerName = Literal["adamw", "adamw-8bit", "adamw-paged", "sgd", "adafactor", "lion"]
OPTIMIZER_WORDS = (
    "adamw; adamw-8bit: its state in 8 bits; adamw-paged: its state moves to host memory when a "
    "GPU is full; sgd: without momentum, at rates from 0.1; adafactor: squares by row and column; "
    "lion: at 1/10 to 1/3 of AdamW's rates"
)
"""What the reference of settings says of them."""

Shape = tuple[int, ...]

SMALL = 4096
"""bitsandbytes keeps the state of a parameter with fewer values than this in 32 bits."""
PAGED = 100_000
"""bitsandbytes pages the state of parameters with at least this many values."""
BLOCK = 256
"""Values that share a scale in 8-bit state (arXiv 2110.02861)."""


@dataclass(frozen=True)
class Part:
    """One tensor of a parameter's state. `dtype`: own, that of the parameter; float32; uint8; int64
    for a plain integer."""

    shape: Shape
    dtype: str = "own"
    paged: bool = False  # on a GPU it is in memory that moves between host and device

    @property
    def values(self) -> int:
        return math.prod(self.shape)

    def size(self, width: int = 4) -> int:
        """Bytes, if a value of the parameter takes `width` bytes."""
        return self.values * {"own": width, "float32": 4, "uint8": 1, "int64": 8}[self.dtype]


Parts = dict[str, Part]


@dataclass(frozen=True)
class OptimizerKind:
    """The state of an optimizer, under the names that its library uses.

    `averages` are running means of gradients and `squares` of their squares, each in the shape of
    its parameter; `scalars` are one number per parameter. Where the state depends on the shape of
    the parameter in another way, `others` says how, and ranks cannot change during a run.
    """

    averages: tuple[str, ...] = ()
    squares: tuple[str, ...] = ()
    scalars: tuple[str, ...] = ()
    others: Callable[[Shape], Parts] | None = None
    shared: tuple[tuple[str, int], ...] = ()  # float32 tables that all parameters use; their length
    package: str | None = None  # what it needs besides torch; loractl[quant] brings it
    devices: tuple[str, ...] = ("cpu", "cuda", "mps")
    rate: float | None = 1.0  # usual learning rate relative to AdamW's; None: not comparable
    foreach: bool = False  # others' loops make a temporary as large as all values at once
    copies: int = 0  # copies of the largest parameter that a step makes on a GPU
    copies_on_cpu: int = 0

    @property
    def shaped(self) -> tuple[str, ...]:
        """The parts that have the shape of their parameter, whatever it is."""
        return (*self.averages, *self.squares)

    def parts(self, shape: Shape) -> Parts:
        """Everything that is kept for a parameter of this shape."""
        return {
            **{what: Part(()) for what in self.scalars},
            **{what: Part(shape) for what in self.shaped},
            **(self.others(shape) if self.others else {}),
        }

    def size(self, shape: Shape, width: int = 4, *, on_cpu: bool = True) -> int:
        """Bytes of state for a parameter of this shape where it is trained; `width`: of a value.

        Numbers of steps, which are in host memory, and `shared` tables are left out.
        """
        kept = (part for part in self.parts(shape).values() if part.shape)
        return sum(part.size(width) for part in kept if on_cpu or not part.paged)


def _factors(shape: Shape) -> Parts:
    """Adafactor (arXiv 1804.04235): the squares of a matrix as a column times a row."""
    if len(shape) < 2:
        return {"variance": Part(shape)}
    *outer, rows, columns = shape
    return {"row_var": Part((*outer, rows, 1)), "col_var": Part((*outer, 1, columns))}


def _eight_bits(shape: Shape) -> Parts:
    """Both moments in one byte a value, with a scale per block; in 32 bits if they are small."""
    values = math.prod(shape)
    step = {"step": Part((), "int64")}
    if values < SMALL:
        return {**step, "state1": Part(shape, "float32"), "state2": Part(shape, "float32")}
    moments = {what: Part(shape, "uint8") for what in ("state1", "state2")}
    blocks = (-(-values // BLOCK),)
    scales = {what: Part(blocks, "float32") for what in ("absmax1", "absmax2")}
    return {**step, **moments, **scales}


def _pages(shape: Shape) -> Parts:
    paged = math.prod(shape) >= PAGED
    moments = {what: Part(shape, "float32", paged) for what in ("state1", "state2")}
    return {"step": Part((), "int64"), **moments}


OPTIMIZERS = {
    "adamw": OptimizerKind(("exp_avg",), ("exp_avg_sq",), ("step",), foreach=True, copies_on_cpu=2),
    "adamw-8bit": OptimizerKind(
        others=_eight_bits,
        shared=(("qmap1", 256), ("qmap2", 256)),
        package="bitsandbytes",
        devices=("cpu", "cuda"),
        copies_on_cpu=5,  # both moments in 32 bits, the gradient, two for their quotient
    ),
    "adamw-paged": OptimizerKind(
        others=_pages, package="bitsandbytes", devices=("cpu", "cuda"), copies_on_cpu=3
    ),
    "sgd": OptimizerKind(rate=None),
    "adafactor": OptimizerKind(scalars=("step",), others=_factors, copies=1, copies_on_cpu=1),
    # Its authors: a learning rate 3 to 10 times smaller than AdamW's (arXiv 2302.06675, section 5)
    "lion": OptimizerKind(("exp_avg",), rate=0.2, copies=1, copies_on_cpu=1),
}


def missing_package(name: str) -> str | None:
    """What to install before an optimizer can be used here, or None. Imports nothing."""
    package = OPTIMIZERS[name].package
    if package is None or find_spec(package) is not None:
        return None
    return f"{name} needs {package}; pip install 'loractl[quant]', or set it to adamw"
