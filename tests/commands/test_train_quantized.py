"""Runs on a base in 4 or 8 bits, from config to merged model: like PEFT and bitsandbytes, and exact
after a stop."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from loractl.cli.main import main
from loractl.config.loader import load as load_config
from loractl.engine import session as sessions
from loractl.records import UNTRAINED, DataState
from tests.commands.conftest import Capture, Config, assert_refused
from tests.runs import rows_of, timeless, train

Make = Callable[..., Path]
KINDS = ("nf4", "nf4-double", "int8")
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")


def quantization(kind: str) -> str:
    return f"model: {{quantization: {kind}}}"


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("nf4", ["lora: {dropout: 0.2}"]),
        ("nf4-double", ["method: dora"]),
        pytest.param("int8", ["lora: {init: pissa}"], marks=pytest.mark.slow),
        pytest.param(
            "nf4-double",
            ["method: adalora",
             "lora: {rank: 8, adalora: {initial_rank: 4, target_rank: 2, warmup_steps: 1,"
             " final_steps: 1, every: 1}}"],
            marks=pytest.mark.slow,
        ),
    ],
)  # fmt: skip
def test_a_stopped_run_goes_on_bit_for_bit(
    kind: str, more: list[str], config_file: Config, tmp_path: Path,
    stop_after: Callable[..., None], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    config = config_file(quantization(kind), *more)
    whole = tmp_path / "whole"
    assert train(config, "--out", str(whole)) == 0
    stop_after(3)
    assert train(config) == 130
    monkeypatch.undo()
    assert train(config, "--resume") == 0
    run = tmp_path / "run"
    for name in (
        "adapter/adapter_model.safetensors",
        "checkpoints/step-000004/optimizer.safetensors",
    ):
        assert (run / name).read_bytes() == (whole / name).read_bytes()
    assert timeless(run) == timeless(whole)


@pytest.mark.parametrize("kind", KINDS)
def test_the_adapter_records_the_packing_and_every_command_follows_it(
    kind: str, config_file: Config, tmp_path: Path, capsys: Capture
) -> None:
    config = config_file(quantization(kind), "data: {eval: 0.25}")
    assert main(["check", str(config)]) == 0
    assert f"14 linear layers in {kind}" in capsys.readouterr().out
    assert train(config) == 0
    run = tmp_path / "run"
    about = json.loads((run / "adapter" / "loractl.json").read_text())
    assert about["quantization"] == {"kind": kind, "head": False}
    expected = rows_of(run)[-1]["eval_loss"]
    capsys.readouterr()
    assert main(["eval", str(run), "--metrics", "loss", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    (loss,) = [row["loss"]["value"] for row in found if row["model"] == "run"]
    assert loss == pytest.approx(expected, rel=1e-5)
    assert main(["generate", "--prompt", "1 plus 1?", "--adapter", f"a={run}"]) == 0
    assert main(["inspect", str(run)]) == 0
    capsys.readouterr()
    merged = tmp_path / "merged"
    assert main(["merge", str(run), "--out", str(merged)]) == 0
    assert "proven: logits of the merged model" in capsys.readouterr().err
    assert main(["export", str(run), "--to", "peft", "--out", str(tmp_path / "peft")]) == 0


def losses_of(run: Path) -> list[float]:
    return [row["loss"] for row in rows_of(run) if "loss" in row]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["nf4", "nf4-double"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_twenty_losses_are_those_of_peft_with_bitsandbytes(
    kind: str, dtype: str, config_file: Config, base: Make, tmp_path: Path
) -> None:
    pytest.importorskip("bitsandbytes", reason="bitsandbytes judges the losses")
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    config = config_file(
        f"model: {{quantization: {kind}, dtype: {dtype}}}",
        "train: {steps: 20, batch_size: 4, learning_rate: 3e-3, schedule: constant, warmup: 0}",
        "data: {packing: false}",
    )
    session = sessions.assemble(load_config(config))
    torch.manual_seed(0)
    plain = AutoModelForCausalLM.from_pretrained(
        base(),
        dtype=getattr(torch, dtype),
        device_map="cpu",
        quantization_config=BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=kind == "nf4-double",
            bnb_4bit_compute_dtype=getattr(torch, dtype),
        ),
    )
    targets = sorted({name.rpartition(".")[2] for name in session.layers})
    theirs = get_peft_model(plain, LoraConfig(r=4, lora_alpha=8, target_modules=targets))
    trained = []
    for name, module in theirs.named_modules():
        path = name.removeprefix("base_model.model.")
        if path in session.layers:
            with torch.no_grad():
                module.lora_A["default"].weight.copy_(session.layers[path].A)
                module.lora_B["default"].weight.copy_(session.layers[path].B)
            trained.append(path)
    assert set(trained) == set(session.layers)
    parameters = [p for p in theirs.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=3e-3, weight_decay=0.0)
    theirs.train()
    expected = []
    for (window, _), _ in zip(session.windows(DataState(0, 0)), range(20), strict=False):
        (batch,) = window
        logits = theirs(input_ids=batch.input_ids).logits[:, :-1].float()
        loss = F.cross_entropy(
            logits.flatten(0, 1), batch.labels[:, 1:].flatten(), ignore_index=UNTRAINED
        )
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        expected.append(loss.item())
    assert train(config) == 0
    tolerance = 2e-4 if dtype == "float32" else 3e-2
    assert losses_of(tmp_path / "run") == pytest.approx(expected, rel=tolerance)


def test_what_cannot_be_combined_says_why(config_file: Config, base: Make, capsys: Capture) -> None:
    assert train(config_file(quantization("nf4"), "method: full")) == 2
    assert_refused(capsys, "model.quantization", "method: full trains every weight")
    assert train(config_file("model: {quantize_head: true}")) == 2
    assert_refused(capsys, "model.quantize_head", "model.quantization is none")
    head = "model: {quantization: nf4, quantize_head: true}"
    assert train(config_file(head, "model: {add_tokens: [<a>]}")) == 2
    assert_refused(capsys, "model.quantize_head", "cannot grow")
    assert train(config_file(head, model=base("llama-tied"))) == 2
    assert_refused(capsys, "shares the weight of the embedding", "model.quantize_head")
    assert (
        train(
            config_file(
                quantization("nf4"),
                "lora: {modules_to_save: [down_proj]}",
                "lora: {target_modules: [q_proj]}",
            )
        )
        == 2
    )
    assert_refused(capsys, "lora.modules_to_save", "quantized")


def test_a_quantized_head_is_trained_through(config_file: Config, tmp_path: Path) -> None:
    config = config_file(
        "model: {quantization: int8, quantize_head: true}",
        "lora: {target_modules: [q_proj, lm_head]}",
    )
    assert train(config) == 0
    losses = losses_of(tmp_path / "run")
    assert losses[-1] < losses[0]
    assert main(["merge", str(tmp_path / "run"), "--out", str(tmp_path / "merged")]) == 0
