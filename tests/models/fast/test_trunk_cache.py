"""What is kept of the frozen layers is what they compute, whatever it is packed with."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from loractl.data.batches import BatchPlan, Epochs, micro_batches, windows
from loractl.models.fast.trunk import Trunk
from loractl.models.fast.trunk_cache import TrunkCache
from loractl.records import Batch, DataState, Example
from tests.models.fast.conftest import adapt_, hidden_and_gradients, model_of, off

SIZES = (5, 9, 3, 11, 6, 7, 2)


def examples() -> list[Example]:
    generator = torch.Generator().manual_seed(3)
    found = []
    for size in SIZES:
        ids = torch.randint(0, 99, (size,), generator=generator).tolist()
        found.append(Example(ids, ids, 1))
    return found


def cache_of(room: Path, dtype: torch.dtype = torch.float32) -> TrunkCache:
    return TrunkCache(SIZES, layers=2, hidden=32, dtype=dtype, room=room)


def taken(*rows: list[int]) -> Batch:
    (batch,) = micro_batches(examples(), rows, len(rows))
    return batch.without_padding()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_kept_comes_back_bit_for_bit_in_any_order(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    values = [torch.randn(size, 32).to(dtype) for size in SIZES]
    asked: list[int] = []

    def compute(batch: Batch) -> Tensor:
        asked.append(batch.n_tokens)
        return values[SIZES.index(batch.n_tokens)][None]

    cache = cache_of(tmp_path, dtype)
    first = cache.fetch(taken([0, 3], [1, 2]), compute)
    assert torch.equal(first, torch.cat([values[0], values[3], values[1], values[2]])[None])
    again = cache.fetch(taken([2, 4], [3]), compute)
    rows = {11: [3], 9: [2, 4]}  # the longer row comes first
    assert torch.equal(again, torch.cat([values[i] for i in [*rows[11], *rows[9]]])[None])
    assert asked == [5, 11, 9, 3, 6]  # each example once
    assert cache.n_bytes == sum(SIZES) * 32 * dtype.itemsize
    assert list(tmp_path.iterdir()) == [], "the file has no name"


def test_a_trunk_that_keeps_gives_the_numbers_of_one_that_does_not(tmp_path: Path) -> None:
    model = model_of("Llama")
    adapt_(model, layers=[2])
    plain, keeping = Trunk(model), Trunk(model)
    assert keeping.frozen_layers == 2
    keeping.keep_(cache_of(tmp_path))
    plan = BatchPlan(batch_size=2, accumulation=1, max_length=16, packing=True)
    seen: dict[int, list[Tensor]] = {}
    for window, state in windows(Epochs(examples(), plan), DataState(0, 0)):
        for batch in (one.without_padding() for one in window):
            wanted, theirs = hidden_and_gradients(lambda one: plain(one)[0], model, batch)
            found, ours = hidden_and_gradients(lambda one: keeping(one)[0], model, batch)
            assert off(found, wanted) < 1e-5
            assert max(off(ours[path], theirs[path]) for path in ours) < 1e-5
            seen.setdefault(state.epoch, []).append(found)
        if state.epoch == 3:
            break
    first, again = (keeping(taken([0, 3], [1]))[0] for _ in range(2))
    assert torch.equal(first, again)
