"""Where adapters start: shapes, bounds and spread, judged by formulas and by PEFT's own start."""

import math

import pytest
import torch
from peft import LoraConfig
from peft.tuners.lora import Linear as PeftLinear
from torch import Tensor, nn

from loractl.lora.init import INITS, Init, default, embedding, gaussian

RANK, D_IN, D_OUT = 64, 1024, 96
ALL = pytest.mark.parametrize("init", [*INITS.values(), embedding])


def draw(init: Init, seed: int = 0) -> tuple[Tensor, Tensor]:
    return init(RANK, D_IN, D_OUT, torch.Generator().manual_seed(seed))


def peft_A(init_lora_weights: bool | str) -> Tensor:
    """A of a layer that PEFT starts."""
    torch.manual_seed(0)
    config = LoraConfig(r=RANK, init_lora_weights=init_lora_weights)
    layer = PeftLinear(nn.Linear(D_IN, D_OUT), "default", config, r=RANK, lora_alpha=1)
    weight = layer.lora_A["default"].weight
    assert isinstance(weight, Tensor)
    return weight.detach()


@ALL
def test_a_start_has_its_shapes_is_float32_and_changes_nothing(init: Init) -> None:
    A, B = draw(init)
    assert A.shape == (RANK, D_IN) and B.shape == (D_OUT, RANK)
    assert A.dtype == B.dtype == torch.float32
    assert torch.count_nonzero(B @ A) == 0
    assert torch.count_nonzero(A) + torch.count_nonzero(B) > 0, "nothing could ever be learned"


@ALL
def test_a_start_is_a_function_of_its_generator_alone(init: Init) -> None:
    first = torch.cat([part.flatten() for part in draw(init)])
    torch.manual_seed(123)
    torch.set_default_dtype(torch.bfloat16)
    try:
        again = torch.cat([part.flatten() for part in draw(init)])
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(first, again)
    assert not torch.equal(first, torch.cat([part.flatten() for part in draw(init, seed=1)]))


def test_the_default_is_uniform_within_one_over_root_d_in_as_pefts() -> None:
    A, _ = draw(default)
    bound = 1 / math.sqrt(D_IN)
    assert float(A.abs().max()) <= bound
    for found in (A, peft_A(True)):
        assert float(found.abs().max()) == pytest.approx(bound, rel=1e-3)
        assert float(found.std()) == pytest.approx(1 / math.sqrt(3 * D_IN), rel=0.01)
        assert float(found.mean()) == pytest.approx(0, abs=bound / 100)
        quarters = torch.histc(found, bins=4, min=-bound, max=bound) / found.numel()
        torch.testing.assert_close(quarters, torch.full((4,), 0.25), atol=0.01, rtol=0)


def test_gaussian_has_a_spread_of_one_over_rank_as_pefts() -> None:
    A, _ = draw(gaussian)
    for found in (A, peft_A("gaussian")):
        assert float(found.std()) == pytest.approx(1 / RANK, rel=0.01)
        within = (found.abs() < 1 / RANK).float().mean()
        assert float(within) == pytest.approx(0.6827, abs=0.01)


def test_an_embedding_starts_with_a_zero_and_b_standard_normal() -> None:
    A, B = draw(embedding)
    assert torch.count_nonzero(A) == 0
    assert float(B.std()) == pytest.approx(1, rel=0.03)
