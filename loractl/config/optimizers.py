"""The optimizers by name, and the state each keeps per trained parameter. No torch: training builds
them; training, rank schedules, checkpoints and planning all read this table."""

from dataclasses import dataclass


@dataclass(frozen=True)
class OptimizerKind:
    """The state of an optimizer, under the names that torch uses.

    `averages` are running means of gradients and `squares` of their squares, each in the shape of
    its parameter; `scalars` are one number per parameter.
    """

    averages: tuple[str, ...] = ()
    squares: tuple[str, ...] = ()
    scalars: tuple[str, ...] = ()
    fixed_bytes: float | None = None  # per trained value, if independent of its width
    has_root: bool = False  # whether a step allocates a temporary as large as the squares

    @property
    def shaped(self) -> tuple[str, ...]:
        """The parts that have the shape of their parameter."""
        return (*self.averages, *self.squares)

    def bytes_a_value(self, width: int) -> float:
        """Bytes of state on the device per trained value of `width` bytes."""
        return float(len(self.shaped) * width) if self.fixed_bytes is None else self.fixed_bytes


OPTIMIZERS = {
    "adamw": OptimizerKind(("exp_avg",), ("exp_avg_sq",), ("step",), has_root=True),
    # One byte for each of two values, in blocks of 256 with a float32 scale (arXiv 2110.02861)
    "adamw-8bit": OptimizerKind(fixed_bytes=2 * (1 + 4 / 256)),
    # The state is in host memory.
    "adamw-paged": OptimizerKind(fixed_bytes=0.0),
    "sgd": OptimizerKind(),
}
