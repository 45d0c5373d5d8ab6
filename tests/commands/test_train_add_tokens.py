"""`model.add_tokens`: new rows are trained, the rest stays, and PEFT gives the same logits."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from loractl.artifacts.peft.adapter import read
from loractl.artifacts.peft.attach import load_
from tests.commands.conftest import assert_refused
from tests.runs import rows_of, train, tree
from tests.tiny import make_tokenizer, save_tiny, write_jsonl

Make = Callable[..., Path]
Capture = pytest.CaptureFixture[str]
N = len(make_tokenizer())
ADDED = "model: {add_tokens: ['<|call|>', '<|end|>']}"
pytestmark = [
    pytest.mark.filterwarnings("ignore:Model has .tie_word_embeddings=True.:UserWarning"),
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"),
]


@pytest.fixture
def rows(tmp_path: Path) -> str:
    made = [
        {"prompt": f"<|call|> {i} plus {i}", "completion": f"is {2 * i} <|end|>"} for i in range(12)
    ]
    return f"data: {{train: {write_jsonl(tmp_path / 'calls.jsonl', made)}}}"


def resized(base: Path, run: Path, *, mean: bool = False) -> Any:
    """The base as a user of PEFT prepares it."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(run / "adapter")
    model.resize_token_embeddings(len(tokenizer), mean_resizing=mean)
    return model.eval()


def scores(model: Any) -> Tensor:
    generator = torch.Generator().manual_seed(11)
    ids = torch.randint(0, N, (2, 16), generator=generator)
    ids[:, 3], ids[:, 9] = N, N + 1
    with torch.no_grad():
        found: Tensor = model(input_ids=ids, use_cache=False).logits
    return found


def ours(base: Path, run: Path) -> Any:
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    load_(model, read(run))
    return model


def assert_same(found: Tensor, expected: Tensor) -> None:
    assert found.shape == expected.shape
    assert float((found - expected).abs().max()) <= 1e-5 * max(1.0, float(expected.abs().max()))


@pytest.mark.parametrize("mean", [True, False])
@pytest.mark.parametrize("architecture", ["llama", "llama-tied", "gemma3"])
def test_peft_gives_our_logits_on_the_resized_base(
    architecture: str, mean: bool, base: Make, config_file: Make, rows: str, tmp_path: Path
) -> None:
    config, run = config_file(ADDED, rows, model=base(architecture)), tmp_path / "run"
    assert train(config) == 0
    tokenizer = AutoTokenizer.from_pretrained(run / "adapter")
    assert tokenizer.convert_tokens_to_ids(["<|call|>", "<|end|>"]) == [N, N + 1]
    assert tokenizer.tokenize("a<|call|>b") == ["a", "<|call|>", "b"]
    content = json.loads((run / "adapter" / "adapter_config.json").read_text())
    tied = architecture != "llama"
    named = ["embed_tokens"] if tied else ["embed_tokens", "lm_head"]
    assert content["trainable_token_indices"] == dict.fromkeys(named, [N, N + 1])
    peft = PeftModel.from_pretrained(
        resized(base(architecture), run, mean=mean), run / "adapter"
    ).eval()
    assert_same(scores(ours(base(architecture), run)), scores(peft))
    tensors = load_file(run / "adapter" / "adapter_model.safetensors")
    moved = [t for name, t in tensors.items() if name.endswith("trainable_tokens_delta")]
    assert len(moved) == len(named)
    table = load_file(base(architecture) / "model.safetensors")["model.embed_tokens.weight"]
    assert (moved[0] - table.mean(dim=0)).abs().min(dim=1).values.max() > 0, "every row is trained"


@pytest.mark.parametrize(
    ("architecture", "names"),
    [
        ("llama", ["embed_tokens", "lm_head"]),
        ("llama", ["embed_tokens"]),
        ("llama", ["lm_head"]),
        ("llama-tied", ["embed_tokens", "lm_head"]),
        ("llama-tied", ["embed_tokens"]),
    ],
)
def test_a_module_that_is_trained_whole_has_the_rows_in_it(
    architecture: str, names: list[str], base: Make, config_file: Make, rows: str, tmp_path: Path
) -> None:
    whole = f"lora: {{modules_to_save: {json.dumps(names)}}}"
    config, run = config_file(ADDED, rows, whole, model=base(architecture)), tmp_path / "run"
    assert train(config) == 0
    model = PeftModel.from_pretrained(resized(base(architecture), run), run / "adapter").eval()
    assert_same(scores(ours(base(architecture), run)), scores(model))


