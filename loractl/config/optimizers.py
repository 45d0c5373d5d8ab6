"""The optimizers by name, and what each keeps of a trained parameter. No torch: training builds
them, and training, rank schedules, checkpoints and planning read the same rows."""

from dataclasses import dataclass


@dataclass(frozen=True)
class OptimizerKind:
    """The state of an optimizer, by the names that torch gives its parts.

    `averages` are means of gradients and `squares` means of their squares, each in the shape of its
    parameter; `scalars` are one number a parameter.
    """

    averages: tuple[str, ...] = ()
    squares: tuple[str, ...] = ()
    scalars: tuple[str, ...] = ()
    fixed_bytes: float | None = None  # a trained value, where they do not grow with its width
    has_root: bool = False  # whether a step makes a temporary as large as the squares

    @property
    def shaped(self) -> tuple[str, ...]:
        """The parts in the shape of their parameter."""
        return (*self.averages, *self.squares)

    def bytes_a_value(self, width: int) -> float:
        """Bytes on the device that are kept of a trained value of so many bytes."""
        return float(len(self.shaped) * width) if self.fixed_bytes is None else self.fixed_bytes


OPTIMIZERS = {
    "adamw": OptimizerKind(("exp_avg",), ("exp_avg_sq",), ("step",), has_root=True),
    # One byte for each of two values, in blocks of 256 with a float32 scale (arXiv 2110.02861)
    "adamw-8bit": OptimizerKind(fixed_bytes=2 * (1 + 4 / 256)),
    # State lies in the memory of the host.
    "adamw-paged": OptimizerKind(fixed_bytes=0.0),
    "sgd": OptimizerKind(),
}
