"""New rows for an embedding and its head: for tokens that a base was not trained with.

A row starts as the mean of the base's own rows, which makes a new token neither likely nor odd.
Modules stay in place and get another weight; what was there before can be put back.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from loractl.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Growth:
    """What a model had before it grew."""

    model: "PreTrainedModel"
    weights: tuple[tuple[nn.Module, str, nn.Parameter], ...]
    n_rows: int

    def undo_(self) -> None:
        """Put back the same weights, shared where they were."""
        for module, name, old in self.weights:
            setattr(module, name, old)
            _set_size_(module, self.n_rows)
        set_vocabulary_(self.model, self.n_rows)


def grow_(model: "PreTrainedModel", n_rows: int, *, n_tokens: int | None = None) -> Growth | None:
    """Give the embedding and the head of a plain model `n_rows` rows; None if they have as many.

    `n_tokens`: how many of the present rows belong to tokens; None: all. Raises ModelError for a
    model whose embedding or head is not a plain one.
    """
    table, head = _ends(model)
    old = len(table.weight)
    if n_rows <= old:
        return None
    is_tied = head.weight is table.weight
    before = [(table, "weight", table.weight)]
    table.weight = _extended(table.weight, n_rows, n_tokens)
    _set_size_(table, n_rows)
    if head is not table:
        before.append((head, "weight", head.weight))
        head.weight = table.weight if is_tied else _extended(head.weight, n_rows, n_tokens)
        if head.bias is not None:
            before.append((head, "bias", head.bias))
            head.bias = _extended(head.bias, n_rows, n_tokens)
        _set_size_(head, n_rows)
    set_vocabulary_(model, n_rows)
    return Growth(model, tuple(before), old)


def start_at_mean_(model: "PreTrainedModel", ids: Sequence[int], *, n_tokens: int) -> None:
    """Give these rows of a plain model the mean of the rows of its tokens: spare rows, which no
    token of the base had, hold what the base happened to start with."""
    table, head = _ends(model)
    with torch.no_grad():
        for module in [table] if head.weight is table.weight else [table, head]:
            module.weight[list(ids)] = mean_row(module.weight, n_tokens)
        if head is not table and head.bias is not None:
            head.bias[list(ids)] = mean_row(head.bias, n_tokens)


def mean_row(weight: Tensor, n_tokens: int | None = None) -> Tensor:
    """The mean of the first rows, computed in float32 and rounded to the dtype of the weight."""
    return weight.detach()[:n_tokens].mean(dim=0, dtype=torch.float32).to(weight.dtype)


def extended(weight: Tensor, n_rows: int, n_tokens: int | None = None) -> Tensor:
    """A weight with `n_rows` rows, the new ones at the mean of the first `n_tokens` old ones."""
    mean = mean_row(weight, n_tokens)
    return torch.cat([weight.detach(), mean.expand(n_rows - len(weight), *mean.shape)])


def set_vocabulary_(model: "PreTrainedModel", n_rows: int) -> None:
    """Note the size of the vocabulary where transformers does."""
    config = model.config.get_text_config()
    config.vocab_size = n_rows
    for holder in (model.config, model, model.base_model):
        if isinstance(getattr(holder, "vocab_size", None), int):
            setattr(holder, "vocab_size", n_rows)  # noqa: B010


def _extended(weight: nn.Parameter, n_rows: int, n_tokens: int | None) -> nn.Parameter:
    return nn.Parameter(extended(weight, n_rows, n_tokens), requires_grad=weight.requires_grad)


def _set_size_(module: nn.Module, n_rows: int) -> None:
    name = "num_embeddings" if isinstance(module, nn.Embedding) else "out_features"
    setattr(module, name, n_rows)


def _ends(model: "PreTrainedModel") -> tuple[Any, Any]:
    """The embedding and the head of a model, the embedding twice if there is no head."""
    table: Any = model.get_input_embeddings()
    head: Any = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    head = table if head is None else head
    for module in (table, head):
        plain = isinstance(module, nn.Embedding) or type(module) is nn.Linear
        if not plain or not module.weight.is_floating_point():
            raise ModelError(
                f"the vocabulary cannot grow: {type(module).__name__} is not a plain embedding or"
                " head; use a base whose embedding has been resized"
            )
    return table, head
