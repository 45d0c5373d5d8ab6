"""The loss of weighted tokens is sum(w * nll) / sum(w), however a batch is laid out."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from loractl.data.batches import collate
from loractl.models.fast.trunk import Trunk
from loractl.models.fast.trunk_cache import TrunkCache
from loractl.models.objective import TokenLoss, loss_sum
from loractl.records import UNTRAINED, Batch, Example
from tests.models.fast.conftest import adapt_, model_of

START = list(range(20, 31))


def example(line: int, length: int, weights: tuple[float, ...]) -> Example:
    """A start that all share, and tokens of which all but the first have these weights in turn."""
    generator = torch.Generator().manual_seed(line)
    own = torch.randint(3, 99, (length,), generator=generator).tolist()
    of_own = [0.0, *(weights[n % len(weights)] for n in range(length - 1))]
    labels = [one if weight else UNTRAINED for one, weight in zip(own, of_own, strict=True)]
    ids, every = [*START, *own], [0.0] * len(START) + of_own
    return Example(ids, [UNTRAINED] * len(START) + labels, line, weights=every)


EXAMPLES = [
    example(1, 9, (0.5,)), example(2, 5, (2.0, 0.0, 0.1)), example(3, 14, (1.0, 3.0)),
    replace(example(4, 7, (1.0,)), weights=None), example(5, 4, (1e-3,)),
]  # fmt: skip
LAYOUTS = {
    "padded": [[one] for one in EXAMPLES],
    "packed": [EXAMPLES],
    "both": [EXAMPLES[:2], EXAMPLES[2:]],
}


def formula(model: Any, examples: list[Example]) -> tuple[Tensor, float]:
    """(sum of w * nll, sum of w), each example alone and token for token."""
    total, weight = torch.zeros((), dtype=torch.float64), 0.0
    for one in examples:
        logits = model(input_ids=torch.tensor([one.ids])).logits[0].double()
        for place, label in enumerate(one.labels):
            if place and label != UNTRAINED:
                own = 1.0 if one.weights is None else one.weights[place]
                total = total - own * logits[place - 1].log_softmax(-1)[label]
                weight += own
    return total, weight


def gradients(model: Any, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def ways(model: Any, tmp_path: Path) -> dict[str, Callable[[Batch], tuple[Tensor, float]]]:
    """Every path from a batch to its loss."""
    plain, cached = TokenLoss(model), Trunk(model)
    plain.head = None
    lengths = [len(one.ids) for one in EXAMPLES]
    cached.keep_(TrunkCache(lengths, layers=2, hidden=32, dtype=torch.float32, room=tmp_path))
    assert not cached.fallback_reason
    numbers = tuple(range(len(EXAMPLES)))  # every layout has the examples in this order
    keeping = TokenLoss(model, trunk=cached)
    return {
        "plain form": lambda batch: loss_sum(model, batch),
        "without a plain head": plain,
        "head in strips": TokenLoss(model),
        "fast layers": TokenLoss(model, trunk=Trunk(model)),
        "kept lower layers": lambda batch: keeping(replace(batch, examples=numbers)),
    }


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_way_gives_the_loss_and_gradients_of_the_formula(layout: str, tmp_path: Path) -> None:
    model = model_of("Llama")
    adapt_(model, target_modules=r"model\.layers\.2\..*_proj")
    total, weight = formula(model, EXAMPLES)
    expected = gradients(model, total / weight)
    batch = collate(LAYOUTS[layout])
    for name, way in ways(model, tmp_path).items():
        found, count = way(batch)
        assert count == pytest.approx(weight, rel=1e-6), name
        assert float(found.detach()) == pytest.approx(float(total.detach()), rel=1e-6), name
        grads = gradients(model, found / count)
        assert grads.keys() >= expected.keys() and expected
        scale = max(float(g.abs().max()) for g in expected.values())
        for own, grad in expected.items():
            torch.testing.assert_close(grads[own], grad, atol=2e-6 * scale, rtol=1e-5, msg=name)


def test_a_start_that_all_share_is_computed_once_beside_weights() -> None:
    model = model_of("Llama")
    adapt_(model)
    hidden, laid_out = Trunk(model)(collate([EXAMPLES]))
    assert laid_out.shared >= len(START) and hidden.shape[1] < sum(len(e.ids) for e in EXAMPLES)
    assert laid_out.weights is not None and laid_out.weights.shape == laid_out.labels.shape


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_count_is_known_before_and_each_row_and_example_has_its_own(layout: str) -> None:
    model = model_of("Llama")
    adapt_(model)
    rows, objective = LAYOUTS[layout], TokenLoss(model, trunk=Trunk(model))
    batch = collate(rows)
    assert objective.count(batch) == pytest.approx(formula(model, EXAMPLES)[1], rel=1e-6)
    for found, parts in (
        (objective.of_rows(batch), rows),
        (objective.of_examples(batch), [[one] for one in EXAMPLES]),
    ):
        for (total, count), part in zip(found, parts, strict=True):
            expected, weight = formula(model, part)
            assert total == pytest.approx(float(expected.detach()), rel=2e-6)
            assert count == pytest.approx(weight, rel=1e-6)


def test_without_weights_the_count_is_that_of_the_tokens() -> None:
    model = model_of("Llama")
    batch = collate([[replace(one, weights=None)] for one in EXAMPLES])
    objective = TokenLoss(model)
    counts = [count for _, count in objective.of_rows(batch)]
    assert batch.weights is None and objective.count(batch) == batch.n_trained == sum(counts)
    assert counts == [one.n_trained for one in EXAMPLES]
    assert all(isinstance(count, int) for count in counts)
