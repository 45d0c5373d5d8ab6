"""Adapters with rows of single tokens, as PEFT writes them, give the logits that PEFT gives."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from loractl.artifacts.peft.adapter import CONFIG, WEIGHTS, read
from loractl.artifacts.peft.attach import add_to_hub_, load_
from loractl.errors import ArtifactError
from loractl.lora.hub import Hub
from loractl.lora.inject import merge_, remove_
from loractl.lora.token_rows import token_rows
from tests.artifacts.peft.conftest import plain
from tests.tiny import save_tiny

Make = Callable[..., Path]
pytestmark = [
    pytest.mark.filterwarnings("ignore:Model has .tie_word_embeddings=True.:UserWarning"),
    pytest.mark.filterwarnings("ignore:You have requested .ensure_weight_tying.:UserWarning"),
    pytest.mark.filterwarnings("ignore:Setting .save_embedding_layers.:UserWarning"),
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"),
]


def saved(
    base: Path, directory: Path, indices: Any, *, rows: int | None = None, **settings: Any
) -> Tensor:
    """Save an adapter with these rows as PEFT does, everything random; return its logits on ids
    among which are those of the rows."""
    model = plain(base)
    if rows:
        model.resize_token_embeddings(rows, mean_resizing=False)
    options = {"target_modules": ["q_proj", "down_proj"], "r": 4, **settings}
    config = LoraConfig(task_type="CAUSAL_LM", trainable_token_indices=indices, **options)
    tuned = get_peft_model(model, config).eval()
    torch.manual_seed(9)
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "lora_" in name or "trainable_tokens_delta" in name:
                parameter.normal_(std=0.15)
    tuned.save_pretrained(directory)
    return scores(tuned, indices)


def scores(model: Any, indices: Any) -> Tensor:
    flat = [i for one in indices.values() for i in one] if isinstance(indices, dict) else indices
    generator = torch.Generator().manual_seed(11)
    ids = torch.randint(0, 300, (2, 16), generator=generator)
    ids[0, : len(flat[:8])] = torch.tensor(flat[:8])
    with torch.no_grad():
        found: Tensor = model(input_ids=ids, use_cache=False).logits
    return found


def assert_same(found: Tensor, expected: Tensor) -> None:
    assert found.shape == expected.shape
    assert float((found - expected).abs().max()) <= 1e-5 * max(1.0, float(expected.abs().max()))


BOTH = {"embed_tokens": [5, 17], "lm_head": [5, 17]}
CASES: dict[str, tuple[str, Any, int]] = {
    "a list, untied": ("llama", [5, 17, 3], 0),
    "a list, tied": ("llama-tied", [5, 17, 3], 0),
    "both, untied": ("llama", BOTH, 0),
    "both, tied": ("llama-tied", BOTH, 0),
    "only the head, tied": ("llama-tied", {"lm_head": [9, 4]}, 0),
    "different rows, untied": ("llama", {"embed_tokens": [5], "lm_head": [17, 2]}, 0),
    "different rows, tied": ("llama-tied", {"embed_tokens": [5], "lm_head": [17, 2]}, 0),
    "scaled embedding": ("gemma3", [5, 17, 3], 0),
    "new tokens, untied": ("llama", {"embed_tokens": [341, 340], "lm_head": [340, 341]}, 342),
    "new tokens, tied": ("llama-tied", [340, 341, 7], 342),
    "new tokens, the last not trained": ("llama", {"embed_tokens": [340], "lm_head": [340]}, 341),
}


@pytest.fixture(params=sorted(CASES))
def case(request: Any, base: Make, tmp_path: Path) -> tuple[Path, Path, Any, Tensor]:
    """(base, adapter, rows, PEFT's logits)"""
    architecture, indices, rows = CASES[request.param]
    directory = tmp_path / "adapter"
    expected = saved(base(architecture), directory, indices, rows=rows or None)
    return base(architecture), directory, indices, expected


def test_it_gives_the_logits_of_peft_and_merged_too(case: Any) -> None:
    base, directory, indices, expected = case
    model = plain(base)
    load_(model, read(directory))
    assert_same(scores(model, indices), expected)
    is_one = any(one.follows for one in token_rows(model).values())
    assert is_one == (model.config.tie_word_embeddings and "lm_head" not in str(apart(indices)))
    merge_(model)
    assert_same(scores(model, indices), expected)
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == is_one


def apart(indices: Any) -> Any:
    """The rows, without those of a head that are the embedding's too."""
    if isinstance(indices, dict) and indices.get("lm_head") == indices.get("embed_tokens"):
        return indices["embed_tokens"]
    return indices


def test_in_a_hub_too_beside_the_base(case: Any) -> None:
    base, directory, indices, expected = case
    model = plain(base)
    if (rows := expected.shape[-1]) == len(model.model.embed_tokens.weight):
        untouched = scores(model, indices)
    hub = Hub(model)
    add_to_hub_(hub, model, "a", read(directory))
    hub.use("a")
    assert_same(scores(model, indices), expected)
    hub.use_rows(["a", None])
    mixed = scores(model, indices)
    assert_same(mixed[0], expected[0])
    hub.use(None)
    assert_same(scores(model, indices)[1], mixed[1])
    if rows == 340:
        assert torch.equal(scores(model, indices), untouched)


def test_removed_the_base_is_what_it_was(base: Make, tmp_path: Path) -> None:
    saved(base("llama"), tmp_path / "a", BOTH)
    model = plain(base("llama"))
    before = scores(model, BOTH)
    load_(model, read(tmp_path / "a"))
    assert len(token_rows(model)) == 2
    remove_(model)
    assert torch.equal(scores(model, BOTH), before) and not token_rows(model)


@pytest.mark.parametrize(
    "settings", [{"use_dora": True}, {"use_rslora": True}, {"ensure_weight_tying": True}]
)
def test_other_settings_beside_the_rows(
    settings: dict[str, Any], base: Make, tmp_path: Path
) -> None:
    expected = saved(base("llama-tied"), tmp_path / "a", BOTH, **settings)
    model = plain(base("llama-tied"))
    load_(model, read(tmp_path / "a"))
    assert_same(scores(model, BOTH), expected)


def broken(directory: Path, **changes: Any) -> Path:
    path = directory / CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return directory


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"trainable_token_indices": [5, 5]}, "expected different ids of tokens"),
        ({"trainable_token_indices": [-1]}, "expected different ids"),
        ({"trainable_token_indices": {"embed_tokens": [1.5]}}, "expected different ids"),
        ({"trainable_token_indices": {"embed_tokens": []}}, "expected different ids"),
        ({"trainable_token_indices": "5"}, "expected different ids"),
        ({"trainable_token_indices": {"q_proj": [5, 17]}}, "rows of others are not supported"),
        ({"trainable_token_indices": {"wte": [5, 17]}}, "no module of the model"),
        ({"trainable_token_indices": [5, 10**12]}, "the base has 340 rows"),
        ({"trainable_token_indices": [5, 17, 18]}, "one row for each"),
        ({"trainable_token_indices": None}, "unexpected: base_model.model.model.embed_tokens"),
        ({"modules_to_save": ["embed_tokens"]}, "expected only one of them"),
    ],
)
def test_what_does_not_fit_is_refused_and_leaves_the_model_as_it_was(
    changes: dict[str, Any], words: str, base: Make, tmp_path: Path
) -> None:
    saved(base("llama"), tmp_path / "a", {"embed_tokens": [5, 17]})
    broken(tmp_path / "a", **changes)
    model = plain(base("llama"))
    with pytest.raises(ArtifactError, match=words):
        load_(model, read(tmp_path / "a"))
    assert len(model.model.embed_tokens.weight) == 340 and not token_rows(model)


