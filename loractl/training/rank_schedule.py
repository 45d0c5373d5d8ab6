"""`lora.rank_schedule`: every adapter, with its optimizer state, changes rank after given steps.
This depends only on (seed, step), so a checkpoint stores nothing for it."""

from collections.abc import Mapping

import torch
from torch import Tensor

from loractl.config.optimizers import OptimizerKind
from loractl.lora.dynamic import Moments, resized, set_values_
from loractl.lora.inject import random_start
from loractl.lora.layer import LoraLayer
from loractl.training.state import seed_of_step


class RankSchedule:
    """Implements RankPolicy (`steps`)."""

    def __init__(
        self,
        layers: Mapping[str, LoraLayer],
        schedule: Mapping[int, int],
        optimizer: torch.optim.Optimizer,
        *,
        init: str,
        seed: int,
        kind: OptimizerKind,
    ) -> None:
        """`schedule` maps steps, counted from 1, to the rank from that step on."""
        self.layers = layers
        self.schedule = schedule
        self.optimizer = optimizer
        self.init = init
        self.seed = seed
        self.kind = kind

    @property
    def settled(self) -> int:
        return max(self.schedule)

    def penalty(self) -> Tensor | None:
        return None

    def tensors(self) -> dict[str, Tensor]:
        return {}

    def restore_(self, tensors: Mapping[str, Tensor]) -> None:
        """Nothing to restore: the adapter's own tensors determine the ranks."""

    @torch.no_grad()
    def after_update(self, step: int) -> None:
        """Change every rank if this step is one of the schedule's."""
        rank = self.schedule.get(step)
        if rank is None:
            return
        generator = torch.Generator().manual_seed(seed_of_step(self.seed, step))
        for layer in self.layers.values():
            self._resize_layer_(layer, rank, generator)

    def _resize_layer_(self, layer: LoraLayer, rank: int, generator: torch.Generator) -> None:
        start = random_start("lora", self.init, layer.kind)
        new = resized(
            layer.A.detach(),
            layer.B.detach(),
            rank,
            lambda missing: start(missing, layer.d_in, layer.d_out, generator),
            self._read_moments(layer),
        )
        # The parameters stay the same objects, so references such as the optimizer's stay valid.
        set_values_(layer.A, new.A)
        set_values_(layer.B, new.B)
        if new.moments is not None:
            kept = (*new.moments.averages, *new.moments.squares)
            for what, pair in zip(self.kind.shaped, kept, strict=True):
                for parameter, moment in zip((layer.A, layer.B), pair, strict=True):
                    self.optimizer.state[parameter][what] = moment.contiguous()

    def _read_moments(self, layer: LoraLayer) -> Moments | None:
        of_A, of_B = self.optimizer.state[layer.A], self.optimizer.state[layer.B]
        if not of_A or not of_B:
            return None  # in fp16 every step so far may have been skipped
        return Moments(
            tuple((of_A[what], of_B[what]) for what in self.kind.averages),
            tuple((of_A[what], of_B[what]) for what in self.kind.squares),
        )
