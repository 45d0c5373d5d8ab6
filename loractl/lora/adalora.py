"""AdaLoRA: y = W x + s * B diag(E) A x, where all modules share one decreasing rank budget.

From "AdaLoRA: Adaptive Budget Allocation for Parameter-Efficient Fine-Tuning", arXiv 2303.10512: A
and B play the role of an update's singular vectors Q and P, kept near orthogonal by a penalty, and
E that of its singular values; the least important triplets (column of B, value of E, row of A) are
switched off by setting their E to zero. Where the paper and its authors' code differ, this follows
the code, whose numbers PEFT 0.21.2 reproduces.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from loractl.lora.layer import LoraConv1D, LoraEmbedding, LoraLayer, LoraLinear


class AdaloraLayer(LoraLayer):
    """Shared by the three kinds of layer: the values E (r, 1), initially zero."""

    def __init__(
        self, base: nn.Module, A: Tensor, B: Tensor, *, scale: float, dropout: float = 0.0
    ) -> None:
        super().__init__(base, A, B, scale=scale, dropout=dropout)
        self.E = nn.Parameter(torch.zeros_like(self.A[:, :1]))  # (r, 1)

    def factors(self) -> tuple[Tensor, Tensor]:
        """diag(E) A (r, d_in) and B (d_out, r) of the update s * B diag(E) A."""
        return self.A * self.E, self.B

    def triplets(self) -> dict[str, nn.Parameter]:
        """The three trained tensors by their letters."""
        return {"A": self.A, "B": self.B, "E": self.E}


class AdaloraLinear(AdaloraLayer, LoraLinear):
    """AdaLoRA on nn.Linear."""


class AdaloraConv1D(AdaloraLayer, LoraConv1D):
    """AdaLoRA on GPT-2's Conv1D."""


class AdaloraEmbedding(AdaloraLayer, LoraEmbedding):
    """AdaLoRA on nn.Embedding: the rows of A are looked up by id."""


@dataclass(frozen=True)
class Budget:
    """How many triplets of all modules may be active after each step; steps count from 1."""

    initial: int
    target: int
    warmup: int  # steps with the full budget
    final: int  # steps at the end with the target budget and a fixed choice of triplets
    total: int  # steps of the run
    every: int  # steps between two allocations

    @property
    def settled(self) -> int:
        """The step after which the choice of triplets is fixed."""
        return self.total - self.final

    def at(self, step: int) -> int:
        """The budget after a step: equation 12 of the paper, rounded down."""
        if step <= self.warmup:
            return self.initial
        if step >= self.settled:
            return self.target
        left = 1 - (step - self.warmup) / (self.settled - self.warmup)
        return int((self.initial - self.target) * left**3 + self.target)

    def is_due(self, step: int) -> bool:
        """Whether triplets are reselected after a step."""
        falling = self.warmup < step < self.settled and step % self.every == 0
        return falling or step == self.settled


@dataclass(frozen=True)
class Smoothing:
    """Decay rates of the averages of importance (beta1) and of its uncertainty (beta2)."""

    beta1: float = 0.85
    beta2: float = 0.85


