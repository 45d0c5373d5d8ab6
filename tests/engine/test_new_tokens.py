"""Rows of new tokens in training: where they start, their gradient, and what stays as it is."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModelForCausalLM

from loractl.config import loader
from loractl.engine.session import Session, assemble
from loractl.lora.inject import remove_
from loractl.lora.token_rows import only_rows
from loractl.models.forward import trained_rows
from loractl.models.objective import loss_sum
from loractl.training.steps import TrainState
from tests.tiny import ARCHITECTURES, make_tokenizer, save_tiny, write_jsonl

Make = Callable[..., Path]
Capture = pytest.CaptureFixture[str]
N = len(make_tokenizer())
ADDED = "model: {add_tokens: ['<|call|>', '<|end|>', '<|idle|>']}"
pytestmark = pytest.mark.filterwarnings(
    "ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"
)


@pytest.fixture
def session(base: Make, config_file: Make, tmp_path: Path) -> Callable[..., Session]:
    """session("llama", "lora: {...}") -> a run that adds three tokens; its rows use two."""
    made = [
        {"prompt": f"<|call|> {i} plus {i}", "completion": f"is {2 * i} <|end|>"} for i in range(12)
    ]
    rows = f"data: {{train: {write_jsonl(tmp_path / 'calls.jsonl', made)}}}"

    def make(model: str | Path = "llama", *sections: str) -> Session:
        model = base(model) if isinstance(model, str) else model
        return assemble(loader.load(config_file(ADDED, rows, *sections, model=model)))

    return make


def batches_of(session: Session) -> list[Any]:
    return next(session.windows(TrainState().data))[0]


def gradients(session: Session) -> dict[str, Tensor]:
    """Of the run's own loss, by fast layers and the fused head."""
    session.model.train()
    for batch in batches_of(session):
        session.loss(batch)[0].backward()
    found = {}
    for name, parameter in session.parameters.items():
        assert parameter.grad is not None, name
        found[name] = parameter.grad.clone()
        parameter.grad = None
    return found


def by_transformers(session: Session) -> dict[str, Tensor]:
    """The same from all logits of transformers' own model with whole weights, by autograd."""
    rows = only_rows(session.whole)
    model = copy.deepcopy(session.model)
    remove_(model)
    model.requires_grad_(False)
    leaves = {}
    for path, one in rows.items():
        inner = model.get_submodule(path)
        leaves[path] = one.merged_weight().detach().clone().requires_grad_()
        tied = inner.weight is model.lm_head.weight and "lm_head" not in rows
        inner.weight = torch.nn.Parameter(leaves[path])
        if tied:
            model.lm_head.weight = inner.weight
        leaves[path] = inner.weight
    for batch in batches_of(session):
        loss_sum(model, batch)[0].backward()
    return {path: leaf.grad[rows[path].indices] for path, leaf in leaves.items()}


CASES = ["llama", "llama-tied", "qwen3", "gemma3", "phi3", "opt", "gpt2", "gpt-neox"]


@pytest.mark.parametrize("architecture", CASES)
def test_the_gradient_of_the_rows_is_that_of_plain_transformers(
    architecture: str, session: Any
) -> None:
    run = session(architecture, *(["data: {packing: false}"] if architecture == "opt" else []))
    assert run.is_fast == (architecture in ("llama", "llama-tied", "qwen3", "gemma3"))
    assert run.loss.head is not None and run.loss.head.own is not None
    found, expected = gradients(run), by_transformers(run)
    assert len(expected) == (1 if run.model.config.tie_word_embeddings else 2)
    for path, wanted in expected.items():
        own = next(g for name, g in found.items() if f".{path}.token_adapter" in name)
        assert float((own - wanted).abs().max()) <= 1e-5 * float(wanted.abs().max()), path
        assert own[2].abs().max() > 0 or path != "lm_head", "a head moves away from idle tokens"


@pytest.mark.parametrize(
    "section",
    ["train: {gradient_checkpointing: true}", "train: {kernels: plain}", "data: {packing: false}"],
)
def test_so_it_is_however_the_layers_run(section: str, session: Any) -> None:
    run = session("llama-tied", section)
    found, expected = gradients(run), by_transformers(run)
    (path, wanted), = expected.items()  # fmt: skip
    own = next(g for name, g in found.items() if path in name)
    assert float((own - wanted).abs().max()) <= 1e-5 * float(wanted.abs().max())


