"""The training objectives and the kind of rows each needs. No torch: models/objective builds the
losses."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ObjectiveKind:
    """An objective as seen by data and planning."""

    data: str  # "examples": one row, one text with its trained tokens


OBJECTIVES = {"sft": ObjectiveKind(data="examples")}
