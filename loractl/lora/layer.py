"""LoRA on a single layer: y = W x + s * B (A x), with A (r, d_in), B (d_out, r) and W frozen.

From "LoRA: Low-Rank Adaptation of Large Language Models", arXiv 2106.09685, equation 3. The product
B A, as large as W, is never formed in training: B (A x) costs r (d_in + d_out) per token instead of
d_in d_out. Merging and exporting use only `delta` and `merged_weight`.

A layer initialized from parts of its own weight (PiSSA, OLoRA) counts its update from there:
s (B A - B0 A0), so W stays unchanged.
"""

from collections.abc import Iterator
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from loractl.lora.dense import dense_weight_of, dtype_and_device, strips
from loractl.ops.lora_linear import Linear, lora_linear
from loractl.quant.linear import PackedLinear, dense_linear

Held = nn.Parameter | PackedLinear
"""A frozen weight, or the layer that holds it packed."""


class LoraLayer(nn.Module):
    """A frozen layer and its update. A and B are kept in float32 and compute in the input's dtype.

    Subclasses define how A and B are applied and how the update is laid out in the layer's weight.
    """

    kind = ""
    transposed = False  # whether the weight is stored as (d_in, d_out)
    A0: Tensor | None
    B0: Tensor | None

    def __init__(
        self, base: nn.Module, A: Tensor, B: Tensor, *, scale: float, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.attach_(base)
        # On a base without values (meta) A and B stay where they are: merging needs only B A.
        device = A.device if self.is_hollow else self.placed[1]
        # Contiguous: parts of a decomposition are not, and fused optimizers reject a gradient or a
        # moment whose layout differs from that of its parameter.
        self.A = nn.Parameter(A.to(device=device, dtype=torch.float32).contiguous())  # (r, d_in)
        self.B = nn.Parameter(B.to(device=device, dtype=torch.float32).contiguous())  # (d_out, r)
        self.register_buffer("A0", None, persistent=False)
        self.register_buffer("B0", None, persistent=False)
        self.scale = scale
        self.dropout = dropout
        self.enabled = True

    def attach_(self, base: nn.Module) -> None:
        self.base = base

    @property
    def weight(self) -> Tensor:
        """The frozen weight, under the name that models read on their own layers. Of a packed one
        it is a dense copy, made anew each time."""
        weight = self.base.weight
        assert isinstance(weight, Tensor)
        return weight

    @property
    def placed(self) -> tuple[torch.dtype, torch.device]:
        """The dtype of the frozen weight's numbers, and its device."""
        return dtype_and_device(self.base)

    @property
    def is_hollow(self) -> bool:
        """Whether the base has no values (meta), as when only its files are merged."""
        return self.placed[1].type == "meta"

    def swap_weight_(self, weight: Held) -> Held:
        """Replace the frozen weight on this layer alone; return the old one. A packed weight comes
        and goes with its layer, in whose place there is a dense one meanwhile."""
        base = self.base
        if isinstance(weight, PackedLinear):
            self.base = weight
        elif isinstance(base, PackedLinear):
            self.base = dense_linear(weight.detach(), base.bias)
            return base
        old = base.weight
        assert isinstance(old, nn.Parameter)
        if not isinstance(weight, PackedLinear):
            base.weight = weight
        return old

    @property
    def bias(self) -> Tensor | None:
        bias = getattr(self.base, "bias", None)
        return bias if isinstance(bias, Tensor) else None

    @property
    def rank(self) -> int:
        return self.A.shape[0]

    @property
    def d_in(self) -> int:
        """Inputs; for an embedding, the vocabulary. Not from the weight, which may be packed."""
        return self.A.shape[1]

    @property
    def d_out(self) -> int:
        return self.B.shape[0]

    @property
    def laid_shape(self) -> tuple[int, ...]:
        """The shape of the dense weight as the layer stores it."""
        return (self.d_in, self.d_out) if self.transposed else (self.d_out, self.d_in)

    def dense_weight(self) -> Tensor:
        """The frozen weight as plain numbers, in `laid_shape`, unpacked if it is packed."""
        return dense_weight_of(self.base)

    def count_from_(self, A0: Tensor, B0: Tensor) -> None:
        """Make the update s (B A - B0 A0): zero while A and B have their initial values.

        The papers on PiSSA and OLoRA replace W by a residual W - s B0 A0. That is the same
        function, but in bfloat16 the residual is rounded and the sum is no longer W.
        """
        self.A0 = torch.empty_like(self.A).copy_(A0)
        self.B0 = torch.empty_like(self.B).copy_(B0)

    def factors(self) -> tuple[Tensor, Tensor]:
        """A (k, d_in) and B (d_out, k) of the update s * B A; k is r, or 2 r with a start.

        B A - B0 A0 = (B - B0) A + B0 (A - A0): the differences come first, since subtracting two
        products as large as W would cancel the digits of the update.
        """
        if self.A0 is None or self.B0 is None:
            return self.A, self.B
        return torch.cat([self.A, self.A - self.A0]), torch.cat([self.B - self.B0, self.B0], dim=1)

    def forget_(self) -> None:
        """Drop what was computed from the frozen weight, which is about to be another."""

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer: x (..., d_in) -> (..., d_out)."""
        # A compiler fuses the plain formula, but cannot see through our autograd function.
        linear = None if torch.compiler.is_compiling() else self.as_linear()
        if linear is not None and x.dtype == linear.weight.dtype:
            return lora_linear(x, linear)
        y: Tensor = self.base(x)
        return self.adapt(x, y) if self.enabled else y

    def as_linear(self) -> Linear | None:
        """The layer as one product with a thin update; None if it is more than that: a trained
        weight, a hook, another formula."""
        return None

    def adapt(self, x: Tensor, y: Tensor) -> Tensor:
        """The layer's output from its input and the base's output y = base(x)."""
        return torch.add(y, self.update(self.dropped(x)), alpha=self.scale)

    def dropped(self, x: Tensor) -> Tensor:
        """The input, with dropout in train mode."""
        return F.dropout(x, self.dropout, self.training)

    def update(self, x: Tensor) -> Tensor:
        """B A x, without its scale: x (..., d_in) -> (..., d_out)."""
        A, B = self.factors()
        return F.linear(F.linear(x, A.to(x.dtype)), B.to(x.dtype))

    def update_rows(self, start: int, stop: int) -> Tensor:
        """Rows start to stop of s * B A in float64, laid out as the layer's weight."""
        A, B = (factor.detach() for factor in self.factors())
        if self.transposed:
            rows = A[:, start:stop].double().T @ B.double().T
        else:
            rows = B[start:stop].double() @ A.double()
        return rows.mul_(self.scale)

    def delta(self) -> Tensor:
        """The update s * B A in float32, laid out as the layer's weight."""
        return torch.cat([self.update_rows(*ends).float() for ends in strips(self.laid_shape)])

    def merged_weight(
        self, weight: Tensor | None = None, *, dtype: torch.dtype | None = None
    ) -> Tensor:
        """W + s * B A as the nearest float32, rounded once to `dtype` or to that of W.

        `weight` replaces the layer's own W when that has no values (meta). The sum is computed in
        float64, strip by strip: with float32 sums up to 8e-4 of float16 values are one step off.
        """
        W = (self.dense_weight() if weight is None else weight).detach()
        merged = torch.empty_like(W, dtype=dtype or W.dtype)
        for start, stop, exact in self.merged_rows(W):
            merged[start:stop] = exact.float().to(merged.dtype)
        return merged

    def merged_rows(self, W: "Tensor | Rows") -> Iterator[tuple[int, int, Tensor]]:
        """W + s * B A in float64, strip by strip: (start, stop, rows)."""
        for start, stop in strips(W.shape):
            update = self.update_rows(start, stop).to(W.device)
            yield start, stop, update.add_(W[start:stop].double())


class Rows(Protocol):
    """A weight elsewhere, of which rows are read when they are asked for."""

    @property
    def shape(self) -> torch.Size: ...

    @property
    def device(self) -> torch.device: ...

    def __getitem__(self, rows: slice, /) -> Tensor: ...


class LoraLinear(LoraLayer):
    """LoRA on nn.Linear: weight (d_out, d_in)."""

    kind = "linear"

    def as_linear(self) -> Linear | None:
        base = self.base
        packed = isinstance(base, PackedLinear)
        plain = packed or type(base) is nn.Linear
        plain = plain or (self.transposed and type(base).__name__ == "Conv1D")
        hooked = base._forward_hooks or base._forward_pre_hooks or base._backward_hooks
        own_formula = type(self).adapt is not LoraLinear.adapt
        if not plain or hooked or own_formula or not self.enabled:
            return None
        bias = self.bias
        weight = base.packed if isinstance(base, PackedLinear) else self.weight
        if weight.requires_grad or (bias is not None and bias.requires_grad):
            return None
        dropout = self.dropout if self.training else 0.0
        laid = weight.T if self.transposed else weight
        return Linear(laid, bias, self.factors, self.scale, dropout)

    def adapt(self, x: Tensor, y: Tensor) -> Tensor:
        return self.with_update(self.dropped(x), y)

    def with_update(self, x: Tensor, y: Tensor) -> Tensor:
        """y + s B A x in one product, as `lora_linear` does it, so that an adapter in a hub gives
        bit for bit the same output."""
        A, B = (factor.to(y.dtype) for factor in self.factors())
        t = F.linear(x, A)  # (..., r)
        rows, out = t.reshape(-1, t.shape[-1]), y.reshape(-1, y.shape[-1])
        return torch.addmm(out, rows, B.T.contiguous(), alpha=self.scale).view(y.shape)


class LoraConv1D(LoraLinear):
    """LoRA on GPT-2's Conv1D, a linear layer whose weight is stored as (d_in, d_out)."""

    kind = "conv1d"
    transposed = True


class LoraEmbedding(LoraLayer):
    """LoRA on nn.Embedding: weight (vocabulary, width), A (r, vocabulary), B (width, r).

    There is no dropout on ids. Some models (Gemma) multiply their embeddings by `embed_scale`,
    which then applies to the update too.
    """

    kind = "embedding"
    transposed = True

    @property
    def embed_scale(self) -> Tensor:
        """The factor the layer applies to rows after the lookup, in the weight's dtype."""
        scale = getattr(self.base, "embed_scale", 1.0)
        dtype, device = self.placed
        return torch.as_tensor(scale, dtype=dtype, device=device)

    def dropped(self, x: Tensor) -> Tensor:
        return x

    def update(self, x: Tensor) -> Tensor:
        """Look up ids x (...) -> (..., width)."""
        A, B = self.factors()
        h = F.embedding(x, A.T.to(self.weight.dtype))  # (..., r)
        return F.linear(h, B.to(h.dtype)) * self.embed_scale
