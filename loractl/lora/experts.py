"""LoRA on the experts of a mixture, whose weights share one three-dimensional parameter.

Expert e computes W_e x + s * B_e (A_e x). A model's experts module computes two such products with
an activation between them in one forward pass, so the module that replaces it here adds the thin
products to each of them. PEFT 0.21.2 instead adds s * B A, as large as all experts, to the weight.

A and B are stored as in PEFT's files: A (E r, d_in), B (d_out, r E). The expert number is the outer
index of A's rows and the inner index of B's columns.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from loractl.lora.dense import dtype_and_device, size_of
from loractl.lora.layer import Held, LoraLayer

PRODUCTS = ("gate_up_proj", "up_proj", "down_proj")
"""The parameters of an experts module that can carry an adapter, by their transformers names."""


class LoraExperts(LoraLayer):
    """The update of one parameter (E, d_out, d_in) of an experts module."""

    kind = "experts"

    def __init__(
        self,
        base: nn.Module,
        A: Tensor,
        B: Tensor,
        *,
        scale: float,
        dropout: float = 0.0,
        parameter: str,
    ) -> None:
        self.parameter = parameter
        super().__init__(base, A, B, scale=scale, dropout=dropout)

    def attach_(self, base: nn.Module) -> None:
        """Refer to the experts module without owning it; `AdaptedExperts` owns it."""
        object.__setattr__(self, "base", base)

    @property
    def weight(self) -> Tensor:
        weight = getattr(self.base, self.parameter)
        assert isinstance(weight, Tensor)
        return weight

    @property
    def placed(self) -> tuple[torch.dtype, torch.device]:
        return dtype_and_device(self.base, self.parameter)

    def swap_weight_(self, weight: Held) -> Held:
        old = getattr(self.base, self.parameter)
        assert isinstance(old, nn.Parameter)
        setattr(self.base, self.parameter, weight)
        return old

    @property
    def bias(self) -> Tensor | None:
        return None

    @property
    def laid_shape(self) -> tuple[int, ...]:
        return (self.n_experts, *super().laid_shape)

    def dense_weight(self) -> Tensor:
        return self.weight

    @property
    def n_experts(self) -> int:
        return size_of(self.base, self.kind, self.parameter).stack

    @property
    def rank(self) -> int:
        return self.A.shape[0] // self.n_experts

    def stacks(self) -> tuple[Tensor, Tensor]:
        """A (E, k, d_in) and B (E, d_out, k); k is r, or 2 r with a start (`factors`)."""
        A, B = unpacked(self.A, self.B, self.n_experts)
        if self.A0 is None or self.B0 is None:
            return A, B
        A0, B0 = unpacked(self.A0, self.B0, self.n_experts)
        return torch.cat([A, A - A0], dim=1), torch.cat([B - B0, B0], dim=2)

    def factors(self) -> tuple[Tensor, Tensor]:
        """`stacks` in the layout of the files: A (E k, d_in), B (d_out, k E)."""
        return packed(*self.stacks())

    def forward(self, x: Tensor, counts: Sequence[int] = ()) -> Tensor:
        """B A x without its scale, for rows (tokens, d_in); `counts` are the rows per expert."""
        A, B = (factor.to(x.dtype) for factor in self.stacks())
        parts = zip(torch.split(x, list(counts)), A, B, strict=True)
        return torch.cat([F.linear(F.linear(rows, A_e), B_e) for rows, A_e, B_e in parts])

    def update_rows(self, start: int, stop: int) -> Tensor:
        """Experts start to stop of s * B A in float64, laid out as the parameter."""
        A, B = (factor[start:stop].detach().double() for factor in self.stacks())
        product = A.mT @ B.mT if self.transposed else B @ A
        return product * self.scale


class LoraExpertsTransposed(LoraExperts):
    """The same for a parameter stored as (E, d_in, d_out)."""

    kind = "experts-transposed"
    transposed = True


class AdaptedExperts(nn.Module):
    """Replaces an experts module; its `LoraExperts` are named after the parameters."""

    def __init__(self, base: nn.Module, layers: Mapping[str, LoraExperts]) -> None:
        super().__init__()
        self.base = base
        for name, layer in layers.items():
            setattr(self, name, layer)

    def __getattr__(self, name: str) -> Any:
        """Attributes that models read from their experts besides the forward pass."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "base":
                raise
            return getattr(self.base, name)

    def forward(self, hidden: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """hidden (tokens, d), experts and weights of each token (tokens, k) -> (tokens, d).

        Rows are sorted by expert and summed in the order of transformers 5.23's grouped form, so
        that an adapter that adds nothing leaves the result identical bit for bit.
        """
        base: Any = self.base
        k = top_k_index.shape[-1]
        ids, order = top_k_index.reshape(-1).sort()  # (tokens k,)
        counts = torch.bincount(ids, minlength=base.num_experts).tolist()
        x = hidden[order // k]  # (tokens k, d)
        if base.has_gate:
            h = base._apply_gate(self._product("gate_up_proj", x, ids, counts))
        else:
            h = base.act_fn(self._product("up_proj", x, ids, counts))
        y = self._product("down_proj", h, ids, counts)  # (tokens k, d)
        if getattr(base, "has_post_expert_norm", False):
            y = base.post_expert_norm(y)
        weighted = y * top_k_weights.reshape(-1)[order].unsqueeze(-1)
        back = torch.empty_like(order)
        back[order] = torch.arange(len(order), device=order.device)
        summed = weighted[back].view(*top_k_index.shape, y.shape[-1]).sum(dim=1)
        return summed.to(hidden.dtype)

    def _product(self, name: str, x: Tensor, ids: Tensor, counts: list[int]) -> Tensor:
        base: Any = self.base
        W = getattr(base, name)
        parts = torch.split(x, counts)
        if base.is_transposed:
            y = torch.cat([rows @ W_e for rows, W_e in zip(parts, W, strict=True)])
        else:
            y = torch.cat([F.linear(rows, W_e) for rows, W_e in zip(parts, W, strict=True)])
        if base.has_bias:
            y = y + getattr(base, f"{name}_bias")[ids]
        layer = self._modules.get(name)
        if not isinstance(layer, LoraExperts) or not layer.enabled:
            return y
        return torch.add(y, layer(layer.dropped(x), counts), alpha=layer.scale)


def products_of(module: nn.Module) -> dict[str, str]:
    """The parameters of a module that are fused experts, in its order, each with its kind.

    The attributes checked are those that transformers' own experts functions use; a module that
    lacks one computes something else.
    """
    asked = ("num_experts", "has_gate", "has_bias", "is_transposed", "_apply_gate")
    if not all(hasattr(module, name) for name in asked):
        return {}
    kind = "experts-transposed" if module.is_transposed else "experts"
    found = module.named_parameters(recurse=False)
    return {name: kind for name, tensor in found if name in PRODUCTS and tensor.dim() == 3}


def unpacked(A: Tensor, B: Tensor, n_experts: int) -> tuple[Tensor, Tensor]:
    """A (E r, d_in), B (d_out, r E) -> A (E, r, d_in), B (E, d_out, r)."""
    return A.view(n_experts, -1, A.shape[1]), B.view(len(B), -1, n_experts).permute(2, 0, 1)


def packed(A: Tensor, B: Tensor) -> tuple[Tensor, Tensor]:
    """The inverse of `unpacked`."""
    return A.flatten(0, 1), B.permute(1, 2, 0).flatten(1)
