"""Plain records passed between packages on different levels. No torch at import."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, device

UNTRAINED = -100
"""The label of a token that is not trained: torch's default `ignore_index`."""


@dataclass(frozen=True)
class Message:
    """One turn of a conversation."""

    role: str
    content: str
    train: bool = True
    tool_calls: tuple[Mapping[str, Any], ...] = ()  # as in the row, for the chat template
    extra: Mapping[str, Any] = field(default_factory=dict)  # other fields, for the chat template
    parts: tuple[
        str, ...
    ] = ()  # the texts of a content that was given as a list; content joins them


@dataclass(frozen=True)
class Conversation:
    """The contents of a row: its messages, and the tools that it offers to the model."""

    messages: tuple[Message, ...]
    tools: tuple[Mapping[str, Any], ...] = ()  # JSON Schemas, for the chat template
    variables: Mapping[str, Any] = field(default_factory=dict)  # of its own, for the chat template
    unread: tuple[str, ...] = ()  # fields of its row that the format does not read


@dataclass(frozen=True)
class Example:
    """One tokenized row: ids, and labels (unshifted ids or UNTRAINED) of the same length."""

    ids: list[int]
    labels: list[int]
    line: int  # 1-based line (or item) of the file it came from
    path: str = ""  # of that file, if a run reads several

    @property
    def where(self) -> int | str:
        """The location of its row: line, or path:line if a run reads several files."""
        return f"{self.path}:{self.line}" if self.path else self.line

    @property
    def n_trained(self) -> int:
        return sum(label != UNTRAINED for label in self.labels)


@dataclass(frozen=True)
class Batch:
    """One micro-batch; every tensor is int64 of shape (rows, length).

    Examples are separated by `position_ids`, which restart at 0 for each; padding is at the end of
    a row and is its own segment. `labels` are unshifted, and UNTRAINED on the first token of every
    example, which nothing predicts.
    """

    input_ids: "Tensor"
    labels: "Tensor"
    position_ids: "Tensor"
    n_tokens: int  # real tokens, without padding
    lines: tuple[int | str, ...]  # locations of its examples, for messages: line or path:line
    sizes: tuple[int, ...] = ()  # real tokens of each row
    examples: tuple[int, ...] = ()  # their indices in the training data, row by row
    shared: int = 0  # prefix tokens of the first example that the others share and omit

    @property
    def row_counts(self) -> list[int]:
        """Trained tokens per row. Waits for the device that the labels are on."""
        counts: list[int] = (self.labels[:, 1:] != UNTRAINED).sum(dim=1).tolist()
        return counts

    @property
    def example_counts(self) -> list[int]:
        """Trained tokens per example, in the order of `lines`. Waits likewise."""
        counts: list[int] = []
        sizes = self.sizes or (self.input_ids.shape[1],) * len(self.input_ids)
        for labels, positions, size in zip(self.labels, self.position_ids, sizes, strict=True):
            starts = (positions[:size] == 0).nonzero().flatten().tolist()
            for start, end in zip(starts, [*starts[1:], size], strict=True):
                counts.append(int((labels[start:end] != UNTRAINED).sum()))
        return counts

    @property
    def n_trained(self) -> int:
        """Trained tokens in total. Waits likewise."""
        return sum(self.row_counts)

    def without_padding(self) -> "Batch":
        """All real tokens in one row, (1, n_tokens); unchanged if the sizes are not known."""
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
class HeldOutLoss:
    """The losses of an evaluation, summed by groups of rows, so that two can be compared in pairs.

    The rows of a group are the same in every evaluation of a run.
    """

    sums: list[float]  # of the losses of each group, in nats
    counts: list[float]  # of the tokens predicted in it

    @property
    def mean(self) -> float:
        """Mean cross-entropy in nats per trained token: sum over sum."""
        return sum(self.sums) / sum(self.counts)


@dataclass(frozen=True)
class DataState:
    """The position in the data after a batch: the rows before (epoch, row) have been used."""

    epoch: int
    row: int
    rows: int = 0  # in that epoch; 0 before it is laid out

    @property
    def epochs(self) -> float:
        """Completed passes over the data."""
        return self.epoch + (self.row / self.rows if self.rows else 0.0)
