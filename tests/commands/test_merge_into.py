"""Merging after training on a quantized base: into the numbers trained against, or the original."""

import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from loractl.artifacts import probe
from loractl.artifacts.peft.adapter import ABOUT, read
from loractl.artifacts.peft.attach import load_
from loractl.cli.main import main
from loractl.engine import measured_tokens
from loractl.models import load
from loractl.models.load import load_model, locate
from tests.commands.conftest import Capture, Config, assert_refused
from tests.commands.merges import NF4, amend, merge, record
from tests.runs import rows_of, train
from tests.tiny import chat_rows, write_jsonl

Make = Callable[..., Path]
CPU = torch.device("cpu")
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")


def logits_of(source: load.Source, adapter: Path | None, ids: Tensor) -> Tensor:
    model = load_model(source, dtype=torch.float32, device=CPU)
    if adapter is not None:
        load_(model, read(adapter))
    return probe.probe_logits(model, ids)


@pytest.mark.parametrize("into", [None, "trained", "original"])
def test_both_are_written_proven_measured_and_recorded(
    into: str | None, on_nf4: Make, base: Make, capsys: Capture, tmp_path: Path
) -> None:
    adapter, out = on_nf4(), tmp_path / "out"
    assert merge(adapter, out, *(["--into", into] if into else [])) == 0
    said = capsys.readouterr().err
    assert "proven: logits of the merged model (float32)" in said
    assert f"to keep the base in nf4, leave the adapter apart: loractl chat {adapter}" in said

    plain = locate(str(base("llama")))
    ids = probe.probe_ids(load_model(plain, dtype=torch.float32, device=CPU))
    trained = logits_of(replace(plain, quantization=NF4), adapter, ids)
    original = logits_of(plain, adapter, ids)
    merged = logits_of(locate(str(out)), None, ids)
    here, there = (original, trained) if into == "original" else (trained, original)
    torch.testing.assert_close(merged, here, rtol=0, atol=1e-4)
    assert float((merged - there).abs().max()) > 0.1

    found = record(out)
    assert found["base"] == {"name_or_path": str(base("llama"))}
    made = found["merged"]
    assert made["adapter"] == str(adapter) and made["into"] == (into or "trained")
    assert made["quantization"] == {"kind": "nf4", "head": False, "dtype": "float32"}
    difference = made["difference"]
    p, q = (logits.double().log_softmax(-1) for logits in (trained, original))
    assert difference["kl_nats"] == pytest.approx(
        float((p.exp() * (p - q)).sum(-1).mean()), rel=1e-3
    )
    assert difference["largest_logit"] == pytest.approx(
        float((trained - original).abs().max()), abs=1e-4
    )
    same = float((trained.argmax(-1) == original.argmax(-1)).float().mean())
    assert difference["top1_agreement"] == pytest.approx(same)
    assert f"same next token at {same:.1%}" in said
    assert difference["error_to_update"]["layers"] == 14
    assert "median of 14" in said and f"KL {difference['kl_nats']:.3g} nats" in said


def test_the_rows_that_the_run_held_out_are_measured(
    config_file: Config, capsys: Capture, tmp_path: Path
) -> None:
    config = config_file("model: {quantization: nf4-double}", "data: {eval: 0.25}")
    assert train(config) == 0
    figures = []
    for into in ("trained", "original"):
        out = tmp_path / into
        capsys.readouterr()
        assert merge(tmp_path / "run", out, "--into", into) == 0
        said = capsys.readouterr().err
        assert re.search(r"on \d+ trained tokens of 5 held-out rows: logits differ", said), said
        figures.append(record(out)["merged"]["difference"])
    # All rows that the run held out: the loss as trained is what training printed.
    expected = rows_of(tmp_path / "run")[-1]["eval_loss"]
    assert figures[0]["loss"]["trained"] == pytest.approx(expected, rel=1e-5)
    assert figures[0]["loss"]["original"] != pytest.approx(expected, rel=1e-3)
    assert f", loss {expected:.4g} as trained, {figures[0]['loss']['original']:.4g} orig" in said
    assert figures[0]["loss"] == pytest.approx(figures[1]["loss"], rel=1e-4)
    # The same two models, once as base + adapter and once as it was written
    assert figures[0]["kl_nats"] == pytest.approx(figures[1]["kl_nats"], rel=1e-3)
    assert figures[0]["error_to_update"] == figures[1]["error_to_update"]
    rows = tmp_path / "train.jsonl"
    for name in ("trained", "original"):  # what is written is a model like any other
        assert main(["eval", str(tmp_path / name), "--data", str(rows), "--metrics", "loss"]) == 0
        assert main(["generate", "--model", str(tmp_path / name), "--prompt", "1 plus 1?"]) == 0


