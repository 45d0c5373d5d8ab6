"""A model that grows is what transformers' own resize makes of it, but for where new rows start."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from loractl.errors import ModelError
from loractl.models.growth import grow_, start_at_mean_
from loractl.models.load import n_rows

Make = Callable[..., Path]
IDS = torch.tensor([[1, 5, 8, 300, 7]])


def load(path: Path, dtype: torch.dtype = torch.float32) -> Any:
    return AutoModelForCausalLM.from_pretrained(path, dtype=dtype).eval()


@pytest.mark.parametrize("architecture", ["llama", "llama-tied", "gemma3", "gpt2", "gpt-neox"])
def test_it_has_the_shapes_of_a_resized_one_and_the_old_logits(
    architecture: str, base: Make, tmp_path: Path
) -> None:
    ours, theirs = load(base(architecture)), load(base(architecture))
    with torch.no_grad():
        before = ours(input_ids=IDS).logits
    assert grow_(ours, 345) is not None and n_rows(ours) == 345
    theirs.resize_token_embeddings(345, mean_resizing=False)
    assert {n: t.shape for n, t in ours.state_dict().items()} == {
        n: t.shape for n, t in theirs.state_dict().items()
    }
    assert ours.config.vocab_size == theirs.config.vocab_size
    with torch.no_grad():
        assert torch.equal(ours(input_ids=IDS).logits[..., : before.shape[-1]], before)
    ours.save_pretrained(tmp_path / "grown")
    again = load(tmp_path / "grown")
    assert all(
        torch.equal(a, b) for a, b in zip(ours.parameters(), again.parameters(), strict=True)
    )
    head, table = again.get_output_embeddings(), again.get_input_embeddings()
    assert (head.weight is table.weight) == ours.config.tie_word_embeddings


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_new_rows_are_the_mean_of_those_of_tokens(dtype: torch.dtype, base: Make) -> None:
    model = load(base("llama"), dtype)
    old = model.lm_head.weight.detach().clone()
    grow_(model, 343, n_tokens=330)
    expected = old[:330].float().mean(dim=0).to(dtype)
    assert all(torch.equal(row, expected) for row in model.lm_head.weight[340:])
    assert torch.equal(model.lm_head.weight[:340], old)
    start_at_mean_(model, [335], n_tokens=330)
    assert torch.equal(model.lm_head.weight[335], expected)
    assert torch.equal(model.lm_head.weight[:335], old[:335])


@pytest.mark.parametrize("architecture", ["llama", "llama-tied"])
def test_undone_it_is_the_same_model(architecture: str, base: Make) -> None:
    model = load(base(architecture))
    before = [id(parameter) for parameter in model.parameters()]
    grown = grow_(model, 350)
    assert grown is not None
    grown.undo_()
    assert [id(parameter) for parameter in model.parameters()] == before
    assert (model.config.vocab_size, model.lm_head.out_features) == (340, 340)
    assert model.model.embed_tokens.num_embeddings == 340


def test_a_model_never_shrinks(base: Make) -> None:
    model = load(base("llama"))
    assert grow_(model, 340) is None and grow_(model, 12) is None and n_rows(model) == 340


def test_what_is_no_plain_head_is_refused(base: Make) -> None:
    model = load(base("llama"))
    model.lm_head = torch.nn.Sequential(model.lm_head)
    with pytest.raises(ModelError, match="Sequential is not a plain embedding or head"):
        grow_(model, 341)
