"""Plain records passed between packages on different levels. No torch at import."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, device

ARRIVE = "arrive"
"""The attribute of a module whose weights are not always in memory: a function that brings them."""

UNTRAINED = -100
"""The label of a token that is not trained: torch's default `ignore_index`."""


@dataclass(frozen=True)
class Message:
    """One turn of a conversation."""

    role: str
    content: str
    weight: float = 1.0  # of its tokens in the loss, where they are trained; 0: not trained
    tool_calls: tuple[Mapping[str, Any], ...] = ()  # as in the row, for the chat template
    extra: Mapping[str, Any] = field(default_factory=dict)  # other fields, for the chat template
    parts: tuple[str, ...] = ()  # the texts that content joins, if it was given as a list
    spans: tuple[tuple[int, int], ...] | None = None  # what of content is trained; None: all

    @property
    def train(self) -> bool:
        """Whether it may be trained at all."""
        return self.weight > 0


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
    weights: list[float] | None = None  # of each token, 0 if untrained; None: trained ones weigh 1

    @property
    def where(self) -> int | str:
        """The location of its row: line, or path:line if a run reads several files."""
        return f"{self.path}:{self.line}" if self.path else self.line

    @property
    def n_trained(self) -> int:
        return sum(label != UNTRAINED for label in self.labels)


@dataclass(frozen=True)
class Batch:
    """One micro-batch; every tensor is int64 of shape (rows, length), but `weights` are float32.

    Examples are separated by `position_ids`, which restart at 0 for each; padding is at the end of
    a row and is its own segment. `labels` are unshifted, and UNTRAINED on the first token of every
    example, which nothing predicts. `weights` belong to `labels` and are 0 where those are
    UNTRAINED; without them every trained token weighs 1.
    """

    input_ids: "Tensor"
    labels: "Tensor"
    position_ids: "Tensor"
    n_tokens: int  # real tokens, without padding
    lines: tuple[int | str, ...]  # locations of its examples, for messages: line or path:line
    sizes: tuple[int, ...] = ()  # real tokens of each row
    examples: tuple[int, ...] = ()  # their indices in the training data, row by row
    shared: int = 0  # prefix tokens of the first example that the others share and omit
    weights: "Tensor | None" = None
    host: "Batch | None" = None  # if its tensors are on another device: the same on the CPU

    @property
    def on_host(self) -> "Batch":
        """The same batch, to be read without waiting for a device."""
        return self.host or self

    @property
    def row_counts(self) -> list[int]:
        """Trained tokens per row."""
        counts: list[int] = (self.on_host.labels[:, 1:] != UNTRAINED).sum(dim=1).tolist()
        return counts

    @property
    def example_counts(self) -> list[int]:
        """Trained tokens per example, in the order of `lines`."""
        counts: list[int] = []
        sizes = self.sizes or (self.input_ids.shape[1],) * len(self.input_ids)
        of = self.on_host
        for labels, positions, size in zip(of.labels, of.position_ids, sizes, strict=True):
            starts = (positions[:size] == 0).nonzero().flatten().tolist()
            for start, end in zip(starts, [*starts[1:], size], strict=True):
                counts.append(int((labels[start:end] != UNTRAINED).sum()))
        return counts

    @property
    def n_trained(self) -> int:
        """Trained tokens in total."""
        return sum(self.row_counts)

    @property
    def weight(self) -> float:
        """The sum of the weights of all trained tokens: their number if each weighs 1."""
        weights = self.on_host.weights
        return self.n_trained if weights is None else float(weights[:, 1:].double().sum())

    def without_padding(self) -> "Batch":
        """All real tokens in one row, (1, n_tokens); unchanged if the sizes are not known."""
        if not self.sizes or (len(self.sizes) == 1 and self.sizes[0] == self.input_ids.shape[1]):
            return self
        if len(set(self.sizes)) == 1 and self.sizes[0] == self.input_ids.shape[1]:
            flat = self.with_each(lambda one: one.reshape(1, -1))
        else:
            import torch

            flat = self.with_each(
                lambda one: torch.cat(
                    [row[:size] for row, size in zip(one, self.sizes, strict=True)]
                )[None]
            )
        return replace(flat, sizes=(self.n_tokens,))

    def with_each(self, change: "Callable[[Tensor], Tensor]") -> "Batch":
        """The same batch with the result of `change` in place of each of its tensors."""
        return replace(
            self,
            input_ids=change(self.input_ids),
            labels=change(self.labels),
            position_ids=change(self.position_ids),
            weights=None if self.weights is None else change(self.weights),
            host=None if self.host is None else self.host.with_each(change),
        )

    def to(self, device: "device") -> "Batch":
        """The same batch with its tensors on `device`."""
        moved = self.with_each(lambda one: one.to(device, non_blocking=True))
        return replace(moved, host=None if device.type == "cpu" else self.on_host)


@dataclass(frozen=True)
class HeldOutLoss:
    """The losses of an evaluation, summed by groups of rows, so that two can be compared in pairs.

    The rows of a group are the same in every evaluation of a run.
    """

    sums: list[float]  # of the losses of each group, in nats
    counts: list[float]  # of the tokens predicted in it, or the sum of their weights

    @property
    def mean(self) -> float:
        """Mean cross-entropy in nats per trained token, by weight: sum over sum."""
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
