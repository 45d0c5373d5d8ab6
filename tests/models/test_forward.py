"""Logits where tokens are trained, and the test that packed examples do not see each other."""

import inspect
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from loractl.errors import ModelError
from loractl.models.forward import (
    activation_bytes,
    check_isolation,
    hidden_states,
    recompute_activations_,
    trained_logits,
    trained_rows,
)
from loractl.records import UNTRAINED
from tests.tiny import ARCHITECTURES, batch_of


def load(directory: Any) -> Any:
    return AutoModelForCausalLM.from_pretrained(directory).eval()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_trained_logits_are_the_rows_of_all_logits_that_predict_trained_tokens(
    name: str, base: Any
) -> None:
    model, batch = load(base(name)), batch_of([11], [5], [8], untrained=0.5)
    with torch.no_grad():
        logits, targets = trained_logits(model, batch)
        whole = model(
            input_ids=batch.input_ids, attention_mask=torch.ones_like(batch.input_ids)
        ).logits
    expected, labels = [], []
    for row, column in (batch.labels != UNTRAINED).nonzero().tolist():
        expected.append(whole[row, column - 1])
        labels.append(int(batch.labels[row, column]))
    assert targets.tolist() == labels
    torch.testing.assert_close(logits, torch.stack(expected), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_head_makes_trained_logits_of_the_trained_rows_of_hidden_states(
    name: str, base: Any
) -> None:
    model, batch = load(base(name)), batch_of([11], [5], [8], untrained=0.5)
    with torch.no_grad():
        logits, targets = trained_logits(model, batch)
        rows, same_targets = trained_rows(hidden_states(model, batch), batch)
    assert same_targets.tolist() == targets.tolist()
    torch.testing.assert_close(model.get_output_embeddings()(rows), logits, atol=1e-5, rtol=1e-5)


class Plain(torch.nn.Module):
    """A model whose forward takes neither positions nor a choice of logits."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Any, attention_mask: Any = None, use_cache: bool = False) -> Any:
        return self.model(input_ids, attention_mask=attention_mask, use_cache=use_cache)

    @property
    def config(self) -> Any:
        return self.model.config


def test_models_that_cannot_choose_their_logits_give_the_same(base: Any) -> None:
    model, batch = load(base("llama")), batch_of([11], [5], [8], untrained=0.5)
    assert "logits_to_keep" in inspect.signature(model.forward).parameters
    with torch.no_grad():
        chosen, targets = trained_logits(model, batch)
        all_of_them, same_targets = trained_logits(Plain(model), batch)  # type: ignore[arg-type]
    assert targets.tolist() == same_targets.tolist()
    torch.testing.assert_close(all_of_them, chosen, atol=1e-6, rtol=1e-5)


def test_the_head_sees_no_position_that_no_row_trains(base: Any) -> None:
    model, seen = load(base("llama")), []
    model.lm_head.register_forward_hook(lambda module, inputs, out: seen.append(inputs[0].shape))
    trained_logits(model, batch_of([12], [12], untrained=0.5))
    assert seen == [torch.Size([2, 6, 32])]


@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if name != "opt"])
def test_models_that_keep_packed_examples_apart_pass(name: str, base: Any) -> None:
    check_isolation(load(base(name)))


def test_opt_is_refused_because_it_places_tokens_by_its_mask(base: Any) -> None:
    with pytest.raises(ModelError, match=r"data\.packing: .* set data\.packing to false"):
        check_isolation(load(base("opt")))


def test_a_model_without_positions_is_refused(base: Any) -> None:
    with pytest.raises(ModelError, match=r"data\.packing: .*not accept position_ids"):
        check_isolation(Plain(load(base("llama"))))  # type: ignore[arg-type]


def test_a_model_that_sees_across_examples_is_refused(base: Any) -> None:
    model = load(base("llama"))

    def smear(
        module: Any, inputs: Any, out: Any
    ) -> Any:  # each token takes a little of those before
        return (out[0] + 0.1 * out[0].cumsum(dim=1), *out[1:])

    model.model.layers[0].self_attn.register_forward_hook(smear)
    with pytest.raises(ModelError, match=r"change each other's logits"):
        check_isolation(model)


def test_the_check_of_isolation_leaves_the_model_as_it_was(base: Any) -> None:
    model = load(base("llama"))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.random.get_rng_state()
    check_isolation(model)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_recomputed_activations_ask_for_no_gradient_of_frozen_embeddings(base: Any) -> None:
    model = load(base("llama")).requires_grad_(False)
    recompute_activations_(model)
    assert not model.get_input_embeddings()(torch.tensor([[1, 2]])).requires_grad


def test_the_estimate_of_memory_grows_with_rows_and_length_alike(base: Any) -> None:
    model = load(base("llama"))
    assert activation_bytes(model, 4, 128) == activation_bytes(model, 8, 64) > 0
    assert activation_bytes(model, 8, 128) == 2 * activation_bytes(model, 4, 128)
