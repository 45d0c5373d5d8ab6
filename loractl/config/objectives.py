"""What can be trained for, and the kind of rows that it takes. No torch: models/objective builds
the losses."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ObjectiveKind:
    """An objective as far as data and planning see it."""

    data: str  # "examples": one row, one text with its trained tokens


OBJECTIVES = {"sft": ObjectiveKind(data="examples")}
