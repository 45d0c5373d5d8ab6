"""What a GGUF file must give is the same layer by layer as with the whole model in memory."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from loractl.artifacts.gguf import layout as layouts
from loractl.artifacts.gguf import proof
from loractl.artifacts.peft.adapter import read
from loractl.models.load import load_skeleton, locate

Make = Callable[..., Path]


@pytest.mark.parametrize("dtype", ["f32", "f16"])
def test_an_adapter_gives_the_same_as_with_the_whole_model_in_memory(
    dtype: str, base: Make, adapter_dir: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = base("llama")
    source, adapter = locate(str(where)), read(adapter_dir(where))
    layout = layouts.layout(source.name, load_skeleton(source).config)
    asked: dict[str, Any] = {"dtype": dtype, "model_file": None}
    whole = proof._expect_whole(source, adapter, layout, **asked)
    monkeypatch.setattr(proof, "_expect_whole", None)  # is not needed
    found = proof.expect(source, adapter, layout, **asked)
    assert torch.equal(found.ids, whole.ids) and found.wrong == whole.wrong == ()
    torch.testing.assert_close(found.logits, whole.logits, rtol=1e-6, atol=2e-6)
    assert found.effect == pytest.approx(whole.effect, rel=1e-4)
    # Other signs, errors of the same sizes.
    assert whole.rounding / 2 <= found.rounding <= 2 * whole.rounding
    assert (found.rounding == 0) == (dtype == "f32")


def test_a_gguf_base_takes_the_whole_model(gguf_base: Make, adapter_dir: Make) -> None:
    where = gguf_base("llama")
    source, adapter = locate(str(where)), read(adapter_dir(where))
    layout = layouts.layout(source.name, load_skeleton(source).config)
    found = proof.expect(source, adapter, layout, dtype="f32", model_file=None)
    assert found.effect > 0 and found.rounding == 0
