"""The settings themselves: the contract's example, what combines badly, what depends on what."""

from pathlib import Path
from typing import Any

import pytest

from loractl.config.conflicts import conflicts
from loractl.config.loader import load
from loractl.config.not_yet import NOT_YET, not_yet
from loractl.config.settings import RunConfig, resolve
from loractl.config.strict_yaml import parse

CONTRACT = """\
model:
  name_or_path: HuggingFaceTB/SmolLM2-135M-Instruct
  dtype: auto
  quantization: none
  trust_remote_code: false
  quantize_head: false
  offload: none
  add_tokens: []
device: auto
method: lora
objective: sft
lora:
  rank: 8
  alpha: 16
  dropout: 0.0
  target_modules: all-linear
  scaling: standard
  init: default
  layers: null
  rank_schedule: {}
  rank_pattern: {}
  alpha_pattern: {}
  modules_to_save: []
  start_from: null
  adalora: {initial_rank: 12, target_rank: 8, warmup_steps: 200, final_steps: 1000, every: 10,
            beta1: 0.85, beta2: 0.85, orthogonality: 0.5}
data:
  train: train.jsonl
  eval: null
  retain: null
  columns: {}
  format: auto
  max_length: 1024
  packing: true
  train_on: assistant
  too_long: error
  chat_template: null
  template_variables: {}
  thoughts: auto
  split_turns: false
train:
  epochs: 1
  batch_size: 8
  gradient_accumulation: 1
  learning_rate: 2e-4
  lora_plus_ratio: 1
  schedule: cosine
  warmup: 0.03
  weight_decay: 0.0
  max_grad_norm: 1.0
  optimizer: adamw
  on_non_finite: stop
  non_finite_limit: 3
  cache_trunk: auto
  kernels: auto
  gradient_checkpointing: auto
  eval_every: null
  save_every: 100
  keep_checkpoints: 2
  log_every: 1
  early_stopping: null
  keep: best
  report: false
  report_to: []
seed: 0
out: runs/name
"""
"""Every key with its default, as the documentation shows it."""


def config(**settings: Any) -> RunConfig:
    """A config of the required keys and `lora__rank=4`-like settings."""
    data: dict[str, Any] = {"model": {"name_or_path": "m"}, "data": {"train": "t.jsonl"}}
    for key, value in settings.items():
        section, _, name = key.rpartition("__")
        (data.setdefault(section, {}) if section else data)[name] = value
    return RunConfig.model_validate(data)


def test_the_documented_values_are_the_defaults() -> None:
    shown = RunConfig.model_validate(parse(CONTRACT).value)
    assert list(not_yet(shown)) == list(conflicts(shown)) == []
    bare = config(model__name_or_path=shown.model.name_or_path, data__train="train.jsonl")
    assert resolve(bare, name="name") == shown


def test_the_documentation_shows_every_key() -> None:
    shown = parse(CONTRACT).value
    assert set(shown) == set(RunConfig.model_fields)
    for name, values in shown.items():
        section: Any = RunConfig.model_fields[name].annotation
        if isinstance(values, dict):
            assert set(values) | {"steps"} == set(section.model_fields) | {"steps"}


REFUSED = {
    "data.format": "sharegpt",
    "data.retain": "general.jsonl",
    "data.columns": {"prompt": "question"},
    "train.on_non_finite": "skip",
    "train.non_finite_limit": 5,
    "train.report_to": ["wandb"],
}


@pytest.mark.parametrize("key", NOT_YET)
def test_what_no_code_serves_is_refused_by_name(key: str) -> None:
    found = list(not_yet(config(**{key.replace(".", "__"): REFUSED[key]})))
    assert [name for name, _ in found] == [key]
    assert "not available in this version" in found[0][1]
    assert "Section(" not in found[0][1]


def test_defaults_follow_other_settings() -> None:
    ranks = {"initial_rank": 6, "target_rank": 3}
    assert resolve(config(method="adalora", lora__adalora=ranks), name="n").lora.alpha == 12
    found = resolve(config(lora__rank=4, train__steps=9), name="mine")
    assert (found.lora.alpha, found.train.epochs, found.out) == (8, None, "runs/mine")
    kept = resolve(config(lora__alpha=3, train__epochs=2, out="here"), name="mine")
    assert (kept.lora.alpha, kept.train.epochs, kept.out) == (3, 2, "here")
    assert resolve(kept, name="other") == kept


@pytest.mark.parametrize("path", sorted(Path(__file__).parent.parent.parent.glob("configs/*.yaml")))
def test_the_configs_that_come_along_load(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(path.parent.parent)
    assert load(path, paths_exist=False).config.out == f"runs/{path.stem}"
    lines = path.read_text().splitlines()
    assert len(lines) < 40
    settings_without_reason = [
        line for line in lines if ": " in line and not line.startswith("#") and "  # " not in line
    ]
    assert settings_without_reason == []
