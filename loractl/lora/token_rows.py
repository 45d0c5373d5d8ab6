"""Rows of an embedding or an output head that are trained while the rest of it stays frozen.

The module keeps its weight; the trained rows are a float32 matrix of their own, which replaces what
the frozen module gives for these tokens. A head that shares the embedding's weight shares its rows.
Only the gradient of these rows is ever computed. As in PEFT 0.21's trainable tokens, the rows are
values, not differences, so what the frozen weight has in their place does not matter.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from loractl.lora.whole import WholeModule, set_parameter_, wholes
from loractl.ops.own_rows import OwnRows


class TokenRows(nn.Module):
    """Replaces an embedding or a head without a bias: the frozen module and its trained rows."""

    indices: Tensor
    ranked: Tensor
    order: Tensor

    def __init__(
        self, base: nn.Module, indices: Sequence[int], leader: "TokenRows | None" = None
    ) -> None:
        """`leader`: the embedding's, whose rows this head shares."""
        super().__init__()
        weight: Any = base.weight
        assert len(set(indices)) == len(indices) and max(indices) < len(weight), indices
        assert getattr(base, "bias", None) is None, "PEFT leaves out the bias of such a head"
        self.base = base
        self._leader = [] if leader is None else [leader]  # a list: not a submodule
        # On a base without values (meta) the rows are read from a file later.
        device = torch.device("cpu") if weight.is_meta else weight.device
        index = torch.tensor(list(indices), device=device)
        order = index.argsort()
        self.register_buffer("indices", index, persistent=False)  # (k,)
        self.register_buffer("ranked", index[order], persistent=False)
        self.register_buffer("order", order, persistent=False)
        if leader is None:
            start = torch.zeros(len(indices), weight.shape[1])
            values = start if weight.is_meta else weight.detach()[index].float()
            self.rows = nn.Parameter(values)  # (k, width)
        self.enabled = True

    def __getattr__(self, name: str) -> Any:
        """Attributes that models read besides the forward pass, such as the weight."""
        if name == "rows" and self._leader:
            return self._leader[0].rows
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name in ("base", "_leader"):
                raise
            return self.merged_weight() if name == "weight" else getattr(self.base, name)

    @property
    def follows(self) -> bool:
        """Whether the rows are those of another module, which owns them."""
        return bool(self._leader)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.base(x)
        return self.adapt(x, y) if self.enabled else y

    def adapt(self, x: Tensor, y: Tensor) -> Tensor:
        """The output with the trained rows, where that of the frozen module is y."""
        if not isinstance(self.base, nn.Embedding):  # x (..., width), y (..., vocabulary)
            return y.index_copy(-1, self.indices, F.linear(x, self.rows.to(y.dtype)))
        at = torch.searchsorted(self.ranked, x).clamp_(max=len(self.ranked) - 1)
        own = self.ranked[at] == x  # which of the ids x (...) have a trained row
        rows = F.embedding(self.order[at[own]], self.rows).to(y.dtype)  # (n, width)
        scale = getattr(self.base, "embed_scale", None)  # Gemma multiplies what it looked up
        return y.index_put((own,), rows if scale is None else rows * scale.to(y.dtype))

    def merged_weight(self, weight: Tensor | None = None, *, dtype: Any = None) -> Tensor:
        """The weight with the trained rows, each rounded once to its dtype; differentiable.

        `weight` replaces the frozen one when that has no values (meta).
        """
        W: Any = self.base.weight if weight is None else weight
        W = W if dtype is None else W.to(dtype)
        rows = self.rows.to(device=W.device, dtype=W.dtype)
        merged: Tensor = W.index_copy(0, self.indices.to(W.device), rows)
        return merged

    def own_rows(self) -> OwnRows:
        """The rows as the fused head and loss take them."""
        return OwnRows(self.rows, self.indices)

    def swap_weights_(self) -> dict[str, nn.Parameter]:
        """Put the merged weight into the frozen module; return the previous one."""
        old: Any = self.base.weight
        merged = self.merged_weight().detach()
        leads = self._leader[0] if self.follows else None
        shared = leads is not None and torch.equal(leads.base.weight, merged)  # type: ignore[arg-type]
        new: Any = (
            leads.base.weight if leads is not None and shared else nn.Parameter(merged, False)
        )
        set_parameter_(self.base, "weight", new)
        return {"weight": old}


Saved = WholeModule | TokenRows
"""A module that is saved beside an adapter: all of it, or some of its rows."""


def train_rows_(
    model: nn.Module, indices: Mapping[str, Sequence[int]], shared: Mapping[str, str]
) -> dict[str, TokenRows]:
    """Replace modules so that these rows of them are trained; return those that own rows, by path.

    `shared` maps the path of a head to that of the embedding whose rows it shares.
    """
    found = {path: TokenRows(model.get_submodule(path), rows) for path, rows in indices.items()}
    followers = {
        path: TokenRows(model.get_submodule(path), indices[leader], found[leader])
        for path, leader in shared.items()
    }
    for path, module in (found | followers).items():
        parent, _, last = path.rpartition(".")
        setattr(model.get_submodule(parent), last, module)
    return found


def token_rows(model: nn.Module) -> dict[str, TokenRows]:
    """The modules some of whose rows are trained, by the path of the one they replace; those that
    share the rows of another come last."""
    found = {path: m for path, m in model.named_modules() if isinstance(m, TokenRows)}
    return dict(sorted(found.items(), key=lambda item: item[1].follows))


def saved_modules(model: nn.Module) -> dict[str, Saved]:
    """All modules that are trained beside adapters, in full or in part, by path."""
    return {**wholes(model), **token_rows(model)}


def only_whole(modules: Mapping[str, Saved]) -> dict[str, WholeModule]:
    return {path: one for path, one in modules.items() if isinstance(one, WholeModule)}


def only_rows(modules: Mapping[str, Saved]) -> dict[str, TokenRows]:
    return {path: one for path, one in modules.items() if isinstance(one, TokenRows)}