def test_without_held_out_rows_random_tokens_are_used_and_it_is_said_why(
    on_nf4: Make, capsys: Capture, tmp_path: Path
) -> None:
    adapter = on_nf4()
    assert merge(adapter, tmp_path / "out") == 0
    said = capsys.readouterr().err
    assert "on 128 random tokens, which tell little of real text (no held-out rows: " in said
    assert f"{adapter}: not part of a run" in said and "--data FILE" not in said
    assert "loss" not in said and "loss" not in record(tmp_path / "out")["merged"]["difference"]


@pytest.mark.parametrize(
    ("into", "word"), [("original", "warning: in 14 of 14 layers"), ("trained", "note: in 14 of")]
)
def test_an_update_that_drowns_in_the_error_is_told(
    into: str, word: str, on_nf4: Make, capsys: Capture, tmp_path: Path
) -> None:
    assert merge(on_nf4(size=0.01), tmp_path / "out", "--into", into) == 0
    said = capsys.readouterr().err
    assert word in said and "14 of 14\n" in said
    assert record(tmp_path / "out")["merged"]["difference"]["error_to_update"]["above_10"] == 14


def test_without_verify_nothing_is_measured_and_the_choice_is_recorded(
    on_nf4: Make, capsys: Capture, tmp_path: Path
) -> None:
    assert merge(on_nf4(), tmp_path / "out", "--into", "original", "--no-verify") == 0
    assert "KL" not in capsys.readouterr().err
    made = record(tmp_path / "out")["merged"]
    assert made["into"] == "original" and made["difference"] is None


def test_a_base_without_quantization_is_both_which_is_told_if_one_is_named(
    base: Make, adapter_dir: Make, capsys: Capture, tmp_path: Path
) -> None:
    adapter = adapter_dir(base("llama"))
    for into in ("trained", "original"):
        assert merge(adapter, tmp_path / into, "--into", into) == 0
        said = capsys.readouterr().err
        assert f"note: --into {into} changes nothing: the adapter records no quantization" in said
        assert "KL" not in said and "leave the adapter apart" not in said
        made = record(tmp_path / into)["merged"]
        assert made["into"] == "trained" and made["quantization"] is None
    assert merge(adapter, tmp_path / "out") == 0
    assert "--into" not in capsys.readouterr().err


def test_another_word_is_refused(base: Make, adapter_dir: Make, capsys: Capture) -> None:
    assert merge(adapter_dir(base("llama")), Path("out"), "--into", "orginal") == 2
    assert_refused(capsys, "--into: found 'orginal'", "did you mean original?")


def difference_of_whole_models(where: Path, adapter: Path) -> float:
    """The largest difference in logits that the base's quantization makes, on random tokens."""
    plain, tuned = locate(str(where)), read(adapter)
    model = load_model(plain, dtype=torch.float32, device=CPU)
    load_(model, tuned)
    ids = probe.probe_ids(model, tuned.own_tokens)
    trained = logits_of(replace(plain, quantization=NF4), adapter, ids)
    return float((trained - logits_of(plain, adapter, ids)).abs().max())


