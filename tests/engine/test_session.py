"""What a run is given before its first step."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from loractl.cli.main import main
from loractl.models.segments import interface


@pytest.mark.parametrize("packing", ["true", "false"])
def test_without_fast_layers_a_run_attends_by_segments_in_every_layer_of_every_step(
    packing: str,
    config_file: Callable[..., Path],
    base: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spans: list[int] = []
    original = interface.segment_attention

    def counted(q: Any, k: Any, v: Any, segments: Any, **options: Any) -> Any:
        spans.append(len(segments.spans))
        return original(q, k, v, segments, **options)

    monkeypatch.setattr(interface, "segment_attention", counted)
    config = config_file(
        f"data: {{packing: {packing}}}",
        "train: {gradient_checkpointing: false}",
        model=base("phi3"),  # which has no fast layers
    )
    assert main(["train", str(config)]) == 0
    trial = 2 * 2  # layers, when the model and its head were tried out
    isolation = 2 * 3 if packing == "true" else 0
    assert len(spans) - trial - isolation == 2 * 4  # layers, steps
    assert (max(spans[trial + isolation :]) > 4) == (packing == "true")
