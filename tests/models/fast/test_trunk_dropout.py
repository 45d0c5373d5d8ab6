"""Dropout in the fast layers: against the formula with the same masks, and when there is one."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from loractl.lora.inject import adapters
from loractl.models.fast.trunk import Trunk
from loractl.models.forward import hidden_states, recompute_activations_
from loractl.ops.dropout import Mask, draw, fallen
from loractl.records import Batch
from tests.models.fast.conftest import (
    BATCH,
    adapt_,
    families,
    hidden_and_gradients,
    model_of,
    off,
)
from tests.models.fast.test_shared_start import BATCH as SHARED
from tests.tiny import batch_of


def fast(trunk: Trunk, batch: Batch) -> Tensor:
    """The hidden states of BATCH, if the fast layers gave them: these alone take no padding."""
    hidden, flat = trunk(batch_of(*BATCH))
    assert torch.equal(flat.input_ids, batch.input_ids), "transformers' layers were used"
    return hidden


def naive_dropout_(model: nn.Module) -> list[Mask]:
    """Let each adapted layer answer with the formula written out, W x + b + s B A (x with zeros),
    its masks drawn in the order of the layers; returns the list that these come to stand in."""
    drawn: list[Mask] = []

    def answer(layer: Any) -> Callable[[Tensor], Tensor]:
        def forward(x: Tensor) -> Tensor:
            [mask] = draw([layer.dropout])
            assert mask is not None
            drawn.append(mask)
            falls = fallen(mask, x.numel() // x.shape[-1], x.shape[-1], device=x.device)
            zeroed = x * ~falls.view(x.shape) / (1 - layer.dropout)
            return layer.base(x) + layer.scale * (zeroed @ layer.A.T @ layer.B.T)  # type: ignore[no-any-return]

        return forward

    for layer in adapters(model).values():
        layer.forward = answer(layer)  # type: ignore[method-assign]
    return drawn


@families
@pytest.mark.parametrize("checkpointing", [False, True])
def test_with_dropout_they_are_those_of_the_formula_with_the_same_masks(
    name: str, checkpointing: bool
) -> None:
    model, batch = model_of(name), batch_of(*BATCH).without_padding()
    adapt_(model, dropout=0.3)
    trunk = Trunk(model)
    if checkpointing:
        recompute_activations_(model)
    model.train()
    assert trunk.fallback_reason == Trunk(model).fallback_reason == ""
    torch.manual_seed(5)
    found, gradients = hidden_and_gradients(lambda one: fast(trunk, one), model, batch)
    drawn = naive_dropout_(model)
    torch.manual_seed(5)
    wanted, theirs = hidden_and_gradients(lambda one: hidden_states(model, one), model, batch)
    assert len({mask.seed for mask in drawn}) == 21, "each layer has a mask of its own"
    assert off(found, wanted) < 1e-5
    assert gradients.keys() == theirs.keys() and len(gradients) == 42
    for path, gradient in gradients.items():
        assert off(gradient, theirs[path]) < 2e-5, path


def test_masks_follow_from_the_seed_and_are_the_same_when_a_layer_is_computed_again() -> None:
    model, batch = model_of("Llama"), batch_of(*BATCH).without_padding()
    adapt_(model, dropout=0.3)
    trunk = Trunk(model)
    model.train()

    def run(seed: int) -> tuple[Tensor, dict[str, Tensor]]:
        torch.manual_seed(seed)
        return hidden_and_gradients(lambda one: fast(trunk, one), model, batch)

    (hidden, gradients), (other, _) = run(1), run(2)
    next_step, _ = hidden_and_gradients(lambda one: fast(trunk, one), model, batch)
    assert not torch.equal(hidden, other) and not torch.equal(next_step, other)
    again, same = run(1)
    assert torch.equal(again, hidden)
    recompute_activations_(model)
    checkpointed, recomputed = run(1)
    assert torch.equal(checkpointed, hidden)
    for path, gradient in gradients.items():
        assert torch.equal(same[path], gradient) and torch.equal(recomputed[path], gradient), path


def test_dropout_is_in_training_alone() -> None:
    model, batch = model_of("Llama"), batch_of(*BATCH).without_padding()
    adapt_(model, dropout=0.5)
    trunk = Trunk(model.eval())
    before = torch.get_rng_state()
    dry = fast(trunk, batch)
    assert off(dry, hidden_states(model, batch)) < 1e-5
    assert torch.equal(torch.get_rng_state(), before)
    model.train()
    with torch.no_grad():
        assert off(fast(trunk, batch), dry) > 0.01


def test_dropout_of_attention_is_left_to_the_model_and_told_before_training_begins() -> None:
    model, batch = model_of("Llama", attention_dropout=0.5), batch_of(*BATCH).without_padding()
    adapt_(model)
    trunk = Trunk(model.eval())
    assert trunk.fallback_reason == "layers.0.self_attn has dropout" and not model.training
    model.train()
    torch.manual_seed(0)
    wanted = hidden_states(model, batch)
    torch.manual_seed(0)
    assert torch.equal(trunk(batch)[0], wanted)


def test_a_shared_start_has_masks_of_its_own_in_each_example() -> None:
    model = model_of("Llama")
    adapt_(model, dropout=0.5)
    trunk = Trunk(model)
    assert trunk(SHARED)[1].shared == 11
    model.train()
    assert trunk(SHARED)[1].shared == 0
