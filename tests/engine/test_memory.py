"""What is predicted of a loaded model: by its shape, or roughly where that is not known."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from loractl.config import loader
from loractl.data.batches import collate
from loractl.engine.memory import Size, beside_the_weights
from loractl.models import forward, load
from loractl.models.segments.install import use_segments_
from loractl.models.shape.families import FAMILIES
from loractl.records import UNTRAINED, Example

Make = Callable[..., Path]


def loaded(base: Make, architecture: str) -> Any:
    source = load.locate(str(base(architecture)))
    return load.load_model(source, dtype=torch.float32, device=torch.device("cpu"))


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma3", "opt"])
def test_a_known_model_is_predicted_in_proportion_to_its_rows(
    architecture: str, base: Make, config_file: Make
) -> None:
    model = loaded(base, architecture)
    config = loader.load(config_file(model=base(architecture))).config
    four, eight, sixteen = (
        beside_the_weights(model, config, Size(rows, 128)) for rows in (4, 8, 16)
    )
    assert sixteen - eight == pytest.approx(2 * (eight - four), rel=0.01) and eight > four


@pytest.mark.parametrize("architecture", ["gpt2", "opt"])
def test_tokens_that_are_not_trained_have_no_logits(
    architecture: str, base: Make, config_file: Make
) -> None:
    model = loaded(base, architecture)
    config = loader.load(config_file(model=base(architecture))).config
    whole, half = (beside_the_weights(model, config, Size(4, 128, share)) for share in (1.0, 0.5))
    assert half < whole


def test_padding_costs_nothing_in_fast_layers_and_they_keep_less_than_others(
    base: Make, config_file: Make
) -> None:
    model = loaded(base, "llama")
    config = loader.load(config_file()).config
    # Enough rows that a block of scores, 4 MiB at most, does not decide it in so small a model.
    full, padded = Size(64, 128), Size(64, 128, real=4800, longest=128)
    fast = beside_the_weights(model, config, full)
    assert beside_the_weights(model, config, padded) < fast
    for size in (full, padded):  # in transformers' layers padding is computed as well
        other = beside_the_weights(model, config, size, fast=False)
        assert other == beside_the_weights(model, config, full, fast=False) > fast
    plain = loader.load(config_file("train: {kernels: plain}")).config
    assert beside_the_weights(model, plain, full) == other
    again = beside_the_weights(model, config, full, checkpointing=True)
    assert again < fast
    forward.recompute_activations_(model)
    assert beside_the_weights(model, config, full) == again


def test_a_model_that_attends_by_segments_is_predicted_whatever_its_attention_was(
    base: Make, config_file: Make
) -> None:
    model = loaded(base, "phi3")
    config = loader.load(config_file(model=base("phi3"))).config
    model.set_attn_implementation("eager")
    before = beside_the_weights(model, config, Size(4, 128))  # as it will be when a run begins
    assert use_segments_(model)
    assert model.config._attn_implementation == "loractl-eager"
    assert beside_the_weights(model, config, Size(4, 128)) == before


def test_a_batch_at_hand_is_sized_without_its_padding() -> None:
    def example(n: int, trained: int) -> Example:
        return Example([5] * n, [UNTRAINED] * (n - trained) + [5] * trained, 1)

    batch = collate([[example(30, 10), example(20, 5)], [example(12, 5)]])
    assert Size.of(batch) == Size(2, 50, 20 / 100, real=62, longest=30)
    alike = collate([[example(30, 10), example(20, 5)], [example(19, 5)]])  # 13 tokens serve all
    assert Size.of(alike) == Size(2, 50, 20 / 100, real=69 - 2 * 13, longest=30)


def test_a_model_whose_shape_is_not_known_gets_a_rough_figure(
    base: Make, config_file: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = loaded(base, "llama")
    config = loader.load(config_file()).config
    monkeypatch.delitem(FAMILIES, "llama")
    found = beside_the_weights(model, config, Size(2, 64))
    assert found == forward.activation_bytes(model, 2, 64)
