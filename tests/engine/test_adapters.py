"""What a config asks of a base that has it not, or twice, is refused by key before any training."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file

from loractl.artifacts.peft.adapter import CONFIG, WEIGHTS
from loractl.cli.main import main

Make = Callable[..., Path]
Capture = pytest.CaptureFixture[str]


@pytest.mark.parametrize(
    ("architecture", "sections", "key", "message"),
    [
        ("llama", ["lora: {modules_to_save: [nrom]}"], "lora.modules_to_save", "'nrom' matches no"),
        (
            "llama",
            ["lora: {modules_to_save: [act_fn]}"],  # there, but nothing in it to train
            "lora.modules_to_save",
            "'act_fn' matches no module with parameters",
        ),
        (
            "llama",
            ["lora: {modules_to_save: [mlp]}"],
            "lora.modules_to_save",
            "model.layers.0.mlp contains model.layers.0.mlp.gate_proj, which gets an adapter",
        ),
        (
            "llama",
            ["lora: {modules_to_save: [q_proj], target_modules: [q_proj]}"],
            "lora.modules_to_save",
            "self_attn.q_proj contains model.layers.0.self_attn.q_proj",
        ),
        (
            "llama",
            ["lora: {modules_to_save: [mlp, up_proj], target_modules: [q_proj]}"],
            "lora.modules_to_save",
            "up_proj is inside model.layers.0.mlp",
        ),
        (
            "mixtral",
            ["method: dora"],
            "method",
            "does not support fused experts such as model.layers.0.mlp.experts.gate_up_proj",
        ),
        (
            "mixtral",
            ["lora: {rank_schedule: {2: 6}}"],
            "lora.rank_schedule",
            "does not support fused experts",
        ),
        (
            "llama",
            ["method: adalora", "lora: {rank: 8}", "train: {steps: null, epochs: 2}"],
            "lora.adalora",
            "leaves none of the run's 6 steps",
        ),
        (
            "llama",
            ["lora: {rank_schedule: {9: 6}}", "train: {steps: null, epochs: 2}"],
            "lora.rank_schedule",
            "step 9 is past the run's last step, 6",
        ),
    ],
)
def test_what_does_not_fit_the_base_or_the_run_is_refused_by_key(
    architecture: str,
    sections: list[str],
    key: str,
    message: str,
    base: Make,
    config_file: Make,
    capsys: Capture,
    tmp_path: Path,
) -> None:
    packing = "data: {packing: false}"  # so that an epoch has three batches
    config = config_file(packing, *sections, model=base(architecture))
    assert main(["train", str(config)]) == 2
    error = capsys.readouterr().err
    assert f": {key}: " in error and message in error
    assert not (tmp_path / "run").exists()


def test_ranks_follow_the_schedule_in_every_checkpoint(
    base: Make, config_file: Make, tmp_path: Path
) -> None:
    config = config_file(
        "lora: {rank: 3, alpha: 5, rank_schedule: {2: 6, 3: 2}, target_modules: [q_proj]}",
        "train: {save_every: 1, keep_checkpoints: 9}",
    )
    assert main(["train", str(config)]) == 0
    run = tmp_path / "run"
    for step, rank in ((1, 3), (2, 6), (3, 2), (4, 2)):
        directory = run / "checkpoints" / f"step-{step:06d}"
        found = json.loads((directory / CONFIG).read_text())
        assert found["r"] == rank and found["lora_alpha"] / rank == pytest.approx(5 / 3)
        shapes = {min(t.shape) for t in load_file(directory / WEIGHTS).values()}
        assert shapes == {rank}
    assert json.loads((run / "adapter" / CONFIG).read_text())["r"] == 2


def test_adalora_is_published_as_plain_lora_of_the_final_ranks(
    base: Make, config_file: Make, tmp_path: Path
) -> None:
    config = config_file(
        "method: adalora",
        "lora: {rank: 8}",
        "lora: {adalora: {initial_rank: 4, target_rank: 2, warmup_steps: 1, final_steps: 1}}",
        "lora: {adalora: {every: 1, initial_rank: 4, target_rank: 2, warmup_steps: 1,"
        " final_steps: 1}}",
        "train: {steps: 6}",
    )
    assert main(["train", str(config)]) == 0
    content = json.loads((tmp_path / "run" / "adapter" / CONFIG).read_text())
    assert content["peft_type"] == "LORA" and content["alpha_pattern"] == {}
    tensors = load_file(tmp_path / "run" / "adapter" / WEIGHTS)
    ranks = [t.shape[0] for name, t in tensors.items() if "lora_A" in name]
    assert sum(ranks) == 2 * 14, "two triplets a module on average"
    assert len(set(ranks)) > 1 and len(tensors) == 2 * len(ranks)
    saved = json.loads((tmp_path / "run/checkpoints/step-000006" / CONFIG).read_text())
    assert saved["peft_type"] == "ADALORA" and saved["total_step"] == 6


def test_check_takes_a_step_of_every_kind_of_rank(
    base: Make, config_file: Make, capsys: Capture
) -> None:
    runs = [
        ["method: adalora", "lora: {rank: 8, adalora: {warmup_steps: 1, final_steps: 1}}"],
        ["lora: {rank_schedule: {1: 6}}"],
        ["lora: {modules_to_save: [norm], target_modules: minimal}"],
    ]
    for sections in runs:
        assert main(["check", str(config_file(*sections))]) == 0
        assert "the step changed every adapter" in capsys.readouterr().out