def with_stored_head(where: Path, to: Path) -> Path:
    """A copy of a base whose files hold a weight for a head that is tied, so that it cannot be read
    layer by layer."""
    shutil.copytree(where, to)
    content = load_file(to / "model.safetensors")
    content["lm_head.weight"] = content["model.embed_tokens.weight"].clone()
    save_file(content, to / "model.safetensors", metadata={"format": "pt"})
    return to


@pytest.mark.parametrize("into", ["trained", "original"])
def test_an_original_that_cannot_be_read_layer_by_layer_is_loaded_whole(
    into: str, on_nf4: Make, base: Make, tmp_path: Path
) -> None:
    where = with_stored_head(base("llama-tied"), tmp_path / "base")
    adapter = on_nf4(where)
    assert merge(adapter, tmp_path / "out", "--into", into) == 0
    figures = record(tmp_path / "out")["merged"]["difference"]
    expected = difference_of_whole_models(where, adapter)
    assert figures["largest_logit"] == pytest.approx(expected, abs=1e-4)
    assert figures["error_to_update"]["layers"] == 14


@pytest.mark.parametrize("into", ["trained", "original"])
def test_an_adapter_with_rows_of_new_tokens_is_measured_with_them(
    into: str, config_file: Config, base: Make, capsys: Capture, tmp_path: Path
) -> None:
    config = config_file("model: {quantization: nf4, add_tokens: [<new>]}", "train: {steps: 1}")
    assert train(config) == 0
    adapter = tmp_path / "run" / "adapter"
    assert merge(adapter, tmp_path / "out", "--into", into) == 0
    assert capsys.readouterr().err.count("tokenizer.json is used") == 1
    figures = record(tmp_path / "out")["merged"]["difference"]
    expected = difference_of_whole_models(base("llama"), adapter)
    assert figures["largest_logit"] == pytest.approx(expected, abs=1e-4)


def test_the_template_that_a_run_chose_is_recorded(on_nf4: Make, tmp_path: Path) -> None:
    adapter, chosen = on_nf4(), {"is_set": True, "variables": {}}
    assert merge(adapter, tmp_path / "plain", "--no-verify") == 0
    assert "chat_template" not in record(tmp_path / "plain")
    amend(adapter, ABOUT, chat_template=chosen)
    assert merge(adapter, tmp_path / "out", "--no-verify") == 0
    assert record(tmp_path / "out")["chat_template"] == chosen


def test_rows_longer_than_what_is_measured_are_left_out(
    config_file: Config, capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_file("model: {quantization: nf4}", "data: {eval: 0.25}", "train: {steps: 1}")
    assert train(config) == 0
    capsys.readouterr()
    monkeypatch.setattr(measured_tokens, "TOKENS", 50)
    assert merge(tmp_path / "run", tmp_path / "one") == 0
    assert re.search(r"on \d+ trained tokens of 1 held-out row:", capsys.readouterr().err)
    monkeypatch.setattr(measured_tokens, "TOKENS", 5)
    assert merge(tmp_path / "run", tmp_path / "none") == 0
    assert "all rows are longer than 5 tokens" in capsys.readouterr().err


def test_a_base_without_a_tokenizer_is_measured_on_random_tokens(
    on_nf4: Make, base: Make, capsys: Capture, tmp_path: Path
) -> None:
    where = tmp_path / "base"
    shutil.copytree(base("llama"), where, ignore=shutil.ignore_patterns("tokenizer*"))
    run = tmp_path / "run"
    run.mkdir()
    on_nf4(where).rename(run / "adapter")
    rows = write_jsonl(tmp_path / "rows.jsonl", chat_rows())
    (run / "config.yaml").write_text(
        f"model: {{name_or_path: {where}}}\ndata: {{train: {rows}, eval: 0.25}}\n"
    )
    (run / "data.json").write_text("{}")
    assert merge(run, tmp_path / "out") == 0
    assert "(no held-out rows: model" in capsys.readouterr().err
