"""Modules trained whole: they start as the frozen ones, and learn alone."""

import pytest
import torch
from torch import nn

from loractl.lora.whole import WholeModule, as_peft_matches, matching, train_whole_, wholes


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.norm = nn.LayerNorm(8)
        self.layers = nn.ModuleList([nn.Sequential(nn.Linear(8, 8), nn.ReLU()) for _ in range(2)])
        self.input_norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 11, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.input_norm(self.embed(ids))
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x))  # type: ignore[no-any-return]


def tied(dtype: torch.dtype = torch.float32) -> Tied:
    torch.manual_seed(0)
    return Tied().to(dtype).requires_grad_(False)


IDS = torch.arange(11)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_fresh_copy_answers_bit_for_bit_as_the_module(dtype: torch.dtype) -> None:
    model = tied(dtype)
    before = model(IDS)
    found = train_whole_(model, ["norm", "head", "layers.1"])
    assert torch.equal(model(IDS), before) and list(found) == ["norm", "head", "layers.1"]
    assert wholes(model).keys() == found.keys()
    assert {p.dtype for m in found.values() for p in m.tuned.parameters()} == {torch.float32}
    assert model.head.weight.dtype == dtype


def test_only_the_copy_gets_gradients_and_a_tied_weight_is_left_alone() -> None:
    model = tied()
    found = train_whole_(model, ["head"])
    model(IDS).square().sum().backward()
    assert [n for n, p in model.named_parameters() if p.grad is not None] == ["head.tuned.weight"]
    with torch.no_grad():
        found["head"].tuned.weight.add_(1.0)
    assert torch.equal(found["head"].base.weight, model.embed.weight)
    assert not torch.equal(model.head.weight, model.embed.weight)


def test_switched_off_it_is_the_frozen_module() -> None:
    model = tied()
    before = model(IDS)
    [module] = train_whole_(model, ["norm"]).values()
    nn.init.normal_(module.tuned.weight)
    assert not torch.equal(model(IDS), before)
    module.enabled = False
    assert torch.equal(model(IDS), before)


def test_attributes_of_the_module_are_there() -> None:
    module = WholeModule(nn.LayerNorm(8, eps=0.25))
    assert module.eps == 0.25
    with pytest.raises(AttributeError):
        _ = module.no_such_thing


def test_names_mean_whole_paths_or_their_ends_after_a_dot() -> None:
    model = tied()
    found = matching(model, ["norm", "layers.1", "0", "nothing", "1.1"])
    assert found == {
        "norm": ["norm"],
        "layers.1": ["layers.1"],
        "0": ["layers.0", "layers.0.0", "layers.1.0"],
        "nothing": [],
        "1.1": [],  # a ReLU has nothing to train
    }


def test_pefts_rule_takes_any_path_that_ends_so() -> None:
    model = tied()
    assert as_peft_matches(model, ["norm"]) == ["norm", "input_norm"]
    assert as_peft_matches(model, ["layers.1", "1.0"]) == ["layers.1"]
    assert as_peft_matches(model, []) == []
