"""Out of memory: a step that asks for more than there is says what to set instead."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.conftest import Warm, Whole
from tests.tiny import write_jsonl


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            ["train.batch_size=64"],
            "train.batch_size: a step on 64 rows of 512 tokens needs about .* set it to 32 and"
            " train.gradient_accumulation to 2 for the same steps in about",
        ),
        (
            ["train.batch_size=63", "train.gradient_accumulation=2"],
            "set it to 21 and train.gradient_accumulation to 6",
        ),
    ],
)
def test_a_batch_that_is_too_large_is_answered_with_one_that_gives_the_same_steps(
    settings: list[str], words: str, warm: Warm, whole: Callable[..., Whole], tmp_path: Path
) -> None:
    row = {"text": "The quick brown fox jumps over the lazy dog. " * 200}
    long = write_jsonl(tmp_path / "long.jsonl", [row] * 128)
    options = [f"data.train={long}", "data.max_length=512", "data.too_long=truncate",
               "data.format=text", *settings]  # fmt: skip
    sets = [part for option in options for part in ("--set", option)]
    run = tmp_path / "run"
    argv = ["train", whole().config, "--out", run, *sets]
    process = warm.run(*argv, AS_ABOVE=100 << 20)
    assert process.code == 2, process.said
    assert "Traceback" not in process.said
    assert re.search(words, process.said.splitlines()[-1]), process.said
