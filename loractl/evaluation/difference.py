"""How far apart an adapter's effect is on two bases: the one that it was trained on, quantized, and
the one that this was made from. In logits, and weight by weight."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from loractl.lora.layer import LoraLayer, Rows

ROWS = 64
"""Rows of logits in hand at a time: in float64 and with 150,000 tokens, 77 MB."""


@dataclass(frozen=True)
class LogitDifference:
    """Logits of one model against those of a reference."""

    largest: float  # of a single logit
    kl: float  # mean over tokens of sum p (ln p - ln q), in nats; p is the reference
    top1: float  # share of tokens with the same most likely one
    n_tokens: int


def logit_difference(reference: Tensor, other: Tensor) -> LogitDifference:
    """Compare logits (tokens, vocabulary) of two models on the same tokens, of which there is at
    least one. The sums are in float64: a divergence of 1e-7 would drown in float32."""
    largest, kl_sum, n_same = 0.0, 0.0, 0
    for start, stop in _rows(len(reference)):
        p, q = (logits[start:stop].double() for logits in (reference, other))
        largest = max(largest, float((p - q).abs().max()))
        n_same += int((p.argmax(-1) == q.argmax(-1)).sum())
        p, q = p.log_softmax(-1), q.log_softmax(-1)
        kl_sum += float((p.exp() * (p - q)).sum())
    n = len(reference)
    return LogitDifference(largest, kl_sum / n, n_same / n, n)


def _rows(n: int) -> Iterator[tuple[int, int]]:
    return ((start, min(start + ROWS, n)) for start in range(0, n, ROWS))


@torch.no_grad()
def error_to_update(layer: LoraLayer, original: Rows | Tensor) -> float | None:
    """||W - W'|| / ||update||, Frobenius norms, of a layer whose frozen weight W' was made from
    `original` W by quantization. The update is the true change of W', for DoRA too.

    None if there is nothing to compare: W' is W, or the layer has no update.
    """
    trained = layer.dense_weight()
    error = update = 0.0
    for start, stop, merged in layer.merged_rows(trained):
        exact = trained[start:stop].double()
        error += float((original[start:stop].double() - exact).square().sum())
        update += float((merged - exact).square().sum())
    return (error / update) ** 0.5 if error and update else None
