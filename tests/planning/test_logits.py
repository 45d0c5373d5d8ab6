"""What head and loss are predicted to take, against what torch's allocator gives out."""

import mmap
from dataclasses import replace
from typing import Any

import pytest
import torch

from loractl.lora.ranks import ModuleRank
from loractl.models.shape import read as shapes
from loractl.ops import held_memory
from loractl.ops.chunks import CHUNK, DEVICE_ROWS
from loractl.ops.cross_entropy import Head, head_loss
from loractl.planning import logits
from loractl.planning.frameworks import FRAMEWORKS, LORACTL
from loractl.planning.request import Request, plan_of
from loractl.planning.work import Work
from tests.planning.conftest import allocated

VOCABULARY, HIDDEN, TOKENS = 20_000, 8, 600
CONFIG = {
    "model_type": "llama", "hidden_size": HIDDEN, "intermediate_size": 16, "num_hidden_layers": 1,
    "num_attention_heads": 1, "num_key_value_heads": 1, "vocab_size": VOCABULARY,
    "tie_word_embeddings": False,
}  # fmt: skip
LLAMA = shapes.from_config(CONFIG, where="llama")
GEMMA = shapes.from_config(
    {**CONFIG, "model_type": "gemma2", "head_dim": 8, "tie_word_embeddings": True}, where="gemma2"
)


def measured(dtype: torch.dtype, *, softcap: float | None, full: bool, share: float) -> int:
    """Bytes at the peak of head and loss, forward and backward, beside hidden states and weight."""
    torch.manual_seed(0)
    hidden = torch.randn(TOKENS, HIDDEN).to(dtype).requires_grad_()
    head = Head(torch.randn(VOCABULARY, HIDDEN).to(dtype).requires_grad_(full), softcap=softcap)
    trained = torch.arange(round(TOKENS * share))
    targets = torch.randint(0, VOCABULARY, trained.shape)

    def step() -> None:
        head_loss(hidden.index_select(0, trained), head, targets).backward()

    return allocated(step)[1]


@pytest.mark.parametrize("case", [
    {}, {"share": 0.1}, {"full": True}, {"softcap": 30.0}, {"dtype": torch.bfloat16},
    {"dtype": torch.bfloat16, "softcap": 30.0, "share": 0.5},
], ids=str)  # fmt: skip
@pytest.mark.usefixtures("nothing_used_again")
def test_a_plain_head_takes_what_is_predicted(case: dict[str, Any]) -> None:
    case = {"dtype": torch.float32, "softcap": None, "full": False, "share": 1.0, **case}
    found = GEMMA if case["softcap"] else LLAMA
    work = Work(
        1,
        TOKENS,
        case["dtype"].itemsize,
        trained_share=case["share"],
        full=case["full"],
        on_cpu=True,
    )
    kept = TOKENS * logits.input_kept(found, {}, work, LORACTL)
    predicted = logits.peak(found, {}, work, LORACTL) + kept
    assert predicted == pytest.approx(measured(**case), rel=0.03)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_a_cpu_the_memory_of_a_chunk_lives_on(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(held_memory, "kept", held_memory.OfThread())
    measured(dtype, softcap=None, full=False, share=1.0)
    lives_on = sum(one.nbytes for name, one in held_memory.kept.scratch.items() if name == "logits")
    for on_cpu, real in ((True, lives_on), (False, 0)):
        work = Work(1, TOKENS, dtype.itemsize, on_cpu=on_cpu)
        assert logits.kept(LLAMA, {}, work, LORACTL) == pytest.approx(real, abs=mmap.PAGESIZE)
    assert lives_on


def test_longer_batches_take_no_more_logits_and_other_heads_do() -> None:
    found = shapes.named("7B")
    assert found.head is not None
    long = Work(8, 8192, 2)
    for work in (long, Work(1, 4096, 2)):
        rows = 2 * found.hidden * work.tokens
        of_device = logits.peak(found, {}, work, LORACTL) - rows
        assert of_device == (2 + 4) * found.vocabulary * DEVICE_ROWS[1]  # and a float32 copy
        on_cpu = logits.peak(found, {}, replace(work, on_cpu=True), LORACTL) - rows
        assert 0.85 * CHUNK < on_cpu <= CHUNK  # chunks are equal
    for other in ({"whole_head": True}, {"autocast": True, "full": True}):
        work = Work(8, 8192, 2, **other)
        assert logits.peak(found, {}, work, LORACTL) == 12 * found.vocabulary * 8 * 8192
    assert logits.peak(found, {found.head: 8}, long, LORACTL) == 12 * found.vocabulary * 8 * 8192
    assert logits.peak(found, {}, long, FRAMEWORKS["peft"]) == 14 * found.vocabulary * 8 * 8192


def test_a_head_in_modules_to_save_is_known_to_the_plan() -> None:
    found = shapes.named("7B")
    ranks = {"model.layers.0.self_attn.q_proj": ModuleRank(8, 16, 2.0)}
    for names, expected in (("lm_head",), True), (("norm",), False):
        plan = plan_of(found, Request(modules_to_save=names), "lora", ranks=ranks)
        assert plan.work.whole_head == expected
