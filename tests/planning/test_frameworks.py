"""What litgpt keeps, against its layers and its loss as they are written there.

Figures of it were published and are compared in test_peak_memory.py; here are its formulas at that
time (October 2023: lit_gpt/model.py, lora.py, rmsnorm.py, utils.py), small and on this machine.
"""

import weakref
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from loractl.lora.ranks import RankSpec, resolve
from loractl.models.shape import read as shapes
from loractl.models.shape.types import ModelShape
from loractl.planning import layer_bytes, logits
from loractl.planning.frameworks import FRAMEWORKS
from loractl.planning.kept_bytes import kept
from loractl.planning.peak_memory import Plan, memory
from loractl.planning.work import Work
from tests.planning.conftest import allocated

LITGPT = FRAMEWORKS["litgpt"]
ROWS, LENGTH, HIDDEN, HEADS, WIDTH, INNER, LAYERS, RANK = 2, 48, 64, 4, 16, 160, 4, 4
CONFIG = {
    "hidden_size": HIDDEN, "intermediate_size": INNER, "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS, "vocab_size": 100, "tie_word_embeddings": False,
}  # fmt: skip


class Product(torch.autograd.Function):
    """As MatMul4Bit of bitsandbytes: what it needs hangs at its node, and is no saved tensor."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, inputs: list[Any]) -> Tensor:
        ctx.tensors = (x, weight)
        inputs.append(weakref.ref(x))
        return F.linear(x, weight)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return gradients[0] @ ctx.tensors[1], None, None


def packed(weight: Tensor, inputs: list[Any], x: Tensor) -> Tensor:
    return Product.apply(x, weight, inputs)  # type: ignore[no-any-return]


class Norm(nn.Module):
    """RMSNorm, in float32 whatever comes."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(HIDDEN))

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        scale = torch.rsqrt(torch.mean(wide * wide, -1, keepdim=True) + 1e-5)
        return (self.weight * (wide * scale)).to(x.dtype)


class QKV(nn.Module):
    """One product for q, k and v, one A for the adapters of q and v, whose updates are copied to
    their places."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups, self.into = groups, [HIDDEN, groups * WIDTH]
        self.linear = nn.Linear(HIDDEN, HIDDEN + 2 * groups * WIDTH)
        self.lora_A = nn.Parameter(torch.randn(2 * RANK, HIDDEN))
        self.lora_B = nn.Parameter(torch.zeros(sum(self.into), RANK))
        places = torch.arange(self.linear.out_features).view(groups, -1, WIDTH)
        self.places = torch.cat([places[:, :-2].flatten(), places[:, -1].flatten()])

    def forward(self, x: Tensor) -> Tensor:
        thin = F.linear(F.dropout(x, LITGPT.dropout), self.lora_A).transpose(-2, -1)
        weight = self.lora_B.unsqueeze(-1)
        if self.groups == HEADS:
            update = F.conv1d(thin, weight, groups=2)
        else:
            parts = zip(thin.chunk(2, 1), weight.split(self.into), strict=True)
            update = torch.cat([F.conv1d(one, B) for one, B in parts], 1)
        rows = update.transpose(-2, -1).reshape(-1, sum(self.into))
        out = rows.new_zeros(len(rows), self.linear.out_features).index_copy(1, self.places, rows)
        return self.linear(x) + out.view(*x.shape[:-1], -1) * 2.0  # type: ignore[no-any-return]


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    n = cos.shape[-1]
    part = x[..., :n]
    turned = torch.cat((-part[..., n // 2 :], part[..., : n // 2]), -1)
    return torch.cat(((part * cos + turned * sin).to(x.dtype), x[..., n:]), -1)


class Block(nn.Module):
    """phi's: attention and MLP side by side, of one norm. Llama's: one after the other."""

    def __init__(self, groups: int, *, llama: bool) -> None:
        super().__init__()
        self.groups, self.llama = groups, llama
        self.norm_1 = Norm() if llama else nn.LayerNorm(HIDDEN)
        self.norm_2 = Norm()
        self.attn, self.proj = QKV(groups), nn.Linear(HIDDEN, HIDDEN)
        self.fc_1, self.fc_2 = nn.Linear(HIDDEN, INNER), nn.Linear(HIDDEN, INNER)
        self.down = nn.Linear(INNER, HIDDEN)

    def attention(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        per = HEADS // self.groups
        qkv = self.attn(x).view(ROWS, LENGTH, self.groups, per + 2, WIDTH).permute(0, 2, 3, 1, 4)
        q, k, v = qkv.split((per, 1, 1), dim=2)  # (rows, groups, heads of a group, length, width)
        if self.groups != HEADS:
            k, v = (one.expand(-1, -1, per, -1, -1) for one in (k, v))
        q, k, v = (one.reshape(ROWS, HEADS, LENGTH, WIDTH) for one in (q, k, v))
        q, k = rotated(q, cos, sin), rotated(k, cos, sin)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.proj(y.transpose(1, 2).reshape(ROWS, LENGTH, HIDDEN))  # type: ignore[no-any-return]

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        normed = self.norm_1(x)
        h = self.attention(normed, cos, sin)
        if not self.llama:
            return self.down(F.gelu(self.fc_1(normed), approximate="tanh")) + h + x  # type: ignore[no-any-return]
        x = h + x
        normed = self.norm_2(x)
        return self.down(F.silu(self.fc_1(normed)) * self.fc_2(normed)) + x  # type: ignore[no-any-return]


def turns(*, llama: bool) -> tuple[Tensor, Tensor]:
    """Cosines and sines; of phi's heads one half is turned."""
    speeds = torch.rand(WIDTH // (2 if llama else 4))
    angles = torch.outer(torch.arange(LENGTH), speeds).repeat(1, 2)
    return angles.cos(), angles.sin()


def bytes_kept(groups: int, dtype: torch.dtype, *, llama: bool) -> int:
    """The storages that autograd saves of all blocks and the last norm, each once, but weights."""
    torch.manual_seed(0)
    blocks = nn.ModuleList(Block(groups, llama=llama) for _ in range(LAYERS))
    last = Norm() if llama else nn.LayerNorm(HIDDEN)
    model = nn.ModuleList([blocks, last]).to(dtype)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name)
    cos, sin = turns(llama=llama)
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    saved: dict[int, int] = {}
    alive: list[Tensor] = []  # so that no other storage takes the place of one

    def pack(tensor: Tensor) -> Tensor:
        if (storage := tensor.untyped_storage()).data_ptr() not in own:
            saved[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)
        return tensor

    x = torch.randn(ROWS, LENGTH, HIDDEN).to(dtype)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        for block in blocks:
            x = block(x, cos, sin)
        last(x)
    return sum(saved.values())


