"""Errors of rounding with random signs: their sizes, their signs, and that they come again."""

import torch

from loractl.artifacts.model.shaking import add_error_
from loractl.lora.dense import STRIP


def shaken(exact: torch.Tensor, key: str = "w", start: int = 0) -> torch.Tensor:
    found = exact.clone()
    add_error_(found, found.bfloat16().float(), key, start)
    return found


def test_errors_have_the_sizes_of_rounding_and_signs_of_both_kinds() -> None:
    exact = torch.randn(300, 70, generator=torch.Generator().manual_seed(0))
    error, moved = exact.bfloat16().float() - exact, shaken(exact) - exact
    torch.testing.assert_close(moved.abs(), error.abs(), rtol=0, atol=5e-7)
    assert 0.48 < float((moved.sign() == error.sign()).float().mean()) < 0.52


def test_signs_come_again_for_the_same_strip_and_are_others_for_another() -> None:
    exact = torch.randn(300, 70, generator=torch.Generator().manual_seed(0))
    first = shaken(exact)
    assert torch.equal(shaken(exact), first)
    for other in (shaken(exact, "v"), shaken(exact, "w", 300)):
        assert 0.48 < float((other == first).float().mean()) < 0.52


def test_a_row_longer_than_a_strip_is_shaken_too() -> None:
    exact = torch.full((1, STRIP + 5), 1.001)
    assert set(shaken(exact).unique().sub(1.001).sign().tolist()) == {-1.0, 1.0}
