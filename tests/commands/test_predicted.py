"""What is predicted of a loaded model: by its shape, or roughly where that is not known."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from loractl import configfile
from loractl.commands.predicted import Size, beside_the_weights
from loractl.models import forward, load
from loractl.models.families import FAMILIES

Make = Callable[..., Path]


def loaded(base: Make, architecture: str) -> torch.nn.Module:
    source = load.locate(str(base(architecture)))
    return load.load_model(source, dtype=torch.float32, device=torch.device("cpu"))


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma3", "opt"])
def test_a_known_model_is_predicted_in_proportion_to_its_rows(
    architecture: str, base: Make, config_file: Make
) -> None:
    model = loaded(base, architecture)
    config = configfile.load(config_file(model=base(architecture))).config
    one, two, four = (
        beside_the_weights(model, config, Size(rows, 128))  # type: ignore[arg-type]
        for rows in (1, 2, 4)
    )
    assert four - two == pytest.approx(2 * (two - one), rel=0.01) and two > one
    half = beside_the_weights(model, config, Size(4, 128, 0.5))  # type: ignore[arg-type]
    assert half < four


def test_a_model_whose_shape_is_not_known_gets_a_rough_figure(
    base: Make, config_file: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = loaded(base, "llama")
    config = configfile.load(config_file()).config
    monkeypatch.delitem(FAMILIES, "llama")
    found = beside_the_weights(model, config, Size(2, 64))  # type: ignore[arg-type]
    assert found == forward.activation_bytes(model, 2, 64)  # type: ignore[arg-type]
