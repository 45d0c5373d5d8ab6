"""The loss on held-out rows: one sum over one count, and the model left as it was."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from loractl.data.batches import BatchPlan, in_order
from loractl.evaluation.loss import mean_loss, row_losses
from loractl.models.fast.trunk import Trunk
from loractl.models.objective import TokenLoss, loss_sum
from loractl.models.proving_run import ProvingRun
from loractl.records import UNTRAINED, Example
from loractl.world import World

CPU = torch.device("cpu")
EXAMPLES = [
    Example(ids := list(range(3, 3 + n)), [UNTRAINED] * first + ids[first:], n)
    for n, first in ((4, 3), (60, 1), (17, 9), (6, 1))
]


def test_it_is_the_mean_over_tokens_however_rows_are_batched(base: Callable[..., Path]) -> None:
    model = AutoModelForCausalLM.from_pretrained(base("llama"))
    loss = partial(loss_sum, model)
    with torch.no_grad():
        parts = [loss(next(iter(in_order([e], BatchPlan(1, 1, 64, False))))) for e in EXAMPLES]
    expected = sum(float(total) for total, _ in parts) / sum(n for _, n in parts)
    mean_of_means = sum(float(total) / n for total, n in parts) / len(parts)
    for batch_size, packing in ((1, False), (4, False), (2, True)):
        batches = in_order(EXAMPLES, BatchPlan(batch_size, 1, 64, packing))
        found = mean_loss(model, loss, batches, CPU)
        assert found == pytest.approx(expected, abs=1e-5) != pytest.approx(mean_of_means, abs=1e-3)


def test_dropout_is_off_and_the_mode_and_gradients_stay_as_they_were() -> None:
    model = torch.nn.Dropout(0.5)
    batches = list(in_order(EXAMPLES, BatchPlan(2, 1, 64, False)))
    seen = []

    def loss(batch: object) -> tuple[torch.Tensor, int]:
        seen.append((model.training, torch.is_grad_enabled()))
        return model(torch.ones(8)).sum(), 8

    for mode in (True, False):
        model.train(mode)
        assert mean_loss(model, loss, batches, CPU) == 1.0
        assert model.training is mode and torch.is_grad_enabled()
    assert set(seen) == {(False, False)}


@pytest.mark.parametrize("way", ["fast", "head alone", "plain"])
def test_losses_of_rows_are_those_of_each_row_alone(base: Callable[..., Path], way: str) -> None:
    model = AutoModelForCausalLM.from_pretrained(base("llama")).eval().requires_grad_(False)
    run = ProvingRun(model)
    objective = TokenLoss(model, trunk=Trunk(model, run) if way == "fast" else None, run=run)
    if way == "plain":
        objective.head = None
    else:
        assert objective.head is not None
    batches = in_order(EXAMPLES, BatchPlan(3, 1, 64, False))
    found = row_losses(objective.of_rows, batches, CPU)
    assert set(found) == {example.line for example in EXAMPLES}
    for example in EXAMPLES:
        ids = torch.tensor([example.ids])
        labels = torch.tensor([example.labels])
        with torch.no_grad():
            mean = float(model(input_ids=ids, labels=labels).loss)
        total, count = found[example.line]
        assert count == example.n_trained
        assert total / count == pytest.approx(mean, rel=1e-5)


def test_a_loss_says_itself_what_it_counts_in_each_row() -> None:
    batches = in_order(EXAMPLES, BatchPlan(3, 1, 64, False))
    pairs = row_losses(lambda batch: [(0.5 * size, 7) for size in batch.sizes], batches, CPU)
    assert pairs == {example.line: (0.5 * len(example.ids), 7) for example in EXAMPLES}


def test_several_processes_have_one_mean(base: Callable[..., Path]) -> None:
    model = AutoModelForCausalLM.from_pretrained(base("llama"))
    loss, plan = partial(loss_sum, model), BatchPlan(2, 1, 64, False)
    given: list[list[float]] = []

    def gather(values: Sequence[float]) -> list[float]:
        given.append(list(values))
        return [sum(column) for column in zip(*given, strict=True)]

    for rank in range(3):
        found = mean_loss(model, loss, in_order(EXAMPLES, plan, World(rank, 3)), CPU, gather)
    alone = mean_loss(model, loss, in_order(EXAMPLES, plan), CPU)
    assert found == pytest.approx(alone, rel=1e-6)
