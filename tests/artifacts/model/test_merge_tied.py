"""A merge where head and embedding are one tensor: they stay one only where neither is adapted."""

import json
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from tests.artifacts.model.conftest import (
    Logits,
    Make,
    assert_close,
    merge,
    resave,
    tensors,
    with_adapter,
)
from tests.sweeps import sampled

# PEFT asks transformers for a name that is going away; nothing to do with merging.
pytestmark = pytest.mark.filterwarnings(
    "ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"
)


TIED_TARGETS = [["head"], ["embedding"], ["embedding", "head"]]


@pytest.mark.parametrize(
    "architecture", sampled(["llama-tied", "gemma3", "gpt2", "opt"], "llama-tied", "gpt2")
)
@pytest.mark.parametrize("targets", TIED_TARGETS)
@pytest.mark.parametrize("sharded", [False, True])
def test_a_tied_head_is_untied_when_it_or_the_embedding_is_adapted(
    architecture: str,
    targets: list[str],
    sharded: bool,
    base: Make,
    adapter_dir: Make,
    logits: Logits,
    tmp_path: Path,
) -> None:
    where = base(architecture)
    if sharded:
        where = tmp_path / "sharded"
        model = AutoModelForCausalLM.from_pretrained(base(architecture))
        model.save_pretrained(where, max_shard_size="20KB")
    directory = adapter_dir(where, target_modules=targets)
    written = merge(where, directory, tmp_path / "out")
    assert written.untied
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["tie_word_embeddings"] is False
    assert len(tensors(tmp_path / "out")) == len(tensors(where)) + 1
    assert_close(logits(tmp_path / "out"), logits(with_adapter(where, directory)))


@pytest.mark.parametrize("targets", TIED_TARGETS)
def test_a_tied_head_whose_files_hold_it_twice_is_untied_too(
    targets: list[str], base: Make, adapter_dir: Make, logits: Logits, tmp_path: Path
) -> None:
    where = resave(
        base("llama-tied"),
        tmp_path / "twice",
        lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].clone()}),
    )
    directory = adapter_dir(where, target_modules=targets)
    assert merge(where, directory, tmp_path / "out").untied
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["tie_word_embeddings"] is False
    assert tensors(tmp_path / "out").keys() == tensors(where).keys()
    assert_close(logits(tmp_path / "out"), logits(with_adapter(where, directory)))


def test_a_tied_head_stays_tied_when_neither_is_adapted(
    base: Make, adapter_dir: Make, tmp_path: Path
) -> None:
    where = base("llama-tied")
    assert not merge(where, adapter_dir(where), tmp_path / "out").untied
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["tie_word_embeddings"] is True
    assert "lm_head.weight" not in tensors(tmp_path / "out")
