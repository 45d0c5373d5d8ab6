"""What the hand-written layers are predicted to keep and to take, against what torch's allocator
gives out: what they keep hangs on the context of a function, where hooks of autograd do not see it.
"""

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from loractl.lora.inject import adaptable, inject_
from loractl.lora.ranks import RankSpec, resolve
from loractl.models.fast.trunk import Trunk
from loractl.models.forward import recompute_activations_
from loractl.models.load import head_name
from loractl.models.objective import TokenLoss
from loractl.models.packed_load import pack_
from loractl.models.segments.install import use_segments_
from loractl.models.shape import read as shapes
from loractl.models.shape.families import FAMILIES
from loractl.models.torch_dtypes import dtype_word
from loractl.ops import gemm, native
from loractl.planning import fast_layer_bytes, layer_bytes
from loractl.planning.frameworks import FRAMEWORKS, LORACTL
from loractl.planning.kept_bytes import kept
from loractl.planning.request import Request, plan_of
from loractl.planning.work import Kept, Work
from loractl.quant.kinds import Quantization
from tests.models.shape.test_read import CASES
from tests.planning.conftest import allocated
from tests.sweeps import sampled
from tests.tiny import batch_of

RANK, VOCABULARY = 2, 100
dtypes = pytest.mark.parametrize("dtype", sampled([torch.float32, torch.bfloat16], torch.float32))
D: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2, "max_position_embeddings": 512,
}  # fmt: skip
WIDE = {**D, "head_dim": 32}
WINDOW = {"sliding_window": 40}
MODELS: dict[str, dict[str, Any]] = {
    "llama": D,
    "mistral": {**D, **WINDOW},
    "qwen2": D,
    "qwen3": WIDE,
    "smollm3": D,
    "granite": {**D, "residual_multiplier": 0.3},
    "gemma": {**WIDE, "num_key_value_heads": 1},
    "gemma2": {**WIDE, **WINDOW, "attn_logit_softcapping": 50.0},
    "gemma3_text": {**WIDE, **WINDOW, "layer_types": ["sliding_attention", "full_attention"] * 2},
}  # fmt: skip
ROWS = ((96,), (96,))


def both(
    architecture: str,
    settings: dict[str, Any],
    *,
    rows: tuple[tuple[int, ...], ...] = ROWS,
    dtype: torch.dtype = torch.float32,
    checkpointing: bool = False,
    formula: str = "lora",
    starts: bool = False,
    dropout: float = 0.0,
    on_cpu: bool = True,
    packed: bool = False,
    targets: Any = "all-linear",
    **spec: Any,
) -> tuple[int, int, Kept, int]:
    """(bytes kept, bytes at the peak of a step, what is predicted of the first, of the second)."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(architecture, **settings)
    model = AutoModelForCausalLM.from_config(config).to(dtype).train()
    if packed:
        pack_(model, Quantization("nf4", dtype_word(dtype)), dense=False)
    wanted = RankSpec(RANK, 8, targets, **spec)
    ranks = resolve(wanted, adaptable(model), head=head_name(model))
    adapted = inject_(model, ranks, formula=formula, dropout=dropout)
    for one in adapted.values() if starts else ():
        one.count_from_(one.A.detach().clone(), one.B.detach().clone())
    if checkpointing:
        recompute_activations_(model)
    trunk = Trunk(model)
    assert trunk.fallback_reason == ""
    loss, batch = TokenLoss(model, trunk=trunk), batch_of(*rows)
    assert loss.head is not None
    left, forward, (total, n_trained) = allocated(lambda: loss(batch))
    _, backward, _ = allocated(total.backward)
    found = shapes.from_config(config.to_dict(), where=architecture)
    share = n_trained / batch.input_ids.numel()
    work = Work(
        *batch.input_ids.shape, dtype.itemsize, checkpointing=checkpointing, masked=True,
        trained_share=share, formula=formula, starts=starts, dropout=dropout, on_cpu=on_cpu,
        real=batch.n_tokens, longest=max(size for row in rows for size in row),
    )  # fmt: skip
    ours = resolve(wanted, found.kinds, head=found.head)
    predicted = kept(found, ours, work)
    again = predicted.block if checkpointing else 0
    below = predicted.below + again + predicted.temporaries
    highest = max(predicted.activations + predicted.logits, below)
    return left, max(forward, left + backward), predicted, highest


@pytest.fixture(autouse=True)
def by_torch(monkeypatch: pytest.MonkeyPatch, nothing_used_again: None) -> None:
    """What is predicted is what torch's products and attention take, on any machine."""
    monkeypatch.setattr(gemm, "serves_here", lambda dtype: False)


