"""Plain records that rooms on different levels hand to each other. No torch at import."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, device

UNTRAINED = -100
"""The label of a token that is not trained: torch's own default `ignore_index`."""


@dataclass(frozen=True)
class Message:
    """One turn of a conversation."""

    role: str
    content: str
    train: bool = True
    tool_calls: tuple[Mapping[str, Any], ...] = ()  # as the row has them, for the chat template


@dataclass(frozen=True)
class Conversation:
    """What a row holds: its messages, and the tools that it declares to the model."""

    messages: tuple[Message, ...]
    tools: tuple[Mapping[str, Any], ...] = ()  # JSON Schemas, for the chat template


@dataclass(frozen=True)
class Example:
    """One tokenised row: ids, and labels that are unshifted ids or UNTRAINED, of equal length."""

    ids: list[int]
    labels: list[int]
    line: int  # 1-based line (or item) of the file it came from
    path: str = ""  # of that file, where a run reads several

    @property
    def where(self) -> int | str:
        """Where its row stands: line, or path:line where a run reads several files."""
        return f"{self.path}:{self.line}" if self.path else self.line

    @property
    def n_trained(self) -> int:
        return sum(label != UNTRAINED for label in self.labels)


@dataclass(frozen=True)
class Batch:
    """One micro-batch; every tensor is int64 of shape (rows, length).

    Examples are told apart by `position_ids`, which restart at 0 with each; padding stands at the
    end of a row and is a segment of its own. `labels` are unshifted, and UNTRAINED on the first
    token of every example, which nothing predicts.
    """

    input_ids: "Tensor"
    labels: "Tensor"
    position_ids: "Tensor"
    n_tokens: int  # real tokens, padding apart
    lines: tuple[int | str, ...]  # where its examples came from, for messages: line or path:line
    sizes: tuple[int, ...] = ()  # real tokens of each row
    examples: tuple[int, ...] = ()  # their numbers in the data that is trained, row after row
    shared: int = 0  # tokens of the first example that all others begin with too, and lack here

    @property
    def row_counts(self) -> list[int]:
        """Tokens of each row that are trained. Waits for the device that the labels are on."""
        counts: list[int] = (self.labels[:, 1:] != UNTRAINED).sum(dim=1).tolist()
        return counts

    @property
    def n_trained(self) -> int:
        """Tokens that are trained, likewise."""
        return sum(self.row_counts)

    def without_padding(self) -> "Batch":
        """All real tokens in one row, (1, n_tokens); what is not told apart by sizes stays."""
        if not self.sizes or (len(self.sizes) == 1 and self.sizes[0] == self.input_ids.shape[1]):
            return self
        if len(set(self.sizes)) == 1 and self.sizes[0] == self.input_ids.shape[1]:
            flat = [one.reshape(1, -1) for one in self._three_tensors]
        else:
            import torch

            flat = [
                torch.cat([row[:size] for row, size in zip(one, self.sizes, strict=True)])[None]
                for one in self._three_tensors
            ]
        input_ids, labels, position_ids = flat
        return replace(
            self,
            input_ids=input_ids,
            labels=labels,
            position_ids=position_ids,
            sizes=(self.n_tokens,),
        )

    @property
    def _three_tensors(self) -> "tuple[Tensor, Tensor, Tensor]":
        return self.input_ids, self.labels, self.position_ids

    def to(self, device: "device") -> "Batch":
        """The same batch with its tensors on `device`."""
        return replace(
            self,
            input_ids=self.input_ids.to(device, non_blocking=True),
            labels=self.labels.to(device, non_blocking=True),
            position_ids=self.position_ids.to(device, non_blocking=True),
        )


@dataclass(frozen=True)
class DataState:
    """Where the data stands after a batch: the rows before (epoch, row) have been handed out."""

    epoch: int
    row: int
    rows: int = 0  # of that epoch; 0 before it is laid out

    @property
    def epochs(self) -> float:
        """Passes over the data that are done."""
        return self.epoch + (self.row / self.rows if self.rows else 0.0)