def test_the_start_is_the_mean_and_the_base_stays_bit_for_bit(session: Any, base: Make) -> None:
    run = session("llama")
    plain = AutoModelForCausalLM.from_pretrained(base("llama"))
    for path, one in only_rows(run.whole).items():
        weight = plain.get_submodule(path).weight
        assert torch.equal(one.base.weight[:N], weight), path
        for row in one.rows:
            assert torch.equal(row, weight.mean(dim=0)), path
    assert run.model.config.vocab_size == N + 3 == len(run.tokenizer)
    optimizer = torch.optim.AdamW(run.parameters.values(), lr=0.1)
    run.loss(batches_of(run)[0])[0].backward()
    optimizer.step()
    for path, one in only_rows(run.whole).items():
        assert torch.equal(one.base.weight[:N], plain.get_submodule(path).weight), path


def test_spare_rows_are_used_before_the_embedding_grows(session: Any, tmp_path: Path) -> None:
    save_tiny(tmp_path / "wide", make_tokenizer(), "llama", vocab_size=N + 2)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "wide")
    run = session(tmp_path / "wide")
    assert run.new_tokens.ids == (N, N + 1, N + 2) and run.new_tokens.grown == 1
    weight = plain.lm_head.weight
    assert torch.equal(only_rows(run.whole)["lm_head"].rows[0], weight[:N].mean(dim=0))
    save_tiny(tmp_path / "wider", make_tokenizer(), "llama", vocab_size=N + 9)
    run = session(tmp_path / "wider")
    assert run.new_tokens.grown == 0 and run.model.config.vocab_size == N + 9
    table = AutoModelForCausalLM.from_pretrained(tmp_path / "wider").model.embed_tokens.weight
    kept = run.model.model.embed_tokens.base.weight
    assert torch.equal(kept[N + 3 :], table[N + 3 :]) and torch.equal(kept[:N], table[:N])


def test_a_token_that_the_base_has_is_a_note(session: Any, capsys: Capture) -> None:
    run = session("llama", "model: {add_tokens: ['<|im_end|>', '<|call|>', '<|end|>']}")
    assert "the base has '<|im_end|>' already; nothing is added for it" in capsys.readouterr().err
    assert run.new_tokens.ids == (N, N + 1)


def test_where_every_token_is_known_nothing_changes(session: Any, capsys: Capture) -> None:
    run = session("llama", "model: {add_tokens: ['<|im_end|>', '<|im_start|>']}")
    assert "nothing is added for them" in capsys.readouterr().err
    assert not run.whole and run.model.config.vocab_size == N


def test_a_token_of_the_tokenizer_without_a_row_gets_one(
    session: Any, base: Make, tmp_path: Path
) -> None:
    import shutil

    model = shutil.copytree(base("llama"), tmp_path / "base")
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["<|call|>", "<|end|>"], special_tokens=True)
    tokenizer.save_pretrained(model)
    run = session(model, "model: {add_tokens: ['<|call|>']}")
    assert run.new_tokens.ids == (N, N + 1) and run.new_tokens.texts == ("<|call|>",)


def test_in_bfloat16_the_rows_are_float32_and_start_as_the_weight_can_hold(session: Any) -> None:
    run = session("llama-tied", "model: {dtype: bfloat16}")
    (one,) = only_rows(run.whole).values()
    assert one.rows.dtype == torch.float32 and one.base.weight.dtype == torch.bfloat16
    assert torch.equal(one.rows.bfloat16().float(), one.rows)
    found = gradients(run)
    own = next(g for name, g in found.items() if "token_adapter" in name)
    assert own.dtype == torch.float32 and own.abs().max() > 0


def test_the_plain_loss_is_the_fused_one(session: Any) -> None:
    run = session("llama")
    batch = batches_of(run)[0]
    rows, targets = trained_rows(*run.loss.trunk(batch))
    plain = F.cross_entropy(run.loss.head.logits(rows), targets, reduction="sum")
    torch.testing.assert_close(run.loss(batch)[0], plain, rtol=1e-5, atol=1e-5)
    assert set(ARCHITECTURES) >= set(CASES)