@pytest.mark.parametrize(
    ("architecture", "section", "words"),
    [
        ("llama-tied", "lora: {modules_to_save: [lm_head]}", "name embed_tokens too"),
        ("llama", "lora: {target_modules: [q_proj, lm_head]}", "lm_head gets an adapter"),
        ("llama", "model: {add_tokens: [a, b, a]}", "found 'a' twice"),
        ("llama", "model: {add_tokens: ['']}", "model.add_tokens[0]"),
        (
            "llama",
            "{lora: {start_from: ADAPTER, rank: 4}, model: {add_tokens: ['<|more|>']}}",
            "has no '<|more|>'",
        ),
    ],
)
def test_what_cannot_be_trained_is_refused_in_words(
    architecture: str, section: str, words: str, base: Make, config_file: Make, rows: str,
    tmp_path: Path, capsys: Capture,
) -> None:  # fmt: skip
    if "ADAPTER" in section:
        assert train(config_file(ADDED, rows, model=base(architecture))) == 0
        shutil.copytree(tmp_path / "run" / "adapter", tmp_path / "made")
        section = section.replace("ADAPTER", str(tmp_path / "made"))
        shutil.rmtree(tmp_path / "run")
    capsys.readouterr()
    assert train(config_file(ADDED, rows, section, model=base(architecture))) == 2
    assert_refused(capsys, words)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("method", ["dora", "adalora"])
def test_other_methods_train_them_too(
    method: str, base: Make, config_file: Make, rows: str, tmp_path: Path
) -> None:
    extra = (
        ["lora: {rank: 8, adalora: {warmup_steps: 1, final_steps: 1}}"]
        if method == "adalora"
        else []
    )
    config, run = config_file(ADDED, rows, f"method: {method}", *extra), tmp_path / "run"
    assert train(config) == 0
    model = PeftModel.from_pretrained(resized(base("llama"), run), run / "adapter").eval()
    assert_same(scores(ours(base("llama"), run)), scores(model))
    checkpoint = ours(base("llama"), run / "checkpoints" / "step-000004")
    assert_same(scores(checkpoint), scores(model))


def test_full_training_grows_the_model(config_file: Make, rows: str, tmp_path: Path) -> None:
    assert train(config_file(ADDED, rows, "method: full")) == 0
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "run" / "model")
    assert model.config.vocab_size == len(tokenizer) == N + 2
    assert len(model.lm_head.weight) == len(model.model.embed_tokens.weight) == N + 2


def test_a_run_that_was_cut_ends_in_the_same_bytes(
    config_file: Make, rows: str, tmp_path: Path, stop_after: Any
) -> None:
    settings = "train: {steps: 5, save_every: 2, weight_decay: 0.1}"
    config = config_file(ADDED, rows, settings)
    assert train(config, "--out", str(tmp_path / "whole")) == 0
    stop_after(3)
    assert train(config) == 130
    assert train(config, "--resume") == 0
    one, other = (tree(tmp_path / name / "adapter") for name in ("run", "whole"))
    assert one == other and "tokenizer.json" in one


def test_a_run_made_without_the_key_resumes_as_before(
    config_file: Make, tmp_path: Path, stop_after: Any
) -> None:
    config = config_file()
    assert train(config, "--out", str(tmp_path / "whole")) == 0
    stop_after(3)
    assert train(config) == 130
    resolved = tmp_path / "run" / "config.yaml"
    old = [line for line in resolved.read_text().splitlines() if "add_tokens" not in line]
    resolved.write_text("\n".join(old) + "\n")
    assert train(config, "--resume") == 0
    assert tree(tmp_path / "run" / "adapter") == tree(tmp_path / "whole" / "adapter")
    assert not (tmp_path / "run" / "adapter" / "tokenizer.json").exists()


def test_a_changed_list_is_refused_on_resuming(
    config_file: Make, rows: str, stop_after: Any, capsys: Capture
) -> None:
    config = config_file(ADDED, rows)
    stop_after(3)
    assert train(config) == 130
    assert train(config, "--resume", "--set", "model.add_tokens=['<|call|>']") == 3
    assert "model.add_tokens: changed from" in capsys.readouterr().err