class Allocator:
    """Scores the triplets of a model's AdaLoRA layers and switches off those beyond the budget.

    Its whole state is in `tensors`, so a resumed run chooses as an uninterrupted one would.
    """

    def __init__(
        self,
        layers: Mapping[str, AdaloraLayer],
        budget: Budget,
        *,
        smoothing: Smoothing,
        orthogonality: float,
    ) -> None:
        self.layers = layers
        self.budget = budget
        self.smoothing = smoothing
        self.orthogonality = orthogonality
        # By "<module>.<A, B or E>": |w g|, smoothed, and the smoothed distance from it.
        self.importance: dict[str, Tensor] = {}
        self.uncertainty: dict[str, Tensor] = {}
        self.on: dict[str, Tensor] = {}  # by module, (r,) of bool, once the choice is fixed

    @property
    def settled(self) -> int:
        """The step after which no rank changes any more."""
        return self.budget.settled

    def penalty(self) -> Tensor | None:
        """The orthogonality penalty on A and B, added to the mean loss of a step; None at weight 0.

        The mean of |A A^T - I| and |B^T B - I| (Frobenius) over all layers, times the weight. The
        paper sums the squared norms; its authors' code and PEFT do not, and the usual weights
        (0.1 to 0.5) are meant for this form.
        """
        if self.orthogonality == 0:
            return None
        norms = []
        for layer in self.layers.values():
            eye = torch.eye(layer.rank, device=layer.A.device)
            norms.append(torch.linalg.matrix_norm(layer.A @ layer.A.T - eye))
            norms.append(torch.linalg.matrix_norm(layer.B.T @ layer.B - eye))
        return torch.stack(norms).mean() * self.orthogonality

    @torch.no_grad()
    def after_update(self, step: int) -> None:
        """Update the scores from the gradients of the step just applied, and enforce the budget.

        As in the authors' code and in PEFT, w is the weight after the step and g the gradient
        before it.
        """
        if step < self.budget.settled:
            self._observe()
        if self.budget.is_due(step):
            on = self._choose(self.budget.at(step))
            self._switch_off(on)
            if step == self.budget.settled:
                self.on = on
                self.importance.clear()
                self.uncertainty.clear()
        elif step > self.budget.settled:
            self._switch_off(self.on)  # the optimizer's momentum has moved them again

    def _observe(self) -> None:
        """I = |w g|, its average, and the average of its distance from that: equations 8 to 10."""
        beta1, beta2 = self.smoothing.beta1, self.smoothing.beta2
        for name, layer in self.layers.items():
            for letter, w in layer.triplets().items():
                if w.grad is None:
                    continue  # in fp16 a step may have been skipped
                key = f"{name}.{letter}"
                sensitivity = (w * w.grad).abs()
                mean = self.importance.setdefault(key, torch.zeros_like(w))
                spread = self.uncertainty.setdefault(key, torch.zeros_like(w))
                mean.mul_(beta1).add_(sensitivity, alpha=1 - beta1)
                spread.mul_(beta2).add_((sensitivity - mean).abs(), alpha=1 - beta2)

    def scores(self) -> dict[str, Tensor]:
        """The score of every triplet by module, (r,): that of E plus the means over its row of A
        and its column of B (equation 7; each is the product of the two averages, equation 11)."""
        found = {}
        for name, layer in self.layers.items():
            of = {
                letter: self.importance[key] * self.uncertainty[key]
                if (key := f"{name}.{letter}") in self.importance
                else torch.zeros_like(w)
                for letter, w in layer.triplets().items()
            }
            found[name] = of["E"][:, 0] + of["A"].mean(dim=1) + of["B"].mean(dim=0)
        return found

    def _choose(self, budget: int) -> dict[str, Tensor]:
        """The triplets with the highest scores over all modules; ties go to the first."""
        scores = self.scores()
        ranked = torch.cat(list(scores.values())).argsort(descending=True, stable=True)
        on = torch.zeros(len(ranked), dtype=torch.bool, device=ranked.device)
        on[ranked[:budget]] = True
        sizes = [len(score) for score in scores.values()]
        return dict(zip(scores, torch.split(on, sizes), strict=True))

    def _switch_off(self, on: Mapping[str, Tensor]) -> None:
        for name, kept in on.items():
            self.layers[name].E.masked_fill_(~kept[:, None], 0.0)

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint keeps: the averages, and the choice once it is fixed."""
        parts = {"importance": self.importance, "uncertainty": self.uncertainty, "on": self.on}
        return {
            f"{part}.{name}": tensor
            for part, named in parts.items()
            for name, tensor in named.items()
        }

    def restore_(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore the state that `tensors` returned."""
        parts = {"importance": self.importance, "uncertainty": self.uncertainty, "on": self.on}
        device = next(iter(self.layers.values())).A.device
        for full, tensor in tensors.items():
            part, _, name = full.partition(".")
            parts[part][name] = tensor.to(device)
