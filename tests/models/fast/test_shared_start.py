"""A start that all examples share, computed once: the same loss and gradients as of the whole."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from loractl.data.batches import collate
from loractl.models.fast.shared_start import SHORTEST, once, shared_start
from loractl.models.fast.trunk import Trunk
from loractl.models.fast.trunk_cache import TrunkCache
from loractl.models.forward import recompute_activations_
from loractl.models.objective import TokenLoss, loss_sum
from loractl.records import UNTRAINED, Example
from tests.models.fast.conftest import adapt_, families, model_of, off

START = list(range(20, 31))  # 11 tokens


def example(*own: int, start: list[int] = START, prompt: int = 2) -> Example:
    """A start, `prompt` tokens more that are not trained, and an answer that is."""
    ids = [*start, *own]
    untrained = len(start) + prompt
    return Example(ids, [UNTRAINED] * untrained + ids[untrained:], 1)


BATCH = collate(
    [
        [example(1, 2, 3, 4), example(1, 5, 6), example(7, 8, 9, 10, 11, 12)],
        [example(3, 4, 5, 6, 7), example(9, 2, 3, 4, 5, 6, 7, 8, 9)],
    ]
)


def loss_and_gradients(
    model: nn.Module, found: tuple[Tensor, int]
) -> tuple[Tensor, int, dict[str, Tensor]]:
    model.zero_grad(set_to_none=True)
    loss, n_tokens = found
    loss.backward()  # type: ignore[no-untyped-call]
    named = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    return loss.detach(), n_tokens, named


@families
@pytest.mark.parametrize("checkpointing", [False, True])
def test_loss_and_gradients_are_those_of_the_whole_batch(name: str, checkpointing: bool) -> None:
    model = model_of(name)
    adapt_(model)
    wanted, count, theirs = loss_and_gradients(model, loss_sum(model, BATCH))
    trunk = Trunk(model)
    if checkpointing:
        recompute_activations_(model)
        model.train()
    hidden, laid_out = trunk(BATCH)
    assert laid_out.shared == 11 and hidden.shape[1] == BATCH.n_tokens - 4 * 11
    objective = TokenLoss(model, trunk=trunk)
    assert objective.head is not None
    found, n_tokens, ours = loss_and_gradients(model, objective(BATCH))
    assert n_tokens == count and off(found, wanted) < 1e-6
    assert ours.keys() == theirs.keys() and len(ours) == 42
    assert max(off(ours[path], theirs[path]) for path in ours) < 2e-5


def test_what_frozen_layers_were_computed_of_the_whole_serves_too(tmp_path: Path) -> None:
    model = model_of("Llama")
    adapt_(model, layers=[2])
    numbered = collate([[example(1, 2, 3, 4), example(1, 5, 6)], [example(3, 4, 5, 6, 7)]])
    wanted, _, theirs = loss_and_gradients(model, loss_sum(model, numbered))
    numbered = replace(numbered, examples=(0, 1, 2))
    trunk = Trunk(model)
    lengths = [15, 14, 16]
    trunk.keep_(TrunkCache(lengths, layers=2, hidden=32, dtype=torch.float32, room=tmp_path))
    objective = TokenLoss(model, trunk=trunk)
    for _ in range(2):  # computed, and read
        found, _, ours = loss_and_gradients(model, objective(numbered))
        assert off(found, wanted) < 1e-6
        assert max(off(ours[path], theirs[path]) for path in theirs) < 2e-5


def test_the_start_ends_before_what_differs_and_before_what_predicts_a_trained_token() -> None:
    def found(*examples: Example) -> int:
        return shared_start(collate([examples]).without_padding())

    assert found(example(1, 2, 3, 4), example(1, 2, 5, 6)) == 12  # 13 alike, the last predicts
    assert found(example(1, 2, 3), example(4, 2, 3)) == 11
    assert found(example(1, 2, prompt=0), example(1, 3, prompt=0)) == 10
    assert found(example(prompt=0), example(1, 2, 3)) == 10  # one ends there
    assert found(example(1, 2, 3)) == 0  # alone
    short = START[: SHORTEST - 1]
    assert found(example(1, 2, 3, start=short), example(4, 5, 6, start=short)) == 0
    every = Example(START, START, 1)
    assert found(every, every) == 0  # all tokens are trained


def test_once_leaves_out_the_copies_alone() -> None:
    whole = collate([[example(1, 2, 3), example(4, 5, 6)]]).without_padding()
    batch, kept = once(whole, 11)
    assert batch.input_ids.tolist() == [[*START, 1, 2, 3, 4, 5, 6]]
    assert batch.position_ids.tolist() == [[*range(14), 11, 12, 13]]
    assert torch.equal(batch.labels, whole.labels[:, kept])
    assert batch.n_tokens == whole.n_tokens == 28
    assert shared_start(batch) == 0
