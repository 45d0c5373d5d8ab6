"""What `loractl eval` is asked to measure, without torch."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

LOSSES = ("loss", "perplexity")

MATCHES = ("exact_match", "contains", "json_match", "regex")


@dataclass(frozen=True)
class EvalRequest:
    """What to measure, on which rows, and how to generate answers."""

    data: Path
    metrics: tuple[str, ...] = ("loss", "perplexity", "exact_match")
    regex: str | None = None
    retain: Path | None = None
    max_length: int = 1024
    max_new_tokens: int = 256
    batch_size: int = 8
    dtype: str = "auto"
    columns: Mapping[str, str] = field(default_factory=dict)  # of data, not of retain

    @property
    def matches(self) -> tuple[str, ...]:
        return tuple(name for name in self.metrics if name in MATCHES)