@pytest.mark.native
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_products_and_attention_in_c_take_no_more(
    monkeypatch: pytest.MonkeyPatch, checkpointing: bool, dtype: torch.dtype
) -> None:
    assert native.compiled(dtype) is not None
    monkeypatch.setattr(gemm, "serves_here", lambda dtype: True)
    real, peak, predicted, highest = both(
        "llama", MODELS["llama"], checkpointing=checkpointing, dtype=dtype
    )
    # What layer.c lays out of the factors it makes anew with the rest: four layers, 576 rows of B
    # and, where inputs are shared or A is cast, as many columns of A.
    columns = 5 * 64 if dtype == torch.float32 else 6 * 64 + 160
    made_anew = 4 * dtype.itemsize * RANK * (576 + columns) if checkpointing else 0
    # Counted is torch's way, which in bfloat16 keeps no logsumexps.
    more = 0 if dtype == torch.float32 or checkpointing else 4 * 4 * 4 * sum(map(sum, ROWS))
    assert 0.9 < real / (predicted.activations + more - made_anew) < 1.001
    assert peak < highest  # scores, which weigh much in a model as small as this one


@pytest.mark.parametrize("checkpointing", [False, True])
@dtypes
@pytest.mark.parametrize("architecture", MODELS)
def test_what_every_model_of_the_family_keeps_and_takes_is_counted(
    architecture: str, dtype: torch.dtype, checkpointing: bool
) -> None:
    real, peak, predicted, highest = both(
        architecture, MODELS[architecture], dtype=dtype, checkpointing=checkpointing
    )
    assert predicted.activations == pytest.approx(real, rel=0.01)
    assert highest == pytest.approx(peak, rel=0.015)


THIN = {**D, "hidden_size": 256, "intermediate_size": 128, "head_dim": 16,
        "num_attention_heads": 2}  # fmt: skip
FAT = {**D, "intermediate_size": 1600, "num_attention_heads": 2, "head_dim": 16,
       "num_key_value_heads": 1}  # fmt: skip
PACKED = ((30, 30, 30), (30, 30))  # masks of blocks of other lengths are small ones besides


@pytest.mark.parametrize("settings", [
    {"layers": "2-3"}, {"targets": ["q_proj", "v_proj"]}, {"targets": ["down_proj"]},
    {"targets": ["o_proj"]}, {"targets": ["gate_proj", "up_proj"]}, {"rank_pattern": {"q_proj": 9}},
    {"targets": ["embed_tokens", "q_proj"], "layers": None}, {"formula": "adalora"},
    {"formula": "adalora", "targets": ["q_proj"]}, {"starts": True}, {"rows": PACKED},
    {"rows": ((96,), (20,), (40,))}, {"dropout": 0.3}, {"dropout": 0.3, "checkpointing": True},
    {"dropout": 0.3, "targets": ["o_proj"]},
    {"rows": PACKED, "checkpointing": True, "layers": "2-3"},
], ids=str)  # fmt: skip
@dtypes
def test_every_way_to_train_it_is_counted(settings: dict[str, Any], dtype: torch.dtype) -> None:
    for architecture in ("llama", "gemma3_text"):
        real, peak, predicted, highest = both(
            architecture, MODELS[architecture], dtype=dtype, **settings
        )
        assert predicted.activations == pytest.approx(real, rel=0.01)
        assert highest == pytest.approx(peak, rel=0.015)


