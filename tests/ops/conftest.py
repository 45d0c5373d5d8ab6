"""What the tests of ops share: the library and the formulas in turn, numbers, views, tolerances."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from loractl.ops import gemm, native


def ways(name: str) -> list[Any]:
    """Parameters of a fixture: the C files by this name, where they can be compiled, and torch."""
    return [pytest.param(name, marks=pytest.mark.native), "torch"]


def let_serve(by_c: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Products, attention and layers go by C or by torch, whatever this machine's processor is."""
    monkeypatch.setattr(gemm, "serves_here", lambda dtype: by_c)


@pytest.fixture
def by_c(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests that ask for it are marked native, as tests/conftest.py sees to."""
    let_serve(True, monkeypatch)


@pytest.fixture(params=[pytest.param("library", marks=pytest.mark.native), "formula"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The test runs with kernels.c, and once more with the plain formulas."""
    if request.param == "formula":
        monkeypatch.setenv("LORACTL_NATIVE", "0")
    native.find_library.cache_clear()
    assert (native.compiled(torch.float32) is not None) == (request.param == "library")
    yield request.param
    native.find_library.cache_clear()


def both(run: Callable[[], list[Tensor]], monkeypatch: pytest.MonkeyPatch) -> list[list[Tensor]]:
    """What `run` gives with the library, and with the formulas."""
    results = []
    for value in ("1", "0"):
        monkeypatch.setenv("LORACTL_NATIVE", value)
        native.find_library.cache_clear()
        results.append(run())
    native.find_library.cache_clear()
    return results


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def view(x: Tensor) -> Tensor:
    """The same numbers as a view of a wider buffer, with NaN around them."""
    wider = torch.full((*x.shape[:-1], x.shape[-1] + 5), float("nan"), dtype=x.dtype)
    wider[..., 2:-3] = x
    return wider[..., 2:-3]


def untouched(x: Tensor) -> bool:
    """Whether what lies around a `view` is as it was."""
    assert x._base is not None
    return bool(x._base[..., :2].isnan().all() and x._base[..., -3:].isnan().all())


def close(found: Tensor, expected: Tensor, *, rtol: float = 2e-6, atol: float = 2e-6) -> None:
    expected = expected.to(found.dtype)
    torch.testing.assert_close(found, expected, rtol=rtol, atol=atol, equal_nan=True)


def one_rounding(found: Tensor, expected: Tensor) -> None:
    """bf16 keeps 8 bits: numbers that a rounding tells apart differ by 2^-7 of the greater."""
    assert found.dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), expected.float(), rtol=2**-7, atol=1e-30)
