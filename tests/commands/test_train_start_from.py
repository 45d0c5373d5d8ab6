"""`lora.start_from`: an adapter is trained further, as it is, on the base that it belongs to."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

from loractl.artifacts.files import read_tensors
from loractl.artifacts.run import checkpoint
from tests.commands.conftest import Capture, Config
from tests.runs import rows_of, train, tree

Make = Callable[..., Path]
ADAPTER = "adapter_model.safetensors"


def without(config: Path, *keys: str) -> Path:
    """The config without some keys of its lora section."""
    plain = yaml.safe_load(config.read_text())
    for key in keys:
        del plain["lora"][key]
    config.write_text(yaml.safe_dump(plain, sort_keys=False))
    return config


def starting(config_file: Config, start: Path, *sections: str) -> Path:
    """A config that says nothing of ranks and modules."""
    plain = without(
        config_file(f"lora: {{start_from: {start}}}", *sections), "rank", "target_modules"
    )
    return plain


def same(one: Path, other: Path) -> bool:
    a, b = read_tensors(one / ADAPTER), read_tensors(other / ADAPTER)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(
    "settings",
    [
        {"rank": 3, "alpha": 5},
        {"rank": 3, "scaling": "rslora", "target_modules": ["q_proj", "v_proj"]},
        {"rank": 2, "rank_pattern": {"up_proj": 5}, "alpha_pattern": {"up_proj": 3}},
        {"rank": 2, "target_modules": ["model.layers.1.self_attn.q_proj"]},
        {"rank": 2, "target_modules": ["embedding", "head"]},
    ],
    ids=["rank", "rslora", "patterns", "one-layer", "embedding-and-head"],
)
def test_at_rate_0_what_is_published_is_what_was_started_from(
    config_file: Config, base: Make, adapter_dir: Make, tmp_path: Path, settings: dict[str, object]
) -> None:
    start = adapter_dir(base("llama"), **settings)
    config = starting(config_file, start, "train: {learning_rate: 0, steps: 1}")
    assert train(config) == 0
    assert same(tmp_path / "run" / "adapter", start)
    old, new = (
        json.loads((directory / "adapter_config.json").read_text())
        for directory in (start, tmp_path / "run" / "adapter")
    )
    for field in ("r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern"):
        assert old[field] == new[field], field


def test_the_first_loss_is_that_of_the_adapter_and_training_goes_on_from_there(
    config_file: Config, tmp_path: Path
) -> None:
    first = config_file("data: {eval: 0.3}", "train: {steps: 8}")
    assert train(first) == 0
    start = shutil.copytree(tmp_path / "run", tmp_path / "start")
    ended = [row["eval_loss"] for row in rows_of(start) if "eval_loss" in row]
    config = starting(config_file, start, "data: {eval: 0.3}", "train: {steps: 2}")
    assert train(config, "--overwrite") == 0
    began = [row["eval_loss"] for row in rows_of(tmp_path / "run") if "eval_loss" in row]
    assert began[0] == ended[-1] != ended[0] and began[-1] < began[0]
    about = json.loads((tmp_path / "run" / "adapter" / "loractl.json").read_text())
    assert about["start_from"]["path"] == str(start / "adapter")
    assert len(about["start_from"]["sha256"]) == 64
    resolved = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert resolved["lora"]["rank"] == 4 and resolved["lora"]["start_from"] == str(start)


def test_dora_and_modules_trained_whole_go_on_too(config_file: Config, tmp_path: Path) -> None:
    made = config_file("method: dora", "lora: {modules_to_save: [norm]}", "train: {steps: 2}")
    assert train(made) == 0
    start = shutil.copytree(tmp_path / "run" / "adapter", tmp_path / "start")
    for number, sections in enumerate(([], ["method: dora"])):
        config = starting(config_file, start, "train: {learning_rate: 0, steps: 1}", *sections)
        plain = yaml.safe_load(config.read_text())
        plain["lora"].pop("modules_to_save", None)
        config.write_text(yaml.safe_dump(plain))
        out = tmp_path / f"run{number}"
        assert train(config, "--out", str(out)) == 0
        assert same(out / "adapter", start)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
def test_an_adapter_by_peft_goes_on(config_file: Config, base: Make, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base("llama"), dtype=torch.float32)
    peft = get_peft_model(
        model,
        LoraConfig(
            r=3, lora_alpha=7, target_modules=r".*layers\.1\..*(q|v)_proj", init_lora_weights=False
        ),
    )
    start = tmp_path / "theirs"
    peft.save_pretrained(start)
    config = starting(config_file, start, "train: {learning_rate: 0, steps: 1}")
    assert train(config) == 0
    assert same(tmp_path / "run" / "adapter", start)


@pytest.mark.parametrize(
    ("section", "key"),
    [
        ("lora: {rank: 5}", "lora.rank"),
        ("lora: {alpha: 99}", "lora.alpha"),
        ("lora: {target_modules: [q_proj]}", "lora.target_modules"),
        ("lora: {scaling: rslora}", "lora.scaling"),
        ("lora: {init: gaussian}", "lora.init"),
        ("lora: {modules_to_save: [norm]}", "lora.modules_to_save"),
        ("method: dora", "method"),
        ("method: adalora", "lora.start_from"),
        ("lora: {rank_schedule: {1: 2}}", "lora.rank_schedule"),
    ],
)
def test_a_key_that_is_set_otherwise_is_refused(
    config_file: Config,
    base: Make,
    adapter_dir: Make,
    tmp_path: Path,
    capsys: Capture,
    section: str,
    key: str,
) -> None:
    start = adapter_dir(base("llama"), rank=4)
    config = config_file(f"lora: {{start_from: {start}}}", section)
    if "rank" not in section.replace("rank_schedule", ""):
        without(config, "rank")
    if "target" not in section:
        without(config, "target_modules")
    assert train(config) == 2
    assert f" {key}: " in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_keys_that_say_the_same_are_no_conflict(
    config_file: Config, base: Make, adapter_dir: Make
) -> None:
    start = adapter_dir(base("llama"), rank=4, alpha=6)
    config = config_file(f"lora: {{start_from: {start}, alpha: 6}}", "train: {steps: 1}")
    assert train(config) == 0  # rank 4 and all-linear stand there


def test_another_base_is_refused(
    config_file: Config, base: Make, tmp_path: Path, capsys: Capture
) -> None:
    assert train(config_file("train: {steps: 1}")) == 0
    config = starting(config_file, tmp_path / "run")
    plain = yaml.safe_load(config.read_text())
    plain["model"]["name_or_path"] = str(base("llama", seed=5))
    config.write_text(yaml.safe_dump(plain))
    assert train(config, "--out", str(tmp_path / "other")) == 2
    assert "trained on a base with other weights" in capsys.readouterr().err


def test_what_is_no_adapter_is_refused_with_its_line(
    config_file: Config, base: Make, tmp_path: Path, capsys: Capture
) -> None:
    config = starting(config_file, tmp_path / "absent")
    assert train(config) == 2
    assert "lora.start_from: " in (said := capsys.readouterr().err) and "does not exist" in said
    assert train(starting(config_file, base("llama"))) == 2
    said = capsys.readouterr().err
    assert f"{config}:" in said and "lora.start_from: " in said and "not an adapter" in said


def test_an_adapter_in_the_place_of_a_base_leads_to_the_key(
    config_file: Config, base: Make, adapter_dir: Make, tmp_path: Path, capsys: Capture
) -> None:
    adapter = adapter_dir(base("llama"))
    run = tmp_path / "a-run"
    run.mkdir()
    shutil.copytree(adapter, run / "adapter")
    for named in (adapter, run):
        assert train(config_file(model=named)) == 2
        said = capsys.readouterr().err
        assert "is an adapter or its run, not a base model" in said and "lora.start_from" in said


def test_a_run_that_started_from_an_adapter_resumes_byte_for_byte(
    config_file: Config, base: Make, adapter_dir: Make, tmp_path: Path, capsys: Capture
) -> None:
    start, run = adapter_dir(base("llama"), rank=3), tmp_path / "run"
    config = starting(config_file, start, "train: {steps: 4, save_every: 2}")
    assert train(config) == 0
    whole = tree(run / "adapter")
    shutil.rmtree(run / "adapter")
    shutil.rmtree(checkpoint.published(run / "checkpoints")[-1])
    assert train(config, "--resume") == 0
    assert tree(run / "adapter") == whole
    shutil.rmtree(run / "adapter")
    other = adapter_dir(base("llama"), "changed", rank=3, size=0.3)
    shutil.copy(other / ADAPTER, start / ADAPTER)
    capsys.readouterr()
    assert train(config, "--resume") == 3
    assert "lora.start_from: the content changed" in capsys.readouterr().err
