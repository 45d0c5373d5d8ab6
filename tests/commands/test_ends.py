"""What was trained as the end is a stop everywhere, on a base whose eos is another token, as
Qwen2.5's and Qwen3's base models have it; and what an answer holds survives."""

import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from loractl.artifacts.gguf import llamacpp
from loractl.cli.main import main
from tests.ggufbases import save
from tests.tiny import make_tokenizer, write_jsonl

Capture = pytest.CaptureFixture[str]
END = "<|im_end|>"
CALL = "<|im_start|>yes"  # a special token in an answer, as Mistral's [TOOL_CALLS]
pytestmark = pytest.mark.filterwarnings(
    "ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """base: its eos is <|endoftext|>; lora, full, calls: runs on it; rows.jsonl, calls.jsonl."""
    folder = tmp_path_factory.mktemp("ends")
    tokenizer = make_tokenizer()
    tokenizer.eos_token = tokenizer.pad_token = "<|endoftext|>"
    save(folder / "base", "llama", tokenizer)
    for name, answer in (("rows", "yes yes"), ("calls", CALL)):
        rows = [
            {"messages": [{"role": "user", "content": f"Is it {i}?"},
                          {"role": "assistant", "content": answer}]}
            for i in range(8)
        ]  # fmt: skip
        write_jsonl(folder / f"{name}.jsonl", rows)  # type: ignore[arg-type]
    for name, data, method in (
        ("lora", "rows", "lora"), ("full", "rows", "full"), ("calls", "calls", "lora")
    ):  # fmt: skip
        rate = 2e-3 if method == "full" else 1e-2
        # Without an adapter on the head the random model stays unsure of the answer.
        targets = "[q_proj, v_proj, up_proj, down_proj, lm_head]"
        (folder / f"{name}.yaml").write_text(
            f"model: {{name_or_path: '{folder / 'base'}', dtype: float32}}\n"
            f"method: {method}\n"
            f"lora: {{target_modules: {targets}}}\n"
            f"data: {{train: '{folder / data}.jsonl', eval: '{folder / data}.jsonl'}}\n"
            f"train: {{steps: 40, batch_size: 8, learning_rate: {rate}}}\n"
            f"out: {folder / name}\n"
        )  # fmt: skip
        assert main(["train", str(folder / f"{name}.yaml")]) == 0
        last = (folder / name / "metrics.jsonl").read_text("utf-8").splitlines()[-1]
        assert json.loads(last)["eval_loss"] < 0.3, "it knows the answer"
    return folder


def ask(capsys: Capture, *words: str) -> list[dict[str, Any]]:
    capsys.readouterr()
    assert (
        main(["generate", "--prompt", "Is it 3?", "--max-new-tokens", "20", "--json", *words]) == 0
    )
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]  # fmt: skip


def written(directory: Path) -> str:
    """What transformers writes with a model directory, by its own settings alone."""
    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Is it 3?"}], add_generation_prompt=True, return_tensors="pt"
    )["input_ids"]
    out = model.generate(
        input_ids=ids, attention_mask=ids * 0 + 1, do_sample=False, max_new_tokens=20
    )
    return str(tokenizer.decode(out[0, ids.shape[1] :]))


def test_a_run_records_its_ends(folder: Path) -> None:
    for place in ("lora/adapter", "full/model"):
        about = json.loads((folder / place / "loractl.json").read_text())
        assert about["ends"] == [END]


@pytest.mark.parametrize("tells", [True, False])
def test_generate_and_chat_stop_at_the_trained_end(
    tells: bool, folder: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shutil.copytree(folder / "lora" / "adapter", tmp_path / "a")
    if not tells:
        (tmp_path / "a" / "loractl.json").unlink()
    (answer,) = ask(capsys, "--adapter", str(tmp_path / "a"))
    assert (answer["text"], answer["finish_reason"]) == ("yes yes", "stop")
    monkeypatch.setattr("sys.stdin", io.StringIO("Is it 3?\n/compare\n"))
    assert main(["chat", "--adapter", f"a={tmp_path / 'a'}", "--max-new-tokens", "20"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "yes yes" and out[-2:] == ["[a]", "yes yes"]


@pytest.mark.parametrize(
    ("name", "text"), [("lora", "yes yes"), ("calls", CALL), ("full", "yes yes")]
)
def test_eval_finds_the_answers_exact(
    name: str, text: str, folder: Path, capsys: Capture, tmp_path: Path
) -> None:
    rows = tmp_path / "rows.jsonl"
    words = ["--metrics", "exact_match", "--max-new-tokens", "20", "--rows", str(rows), "--json"]
    capsys.readouterr()
    assert main(["eval", str(folder / name), *words]) == 0
    _, tuned = json.loads(capsys.readouterr().out)
    assert tuned["exact_match"]["value"] == 1.0
    answers = [json.loads(line)["answer"] for line in rows.read_text().splitlines()]
    assert answers[8:] == [text] * 8


def test_generate_with_a_model_trained_whole_stops(folder: Path, capsys: Capture) -> None:
    (answer,) = ask(capsys, "--model", str(folder / "full"))
    assert (answer["text"], answer["finish_reason"]) == ("yes yes", "stop")
    assert written(folder / "full" / "model") == f"yes yes{END}"


def test_a_merged_model_lists_the_end_and_stops_in_transformers(
    folder: Path, tmp_path: Path
) -> None:
    assert main(["merge", str(folder / "lora"), "--out", str(tmp_path / "merged")]) == 0
    config = json.loads((tmp_path / "merged" / "generation_config.json").read_text())
    assert config["eos_token_id"] == [0, 2]
    assert written(tmp_path / "merged") == f"yes yes{END}"


def test_files_for_llama_cpp_and_ollama_name_the_end(folder: Path, tmp_path: Path) -> None:
    from gguf import GGUFReader

    out = tmp_path / "m"
    words = ["--out", str(out), "--no-verify"]
    assert main(["export", str(folder / "lora"), "--to", "ollama", *words]) == 0
    assert f'PARAMETER stop "{END}"' in (out / "Modelfile").read_text()
    fields = GGUFReader(out / "model.gguf").fields
    ids = {role: fields[f"tokenizer.ggml.{role}_token_id"].contents() for role in ("eos", "eot")}
    assert ids == {"eos": 0, "eot": 2}


@pytest.mark.skipif(not llamacpp.is_installed(), reason="llama-cpp-python is not installed")
def test_llama_cpp_stops_at_the_end(folder: Path, tmp_path: Path) -> None:
    from llama_cpp import Llama

    out = tmp_path / "m.gguf"
    assert main(["export", str(folder / "lora"), "--to", "merged-gguf", "--out", str(out)]) == 0
    model = Llama(str(out), n_ctx=128, verbose=False)
    said = model.create_chat_completion(
        [{"role": "user", "content": "Is it 3?"}], max_tokens=20, temperature=0.0
    )
    choice = said["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("yes yes", "stop")
    model.close()
