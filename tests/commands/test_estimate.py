"""`loractl estimate`: what it prints, in which time, and what it refuses."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from loractl.cli.main import main
from loractl.lora.inject import adaptable, inject_
from loractl.lora.ranks import RankSpec, resolve
from loractl.models.load import head_name

Make = Callable[..., Path]
Captured = pytest.CaptureFixture[str]


def estimate(capsys: Captured, *flags: str) -> dict[str, Any]:
    assert main(["estimate", *flags, "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_a_size_gives_three_methods_side_by_side(capsys: Captured) -> None:
    found = estimate(capsys, "--model", "7B", "--targets", "q_proj,v_proj", "--tasks", "10")
    full, lora, qlora = (found["methods"][name] for name in ("full", "lora", "qlora"))
    assert full["trainable_parameters"] == found["model"]["parameters"] == 6_738_415_616
    assert lora["trainable_parameters"] == qlora["trainable_parameters"] == 4_194_304
    assert lora["all_parameters"] == 6_742_609_920
    assert lora["by_kind"]["q_proj"] == {
        "modules": 32, "parameters": 2_097_152, "shapes": [[4096, 4096]]
    }  # fmt: skip
    # Without checkpointing a packed base takes more: transformers' own layers keep more than ours.
    again = [one["with_checkpointing"]["gpu_bytes"] for one in (full, lora, qlora)]
    assert sorted(again, reverse=True) == again and full["gpu_bytes"] > lora["gpu_bytes"]
    for one in (full, lora, qlora):
        assert sum(one["peak_parts_bytes"].values()) == one["cuda_allocated_bytes"]
        assert one["with_checkpointing"]["gpu_bytes"] <= one["gpu_bytes"]
    disk = found["disk"]
    assert disk["as_full_models_bytes"] == 10 * 2 * 6_738_415_616
    assert disk["as_adapters_bytes"] == disk["model_bytes"] + 10 * disk["adapter_bytes"]
    assert found["flops_per_step"]["lora_over_full"] == pytest.approx(0.67, abs=0.02)


@pytest.mark.parametrize("architecture", ["llama-tied", "gpt2", "phi3", "opt"])
def test_a_config_counts_what_training_trains(
    architecture: str, base: Make, config_file: Make, capsys: Captured
) -> None:
    config = config_file("lora: {rank: 3}", model=base(architecture))
    found = estimate(capsys, str(config))
    model = AutoModelForCausalLM.from_pretrained(base(architecture))
    ranks = resolve(RankSpec(3, 6), adaptable(model), head=head_name(model))
    layers = inject_(model, ranks)
    trained = sum(p.numel() for layer in layers.values() for p in (layer.A, layer.B))
    assert found["methods"]["lora"]["trainable_parameters"] == trained
    assert found["settings"]["length"] == 256 and found["settings"]["dtype"] == "float32"


def test_rows_that_are_not_there_yet_do_not_matter(config_file: Make, capsys: Captured) -> None:
    found = estimate(capsys, str(config_file("data: {train: not-yet.jsonl}")))
    assert found["settings"]["length"] == 256


def test_a_flag_goes_over_the_config(config_file: Make, capsys: Captured) -> None:
    found = estimate(capsys, str(config_file()), "--rank", "7", "--set", "train.batch_size=3")
    assert (found["settings"]["rank"], found["settings"]["batch"]) == (7, 3)
    assert found["chosen"] == "lora"


def test_the_text_says_what_is_largest_and_what_fits(capsys: Captured) -> None:
    assert main(["estimate", "--model", "7B", "--batch", "1", "--tokens", "5M",
                 "--tokens-per-s", "1000", "--price", "2"]) == 0  # fmt: skip
    out = capsys.readouterr().out
    assert "6,738,415,616 parameters" in out and "on a GPU, with CUDA context" in out
    assert "5,000,000 tokens at 1,000 per second: 1h23m, costs 2.78 at 2 per hour" in out


def test_the_speed_of_a_run_is_read_from_its_metrics(tmp_path: Path, capsys: Captured) -> None:
    rows = [{"step": n, "tokens_per_s": speed} for n, speed in enumerate((10, 30, 20))]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, [*rows, {"eval_loss": 1}])))
    found = estimate(capsys, "--model", "7B", "--tokens", "7200", "--tokens-per-s", str(tmp_path))
    assert found["pace"]["tokens_per_s"] == 20 and found["pace"]["hours"] == 0.1


def test_a_framework_of_others_keeps_other_things(capsys: Captured) -> None:
    ours = estimate(capsys, "--model", "7B", "--batch", "1")["methods"]["lora"]
    peft = estimate(capsys, "--model", "7B", "--batch", "1", "--framework", "peft")
    assert peft["methods"]["lora"]["cuda_allocated_bytes"] > ours["cuda_allocated_bytes"]
    assert peft["methods"]["full"]["weights_bytes"] == 2 * 6_738_415_616  # no float32 weights


@pytest.mark.parametrize("ending", ["png", "svg"])
def test_a_plot_is_drawn(ending: str, tmp_path: Path, capsys: Captured) -> None:
    path = tmp_path / f"plot.{ending}"
    assert estimate(capsys, "--model", "13B", "--plot", str(path))["plot"] == str(path)
    start = path.read_bytes()[:200]
    assert start.startswith(b"\x89PNG") if ending == "png" else b"<?xml" in start


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "expected either a CONFIG or --model"),
        (["--model", "9B"], "9B: no such directory, not in the hub cache"),
        (["--model", "7B", "--targets", "q_prj"], "--targets: 'q_prj' matches no module"),
        (["--model", "7B", "--dtype", "int4"], "--dtype: found 'int4', expected one of"),
        (["--model", "7B", "--framework", "trl"], "--framework: found 'trl', expected one of"),
        (["--model", "7B", "--price", "2"], "need --tokens-per-s"),
        (["--model", "7B", "--tokens-per-s", "9"], "needs --tokens"),
        (["--model", "7B", "--tokens", "9", "--tokens-per-s", "fast"], "expected a number or"),
        (["--model", "7B", "--set", "lora.rank=2"], "--set: overrides settings of a CONFIG"),
        (["--model", "7B", "--plot", "x.pdf"], "expected a name that ends in"),
        (["absent.yaml"], "absent.yaml: does not exist"),
    ],
)
def test_what_cannot_be_estimated_is_refused_with_2(
    flags: list[str], message: str, capsys: Captured
) -> None:
    assert main(["estimate", *flags]) == 2
    assert message in capsys.readouterr().err


def test_an_architecture_without_a_known_shape_is_refused(tmp_path: Path, capsys: Captured) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "mamba"}')
    assert main(["estimate", "--model", str(tmp_path)]) == 2
    assert "its shape cannot be derived; supported" in capsys.readouterr().err


LIGHT = """
import contextlib, io, sys
from loractl.cli.main import main
with contextlib.redirect_stdout(io.StringIO()):
    code = main(sys.argv[1:])
heavy = ("torch", "transformers", "safetensors", "numpy", "matplotlib", "pandas")
print(code, [m for m in heavy if m in sys.modules])
"""


def test_neither_command_loads_torch(config_file: Make, tmp_path: Path) -> None:
    for argv in (
        ["estimate", "--model", "7B"],
        ["estimate", str(config_file())],
        ["recommend", "--task", "complex", "--model", "70B", "--memory", "24GB"],
    ):
        done = subprocess.run(
            [sys.executable, "-c", LIGHT, *argv], capture_output=True, text=True, check=True
        )
        assert done.stdout.strip() == "0 []"
