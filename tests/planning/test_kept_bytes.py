"""What transformers' layers are predicted to keep, against what autograd keeps of models.

The hand-written layers of Llama's family are in test_fast_layer_bytes.py."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from loractl.lora.inject import adaptable, inject_
from loractl.lora.ranks import RankSpec, resolve
from loractl.models import objective
from loractl.models.fast.activations import fuse_activations_
from loractl.models.load import head_name
from loractl.models.segments.install import use_segments_
from loractl.models.shape import read as shapes
from loractl.planning.kept_bytes import kept
from loractl.planning.work import Kept, Work
from loractl.records import Batch

ROWS, LENGTH, VOCABULARY = 2, 48, 100
D: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2,
}  # fmt: skip
WIDE = {**D, "head_dim": 32}
NO_DROPOUT = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
MODELS: dict[str, dict[str, Any]] = {
    "llama": D,
    "qwen3": WIDE,
    "gemma": WIDE,
    "gemma2": {**WIDE, "attn_logit_softcapping": 50.0},
    "gemma3_text": WIDE,
    "phi3": D,
    "phi": {**D, "num_key_value_heads": 4},
    "gpt2": {"n_embd": 64, "n_layer": 4, "n_head": 4, "n_positions": 64, "vocab_size": VOCABULARY,
             "bos_token_id": 1, "eos_token_id": 2, **NO_DROPOUT},
    "gpt_neox": D,
    "stablelm": D,
    "olmo2": D,
    "starcoder2": D,
    "mixtral": {**D, "num_local_experts": 4, "num_experts_per_tok": 2},
    "falcon": {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4,
               "num_kv_heads": 2, "new_decoder_architecture": True, "vocab_size": VOCABULARY,
               "bos_token_id": 1, "eos_token_id": 2},
}  # fmt: skip


def batch(*, packed: bool) -> Batch:
    ids = torch.randint(3, 90, (ROWS, LENGTH))
    positions = torch.arange(LENGTH)
    if packed:
        positions = torch.cat([torch.arange(LENGTH // 2)] * 2)
    return Batch(ids, ids.clone(), positions.expand(ROWS, LENGTH).contiguous(), ids.numel(), (1, 2))


def bytes_kept(model: nn.Module, given: Batch, autocast: torch.dtype | None = None) -> int:
    """The storages that autograd saves, each once, without those of weights and buffers."""
    own = {t.untyped_storage().data_ptr() for t in [*model.parameters(), *model.buffers()]}
    saved: dict[int, int] = {}
    alive: list[Tensor] = []
    loss = objective.TokenLoss(model, autocast=autocast)  # type: ignore[arg-type]

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)  # so that no other storage takes its place
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss(given)
    # Of a head that is not plain the log-probabilities of all logits, which `logits` counts.
    return sum(saved.values()) - (4 * VOCABULARY * ROWS * (LENGTH - 1) if not loss.head else 0)


def both(
    tmp_path: Path,
    architecture: str,
    settings: dict[str, Any],
    *,
    targets: Any = "all-linear",
    dtype: torch.dtype = torch.float32,
    formula: str = "lora",
    full: bool = False,
    packed: bool = False,
    layers: str | None = None,
    autocast: bool = False,
    dropout: float = 0.0,
    fused: bool = True,
) -> tuple[int, Kept]:
    """(what autograd keeps, what is predicted) of a small model, logits apart."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(architecture, **settings)
    model = AutoModelForCausalLM.from_config(config).to(dtype).train()
    spec = RankSpec(4, 8, targets, layers=layers)
    if not full:
        ranks = resolve(spec, adaptable(model), head=head_name(model))
        inject_(model, ranks, formula=formula, dropout=dropout)
    if fused:
        fuse_activations_(model)
    use_segments_(model)
    real = bytes_kept(model, batch(packed=packed), torch.bfloat16 if autocast else None)
    config.save_pretrained(tmp_path)
    found = shapes.read(tmp_path)
    work = Work(
        ROWS, LENGTH, 2 if autocast else dtype.itemsize, formula=formula, full=full, masked=packed,
        autocast=autocast, dropout=dropout, fast=False, fused=fused,
        on_cpu=True,
    )  # fmt: skip
    ours = {} if full else resolve(spec, found.kinds, head=found.head)
    return real, kept(found, ours, work)


@pytest.mark.parametrize("targets", ["all-linear", "minimal"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("architecture", MODELS)
def test_the_count_is_what_autograd_keeps(
    architecture: str, dtype: torch.dtype, targets: str, tmp_path: Path
) -> None:
    real, predicted = both(
        tmp_path, architecture, MODELS[architecture], dtype=dtype, targets=targets
    )
    # The rest: statistics of norms, ids, constants. An expert's part depends on what is routed.
    assert predicted.activations == pytest.approx(real, rel=0.04)


@pytest.mark.parametrize("architecture", ["gpt2", "phi"])
def test_activations_in_steps_keep_what_is_counted(architecture: str, tmp_path: Path) -> None:
    real, predicted = both(tmp_path, architecture, MODELS[architecture], fused=False)
    assert predicted.activations == pytest.approx(real, rel=0.04)


@pytest.mark.parametrize("settings", [
    {"full": True}, {"full": True, "autocast": True}, {"packed": True}, {"formula": "dora"},
    {"layers": "2-3"}, {"targets": ["down_proj"]}, {"targets": ["embed_tokens", "q_proj"]},
    {"targets": ["lm_head", "v_proj"]}, {"targets": ["o_proj"]},
    {"targets": ["gate_proj", "up_proj"]},
    {"packed": True, "dtype": torch.bfloat16}, {"dropout": 0.1}, {"formula": "adalora"},
    {"dropout": 0.1, "dtype": torch.bfloat16}, {"formula": "dora", "dtype": torch.bfloat16},
    {"formula": "adalora", "dtype": torch.bfloat16}, {"formula": "dora", "dropout": 0.1},
    {"targets": ["embed_tokens", "q_proj"], "dtype": torch.bfloat16},
], ids=str)  # fmt: skip
def test_what_llama_keeps_is_counted_for_every_way_to_train_it(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    real, predicted = both(tmp_path, "llama", D, **settings)
    assert predicted.activations == pytest.approx(real, rel=0.04)


def test_what_is_kept_is_proportional_to_the_rows_and_falls_with_checkpointing() -> None:
    found = shapes.named("7B")
    ranks = resolve(RankSpec(8, 16), found.kinds, head=found.head)

    def activations(**changes: Any) -> int:
        return kept(found, ranks, Work(**{"batch": 1, "length": 512, "width": 4, **changes})).blocks

    assert activations(batch=4) == 4 * activations()
    assert activations(length=2048) == 4 * activations()
    assert activations(length=2048, masked=True) == 4 * activations(masked=True)
    assert activations(checkpointing=True) == found.layers * 512 * found.hidden * 4


def test_below_the_lowest_adapter_nothing_is_kept() -> None:
    found = shapes.named("7B")
    work = Work(1, 512, 4)
    upper = resolve(RankSpec(8, 16, layers="16-31"), found.kinds, head=found.head)
    whole = resolve(RankSpec(8, 16), found.kinds, head=found.head)
    assert kept(found, upper, work).blocks == pytest.approx(
        kept(found, whole, work).blocks / 2, rel=0.01
    )
