"""bitsandbytes' optimizers as they are used here: close to AdamW, quiet, and the same again from a
file."""

import warnings

import pytest
import torch
from torch import Tensor, nn

from loractl.config.optimizers import OPTIMIZERS
from loractl.training.optim import Rates, build_optimizer, restore_state_, state_tensors

NAMES = ["adamw-8bit", "adamw-paged"]
WIDE = (70, 65)  # 4,550 values: 8 bits, the last block not full


def gradient(shape: tuple[int, ...], step: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(step))


class Training:
    def __init__(self, name: str, shape: tuple[int, ...] = WIDE, *, turned: bool = False) -> None:
        values = torch.linspace(-1, 1, shape[0] * shape[1])
        start = values.reshape(shape[::-1]).T if turned else values.reshape(shape)
        self.named = {"a": nn.Parameter(start), "b": nn.Parameter(torch.ones(6))}
        self.optimizer = build_optimizer(name, self.named, Rates(0.01, 0.1))
        self.kind = OPTIMIZERS[name]

    def run(self, steps: range) -> None:
        for step in steps:
            for parameter in self.named.values():
                parameter.grad = gradient(tuple(parameter.shape), step)
            self.optimizer.step()

    def again(self) -> "Training":
        """What another process would make of the weights and the saved state."""
        other = Training(next(n for n, kind in OPTIMIZERS.items() if kind is self.kind))
        for name, parameter in self.named.items():
            other.named[name].data = parameter.data.clone()
        saved = state_tensors(self.optimizer, self.named)
        restore_state_(other.optimizer, other.named, saved, other.kind)
        return other


@pytest.mark.parametrize("name", NAMES)
def test_the_steps_are_those_of_adamw_but_for_the_bits(name: str) -> None:
    theirs, ours = Training("adamw"), Training(name)
    before = ours.named["a"].detach().clone()
    theirs.run(range(20))
    ours.run(range(20))
    moved = (theirs.named["a"] - before).norm()
    off = (theirs.named["a"] - ours.named["a"]).norm()
    assert off < (0.05 if name == "adamw-8bit" else 1e-5) * moved
    torch.testing.assert_close(ours.named["b"], theirs.named["b"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_state_from_a_file_goes_on_bit_for_bit(name: str, turned: bool) -> None:
    whole = Training(name, turned=turned)
    whole.run(range(3))
    again = whole.again()
    whole.run(range(3, 6))
    again.run(range(3, 6))
    for one, parameter in whole.named.items():
        assert torch.equal(parameter, again.named[one])
    saved, theirs = (state_tensors(one.optimizer, one.named) for one in (whole, again))
    assert saved.keys() == theirs.keys()
    assert all(torch.equal(value, theirs[key]) for key, value in saved.items())


def test_eight_bit_state_is_saved_in_eight_bits_and_its_table_once() -> None:
    training = Training("adamw-8bit")
    training.run(range(1))
    saved = state_tensors(training.optimizer, training.named)
    assert saved["state1.a"].dtype == saved["state2.a"].dtype == torch.uint8
    assert saved["absmax1.a"].shape == (18,) and saved["state1.b"].dtype == torch.float32
    assert {key for key in saved if "." not in key} == {"qmap1", "qmap2"}
    assert saved["step.a"].dtype == torch.int64 and int(saved["step.a"]) == 1


def test_the_table_of_the_codes_is_that_of_the_file() -> None:
    training = Training("adamw-8bit")
    training.run(range(2))
    saved = state_tensors(training.optimizer, training.named)
    saved["qmap1"] = saved["qmap1"] * 0.5
    other = Training("adamw-8bit")
    restore_state_(other.optimizer, other.named, saved, other.kind)
    assert torch.equal(other.optimizer.state[other.named["a"]]["qmap1"], saved["qmap1"])


def test_state_of_another_size_is_refused() -> None:
    training = Training("adamw-8bit")
    training.run(range(1))
    saved = state_tensors(training.optimizer, training.named)
    saved["absmax1.a"] = saved["absmax1.a"][:1]
    other = Training("adamw-8bit")
    with pytest.raises(KeyError, match=r"absmax1\.a: \(1,\), not \(18,\)"):
        restore_state_(other.optimizer, other.named, saved, other.kind)


def test_paged_state_on_a_cpu_says_nothing_of_its_own() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Training("adamw-paged").run(range(1))
