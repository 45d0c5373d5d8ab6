"""What a run knows of itself survives a checkpoint's JSON unchanged."""

import json
import math

import pytest

from loractl.records import DataState, HeldOutLoss
from loractl.training.state import TrainState


def test_a_state_comes_back_from_json_as_it_was() -> None:
    state = TrainState(
        step=7,
        data=DataState(1, 12, 40),
        tokens=12345,
        trained_tokens=678,
        best_eval_loss=0.1 + 0.2,
        evals_without_better=2,
        base_loss=HeldOutLoss([4.0, 0.1 + 0.2], [2.0, 1.0]),
        last_loss=HeldOutLoss([2.0], [1.0]),
        best_loss=HeldOutLoss([1.0], [1.0]),
        best_step=4,
        loss_scale={"scale": 65536.0, "growth_factor": 2.0, "_growth_tracker": 3},
    )
    assert TrainState.restored(json.loads(json.dumps(state.snapshot()))) == state
    fresh = TrainState()
    assert TrainState.restored(json.loads(json.dumps(fresh.snapshot()))) == fresh


def test_a_snapshot_does_not_follow_the_run() -> None:
    state = TrainState(loss_scale={"scale": 2.0})
    plain = state.snapshot()
    state.step = 3
    state.loss_scale["scale"] = 1.0
    assert plain["step"] == 0 and plain["loss_scale"] == {"scale": 2.0}


def test_a_record_of_another_form_is_an_error() -> None:
    plain = TrainState().snapshot()
    for bad in ({**plain, "momentum": 1}, {k: v for k, v in plain.items() if k != "data"}):
        with pytest.raises((KeyError, TypeError)):
            TrainState.restored(bad)


def test_evaluations_count_until_a_better_one() -> None:
    state = TrainState()
    seen = []
    for loss in (2.0, 1.5, 1.5, 1.6, 1.4, math.nextafter(1.4, 0)):
        state.note_eval(HeldOutLoss([2 * loss], [2.0]))
        seen.append((state.best_eval_loss, state.evals_without_better))
    assert seen == [
        (2.0, 0), (1.5, 0), (1.5, 1), (1.5, 2), (1.4, 0), (math.nextafter(1.4, 0), 0)
    ]  # fmt: skip


def test_the_best_weights_are_those_of_the_lowest_loss_after_step_1_that_may_be_published() -> None:
    state = TrainState()
    found = {}
    for step, loss, may in (
        (0, 1.0, True), (2, 3.0, False), (4, 4.0, True), (6, 2.0, True), (8, 2.0, True),
    ):  # fmt: skip
        state.step = step
        found[step] = state.note_eval(HeldOutLoss([loss], [1.0]), is_candidate=may)
    assert found == {0: False, 2: False, 4: True, 6: True, 8: False}
    assert state.best_step == 6 and state.best_loss and state.best_loss.mean == 2.0
    assert state.base_loss and state.base_loss.mean == 1.0
    assert state.best_eval_loss == 1.0 and state.evals_without_better == 4