def shape_of(architecture: str, groups: int) -> ModelShape:
    config: dict[str, Any] = {**CONFIG, "model_type": architecture, "num_key_value_heads": groups}
    config["hidden_act"] = "silu" if architecture == "llama" else "gelu"
    return shapes.from_config(config, where=architecture)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("architecture", "groups"), [("phi", 4), ("llama", 4), ("llama", 2)])
def test_the_layers_of_litgpt_keep_what_is_predicted(
    architecture: str, groups: int, dtype: torch.dtype
) -> None:
    found = shape_of(architecture, groups)
    ranks = resolve(RankSpec(RANK, 8, ["q_proj", "v_proj"]), found.kinds)
    work = Work(ROWS, LENGTH, dtype.itemsize, on_cpu=True)
    predicted = kept(found, ranks, work, LITGPT).activations
    assert predicted == pytest.approx(
        bytes_kept(groups, dtype, llama=architecture == "llama"), rel=0.01
    )


def test_the_loss_of_litgpt_takes_what_is_predicted() -> None:
    vocabulary, length, chunk = 3000, 300, 128
    config = {**CONFIG, "model_type": "llama", "hidden_size": 8, "vocab_size": vocabulary}
    found = shapes.from_config(config, where="llama")
    torch.manual_seed(0)
    hidden = torch.randn(ROWS, length, 8).bfloat16().requires_grad_()
    head = torch.randn(vocabulary, 8).bfloat16()
    targets = torch.randint(0, vocabulary, (ROWS, length))

    def step() -> list[Any]:
        given = [F.linear(one, head) for one in hidden.split(chunk, dim=1)]
        wide = [one.float() for one in given]  # Fabric's convert_output
        del given
        losses = [
            F.cross_entropy(one.flatten(0, 1), target.flatten(), reduction="none")
            for one, target in zip(wide, targets.split(chunk, dim=1), strict=True)
        ]
        torch.cat(losses).mean().backward()
        return [wide, losses]  # alive while the blocks go backward

    now, peak, _ = allocated(step)
    work = Work(ROWS, length, 2)
    assert logits.peak(found, {}, work, LITGPT) == pytest.approx(peak, rel=0.01)
    assert logits.kept(found, {}, work, LITGPT) == pytest.approx(now, rel=0.01)


@pytest.mark.parametrize("architecture", ["phi", "llama"])
def test_inputs_of_packed_layers_are_there_until_the_graph_is_gone(architecture: str) -> None:
    llama = architecture == "llama"
    blocks = nn.ModuleList(Block(HEADS, llama=llama) for _ in range(LAYERS))
    inputs: list[Any] = []
    for linear in (m for m in blocks.modules() if isinstance(m, nn.Linear)):
        linear.forward = partial(packed, linear.weight, inputs)
    for name, parameter in blocks.named_parameters():
        parameter.requires_grad_("lora_" in name)
    cos, sin = turns(llama=llama)
    out = torch.randn(ROWS, LENGTH, HIDDEN).requires_grad_() * 1
    for block in blocks:
        out = block(out, cos, sin)
    out.sum().backward()

    def left() -> int:
        alive = [found.untyped_storage() for one in inputs if (found := one()) is not None]
        return sum({storage.data_ptr(): storage.nbytes() for storage in alive}.values())

    work = Work(ROWS, LENGTH, 4, quantized=True)
    predicted = layer_bytes.inputs_left(shape_of(architecture, HEADS), work) * LAYERS * work.tokens
    assert left() == predicted
    del out
    assert left() == 0


def test_a_batch_before_counts_until_the_next_has_gone_forward() -> None:
    found = shapes.named("7B")
    ranks = resolve(RankSpec(8, 16, ["q_proj", "v_proj"]), found.kinds)

    def peak(quantization: str, previous: int | None, name: str = "litgpt") -> int:
        work = Work(1, 1024, 2, quantized=quantization != "none", previous=previous)
        plan = Plan(ranks, work, quantization=quantization, framework=FRAMEWORKS[name])
        return memory(found, plan).allocated

    assert peak("nf4", None) == peak("nf4", 1024) > 1.1 * peak("nf4", 0)
    assert peak("none", None) < 1.01 * peak("none", 0)
    assert peak("nf4", None, "peft") == peak("nf4", 0, "peft")
