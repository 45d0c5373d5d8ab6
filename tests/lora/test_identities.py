"""What the mathematics of LoRA says must hold exactly, or in the mean, of layers, starts and
optimizer groups together."""

import copy
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from loractl.artifacts.peft.names import parameters
from loractl.lora.dense import matrix_sizes
from loractl.lora.inject import adaptable, inject_
from loractl.lora.layer import LoraLayer
from loractl.lora.ranks import ModuleRank, RankSpec, resolve
from loractl.training.optim import Rates, build_optimizer, is_B, set_rate_

ONE = {"x": "linear"}


def adapted(
    *, rank: int, alpha: float, d: int = 32, scaling: str = "standard", seed: int = 0
) -> LoraLayer:
    """A square linear layer with a fresh adapter, in float64."""
    torch.manual_seed(0)
    holder = nn.ModuleDict({"x": nn.Linear(d, d, bias=False)})
    ranks = resolve(RankSpec(rank, alpha, ["x"], scaling), ONE)
    return inject_(holder, ranks, seed=seed)["x"].double()


def backward(layer: LoraLayer, G: Tensor) -> None:
    """Let dL/dW be G (d_out, d_in)."""
    (layer(torch.eye(G.shape[1], dtype=G.dtype)) * G.T).sum().backward()


