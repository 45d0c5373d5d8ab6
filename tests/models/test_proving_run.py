"""The short run gives what `hidden_states` and the whole model give, in one pass where it can."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from loractl.models.forward import hidden_states
from loractl.models.proving_run import ProvingRun
from loractl.models.segments.install import use_segments_
from tests.tiny import ARCHITECTURES

Made = Callable[..., Any]


def passes(model: Any, run: ProvingRun) -> int:
    """How often a model's trunk is run for what is shown."""
    calls: list[int] = []
    hook = model.base_model.register_forward_pre_hook(lambda *_: calls.append(1))
    assert run.shown is run.shown
    hook.remove()
    return len(calls)


@pytest.mark.parametrize("by_segments", [False, True])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_it_shows_hidden_states_and_logits_of_the_model(
    name: str, by_segments: bool, base: Made
) -> None:
    model = AutoModelForCausalLM.from_pretrained(base(name)).eval()
    if by_segments and not use_segments_(model):
        pytest.skip("attends in its own way")
    model.train()
    run = ProvingRun(model)
    shown = run.shown
    assert model.training
    model.eval()
    with torch.no_grad():
        hidden = hidden_states(model, shown.batch)
        assert torch.equal(shown.hidden, hidden)
        head = model.get_output_embeddings()
        torch.testing.assert_close(shown.logits, head(hidden))
    assert shown.logits.shape[:2] == shown.batch.input_ids.shape


def test_a_model_that_calls_its_trunk_as_hidden_states_does_is_run_once(base: Made) -> None:
    model = AutoModelForCausalLM.from_pretrained(base("llama")).eval()
    assert passes(model, ProvingRun(model)) == 1


def test_a_model_that_calls_its_trunk_otherwise_shows_hidden_states_all_the_same(
    base: Made,
) -> None:
    model = AutoModelForCausalLM.from_pretrained(base("llama")).eval()
    original = type(model).forward

    def shifted(self: Any, *args: Any, position_ids: Any, **options: Any) -> Any:
        return original(self, *args, position_ids=2 * position_ids, **options)

    model.__class__ = type("Shifted", (type(model),), {"forward": shifted})
    run = ProvingRun(model)
    assert passes(model, run) == 2
    assert torch.equal(run.shown.hidden, hidden_states(model, run.shown.batch))


def test_it_is_run_anew_when_the_model_computes_otherwise(base: Made) -> None:
    model = AutoModelForCausalLM.from_pretrained(base("llama")).eval()
    run = ProvingRun(model)
    before = run.shown
    model.model.norm.weight.data.mul_(2)
    run.forget_()
    assert not torch.equal(run.shown.hidden, before.hidden)
