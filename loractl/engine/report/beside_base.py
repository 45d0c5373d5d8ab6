"""What a trained update is beside the weight that it changes: their norms, and new directions.

Both need the weights of the base, which are at hand only at the end of a run.
"""

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from loractl.lora.dense import rows_of
from loractl.lora.experts import LoraExperts
from loractl.lora.intruders import intruders, operations
from loractl.lora.layer import LoraLayer
from loractl.reports.inspect_plot import layer_of
from loractl.reports.run_page.notes import Weight

if TYPE_CHECKING:
    from transformers import PreTrainedModel

OPERATIONS_PER_SECOND = 5e10
"""Of eigenvectors, on one core with AVX2: 6e10 for 576 x 576, 4e10 for 1536 x 576."""
LEAST_SECONDS = 3.0
SHARE = 0.01
"""Intruders may take this share of the time that training took, or LEAST_SECONDS."""


def weights_of_adapters(layers: Mapping[str, LoraLayer], seconds: float) -> dict[str, Weight]:
    """By module: the norm of W, and the intruders of as many modules as fit into the time that a
    report may take of a training that took `seconds`."""
    compared = affordable(layers, max(LEAST_SECONDS, SHARE * seconds))
    return {
        name: Weight(norm_of(layer), _intruders_of(layer) if name in compared else None)
        for name, layer in layers.items()
    }


def norm_of(layer: LoraLayer) -> float:
    """|W|, Frobenius, of a frozen weight; of fused experts, all of them together."""
    parameter = layer.parameter if isinstance(layer, LoraExperts) else "weight"
    squares = (float(rows.float().square().sum()) for _, _, rows in rows_of(layer.base, parameter))
    return math.sqrt(sum(squares))


def affordable(layers: Mapping[str, LoraLayer], seconds: float) -> list[str]:
    """Modules of the middle layer, then of the first and of the last, while their time is left."""
    chosen: list[str] = []
    for name in _in_order_of_interest(layers):
        layer = layers[name]
        seconds -= operations(layer.d_out, layer.d_in) / OPERATIONS_PER_SECOND
        if seconds < 0:
            break
        chosen.append(name)
    return chosen


def _in_order_of_interest(layers: Mapping[str, LoraLayer]) -> Iterator[str]:
    plain = [name for name, layer in layers.items() if not isinstance(layer, LoraExperts)]
    numbers = sorted({layer_of(name) for name in plain})
    middle, ends = numbers[len(numbers) // 2 : len(numbers) // 2 + 1], numbers[:1] + numbers[-1:]
    for number in dict.fromkeys((*middle, *ends)):
        yield from (name for name in plain if layer_of(name) == number)


def _intruders_of(layer: LoraLayer) -> int:
    W, tuned = layer.dense_weight().detach(), layer.merged_weight(dtype=torch.float32)
    return intruders(*(_in_float64(one.T if layer.transposed else one) for one in (W, tuned)))


def _in_float64(W: Tensor) -> Tensor:
    return (W.cpu() if W.device.type == "mps" else W).double()  # MPS has no float64


def weights_of_whole(model: "PreTrainedModel", base: "PreTrainedModel") -> dict[str, Weight]:
    """By matrix of a model whose every weight was trained: its size, |W| and |W' - W|."""
    before = dict(base.named_parameters())
    found: dict[str, Weight] = {}
    for name, tuned in model.named_parameters():
        if tuned.dim() != 2 or name not in before:
            continue
        W = before[name].detach()
        found[name.removesuffix(".weight")] = Weight(
            norm=float(torch.linalg.vector_norm(W.float())),
            update=float(torch.linalg.vector_norm(tuned.detach().float() - W.float())),
            d_out=tuned.shape[0],
            d_in=tuned.shape[1],
        )
    return found