def gradient(d: int) -> Tensor:
    return torch.randn(d, d, dtype=torch.float64, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("scaling", ["standard", "rslora"])
def test_one_sgd_step_descends_by_scale_squared_times_rank(scaling: str) -> None:
    """-<dW, G> = s^2 lr |G A^T|^2, in the mean s^2 lr r |G|^2 / (3 d): rsLoRA, arXiv 2312.03732.

    So a step of rank 4, 16, 64 is worth 1 : 1/4 : 1/16 with alpha / r, and the same with alpha /
    sqrt(r).
    """
    d, lr, alpha, draws = 64, 0.1, 16, 60
    G = gradient(d)
    for rank in (4, 16, 64):
        total = 0.0
        for seed in range(draws):
            layer = adapted(rank=rank, alpha=alpha, d=d, scaling=scaling, seed=seed)
            backward(layer, G)
            A = layer.A.detach().clone()
            torch.optim.SGD([layer.A, layer.B], lr=lr).step()
            assert torch.equal(layer.A, A), "A has no gradient yet"
            descent = -float((layer.scale * (layer.B @ layer.A) * G).sum().detach())
            wanted = layer.scale**2 * lr * float((G @ A.T).square().sum())
            assert descent == pytest.approx(wanted, rel=1e-10)
            total += descent / draws
        worth = {"standard": 1 / rank, "rslora": 1.0}[scaling]
        mean = alpha**2 * lr * float(G.square().sum()) / (3 * d) * worth
        assert total == pytest.approx(mean, rel=0.05), f"rank {rank}"


def test_the_mean_first_step_of_adam_is_independent_of_the_rank() -> None:
    """With alpha / r: |E dW| = lr alpha std(A) sqrt(2 / pi) sqrt(d), "LoRA Without Regret".

    Adam's first step is lr sign(G A^T), and E[sign(g a) a] = std(a) sqrt(2 / pi) g / |g|. The
    square of a mean is taken as the product of two means of different draws, which has no bias.
    """
    d, lr, alpha, draws = 32, 1e-3, 16, 150
    G = gradient(d)
    expected = lr * alpha / math.sqrt(3 * d) * math.sqrt(2 / math.pi) * math.sqrt(d)
    for rank in (4, 16, 64):
        means = torch.zeros(2, d, d, dtype=torch.float64)
        for seed in range(draws):
            layer = adapted(rank=rank, alpha=alpha, d=d, seed=seed)
            backward(layer, G)
            named = {"x.lora_A.weight": layer.A, "x.lora_B.weight": layer.B}
            build_optimizer("adamw", named, Rates(lr, 0.0)).step()
            means[seed % 2] += layer.scale * (layer.B @ layer.A).detach() / (draws / 2)
        size = float((means[0] * means[1]).sum().sqrt())
        assert size == pytest.approx(expected, rel=0.03), f"rank {rank}"


class Network(nn.Module):
    """Two linear layers, which carry adapters, over a table, which does not."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(11, 6)
        self.up = nn.Linear(6, 9)
        self.down = nn.Linear(9, 5)

    def forward(self, ids: Tensor) -> Tensor:
        out: Tensor = self.down(torch.tanh(self.up(self.table(ids))))
        return out


def losses(p: float, q: float, *, eps: float, alpha: float = 6.0, steps: int = 20) -> Tensor:
    """Losses of a run with alpha / (p q), A p times as large, and rates p and q times as high."""
    torch.manual_seed(0)
    network = Network()
    spec = RankSpec(3, alpha / (p * q), ["up", "down"])
    named = parameters(inject_(network, resolve(spec, adaptable(network)), seed=1))
    network.double()
    A, B = ([x for name, x in named.items() if is_B(name) == half] for half in (False, True))
    with torch.no_grad():
        for matrix in A:
            matrix *= p
    rate = 0.02 * p
    optimizer = build_optimizer("adamw", named, Rates(rate, 0.0, q / p))
    for group in optimizer.param_groups:  # gradients are 1 / p and 1 / q of the plain run's
        group["eps"] = eps / (q if group["params"][0] is B[0] else p)
    ids, target = torch.arange(11), torch.randn(11, 5).double()
    found = []
    for step in range(steps):
        loss = (network(ids) - target).square().mean()
        found.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        if step == 0:  # B is zero, and so is A's gradient: 0 / 0 where eps is zero
            assert all(torch.count_nonzero(x.grad) == 0 for x in A if x.grad is not None)
            for matrix in A:
                matrix.grad = None
        set_rate_(optimizer, rate * (1 - step / steps))
        optimizer.step()
    return torch.tensor(found, dtype=torch.float64)


@pytest.mark.parametrize("eps", [0.0, 1e-8])
@pytest.mark.parametrize("p,q", [(2.0, 1.0), (1.0, 16.0), (0.3, 7.0), (5.0, 0.2)])
def test_scale_start_and_learning_rates_trade_off_exactly_under_adam(
    p: float, q: float, eps: float
) -> None:
    """(alpha, A, lr_A, lr_B) and (alpha / pq, p A, p lr_A, q lr_B): "LoRA Without Regret"."""
    plain, other = losses(1.0, 1.0, eps=eps), losses(p, q, eps=eps)
    assert plain[-1] < 0.9 * plain[0]
    assert float((plain - other).abs().max()) < 1e-12
    near = losses(p, q, eps=eps, alpha=6.006)
    assert float((plain - near).abs().max()) > 1e-5, "the test cannot tell one run from another"


def next_token_loss(model: Any) -> Tensor:
    ids = torch.randint(0, 300, (2, 12), generator=torch.Generator().manual_seed(3))
    logits = model(input_ids=ids, use_cache=False).logits
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


def weight_gradients(model: Any, kinds: Mapping[str, str]) -> dict[str, Tensor]:
    """dL/dW of every module, as (d_out, d_in)."""
    whole = copy.deepcopy(model).requires_grad_(True)
    next_token_loss(whole).backward()
    found = {name: whole.get_submodule(name).weight.grad for name in kinds}
    return {name: g if kinds[name] == "linear" else g.T for name, g in found.items()}


@pytest.fixture
def model(base: Callable[..., Path]) -> Callable[[str], Any]:
    def load(name: str) -> Any:
        loaded: Any = AutoModelForCausalLM.from_pretrained(base(name), dtype=torch.float64)
        return loaded.eval()

    return load


@pytest.mark.parametrize("name", ["llama", "qwen3", "opt", "gpt2"])
def test_at_the_start_one_matrix_has_no_gradient_and_the_other_that_of_the_weight_projected(
    name: str, model: Any
) -> None:
    """dL/dA = s B^T dL/dW and dL/dB = s dL/dW A^T, in a whole model; one of A and B is zero."""
    loaded = model(name)
    head = loaded.get_output_embeddings()
    tied = head.weight is loaded.get_input_embeddings().weight
    kinds = {
        path: kind
        for path, kind in adaptable(loaded).items()
        if not (tied and loaded.get_submodule(path).weight is head.weight)
    }
    expected = weight_gradients(loaded, kinds)
    layers = inject_(loaded, dict.fromkeys(kinds, ModuleRank(3, 4.5, 1.5)))
    loaded.double()
    next_token_loss(loaded).backward()
    assert set(kinds.values()) >= ({"conv1d"} if name == "gpt2" else {"linear"})
    for path, layer in layers.items():
        G, A, B = expected[path], layer.A.detach(), layer.B.detach()
        still, moved = (layer.B, layer.A) if kinds[path] == "embedding" else (layer.A, layer.B)
        assert still.grad is not None and torch.count_nonzero(still.grad) == 0, path
        wanted = 1.5 * (B.T @ G if kinds[path] == "embedding" else G @ A.T)
        size = float(wanted.abs().max())
        assert size > 0 and moved.grad is not None
        assert float((moved.grad - wanted).abs().max()) < 1e-10 * max(1.0, size), path


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_training_moves_every_weight_by_a_matrix_of_the_rank_and_leaves_the_base_alone(
    name: str, model: Any
) -> None:
    loaded = model(name)
    head = loaded.get_output_embeddings()
    kinds = {p: k for p, k in adaptable(loaded).items() if loaded.get_submodule(p) is not head}
    before = {path: loaded.get_submodule(path).weight.detach().clone() for path in kinds}
    ranks = {path: ModuleRank(2 + i % 3, 8.0, 2.0) for i, path in enumerate(kinds)}
    layers = inject_(loaded, ranks)
    loaded.double()
    optimizer = build_optimizer("adamw", parameters(layers), Rates(0.01, 0.1))
    start = next_token_loss(loaded).item()
    for _ in range(5):
        loss = next_token_loss(loaded)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert next_token_loss(loaded).item() < start
    for path, layer in layers.items():
        assert torch.equal(layer.base.weight, before[path])
        moved = torch.cat([rows for *_, rows in layer.merged_rows(before[path])]) - before[path]
        assert torch.linalg.matrix_rank(moved, rtol=1e-9) == ranks[path].rank, path
        assert matrix_sizes(layer.kind, moved) == (layer.d_in, layer.d_out)
