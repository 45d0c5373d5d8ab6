"""The head of a model is found, with its scale and cap, or not at all."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from loractl.lora.inject import adaptable, inject_
from loractl.lora.ranks import RankSpec, resolve
from loractl.lora.whole import train_whole_
from loractl.models.head import head_of
from loractl.models.load import head_name
from loractl.models.segments.install import use_segments_
from tests.scaled import SCALED, scaled
from tests.tiny import ARCHITECTURES

Made = Callable[..., Any]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", SCALED)
def test_scale_and_cap_are_read_from_the_config_and_proven(name: str, dtype: torch.dtype) -> None:
    _, scale, softcap = SCALED[name]
    model = scaled(name, dtype)
    head = head_of(model)
    assert head is not None and (head.scale, head.softcap) == (scale, softcap)
    assert head.weight is model.get_output_embeddings().weight


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_plain_head_is_found(name: str, base: Made) -> None:
    model = AutoModelForCausalLM.from_pretrained(base(name)).train()
    state = torch.random.get_rng_state()
    head = head_of(model)
    assert head is not None and (head.scale, head.softcap) == (1, None)
    assert model.training and torch.equal(torch.random.get_rng_state(), state)


def test_a_model_whose_logits_are_not_what_its_config_says_has_none(base: Made) -> None:
    model = AutoModelForCausalLM.from_pretrained(base("llama")).eval()
    model.lm_head.weight.data.mul_(10)
    model.__class__ = type("Squashed", (type(model),), {"forward": squashed})
    assert head_of(model) is None


def squashed(self: Any, *args: Any, position_ids: Any = None, **options: Any) -> Any:
    out = super(type(self), self).forward(*args, position_ids=position_ids, **options)
    out.logits = 4 * torch.tanh(out.logits / 4)
    return out


def test_a_head_behind_a_projection_has_none() -> None:
    settings = {"hidden_size": 32, "embedding_size": 16, "intermediate_size": 48, "vocab_size": 340,
                "num_hidden_layers": 2, "num_attention_heads": 4, "is_decoder": True}  # fmt: skip
    config = AutoConfig.for_model("electra", **settings)
    model = AutoModelForCausalLM.from_config(config)
    assert isinstance(model.get_output_embeddings(), nn.Linear) and head_of(model) is None


def test_a_head_with_an_adapter_a_copy_or_a_hook_has_none(base: Made) -> None:
    def load() -> Any:
        return AutoModelForCausalLM.from_pretrained(base("llama")).eval()

    adapted, copied, hooked, replaced = load(), load(), load(), load()
    spec = RankSpec(2, 4, ["lm_head"])
    inject_(adapted, resolve(spec, adaptable(adapted), head=head_name(adapted)))
    train_whole_(copied, ["lm_head"])
    hooked.lm_head.register_forward_hook(lambda module, inputs, out: out)
    replaced.forward = replaced.forward
    for model in (adapted, copied, hooked, replaced):
        assert head_of(model) is None
    assert head_of(load()) is not None


def test_a_head_beside_adapters_is_found(base: Made) -> None:
    model = AutoModelForCausalLM.from_pretrained(Path(base("llama-tied"))).eval()
    spec = RankSpec(2, 4, ["embed_tokens", "q_proj"])
    inject_(model, resolve(spec, adaptable(model), head=head_name(model)))
    head = head_of(model)
    assert head is not None and head.weight is model.lm_head.weight


@pytest.mark.parametrize("name", ["gpt2", "llama", "phi3"])
def test_a_head_is_found_where_the_model_attends_by_segments(name: str, base: Made) -> None:
    model = AutoModelForCausalLM.from_pretrained(base(name)).eval()
    assert use_segments_(model)
    assert head_of(model) is not None
    model.register_forward_hook(lambda module, args, output: None)
    assert head_of(model) is None