def test_spare_rows_are_right_in_peft_too(config_file: Make, rows: str, tmp_path: Path) -> None:
    """There `resize_token_embeddings(len(tokenizer))` takes the rows away that are still spare."""
    save_tiny(tmp_path / "wide", make_tokenizer(), "llama", vocab_size=N + 9)
    run = tmp_path / "run"
    assert train(config_file(ADDED, rows, model=tmp_path / "wide")) == 0
    model = PeftModel.from_pretrained(resized(tmp_path / "wide", run), run / "adapter").eval()
    found = scores(ours(tmp_path / "wide", run))
    assert found.shape[-1] == N + 9
    assert_same(found[..., : N + 2], scores(model))


def test_a_base_in_bfloat16_gives_what_peft_makes_of_it(
    base: Make, config_file: Make, rows: str, tmp_path: Path
) -> None:
    path, run = base("llama-tied", "bfloat16"), tmp_path / "run"
    assert train(config_file(ADDED, rows, "model: {dtype: bfloat16}", model=path)) == 0
    model = PeftModel.from_pretrained(resized(path, run), run / "adapter").eval()
    assert_same(scores(ours(path, run)), scores(model))


def test_an_adapter_without_rows_is_trained_further_with_new_tokens(
    base: Make, config_file: Make, rows: str, tmp_path: Path
) -> None:
    first = config_file(f"out: {tmp_path / 'first'}")
    assert train(first) == 0
    start = f"lora: {{rank: 4, start_from: {tmp_path / 'first' / 'adapter'}}}"
    run = tmp_path / "run"
    assert train(config_file(ADDED, rows, start, f"out: {run}")) == 0
    model = PeftModel.from_pretrained(resized(base("llama"), run), run / "adapter").eval()
    assert_same(scores(ours(base("llama"), run)), scores(model))


def test_the_learned_rows_bring_the_loss_down(
    base: Make, config_file: Make, rows: str, tmp_path: Path
) -> None:
    """With the rest of the model frozen but for one thin adapter, the tokens are learned."""
    thin = "lora: {rank: 1, target_modules: [q_proj], layers: [0]}"
    settings = "train: {steps: 60, learning_rate: 0.05, save_every: 100}"
    assert train(config_file(ADDED, rows, thin, settings)) == 0
    losses = [row["loss"] for row in rows_of(tmp_path / "run") if "loss" in row]
    model, tokenizer = (
        ours(base("llama"), tmp_path / "run"),
        AutoTokenizer.from_pretrained(tmp_path / "run" / "adapter"),
    )
    assert losses[-1] < 0.8 * losses[0]
    rank = scores_after(model, tokenizer, " is 4 ")[N + 1]
    assert rank < 5, "the new token is among what may come next"


def scores_after(model: Any, tokenizer: Any, text: str) -> list[int]:
    """For each token, how many are likelier to come after a text."""
    ids = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])
    with torch.no_grad():
        logits = model(input_ids=ids).logits[0, -1]
    return logits.argsort(descending=True).argsort().tolist()


@pytest.mark.parametrize("architecture", ["llama", "llama-tied"])
@pytest.mark.parametrize("names_them", [True, False])
def test_rows_are_trained_further_with_their_adapter(
    names_them: bool, architecture: str, base: Make, config_file: Make, rows: str, tmp_path: Path,
    stop_after: Any,
) -> None:  # fmt: skip
    path, run = base(architecture), tmp_path / "run"
    assert train(config_file(ADDED, rows, f"out: {tmp_path / 'first'}", model=path)) == 0
    again = [ADDED] if names_them else []
    config = config_file(*again, rows, f"out: {run}", model=path)
    content = yaml.safe_load(config.read_text())
    content["lora"] = {"start_from": str(tmp_path / "first" / "adapter")}
    config.write_text(yaml.safe_dump(content))
    assert train(config, "--set", "train.learning_rate=0", "--out", str(tmp_path / "same")) == 0
    name = "adapter/adapter_model.safetensors"
    same, first = (load_file(tmp_path / one / name) for one in ("same", "first"))
    assert same.keys() == first.keys() and all(torch.equal(same[n], first[n]) for n in same)
    assert train(config, "--out", str(tmp_path / "whole")) == 0
    stop_after(3)
    assert train(config) == 130
    assert train(config, "--resume") == 0
    assert tree(run / "adapter") == tree(tmp_path / "whole" / "adapter")
    further = load_file(run / name)
    moved = [n for n in first if n.endswith("delta") and not torch.equal(first[n], further[n])]
    assert len(moved) == (1 if architecture == "llama-tied" else 2)
    model = PeftModel.from_pretrained(resized(path, run), run / "adapter").eval()
    assert_same(scores(ours(path, run)), scores(model))