def test_rows_of_a_head_with_a_bias_are_refused(base: Make, tmp_path: Path) -> None:
    from transformers import PhiConfig, PhiForCausalLM

    config = PhiConfig(
        vocab_size=340, hidden_size=32, intermediate_size=48, num_hidden_layers=1,
        num_attention_heads=4, max_position_embeddings=64,
    )  # fmt: skip
    PhiForCausalLM(config).save_pretrained(tmp_path / "phi")
    tuned = get_peft_model(
        AutoModelForCausalLM.from_pretrained(tmp_path / "phi"),
        LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], trainable_token_indices=BOTH),
    )
    tuned.save_pretrained(tmp_path / "a")
    with pytest.raises(ArtifactError, match="lm_head has a bias, which PEFT leaves out"):
        load_(plain(tmp_path / "phi"), read(tmp_path / "a"))


def test_peft_reads_what_it_saved_as_we_do(base: Make, tmp_path: Path) -> None:
    """The judge itself: what it computes before saving and after loading is the same."""
    expected = saved(base("llama-tied"), tmp_path / "a", [3, 340], rows=341)
    model = plain(base("llama-tied"))
    model.resize_token_embeddings(341, mean_resizing=True)
    assert_same(scores(PeftModel.from_pretrained(model, tmp_path / "a"), [3, 340]), expected)


def test_a_base_that_was_cut_to_its_tokens_is_the_same_one(tmp_path: Path, tokenizer: Any) -> None:
    """Resizing to len(tokenizer) cuts a base with spare rows, and PEFT then saves all of it."""
    save_tiny(tmp_path / "wide", tokenizer, "llama", vocab_size=349)
    indices = {"embed_tokens": [340], "lm_head": [340, 341]}
    expected = saved(tmp_path / "wide", tmp_path / "a", indices, rows=342)
    assert len(load_file(tmp_path / "a" / WEIGHTS)) == 12, "with both of its tables"
    model = plain(tmp_path / "wide")
    load_(model, read(tmp_path / "a"))
    assert_same(scores(model, indices)[..., :342], expected)
    with torch.no_grad():
        plain_weight = plain(tmp_path / "wide").lm_head.weight
        assert torch.equal(model.lm_head.base.weight, plain_weight)


def test_another_base_than_the_one_that_peft_saved_is_refused(base: Make, tmp_path: Path) -> None:
    saved(base("llama"), tmp_path / "a", [340], rows=341)
    model = plain(base("llama", seed=1))
    with pytest.raises(ArtifactError, match="its copy of model.embed_tokens differs from the base"):
        load_(model, read(tmp_path / "a"))
    assert len(model.model.embed_tokens.weight) == 340
