"""Updates merged and taken out, cut to a rank, combined as PEFT does, and found in weights."""

import math
from collections.abc import Callable

import pytest
import torch
from peft.utils import merge_utils
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from loractl.lora import extract as extracting
from loractl.lora.algebra import MIXES, combine, merge_, resize, unmerge_
from loractl.lora.extract import extract
from loractl.lora.inject import FORMULAS, inject_
from loractl.lora.ranks import ModuleRank
from loractl.lora.spectrum import (
    Factors,
    cosine,
    effective_rank,
    energy_by_rank,
    rank_keeping,
    similarity,
    subspaces,
    svd,
)


def random(
    r: int, d_out: int = 20, d_in: int = 30, *, seed: int = 0, scale: float = 2.0
) -> Factors:
    generator = torch.Generator().manual_seed(seed)
    A = torch.randn(r, d_in, generator=generator)
    return Factors(A, torch.randn(d_out, r, generator=generator), scale)


def difference(found: Tensor, expected: Tensor) -> float:
    """Relative, Frobenius."""
    return float((found - expected).norm() / expected.norm())


class Tied(nn.Module):
    """Each kind of layer, and a head that shares the embedding's weight."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 6)
        self.conv = Conv1D(8, 6)
        self.linear = nn.Linear(8, 6)
        self.head = nn.Linear(6, 11, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        out: Tensor = self.head(self.linear(self.conv(self.embed(ids))))
        return out


@pytest.mark.parametrize("formula", FORMULAS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_merging_and_unmerging_restores_the_base_bitwise_and_its_sharing(
    dtype: torch.dtype, formula: str
) -> None:
    torch.manual_seed(0)
    model = Tied().to(dtype)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    ranks = {name: ModuleRank(3, 6, 2.0) for name in ("embed", "conv", "linear")}
    layers = inject_(model, ranks, formula=formula)
    for layer in layers.values():
        for parameter in layer.parameters(recurse=False):
            nn.init.normal_(parameter)
    ids = torch.arange(11)
    adapted = model(ids).detach()
    for _ in range(3):  # nothing drifts
        kept = merge_(model)
        merged = model(ids).detach()
        bound = 1e-5 if dtype == torch.float32 else 0.15  # three roundings in a row
        assert float((merged - adapted).abs().max()) <= bound * max(1, float(adapted.abs().max()))
        assert not torch.equal(layers["linear"].base.weight, before["linear.weight"])
        unmerge_(model, kept)
        assert torch.equal(model(ids), adapted)
    after = {n.replace(".base.", "."): v for n, v in model.state_dict().items()}
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert model.head.weight is layers["embed"].base.weight


def test_merging_twice_is_a_mistake() -> None:
    model = Tied()
    inject_(model, {"linear": ModuleRank(2, 2, 1.0)})
    merge_(model)
    with pytest.raises(AssertionError, match="linear is already merged"):
        merge_(model)


def test_resizing_to_the_full_rank_or_more_is_exact() -> None:
    update = random(6)
    for rank in (6, 7, 100):
        cut = resize(update, rank=rank)
        assert cut.factors.rank == 6 and cut.lost == 0.0 and cut.factors.scale == 1.0
        assert difference(cut.factors.product(), update.product()) < 2e-7


@pytest.mark.parametrize("shape", [(20, 30), (30, 20), (4, 30), (30, 4), (1, 5)])
@pytest.mark.parametrize("rank", [1, 2, 3, 5])
def test_resizing_is_the_truncated_svd_of_the_product_and_its_error_is_measured(
    shape: tuple[int, int], rank: int
) -> None:
    update = random(6, *shape)
    product = update.product()
    cut = resize(update, rank=rank)
    U, S, Vh = torch.linalg.svd(product, full_matrices=False)
    best = U[:, :rank] * S[:rank] @ Vh[:rank]
    assert difference(cut.factors.product(), best) < 1e-6
    assert cut.error == pytest.approx(difference(best, product), abs=1e-7)
    assert cut.norm == pytest.approx(float(product.norm()))
    assert cut.kept == pytest.approx(1 - cut.error**2)


@pytest.mark.parametrize("energy", [0.3, 0.9, 0.95, 0.999, 1.0])
def test_the_rank_of_an_energy_is_the_smallest_that_keeps_it(energy: float) -> None:
    update = random(8)
    cut = resize(update, energy=energy)
    S = torch.linalg.svdvals(update.product())
    shares = S.square().cumsum(0) / S.square().sum()
    rank = cut.factors.rank
    assert cut.kept >= energy - 1e-9
    assert rank == 1 or float(shares[rank - 2]) < energy
    assert resize(update, energy=1.0).factors.rank == 8


def test_an_update_of_less_rank_than_it_says_is_found_out() -> None:
    low = random(2)
    padded = Factors(torch.cat([low.A, low.A]), torch.cat([low.B, 3 * low.B], dim=1), 0.5)
    assert resize(padded, energy=1.0).factors.rank == 2
    zero = resize(Factors(low.A, torch.zeros_like(low.B)), energy=0.9)
    assert zero.factors.rank == 1 and float(zero.factors.product().norm()) == 0.0 == zero.lost


PARTS = [random(3, seed=1, scale=2.0), random(3, seed=2, scale=0.5), random(3, seed=3, scale=1.0)]
WEIGHTS = [0.7, -1.5, 0.4]


def exact_sum() -> Tensor:
    return sum(w * part.product() for part, w in zip(PARTS, WEIGHTS, strict=True))  # type: ignore[return-value]


def test_cat_is_the_sum_of_the_updates_and_svd_its_best_approximation() -> None:
    together = combine(PARTS, WEIGHTS, "cat")
    assert together.rank == 9 and difference(together.product(), exact_sum()) < 2e-7
    for rank in (2, 5):
        U, S, Vh = torch.linalg.svd(exact_sum(), full_matrices=False)
        best = U[:, :rank] * S[:rank] @ Vh[:rank]
        found = combine(PARTS, WEIGHTS, "svd", rank=rank)
        assert found.rank == rank and difference(found.product(), best) < 1e-6
    assert combine(PARTS, WEIGHTS, "svd").rank == 3
    full = combine(PARTS, WEIGHTS, "svd", rank=9)
    assert difference(full.product(), exact_sum()) < 1e-6


PEFTS: dict[str, Callable[..., Tensor]] = {
    "linear": lambda tensors, weights, density: merge_utils.task_arithmetic(tensors, weights),
    "ties": merge_utils.ties,
    "dare": merge_utils.dare_linear,
    "dare_ties": merge_utils.dare_ties,
}


@pytest.mark.parametrize("how", MIXES)
@pytest.mark.parametrize("density", [0.2, 0.7])
def test_a_mix_is_bitwise_that_of_peft(how: str, density: float) -> None:
    generator = torch.Generator().manual_seed(5)
    found = combine(PARTS, WEIGHTS, how, density=density, generator=generator)
    shares = [w * part.scale for part, w in zip(PARTS, WEIGHTS, strict=True)]
    roots = torch.tensor([math.sqrt(abs(share)) for share in shares])
    torch.manual_seed(5)
    A = PEFTS[how]([part.A for part in PARTS], roots * torch.tensor(shares).sign(), density)
    B = PEFTS[how]([part.B for part in PARTS], roots, density)
    assert torch.equal(found.A, A) and torch.equal(found.B, B) and found.scale == 1.0


def test_what_is_no_sum_differs_from_it_but_for_one_part() -> None:
    assert difference(combine(PARTS, WEIGHTS, "linear").product(), exact_sum()) > 0.3
    for how in MIXES:
        alone = combine(PARTS[:1], [-0.7], how)
        assert difference(alone.product(), -0.7 * PARTS[0].product()) < 1e-6


def test_unequal_ranks_cannot_be_mixed_but_cat_and_svd_take_them() -> None:
    parts = [random(2), random(4)]
    with pytest.raises(ValueError, match="ranks 2, 4: ties needs equal ranks"):
        combine(parts, [1, 1], "ties")
    assert combine(parts, [1, 1], "cat").rank == 6 and combine(parts, [1, 1], "svd").rank == 4


@pytest.mark.parametrize("shape", [(20, 30), (30, 20)])
def test_an_update_is_extracted_whole_or_as_its_best_part(shape: tuple[int, int]) -> None:
    update = random(6, *shape)
    delta = update.product().float()
    whole = extract(delta, rank=6)
    assert difference(whole.factors.product(), delta.double()) < 1e-6 and whole.lost < 1e-12
    for cut, optimum in (
        (extract(delta, rank=3), resize(update, rank=3)),
        (extract(delta, energy=0.8), resize(update, energy=0.8)),
    ):
        assert difference(cut.factors.product(), optimum.factors.product()) < 1e-5
        assert cut.error == pytest.approx(optimum.error, abs=1e-6)
    assert extract(delta, energy=1 - 1e-9).factors.rank == 6
    assert extract(delta, rank=100).factors.rank == 20


@pytest.mark.parametrize("decay", [0.0, 0.5, 1.0])
def test_a_large_difference_is_extracted_nearly_as_well_by_projection(
    decay: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    Q = torch.linalg.qr(torch.randn(320, 320, dtype=torch.float64)).Q
    delta = (Q * (torch.arange(320) + 1.0).pow(-decay) @ torch.randn(320, 400).double()).float()
    best = extract(delta, rank=16)
    monkeypatch.setattr(extracting, "EXACT_UP_TO", 100)
    cut = extract(delta.T, rank=16)
    assert cut.sigma is None and best.sigma is not None
    actual = difference(cut.factors.product(), delta.T.double())
    assert cut.error == pytest.approx(actual, rel=1e-5)  # measured, not estimated
    assert best.error <= cut.error * (1 + 1e-6) and cut.error <= best.error * (1 + 5e-3)
    for energy in (0.2, 0.99):  # the second asks for so much that all is looked at
        assert extract(delta, energy=energy).kept >= energy - 1e-9


def test_the_spectrum_of_a_known_matrix() -> None:
    torch.manual_seed(0)
    U = torch.linalg.qr(torch.randn(20, 4)).Q
    V = torch.linalg.qr(torch.randn(30, 4)).Q
    S = torch.tensor([4.0, 2.0, 1.0, 0.0])
    factors = Factors((S.sqrt()[:, None] * V.T), U * S.sqrt() / 3, 3.0)
    sigma = svd(factors)[1]
    assert sigma == pytest.approx(S, abs=1e-6)
    assert energy_by_rank(sigma) == pytest.approx([16 / 21, 20 / 21, 1, 1])
    assert [rank_keeping(S, energy) for energy in (0.5, 0.9, 0.96, 1.0)] == [1, 2, 3, 3]
    p = torch.tensor([4 / 7, 2 / 7, 1 / 7])
    assert effective_rank(S) == pytest.approx(math.exp(-float((p * p.log()).sum())))
    assert effective_rank(torch.ones(5)) == pytest.approx(5)
    assert effective_rank(torch.zeros(5)) == 0.0


def test_the_cosine_of_two_updates_is_that_of_their_products() -> None:
    one, other = random(3, seed=1), random(5, seed=2, scale=0.3)
    x, y = one.product().flatten(), other.product().flatten()
    assert cosine(one, other) == pytest.approx(float(x @ y / x.norm() / y.norm()))
    assert cosine(one, one) == pytest.approx(1)
    assert cosine(one, Factors(one.A, -one.B)) == pytest.approx(-1)
    assert cosine(one, Factors(one.A, 0 * one.B)) is None


def test_subspaces_are_alike_to_themselves_symmetric_and_by_chance_otherwise() -> None:
    one, other = random(8, d_in=400, seed=1), random(16, d_in=400, seed=2)
    U1, U2 = subspaces(one)[0], subspaces(other)[0]
    same = similarity(U1, U1)
    i = torch.arange(1, 9)
    assert torch.allclose(same, torch.ones(8, 8).double())  # the smaller lies in the larger
    phi = similarity(U1, U2)
    assert phi.shape == (8, 16) and torch.allclose(phi, similarity(U2, U1).T)
    chance = torch.maximum(i[:, None], torch.arange(1, 17)) / 400
    assert float(phi[-1, -1]) == pytest.approx(float(chance[-1, -1]), rel=0.4)
    assert float(phi.max()) < 0.2
    rotated = Factors(torch.randn(8, 8) @ one.A, one.B)  # the same row space, other directions
    assert float(similarity(U1, subspaces(rotated)[0])[-1, -1]) == pytest.approx(1)


def test_random_subspaces_overlap_by_max_over_d_on_average() -> None:
    phis = []
    for seed in range(40):
        torch.manual_seed(seed)
        U1, U2 = (torch.linalg.qr(torch.randn(100, n).double()).Q for n in (3, 6))
        phis.append(similarity(U1, U2))
    mean = torch.stack(phis).mean(0)
    i, j = torch.arange(1, 4)[:, None], torch.arange(1, 7)
    assert torch.allclose(mean, torch.maximum(i, j) / 100.0 * torch.ones(3, 6).double(), atol=0.012)