@pytest.mark.native
@dtypes
def test_packed_weights_keep_and_take_no_more_than_dense_ones(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(gemm, "serves_here", lambda dtype: True)
    dense, packed = (both("llama", D, dtype=dtype, packed=packed) for packed in (False, True))
    assert packed[0] == dense[0] and packed[1] <= dense[1]


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("checkpointing", [False, True])
@dtypes
@pytest.mark.parametrize("sizes", [THIN, FAT], ids=["hidden state", "MLP"])
def test_the_peak_is_counted_wherever_it_lies(
    sizes: dict[str, Any], dtype: torch.dtype, checkpointing: bool, dropout: float
) -> None:
    for architecture in ("llama", "gemma2", "granite"):
        settings = {**MODELS[architecture], **sizes}
        _, peak, _, highest = both(
            architecture, settings, dtype=dtype, checkpointing=checkpointing, dropout=dropout,
            rows=((200,), (200,)),
        )  # fmt: skip
        assert highest == pytest.approx(peak, rel=0.015)


@pytest.mark.parametrize("sizes", [D, THIN, FAT], ids=["attention", "hidden state", "MLP"])
@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gemma3_text"])
def test_without_the_loops_of_our_own_as_on_a_gpu_it_takes_more(
    architecture: str, sizes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    # In float32 the attention is the same there; torch's kernel for 16 bit could not be run here.
    monkeypatch.setattr(native, "compiled", lambda dtype: None)
    settings = {**MODELS[architecture], **sizes}
    for checkpointing in (False, True):
        real, peak, predicted, highest = both(
            architecture, settings, checkpointing=checkpointing, on_cpu=False
        )
        assert predicted.activations == pytest.approx(real, rel=0.01)
        assert highest == pytest.approx(peak, rel=0.03)


@pytest.mark.parametrize("case", CASES)
def test_planning_knows_which_models_have_fast_layers_and_which_attend_by_segments(
    case: str,
) -> None:
    architecture, settings = CASES[case]
    config = AutoConfig.for_model(architecture, **settings)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    found = shapes.from_config(config.to_dict(), where=architecture)
    fast = fast_layer_bytes.takes(found, {}, Work(1, 64, 4), LORACTL)
    assert fast == (Trunk(model).fallback_reason == "")
    assert layer_bytes.by_segments(found, LORACTL) == use_segments_(model)


def test_every_family_was_asked() -> None:
    assert {architecture for architecture, _ in CASES.values()} == FAMILIES.keys() - {"qwen"}


def test_what_keeps_a_run_from_the_fast_layers_is_known_to_the_plan() -> None:
    found = shapes.named("7B")

    def fast(method: str = "lora", **settings: Any) -> bool:
        plan = plan_of(found, Request(**settings), method)
        adapted = {path: size.rank for path, size in plan.ranks.items()}
        return fast_layer_bytes.takes(found, adapted, plan.work, plan.framework)

    assert fast() and fast(method="lora") and fast(has_starts=True)
    assert fast(dropout=0.1) and fast("qlora") and not fast("full")
    assert not fast(fast=False)
    assert not fast(target_modules=["q_proj", "lm_head"])
    for names, expected in (
        (("embed_tokens",), True), (("norm",), True), (("lm_head",), False),
        (("input_layernorm",), False), (("norm", "model.layers.3.mlp"), False),
    ):  # fmt: skip
        assert fast(modules_to_save=names) == expected, names
    assert plan_of(found, Request(modules_to_save=("embed_tokens",)), "lora").work.trains_embedding
    assert not any(fast(framework=name) for name in FRAMEWORKS if name != "loractl")
    for method, expected in (("adalora", True), ("dora", False)):
        plan = plan_of(found, Request(method=method), "lora")
        assert fast_layer_bytes.takes(found, {}, plan.work, plan.framework) == expected


def test_an_example_costs_what_its_tokens_cost_and_a_long_one_a_block_of_scores() -> None:
    found = shapes.named("7B")
    ranks = resolve(RankSpec(8, 16), found.kinds, head=found.head)
    one, two = (kept(found, ranks, Work(1, n, 4, on_cpu=True)) for n in (4096, 8192))
    assert two.blocks == 2 * one.blocks
    # 64 queries of 32 heads against 4,096 keys more, twice
    assert two.temporaries - 2 * one.temporaries == pytest.approx(0, abs=2 * 4 * 64 * 32 * 8192)
    padded = kept(found, ranks, Work(2, 4096, 4, real=4096, longest=4096, on_cpu=True))
    assert padded.blocks == one.blocks and padded.temporaries == one.temporaries
