"""The loss on held-out rows: one sum over one count, and the model left as it was."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from loractl.data.batches import BatchPlan, in_order
from loractl.evaluation.loss import GROUPS, held_out_loss, is_below, row_losses
from loractl.models.fast.trunk import Trunk
from loractl.models.objective import TokenLoss, loss_sum
from loractl.models.proving_run import ProvingRun
from loractl.records import UNTRAINED, Example, HeldOutLoss
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
        found = held_out_loss(model, TokenLoss(model).of_rows, batches, CPU).mean
        assert found == pytest.approx(expected, abs=1e-5) != pytest.approx(mean_of_means, abs=1e-3)


def test_dropout_is_off_and_the_mode_and_gradients_stay_as_they_were() -> None:
    model = torch.nn.Dropout(0.5)
    batches = list(in_order(EXAMPLES, BatchPlan(2, 1, 64, False)))
    seen = []

    def loss(batch: object) -> list[tuple[float, float]]:
        seen.append((model.training, torch.is_grad_enabled()))
        return [(float(model(torch.ones(8)).sum()), 8)]

    for mode in (True, False):
        model.train(mode)
        assert held_out_loss(model, loss, batches, CPU).mean == 1.0
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
    found = row_losses(objective.of_examples, batches, CPU)
    assert set(found) == {example.line for example in EXAMPLES}
    for example in EXAMPLES:
        ids = torch.tensor([example.ids])
        labels = torch.tensor([example.labels])
        with torch.no_grad():
            mean = float(model(input_ids=ids, labels=labels).loss)
        total, count, tokens = found[example.line]
        assert count == tokens == example.n_trained
        assert total / count == pytest.approx(mean, rel=1e-5)


def test_a_loss_says_itself_what_it_counts_in_each_row() -> None:
    batches = in_order(EXAMPLES, BatchPlan(3, 1, 64, False))
    pairs = row_losses(lambda batch: [(0.5 * size, 7) for size in batch.sizes], batches, CPU)
    assert pairs == {one.line: (0.5 * len(one.ids), 7, one.n_trained) for one in EXAMPLES}


def test_the_loss_of_a_row_is_that_of_all_its_examples() -> None:
    answers = [replace(one, line=1) for one in EXAMPLES[:3]] + EXAMPLES[3:]
    batches = in_order(answers, BatchPlan(2, 1, 64, False))
    rows = row_losses(lambda batch: [(0.5 * size, 7) for size in batch.sizes], batches, CPU)
    sizes, trained = [len(one.ids) for one in answers], [one.n_trained for one in answers]
    assert rows == {
        1: (0.5 * sum(sizes[:3]), 3 * 7, sum(trained[:3])),
        EXAMPLES[3].line: (0.5 * sizes[3], 7, trained[3]),
    }


def test_a_weighted_mean_is_that_of_the_formula_and_rows_keep_weight_and_tokens(
    base: Callable[..., Path],
) -> None:
    model = AutoModelForCausalLM.from_pretrained(base("llama"))
    weighted = [
        replace(one, weights=[(n % 3) * 0.5 + 0.25 for n in range(len(one.ids))])
        for one in EXAMPLES[:3]
    ] + EXAMPLES[3:]
    expected = {}
    for one in weighted:
        with torch.no_grad():
            found = model(input_ids=torch.tensor([one.ids])).logits[0].double().log_softmax(-1)
        places = [place for place, label in enumerate(one.labels) if place and label >= 0]
        of_each = [1.0 if one.weights is None else one.weights[place] for place in places]
        nll = [-float(found[place - 1, one.ids[place]]) for place in places]
        total = sum(w * loss for w, loss in zip(of_each, nll, strict=True))
        expected[one.line] = (total, sum(of_each), len(places))
    rows = row_losses(
        TokenLoss(model).of_examples, in_order(weighted, BatchPlan(3, 1, 64, True)), CPU
    )
    assert rows.keys() == expected.keys()
    for line, row in rows.items():
        assert row == pytest.approx(expected[line], rel=1e-5)
    mean = sum(one[0] for one in expected.values()) / sum(one[1] for one in expected.values())
    for batch_size, packing in ((1, False), (4, False), (2, True)):
        batches = in_order(weighted, BatchPlan(batch_size, 1, 64, packing))
        assert held_out_loss(model, TokenLoss(model).of_rows, batches, CPU).mean == pytest.approx(
            mean, rel=1e-6
        )


def test_several_processes_have_one_mean(base: Callable[..., Path]) -> None:
    model = AutoModelForCausalLM.from_pretrained(base("llama"))
    loss, plan = TokenLoss(model).of_rows, BatchPlan(2, 1, 64, False)
    given: list[list[float]] = []

    def gather(values: Sequence[float]) -> list[float]:
        given.append(list(values))
        return [sum(column) for column in zip(*given, strict=True)]

    for rank in range(3):
        found = held_out_loss(model, loss, in_order(EXAMPLES, plan, World(rank, 3)), CPU, gather)
    alone = held_out_loss(model, loss, in_order(EXAMPLES, plan), CPU)
    assert found.mean == pytest.approx(alone.mean, rel=1e-6)


def test_rows_are_summed_in_a_bounded_number_of_groups_that_stay_the_same() -> None:
    examples = [Example([1, 2], [UNTRAINED, 2], n) for n in range(GROUPS + 3)]
    batches = in_order(examples, BatchPlan(4, 1, 64, False))
    found = held_out_loss(
        torch.nn.Linear(1, 1), lambda batch: [(0.5, 1)] * len(batch.sizes), batches, CPU
    )
    assert found.counts == [2] * 3 + [1] * (GROUPS - 3) and found.mean == 0.5


def test_a_loss_is_below_another_only_beyond_the_error_of_their_difference() -> None:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(40, generator=generator).tolist()
    base = HeldOutLoss([3.0 + 2 * x for x in noise], [1.0] * 40)  # rows differ by far more
    lower = HeldOutLoss([x - 0.1 for x in base.sums], base.counts)
    assert is_below(lower, base) and not is_below(base, lower) and not is_below(base, base)
    unsure = HeldOutLoss(
        [x - 0.01 + y for x, y in zip(base.sums, reversed(noise), strict=True)], base.counts
    )
    assert not is_below(unsure, base)
    assert is_below(HeldOutLoss([1.0], [2.0]), HeldOutLoss([1.1], [2.0]))
