"""Long sweeps over cases: a sample of them is in the default tier, the rest is marked slow."""

import functools
import itertools
from collections.abc import Callable, Iterable
from typing import Any

import pytest

slow = functools.partial(pytest.param, marks=pytest.mark.slow)


def sampled(cases: Iterable[Any], *kept: Any) -> list[Any]:
    """Every case as a parameter; those that are not `kept` are slow."""
    cases = list(cases)
    assert all(one in cases for one in kept), f"one of {kept} is none of {cases}"
    return [one if one in kept else slow(one) for one in cases]


def crossed(*axes: Iterable[str], kept: Callable[..., bool]) -> list[Any]:
    """Every combination as parameters; those for which `kept` is not true are slow."""
    return [
        pytest.param(*case, id="-".join(case), marks=[] if kept(*case) else pytest.mark.slow)
        for case in itertools.product(*axes)
    ]
