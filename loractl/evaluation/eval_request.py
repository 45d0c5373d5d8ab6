"""What `loractl eval` is asked to measure, without torch."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

LOSSES = ("loss", "perplexity")

MATCHES = ("exact_match", "contains", "json_match", "answer", "tool_call", "regex")

MAX_LENGTH, BATCH_SIZE = 1024, 8


@dataclass(frozen=True)
class EvalRequest:
    """What to measure, on which rows, and how to generate answers."""

    data: Path | None  # None: the rows that the run held out
    metrics: tuple[str, ...] = ("loss", "perplexity", "exact_match")
    regex: str | None = None
    retain: Path | None = None
    max_length: int | None = None  # None: the run's; MAX_LENGTH for --data
    max_new_tokens: int = 256
    batch_size: int | None = None
    dtype: str | None = None  # None: the one trained in
    columns: Mapping[str, str] = field(default_factory=dict)  # of data, not of retain

    @property
    def matches(self) -> tuple[str, ...]:
        return tuple(name for name in self.metrics if name in MATCHES)
