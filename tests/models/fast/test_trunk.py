"""The fast layers against transformers' own modules: hidden states, loss, gradients; and what they
refuse."""

from typing import Any

import pytest
import torch
import transformers

from loractl.lora.inject import adapters
from loractl.lora.whole import train_whole_
from loractl.models.fast.architectures import LAYERS
from loractl.models.fast.trunk import Trunk
from loractl.models.forward import hidden_states, recompute_activations_
from tests.models.fast.conftest import (
    BATCH,
    MODELS,
    SHAPE,
    adapt_,
    families,
    hidden_and_gradients,
    model_of,
    off,
)
from tests.tiny import batch_of


@families
@pytest.mark.parametrize("checkpointing", [False, True])
def test_hidden_states_and_gradients_are_those_of_transformers(
    name: str, checkpointing: bool
) -> None:
    model, batch = model_of(name), batch_of(*BATCH).without_padding()
    adapt_(model)
    trunk = Trunk(model)
    assert trunk.fallback_reason == ""
    wanted, their_gradients = hidden_and_gradients(
        lambda one: hidden_states(model, one), model, batch
    )
    if checkpointing:
        recompute_activations_(model)
        model.train()
    found, gradients = hidden_and_gradients(lambda one: trunk(one)[0], model, batch)
    assert off(found, wanted) < 1e-5
    assert gradients.keys() == their_gradients.keys() and len(gradients) == 42
    for path, gradient in gradients.items():
        assert off(gradient, their_gradients[path]) < 2e-5, path


@families
def test_in_bfloat16_they_are_as_near_to_float32_as_transformers_own(name: str) -> None:
    exact, batch = model_of(name), batch_of(*BATCH).without_padding()
    adapt_(exact)
    wanted, _ = hidden_and_gradients(lambda one: hidden_states(exact, one), exact, batch)
    rounded = model_of(name).to(torch.bfloat16)
    adapt_(rounded)
    theirs = off(hidden_states(rounded, batch), wanted)
    assert off(Trunk(rounded)(batch)[0], wanted) < 1.25 * theirs


def test_every_class_that_is_named_is_tested() -> None:
    assert {f"{name}DecoderLayer" for name in MODELS} == LAYERS.keys()


@pytest.mark.parametrize("targets", [["q_proj", "v_proj"], ["o_proj"], ["up_proj"], ["down_proj"]])
def test_adapters_on_some_layers_alone(targets: list[str]) -> None:
    model, batch = model_of("Llama"), batch_of(*BATCH).without_padding()
    adapt_(model, target_modules=targets, layers=[1])
    trunk = Trunk(model)
    assert trunk.frozen_layers == 1
    wanted, theirs = hidden_and_gradients(lambda one: hidden_states(model, one), model, batch)
    found, ours = hidden_and_gradients(lambda one: trunk(one)[0], model, batch)
    assert off(found, wanted) < 1e-5 and ours.keys() == theirs.keys()
    assert len(ours) == 2 * len(targets)
    assert max(off(ours[path], theirs[path]) for path in ours) < 2e-5


@pytest.mark.parametrize(
    "options", [{"formula": "adalora"}, {"target_modules": ["embed_tokens", "q_proj"]}]
)
def test_adalora_and_an_adapted_embedding_take_the_fast_layers(options: dict[str, Any]) -> None:
    model, batch = model_of("Llama"), batch_of(*BATCH).without_padding()
    adapt_(model, **options)
    trunk = Trunk(model)
    assert trunk.fallback_reason == "" and trunk.frozen_layers == 0
    _, theirs = hidden_and_gradients(lambda one: hidden_states(model, one), model, batch)
    _, ours = hidden_and_gradients(lambda one: trunk(one)[0], model, batch)
    assert ours.keys() == theirs.keys()
    assert max(off(ours[path], theirs[path]) for path in ours) < 2e-5


def test_what_the_fast_layers_do_not_compute_is_named_and_runs_as_it_was() -> None:
    batch = batch_of(*BATCH).without_padding()

    def dora(model: Any) -> None:
        adapt_(model, formula="dora")

    def whole(model: Any) -> None:
        adapt_(model)
        train_whole_(model, ["model.layers.1.input_layernorm"])

    def hooked(model: Any) -> None:
        adapt_(model)
        model.model.layers[1].mlp.register_forward_hook(lambda m, args, y: y * 2)

    def head(model: Any) -> None:  # then `Objective` takes the logits of the whole model
        adapt_(model, target_modules=["lm_head", "q_proj"])

    changes = {dora: "DoraLinear", whole: "input_layernorm", hooked: "hook", head: "its head"}
    for change, what in changes.items():
        model = model_of("Llama")
        change(model)
        trunk = Trunk(model)
        assert what in trunk.fallback_reason
        assert torch.equal(trunk(batch)[0], hidden_states(model, batch))
    other = transformers.GPTNeoXForCausalLM(transformers.GPTNeoXConfig(**SHAPE))
    assert Trunk(other).fallback_reason == "no fast layers for GPTNeoXModel"  # type: ignore[arg-type]


def test_a_layer_whose_numbers_are_others_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of("Llama")
    adapt_(model)
    act = model.model.layers[2].self_attn
    original = type(act).forward

    def changed(self: Any, *args: Any, **kwargs: Any) -> Any:
        attended, weights = original(self, *args, **kwargs)
        return attended * 1.01, weights

    monkeypatch.setattr(type(act), "forward", changed)
    assert "differ from transformers'" in Trunk(model).fallback_reason


def test_an_adapter_that_is_turned_off_leaves_the_base() -> None:
    model, batch = model_of("Llama"), batch_of(*BATCH).without_padding()
    plain = hidden_states(model, batch)
    adapt_(model)
    trunk = Trunk(model)
    for layer in adapters(model).values():
        layer.enabled = False
    assert off(trunk(batch)[0], plain) < 1e-5
