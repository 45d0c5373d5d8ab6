"""Order and batching: which rows a step takes depends on seed, epoch and index alone."""

import itertools
from collections import Counter
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from loractl.data.batches import (
    BatchPlan,
    Epochs,
    collate,
    count_windows,
    epoch_rows,
    in_order,
    windows,
)
from loractl.records import UNTRAINED, Batch, DataState, Example
from loractl.world import World


def make(lengths: list[int]) -> list[Example]:
    """Examples whose ids say which example and place they are: 1000 * number + place."""
    found = []
    for number, length in enumerate(lengths, 1):
        ids = [1000 * number + place for place in range(length)]
        labels = [UNTRAINED] * (length // 2) + ids[length // 2 :]
        found.append(Example(ids, labels, line=number))
    return found


EXAMPLES = make([5, 30, 2, 17, 9, 30, 4, 11, 23, 3, 8])
FROZEN_PADDED = [1, 5, 8, 3, 7, 4, 0, 6, 9, 10, 2]
FROZEN_PACKED = [[1, 2], [5], [8, 4], [10, 0, 9], [3, 7, 6]]
PLANS = [BatchPlan(2, 3, 32, packing, seed=4) for packing in (True, False)]
START = DataState(0, 0)


def plain(batch: Batch) -> list[object]:
    tensors = (batch.input_ids, batch.labels, batch.position_ids)
    return [*(t.tolist() for t in tensors), batch.n_tokens, batch.lines]


def taken(plan: BatchPlan, n: int, start: DataState = START) -> list[tuple[list[Batch], DataState]]:
    return list(itertools.islice(windows(Epochs(EXAMPLES, plan), start), n))


def test_weights_lie_where_their_labels_do_and_only_in_a_batch_that_has_some() -> None:
    plain = Example([5, 6, 7], [UNTRAINED, 6, 7], 1)
    half = Example([8, 9], [8, 9], 2, weights=[0.5, 0.25])
    assert collate([[plain], [plain, plain]]).weights is None
    batch = collate([[plain, half], [half], [half, half]])
    expected = [[0, 1, 1, 0, 0.25], [0, 0.25, 0, 0, 0], [0, 0.25, 0, 0.25, 0]]
    assert batch.weights is not None and batch.weights.dtype == torch.float32
    assert batch.weights.tolist() == expected
    assert bool(((batch.labels != UNTRAINED) == (batch.weights > 0)).all())
    assert (batch.weight, batch.n_trained) == (3.0, 6)
    flat = batch.without_padding()
    assert flat.weights is not None and flat.weights.shape == flat.labels.shape == (1, 11)
    assert flat.weights.tolist() == [[0, 1, 1, 0, 0.25, 0, 0.25, 0, 0.25, 0, 0.25]]
    moved = batch.to(torch.device("meta")).weights
    assert moved is not None and moved.is_meta
    unweighted = collate([[plain], [plain, plain]])
    assert unweighted.weight == unweighted.n_trained == 6


@pytest.mark.parametrize("plan", PLANS, ids=["packed", "padded"])
def test_an_epoch_takes_every_example_once_in_an_order_of_its_own(plan: BatchPlan) -> None:
    orders = [list(epoch_rows(EXAMPLES, plan, epoch)) for epoch in range(3)]
    for rows in orders:
        assert sorted(itertools.chain(*rows)) == list(range(len(EXAMPLES)))
    assert orders[0] != orders[1] != orders[2]
    assert list(epoch_rows(EXAMPLES, plan, 1)) == orders[1]
    other = BatchPlan(2, 3, 32, plan.packing, seed=5)
    assert list(epoch_rows(EXAMPLES, other, 0)) != orders[0]


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("split", [(1, 6), (2, 3), (3, 2), (6, 1)])
def test_a_window_holds_the_same_rows_however_it_is_cut(
    packing: bool, split: tuple[int, int]
) -> None:
    whole = taken(BatchPlan(6, 1, 32, packing), 5)
    cut = taken(BatchPlan(*split, 32, packing), 5)
    for (one, state), (several, same_state) in zip(whole, cut, strict=True):
        assert state == same_state
        lines = [Counter(line for batch in part for line in batch.lines) for part in (one, several)]
        assert lines[0] == lines[1]
        assert all(len(batch.input_ids) <= split[0] for batch in several)
        assert sum(b.n_tokens for b in one) == sum(b.n_tokens for b in several)


@pytest.mark.parametrize("plan", PLANS, ids=["packed", "padded"])
def test_any_state_resumes_right_after_its_window(plan: BatchPlan) -> None:
    plan = replace(plan, accumulation=1)
    whole = taken(plan, 13)
    assert {state.epoch for _, state in whole} >= {0, 1, 2}
    for number, (_, state) in enumerate(whole):
        rest = taken(plan, 12 - number, state)
        assert [[plain(b) for b in part] for part, _ in rest] == [
            [plain(b) for b in part] for part, _ in whole[number + 1 :]
        ]
        assert [after for _, after in rest] == [after for _, after in whole[number + 1 :]]


def test_states_count_epochs_from_zero_to_whole_numbers() -> None:
    plan = BatchPlan(2, 1, 32, packing=False)
    done = [state.epochs for _, state in taken(plan, 12)]
    assert done == sorted(done) and done[5] == 1.0 and done[11] == 2.0
    assert done[0] == pytest.approx(2 / 11)


def test_the_first_epoch_is_laid_out_once_for_counting_and_for_training() -> None:
    plan = BatchPlan(2, 1, 64, packing=True)
    epochs = Epochs(EXAMPLES, plan)
    count_windows(epochs, 2.5)
    rows = epochs.rows(0)
    next(windows(epochs, START))
    assert epochs.rows(0) is rows
    for epoch in (1, 0):
        assert list(epochs.rows(epoch)) == list(epoch_rows(EXAMPLES, plan, epoch))


@given(
    st.lists(st.integers(2, 20), min_size=1, max_size=30),
    st.integers(1, 4), st.integers(1, 3), st.booleans(),
    st.integers(1, 3) | st.floats(0.05, 3.5),
)  # fmt: skip
def test_the_count_of_steps_is_what_iteration_gives(
    lengths: list[int], batch_size: int, accumulation: int, packing: bool, epochs: float
) -> None:
    examples, plan = make(lengths), BatchPlan(batch_size, accumulation, 20, packing)
    count = count_windows(Epochs(examples, plan), epochs)
    states = [after for _, after in itertools.islice(windows(Epochs(examples, plan), START), count)]
    assert count >= 1
    done = [state.epochs for state in states]
    whole_steps = (
        count == 1 or done[-2] < epochs
    )  # the step before the last had not yet done it all
    assert whole_steps and (done[-1] >= epochs - 1e-9)


def test_evaluation_takes_every_example_once_longest_rows_first() -> None:
    for plan in PLANS:
        batches = list(in_order(EXAMPLES, plan))
        assert sorted(line for b in batches for line in b.lines) == list(range(1, 12))
        lengths = [b.input_ids.shape[1] for b in batches]
        assert lengths == sorted(lengths, reverse=True)


@pytest.mark.parametrize(
    ("batch_size", "max_length", "together"), [(2, 64, 8), (1, 4096, 2), (4, 4096, 4), (1, 9000, 1)]
)
def test_rows_are_evaluated_together_as_far_as_they_are_short(
    batch_size: int, max_length: int, together: int
) -> None:
    plan = BatchPlan(batch_size, 1, max_length, packing=False)
    assert plan.evaluated == together
    sizes = [len(batch.input_ids) for batch in in_order(make([3] * 20), plan)]
    assert sizes == [together] * (20 // together) + ([20 % together] if 20 % together else [])


def test_collated_rows_are_laid_out_end_to_end_with_padding_behind() -> None:
    a, b, c = make([3, 2, 4])
    batch = collate([[a, b], [c]])
    assert batch.input_ids.tolist() == [[1000, 1001, 1002, 2000, 2001], [3000, 3001, 3002, 3003, 0]]
    assert batch.labels.tolist() == [[-100, 1001, 1002, -100, 2001], [-100, -100, 3002, 3003, -100]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 0, 1], [0, 1, 2, 3, 4]]
    assert (batch.n_tokens, batch.lines) == (9, (1, 2, 3))
    assert all(t.dtype == torch.int64 for t in (batch.input_ids, batch.labels, batch.position_ids))


def test_padding_behind_packed_examples_is_a_segment_of_its_own() -> None:
    a, b, c = make([3, 2, 8])
    batch = collate([[a, b], [c]])
    assert batch.position_ids[0].tolist() == [0, 1, 2, 0, 1, 0, 1, 2]
    assert batch.labels[0, 5:].tolist() == [UNTRAINED] * 3


def test_no_example_trains_its_first_token_which_belongs_to_the_one_before() -> None:
    ids = [7, 8, 9]
    everything = [Example(ids, ids, line=i) for i in (1, 2)]
    assert collate([everything]).labels.tolist() == [[-100, 8, 9, -100, 8, 9]]


@pytest.mark.parametrize("plan", PLANS, ids=["packed", "padded"])
def test_batches_of_a_window_hold_rows_of_like_length(plan: BatchPlan) -> None:
    for window, _ in taken(plan, 4):
        longest = [batch.input_ids.shape[1] for batch in window]
        assert longest == sorted(longest, reverse=True)
        for one, next_one in itertools.pairwise(window):
            lengths = (next_one.input_ids != 0).sum(dim=1)
            assert one.input_ids.shape[1] >= int(lengths.max())


def test_moving_a_batch_keeps_what_it_says_of_itself() -> None:
    batch = collate([make([3, 2])])
    assert plain(batch.to(torch.device("cpu"))) == plain(batch)


def test_padded_windows_hold_examples_of_like_length_in_random_order() -> None:
    examples = make([1 + 37 * i % 101 for i in range(403)])
    plan = BatchPlan(8, 1, 128, packing=False, seed=1)
    sizes = [[len(examples[i].ids) for (i,) in rows] for rows in window_rows(examples, plan, 0)]
    assert [len(window) for window in sizes] == [8] * 50 + [3]
    padded = sum(max(window) * len(window) for window in sizes)
    assert sum(map(sum, sizes)) / padded > 0.95
    tops = [max(window) for window in sizes]
    assert tops != sorted(tops) and tops != sorted(tops, reverse=True)
    other = [[len(examples[i].ids) for (i,) in rows] for rows in window_rows(examples, plan, 1)]
    assert other != sizes


def window_rows(examples: list[Example], plan: BatchPlan, epoch: int) -> list[list[list[int]]]:
    rows = epoch_rows(examples, plan, epoch)
    return [rows[start : start + plan.window] for start in range(0, len(rows), plan.window)]


@pytest.mark.parametrize("packing", [True, False])
def test_an_epoch_takes_each_source_as_often_as_its_weight_says(packing: bool) -> None:
    examples = make([5 + i % 7 for i in range(40)])
    parts = ((10, 2.0), (20, 0.5), (10, 1.3))
    plan = BatchPlan(4, 1, 32, packing, parts=parts)
    halves = []
    for epoch in range(2):
        taken = Counter(i for row in epoch_rows(examples, plan, epoch) for i in row)
        assert all(taken[i] == 2 for i in range(10))
        halves.append({i for i in range(10, 30) if taken[i]})
        assert len(halves[-1]) == 10 and all(taken[i] <= 1 for i in range(10, 30))
        assert sorted(taken[i] for i in range(30, 40)) == [1] * 7 + [2] * 3
    assert halves[0] != halves[1]


def test_orders_are_those_of_earlier_versions() -> None:
    """A frozen order: runs that are resumed by a later version must go on with the same rows."""
    padded, packed = (list(epoch_rows(EXAMPLES, plan, 0)) for plan in reversed(PLANS))
    assert [row for (row,) in padded] == FROZEN_PADDED
    assert packed == FROZEN_PACKED


def test_without_padding_the_real_tokens_stand_in_one_row() -> None:
    a, b, c = make([3, 2, 8])
    flat = collate([[a, b], [c]]).without_padding()
    assert flat.input_ids.tolist() == [[*a.ids, *b.ids, *c.ids]]
    assert flat.position_ids.tolist() == [[0, 1, 2, 0, 1, *range(8)]]
    trained = collate([[a, b, c]]).labels
    assert torch.equal(flat.labels, trained)
    assert (flat.n_tokens, flat.sizes, flat.lines) == (13, (13,), (1, 2, 3))
    full = collate([[a, b], [make([5])[0]]]).without_padding()
    assert full.position_ids.tolist() == [[0, 1, 2, 0, 1, *range(5)]]


@pytest.mark.parametrize("plan", PLANS, ids=["packed", "padded"])
def test_a_batch_knows_which_examples_it_holds_and_evaluation_has_no_numbers(
    plan: BatchPlan,
) -> None:
    for window, _ in taken(plan, 6):
        for batch in window:
            flat = batch.without_padding().input_ids[0].tolist()
            assert flat == [i for number in batch.examples for i in EXAMPLES[number].ids]
            assert list(batch.lines) == [EXAMPLES[number].line for number in batch.examples]
    assert all(batch.examples == () for batch in in_order(EXAMPLES, plan))


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_the_shares_of_all_processes_are_the_window_of_one(packing: bool, size: int) -> None:
    plan = BatchPlan(3, 2, 32, packing)
    shares = [
        list(itertools.islice(windows(Epochs(EXAMPLES, plan), START, World(rank, size)), 6))
        for rank in range(size)
    ]
    for number, (window, state) in enumerate(taken(plan, 6)):
        assert all(share[number][1] == state for share in shares)
        parts = [batch for share in shares for batch in share[number][0]]
        lines = [Counter(line for one in some for line in one.lines) for some in (window, parts)]
        assert lines[0] == lines[1]
        rows = [sum(len(batch.input_ids) for batch in share[number][0]) for share in shares]
        assert max(rows) - min(rows) <= len(window)  # at most one a micro-batch


@pytest.mark.parametrize("size", [2, 3, 5])
def test_evaluation_takes_every_example_once_over_all_processes(size: int) -> None:
    for plan in PLANS:
        found = [
            line
            for rank in range(size)
            for batch in in_order(EXAMPLES, plan, World(rank, size))
            for line in batch.lines
        ]
        assert sorted(found) == [example.line for example in EXAMPLES]
