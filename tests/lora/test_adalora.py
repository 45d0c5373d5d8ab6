"""AdaLoRA against its formula, PEFT's layers and allocator, and its budget's known values."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AdaLoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from loractl.lora.adalora import AdaloraEmbedding, AdaloraLinear, Allocator, Budget, Smoothing
from loractl.lora.init import triplets
from loractl.lora.inject import adaptable, inject_
from loractl.lora.ranks import RankSpec, resolve

Make = Callable[..., Path]

pytestmark = pytest.mark.filterwarnings(
    "ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"
)


def layer(rank: int = 4, *, values: bool = True) -> AdaloraLinear:
    torch.manual_seed(0)
    base = nn.Linear(10, 7).requires_grad_(False)
    A, B = triplets(rank, 10, 7, torch.Generator().manual_seed(1))
    made = AdaloraLinear(base, A * 50, B * 50, scale=1.5)
    if values:
        nn.init.normal_(made.E)
    return made


def test_the_budget_has_the_published_value_half_way() -> None:
    budget = Budget(initial=64, target=32, warmup=200, final=500, total=3000, every=10)
    assert budget.at(1350) == 36  # 32 + 32 / 8
    assert [budget.at(step) for step in (1, 200, 2500, 2501, 3000)] == [64, 64, 32, 32, 32]
    falling = [budget.at(step) for step in range(200, 2501)]
    assert falling == sorted(falling, reverse=True)


def test_triplets_are_chosen_every_so_often_and_last_when_the_budget_is_reached() -> None:
    budget = Budget(initial=8, target=4, warmup=3, final=5, total=22, every=4)
    assert [step for step in range(1, 23) if budget.is_due(step)] == [4, 8, 12, 16, 17]


@pytest.mark.parametrize(("total", "final"), [(30, 0), (31, 7)])
def test_the_budget_is_pefts_at_every_step(total: int, final: int, base: Make) -> None:
    settings = {"init_r": 6, "target_r": 2, "tinit": 4, "tfinal": final, "deltaT": 3}
    model = peft_adalora(base("llama"), total_step=total, **settings)
    allocator = model.base_model.rankallocator
    modules = len(allocator.name_set)
    ours = Budget(6 * modules, 2 * modules, warmup=4, final=final, total=total, every=3)
    for step in range(1, total + 1):
        expected, masks = allocator.budget_schedule(step)
        assert ours.at(step) == expected, step
        if step != total - final and step <= total - final:
            assert ours.is_due(step) == masks, step


def peft_adalora(base: Path, **settings: Any) -> Any:
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    config = AdaLoraConfig(
        target_modules=["q_proj", "v_proj", "down_proj"],
        lora_alpha=9,
        task_type="CAUSAL_LM",
        **settings,
    )
    return get_peft_model(model, config)


def test_a_run_goes_as_pefts_does_step_by_step(base: Make) -> None:
    """Same start, same batches, same AdamW: every A, B and E, and every choice of triplets."""
    where, steps = base("llama"), 24
    settings = {"init_r": 6, "target_r": 2, "tinit": 3, "tfinal": 6, "deltaT": 2}
    theirs = peft_adalora(where, total_step=steps, orth_reg_weight=0.3, **settings)
    model = AutoModelForCausalLM.from_pretrained(where, dtype=torch.float32)
    spec = RankSpec(6, 9, target_modules=["q_proj", "v_proj", "down_proj"])
    layers: Any = inject_(model, resolve(spec, adaptable(model)), formula="adalora")
    peft_layers = {name: theirs.get_submodule(f"base_model.model.{name}") for name in layers}
    with torch.no_grad():
        for name, one in layers.items():
            for letter, values in one.triplets().items():
                getattr(peft_layers[name], f"lora_{letter}")["default"].copy_(values)
    n = len(layers)
    budget = Budget(6 * n, 2 * n, warmup=3, final=6, total=steps, every=2)
    ranks = Allocator(layers, budget, smoothing=Smoothing(), orthogonality=0.3)
    ids = torch.randint(0, 300, (steps, 2, 12), generator=torch.Generator().manual_seed(5))
    ours_adam = torch.optim.AdamW([p for one in layers.values() for p in one.triplets().values()])
    their_adam = torch.optim.AdamW([p for p in theirs.parameters() if p.requires_grad])
    for group in (*ours_adam.param_groups, *their_adam.param_groups):
        group["lr"] = 5e-3
    for step in range(1, steps + 1):
        batch = ids[step - 1]
        penalty = ranks.penalty()
        assert penalty is not None
        (model(input_ids=batch, labels=batch).loss + penalty).backward()
        ours_adam.step()
        ranks.after_update(step)
        ours_adam.zero_grad()
        theirs(input_ids=batch, labels=batch).loss.backward()
        their_adam.step()
        theirs.base_model.update_and_allocate(step)
        their_adam.zero_grad()
        for name, one in layers.items():
            for letter, values in one.triplets().items():
                expected = getattr(peft_layers[name], f"lora_{letter}")["default"]
                torch.testing.assert_close(values, expected, rtol=1e-4, atol=1e-5)
                if letter == "E":
                    assert torch.equal(values == 0, expected == 0), (step, name)
    on = torch.cat([one.E[:, 0] != 0 for one in layers.values()])
    assert int(on.sum()) == 2 * n
    assert len({int((one.E != 0).sum()) for one in layers.values()}) > 1, "all ranks are alike"


def test_output_and_gradients_are_those_of_the_formula() -> None:
    made = layer()
    x = torch.randn(3, 10, generator=torch.Generator().manual_seed(2))
    A, B, E = (p.detach().clone().requires_grad_() for p in (made.A, made.B, made.E))
    expected = made.base(x) + 1.5 * (x @ (B @ torch.diag(E[:, 0]) @ A).T)
    found = made(x)
    torch.testing.assert_close(found, expected)
    direction = torch.randn(found.shape, generator=torch.Generator().manual_seed(3))
    found.backward(direction)
    expected.backward(direction)
    for ours, theirs in ((made.A, A), (made.B, B), (made.E, E)):
        torch.testing.assert_close(ours.grad, theirs.grad)


def test_at_the_start_only_the_values_have_a_gradient() -> None:
    made = layer(values=False)
    made(torch.randn(3, 10)).square().sum().backward()
    assert made.E.grad is not None and torch.count_nonzero(made.E.grad) == 4
    assert made.A.grad is not None and not made.A.grad.any()
    assert made.B.grad is not None and not made.B.grad.any()


def test_an_embedding_has_triplets_too() -> None:
    torch.manual_seed(0)
    base = nn.Embedding(10, 7)
    made = AdaloraEmbedding(base, torch.randn(4, 10), torch.randn(7, 4), scale=1.5)
    ids = torch.arange(10)
    assert torch.equal(made(ids), base(ids))
    nn.init.normal_(made.E)
    W = base.weight + 1.5 * (made.B @ (made.A * made.E)).T
    torch.testing.assert_close(made(ids), W[ids])


def test_the_penalty_is_zero_for_orthonormal_factors_and_absent_at_weight_zero() -> None:
    made = layer()
    budget = Budget(4, 2, warmup=1, final=1, total=9, every=1)
    made.A.data = torch.linalg.qr(torch.randn(10, 4)).Q.T.contiguous()
    made.B.data = torch.linalg.qr(torch.randn(7, 4)).Q
    ranks = Allocator({"q": made}, budget, smoothing=Smoothing(), orthogonality=0.5)
    assert float(ranks.penalty().detach()) < 1e-6  # type: ignore[union-attr]
    made.A.data = made.A.data * 2  # |4 I - I| is 3 sqrt(4), the mean with B's half of it
    found = float(ranks.penalty().detach())  # type: ignore[union-attr]
    assert found == pytest.approx(0.5 * 3.0, rel=1e-5)
    none = Allocator({"q": made}, budget, smoothing=Smoothing(), orthogonality=0.0)
    assert none.penalty() is None


def test_a_choice_among_equal_scores_keeps_exactly_the_budget() -> None:
    """PEFT compares with a threshold, and would switch all of them off."""
    made = layer()
    budget = Budget(4, 3, warmup=0, final=0, total=1, every=1)
    ranks = Allocator({"q": made}, budget, smoothing=Smoothing(), orthogonality=0.0)
    ranks.after_update(1)
    assert (made.E[:, 0] != 0).tolist() == [True, True, True, False]


def step_(ranks: Allocator, one: AdaloraLinear, step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    for p in one.triplets().values():
        p.grad = torch.randn(p.shape, generator=generator)
        with torch.no_grad():
            p.sub_(0.1 * p.grad)
    ranks.after_update(step)


@pytest.mark.parametrize("stop", [2, 5, 8])
def test_what_is_restored_goes_on_as_what_was_never_interrupted(stop: int) -> None:
    budget = Budget(4, 2, warmup=1, final=3, total=10, every=2)
    results: list[dict[str, Tensor]] = []
    for interrupted in (False, True):
        one = layer()
        ranks = Allocator({"q": one}, budget, smoothing=Smoothing(), orthogonality=0.0)
        for step in range(1, 11):
            step_(ranks, one, step)
            if interrupted and step == stop:
                known = {name: tensor.clone() for name, tensor in ranks.tensors().items()}
                ranks = Allocator({"q": one}, budget, smoothing=Smoothing(), orthogonality=0.0)
                ranks.restore_(known)
        results.append({k: v.detach().clone() for k, v in one.triplets().items()})
    assert all(torch.equal(results[0][k], results[1][k]) for k in results[0])
    assert int((results[0]["E"] != 0).sum()) == 2
