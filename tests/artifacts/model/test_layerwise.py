"""Passes in step: each gets its own outputs, and what cannot run so is told from what is broken."""

import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from loractl.artifacts.model.hollow import NotLayerwiseError
from loractl.artifacts.model.layerwise import Call, run

IDS = torch.arange(6.0).view(2, 3)
PARTS = ["first", "second"]


class Two(nn.Module):
    """Two parts of which the second takes twice what the first gave."""

    def __init__(self, between: Callable[["Two", Tensor], Any] = lambda model, x: 2 * x) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)
        self.spare = nn.Parameter(torch.empty(3, 3, device="meta"))
        self.between = between

    def forward(self, input_ids: Tensor, use_cache: bool) -> Any:
        assert not use_cache
        return SimpleNamespace(logits=self.second(self.between(self, self.first(input_ids))))


def plainly(path: str, calls: list[Call]) -> list[Any]:
    return [call() for call in calls]


def passes(*models: Two, part: Any = plainly) -> list[Tensor]:
    before = threading.active_count()  # pytest may have threads of its own
    try:
        return run(models, PARTS, IDS, part)  # type: ignore[arg-type]
    finally:
        assert threading.active_count() == before, "a pass goes on"
        assert not any("forward" in vars(module) for one in models for module in one.modules())


def test_every_pass_has_its_own_outputs_and_all_come_to_a_part_together() -> None:
    torch.manual_seed(0)
    one, other, seen = Two(), Two(), []

    def part(path: str, calls: list[Call]) -> list[Tensor]:
        seen.append((path, len(calls)))
        return [call() + number for number, call in enumerate(calls)]

    found = passes(one, one, other, part=part)
    assert seen == [("first", 3), ("second", 3)]
    for number, model in enumerate((one, one, other)):
        expected = model.second(2 * (model.first(IDS) + number)) + number
        torch.testing.assert_close(found[number], expected)


@pytest.mark.parametrize(
    "between",
    [
        lambda model, x: x @ model.spare,
        lambda model, x: x + model.spare[:2],
        lambda model, x: torch.cat([x, model.spare]),
        lambda model, x: x * float(model.spare.sum()),
    ],
    ids=["product", "sum", "list", "number"],
)
def test_a_tensor_without_values_is_never_computed_with(between: Any) -> None:
    with pytest.raises(NotLayerwiseError, match="used outside its part"):
        passes(Two(), Two(between))


def test_a_part_without_values_is_not_computed_with_either() -> None:
    model = Two()
    model.second.to("meta")
    with pytest.raises(NotLayerwiseError, match="used outside its part"):
        passes(model)


def test_a_part_that_runs_twice_not_at_all_or_not_in_every_pass_is_told() -> None:
    twice = Two(lambda model, x: model.first(x))
    with pytest.raises(NotLayerwiseError, match="first runs twice in one pass"):
        passes(twice)
    never = Two()
    never.second = nn.Identity()  # type: ignore[assignment]
    never.forward = lambda **given: SimpleNamespace(logits=never.first(IDS))  # type: ignore
    with pytest.raises(NotLayerwiseError, match="second does not take part"):
        run([never], PARTS, IDS, plainly)  # type: ignore[list-item]
    del never.forward
    with pytest.raises(NotLayerwiseError, match="not every pass takes second next"):
        passes(Two(), Two(lambda model, x: model.second(model.first(x))), part=plainly)


def test_an_output_is_not_the_weight_that_the_next_part_overwrites() -> None:
    model = Two()
    model.first.forward = lambda x: model.first.weight.detach()[: len(x)]  # type: ignore
    weight = model.first.weight.detach().clone()

    def part(path: str, calls: list[Call]) -> list[Any]:
        outputs = [call() for call in calls]
        if path == "first":
            model.first.weight.data.zero_()
        return outputs

    found = run([model], PARTS, IDS, part)  # type: ignore[list-item]
    torch.testing.assert_close(found[0], model.second(2 * weight[:2]))


@pytest.mark.parametrize("error", [ValueError, RuntimeError, KeyboardInterrupt])
def test_any_other_error_is_raised_as_it_is(error: type[BaseException]) -> None:
    def broken(*given: Any) -> Any:
        raise error("the code is wrong")

    with pytest.raises(error, match="the code is wrong"):
        passes(Two(), Two(broken))
    with pytest.raises(error, match="the code is wrong"):
        passes(Two(), Two(), part=broken)
