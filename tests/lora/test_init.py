"""Where adapters start: shapes, bounds and spread, judged by formulas and by PEFT's own start."""

import copy
import math

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import Linear as PeftLinear
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from loractl.lora.init import INITS, PART_INITS, Init, default, embedding, gaussian, olora, pissa
from loractl.lora.inject import inject_
from loractl.lora.ranks import ModuleRank

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


WEIGHT = torch.randn(12, 9, generator=torch.Generator().manual_seed(4)) * 0.3


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("init,conv", [("pissa", False), ("pissa", True), ("olora", False)])
def test_starts_at_parts_of_the_weight_are_those_of_peft(
    init: str, rslora: bool, conv: bool
) -> None:
    """PEFT's OLoRA fails on a Conv1D that is not square: it takes the weight as it lies."""
    layer = Conv1D(12, 9) if conv else nn.Linear(9, 12)
    layer.weight.data = WEIGHT.T.clone() if conv else WEIGHT.clone()
    config = LoraConfig(
        r=4, lora_alpha=6, target_modules=["x"], init_lora_weights=init, use_rslora=rslora,
        fan_in_fan_out=conv,
    )  # fmt: skip
    theirs = inject_adapter_in_model(config, nn.ModuleDict({"x": layer}))["x"]
    scale = 6 / (4**0.5 if rslora else 4)
    A, B = PART_INITS[init](WEIGHT, 4, scale)
    torch.testing.assert_close(A, theirs.lora_A["default"].weight.detach(), rtol=0, atol=1e-6)
    torch.testing.assert_close(B, theirs.lora_B["default"].weight.detach(), rtol=0, atol=1e-6)
    residual = theirs.base_layer.weight.detach()
    residual = residual.T if conv else residual
    torch.testing.assert_close(residual + scale * B @ A, WEIGHT, rtol=0, atol=1e-6)


def test_pissa_takes_the_largest_directions_and_leaves_the_next() -> None:
    A, B = pissa(WEIGHT, 3, 1.7)
    values = torch.linalg.svdvals(WEIGHT.double())
    assert float(torch.linalg.matrix_norm((WEIGHT - 1.7 * B @ A).double(), 2)) == pytest.approx(
        float(values[3]), rel=1e-5
    )
    part = torch.linalg.svdvals(1.7 * (B @ A).double())
    torch.testing.assert_close(part[:3], values[:3], rtol=1e-5, atol=0)
    torch.testing.assert_close(A.norm(dim=1), B.norm(dim=0))


def test_olora_starts_b_orthonormal_and_needs_no_order_of_rows() -> None:
    A, B = olora(WEIGHT, 5, 3.0)
    torch.testing.assert_close(B.T @ B, torch.eye(5), rtol=0, atol=1e-6)
    torch.testing.assert_close(A, A.triu())
    whole_A, whole_B = olora(WEIGHT, 9, 3.0)
    torch.testing.assert_close(whole_B @ whole_A, WEIGHT, rtol=0, atol=1e-6)


@pytest.mark.parametrize("init", sorted(PART_INITS))
def test_steps_from_parts_of_the_weight_are_those_of_peft(init: str) -> None:
    """Our base keeps its weight and counts from the start; PEFT's loses the part."""
    base = nn.Linear(9, 12)
    base.weight.data = WEIGHT.clone()
    holder = nn.ModuleDict({"x": nn.Linear(9, 12)})
    holder["x"].load_state_dict(base.state_dict())
    ours = inject_(holder, {"x": ModuleRank(4, 6, 1.5)}, init=init)["x"]
    config = LoraConfig(r=4, lora_alpha=6, target_modules=["x"], init_lora_weights=init)
    theirs = inject_adapter_in_model(config, nn.ModuleDict({"x": copy.deepcopy(base)}))["x"]
    x = torch.randn(20, 9, generator=torch.Generator().manual_seed(6))
    target = torch.randn(20, 12, generator=torch.Generator().manual_seed(7))
    assert torch.equal(ours(x), base(x)), "no no-op, bit for bit, at the start"
    answers = []
    for layer in (ours, theirs):
        trained = [p for p in layer.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=0.02, weight_decay=0.1)
        for _ in range(10):
            loss = (layer(x) - target).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        answers.append(layer(x).detach())
    assert float((answers[0] - base(x).detach()).abs().max()) > 0.1
    torch.testing.assert_close(answers[0], answers[1], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ours.A, theirs.lora_A["default"].weight, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("init", sorted(PART_INITS))
def test_a_half_precision_base_is_left_as_it_is_to_the_last_bit(
    init: str, dtype: torch.dtype
) -> None:
    holder = nn.ModuleDict({"x": nn.Linear(9, 12)}).to(dtype)
    before = holder["x"].weight.clone()
    x = torch.randn(5, 9).to(dtype)
    expected = holder["x"](x)
    layer = inject_(holder, {"x": ModuleRank(4, 6, 1.5)}, init=init)["x"]
    assert torch.equal(layer(x), expected)
    assert torch.equal(layer.merged_weight(), before) and torch.equal(layer.base.weight, before)
    with torch.no_grad():
        layer.B += 0.01
    exact = before.double() + 1.5 * (
        layer.B.double() @ layer.A.double() - layer.B0.double() @ layer.A0.double()
    )
    off = (layer.merged_weight().double() - exact).abs()
    step = torch.finfo(dtype).eps * torch.exp2(torch.frexp(exact.abs())[1].double() - 1)
    assert bool((off <= step / 2 + 1e-6).all()), "more than one rounding"
