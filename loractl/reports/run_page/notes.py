"""report.json: what only the loaded model can tell of a run, kept so that its page can be made
again from files."""

from dataclasses import asdict, dataclass, field
from typing import Any

from pydantic import FiniteFloat, NonNegativeInt, TypeAdapter, ValidationError

from loractl.errors import ArtifactError


@dataclass(frozen=True)
class Said:
    """A message of a prompt."""

    role: str
    content: str


@dataclass(frozen=True)
class Given:
    """An answer; `is_cut`: it had not ended by itself."""

    text: str
    is_cut: bool
    is_right: bool


@dataclass(frozen=True)
class Compared:
    """A held-out row: its prompt, what was expected, and both answers."""

    where: str
    prompt: list[Said]
    expected: str
    base: Given
    tuned: Given


@dataclass(frozen=True)
class Span:
    """A stretch of a row's text."""

    is_trained: bool
    text: str


@dataclass(frozen=True)
class ShownRow:
    """A training row as it was trained, with its numbers of tokens."""

    where: str
    tokens: NonNegativeInt
    trained: NonNegativeInt
    spans: list[Span]


@dataclass(frozen=True)
class Weight:
    """A weight of the base beside its update.

    `update`, `d_out` and `d_in` are of a matrix that was trained whole; `intruders` of one whose
    singular vectors were compared.
    """

    norm: FiniteFloat  # of W, Frobenius
    intruders: NonNegativeInt | None = None
    update: FiniteFloat | None = None
    d_out: NonNegativeInt | None = None
    d_in: NonNegativeInt | None = None


@dataclass(frozen=True)
class Notes:
    """The whole file. A run without it has the same page with fewer sections."""

    environment: dict[str, str | int] = field(default_factory=dict)
    rows: list[ShownRow] = field(default_factory=list)
    answers: list[Compared] = field(default_factory=list)
    weights: dict[str, Weight] = field(default_factory=dict)  # by module

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_dict(content: dict[str, Any]) -> "Notes":
        """The reverse of `as_dict`. Raises ArtifactError for anything else."""
        try:
            return TypeAdapter(Notes).validate_python(content)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise ArtifactError(f"report.json: {where}: {first['msg']}") from None
