"""data.chat_template and data.template_variables from the config to every command that reads what
was trained: one template, the same tokens."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import AutoTokenizer

from loractl.cli.main import main
from loractl.data import examples
from loractl.data.chat_templates import built_in
from loractl.engine.speakers import open_hub
from loractl.records import UNTRAINED, Conversation, Message
from tests.commands.conftest import Capture, Config, assert_refused
from tests.commands.test_check import check, finding
from tests.runs import train
from tests.tiny import chat_rows, make_tokenizer, save_tiny, write_jsonl

THINKING = (
    "\n{%- for m in messages %}\n"
    "{{- '<|im_start|>' + m.role + '\n' }}"
    "{%- if m.role == 'assistant' and enable_thinking is defined and enable_thinking is false %}"
    "{{- '<think></think>' }}{% endif %}{{ m.content + '<|im_end|>\n' }}"
    "{%- endfor %}\n"
    "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}{{ '<think></think>' }}"
    "{%- endif %}{%- endif %}\n"
)
"""Qwen3's way: without thinking the prompt has the empty thoughts, which answers repeat."""
TURNS = [
    {"role": role, "content": text}
    for role, text in (("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"))
]


def make_base(folder: Path, template: Any) -> Path:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = template
    save_tiny(folder, tokenizer, "llama")
    return folder


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base without a chat template."""
    return make_base(tmp_path_factory.mktemp("bare"), None)


@pytest.fixture(scope="module")
def thinking(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("thinking"), THINKING)


@pytest.fixture
def several_turns(tmp_path: Path) -> str:
    path = write_jsonl(tmp_path / "turns.jsonl", [{"messages": TURNS}] * 4)
    return f"train: '{path}', eval: '{path}'"


def trained_prefix(directory: Path, data: Path) -> list[int]:
    """The ids before the first trained one of the first row, with the tokenizer of a directory."""
    tokenizer = AutoTokenizer.from_pretrained(directory)
    reading = examples.Reading("auto", 256, "assistant", "error")
    example = examples.load(str(data), tokenizer, reading)[0][0]
    first = next(n for n, label in enumerate(example.labels) if label != UNTRAINED)
    return list(example.ids[:first])


def test_a_base_without_a_template_trains_on_several_turns_with_one_that_is_named(
    bare: Path, config_file: Config, several_turns: str, tmp_path: Path, capsys: Capture
) -> None:
    refused = config_file(f"data: {{{several_turns}}}", model=bare)
    assert train(refused) == 2
    first = capsys.readouterr().err.splitlines()[0]
    assert "turns.jsonl:1: the tokenizer has no chat template" in first
    assert "set data.chat_template (chatml, or a file)" in first
    config = config_file(f"data: {{{several_turns}, chat_template: chatml}}", model=bare)
    assert train(config) == 0
    adapter = tmp_path / "run" / "adapter"
    assert (adapter / "chat_template.jinja").read_text() == built_in("chatml")
    opened = open_hub(None, {"a": adapter}, "float32")
    ids = opened.prompt_ids("a", [Message(m["role"], m["content"]) for m in TURNS[:3]])
    text = opened.tokenizer.decode(ids)
    assert text.endswith("<|im_end|>\n<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n")
    capsys.readouterr()
    assert main(["eval", str(tmp_path / "run"), "--json"]) == 0
    untuned, tuned = json.loads(capsys.readouterr().out)
    assert tuned["loss"]["value"] < untuned["loss"]["value"]  # the base reads the same tokens


@pytest.mark.parametrize("value", [True, False])
def test_generation_begins_from_the_trained_tokens_whatever_the_variable_says(
    value: bool, thinking: Path, config_file: Config, train_file: Path, tmp_path: Path
) -> None:
    variable = f"template_variables: {{enable_thinking: {json.dumps(value)}}}"
    assert train(config_file(f"data: {{{variable}}}", model=thinking)) == 0
    adapter = tmp_path / "run" / "adapter"
    opened = open_hub(None, {"a": adapter}, "float32")
    asked = [Message("user", str(chat_rows()[0]["messages"][0]["content"]))]  # type: ignore[index]
    ids = opened.prompt_ids("a", asked)
    text = opened.tokenizer.decode(ids)
    assert text.endswith("<think></think>") is not value
    merged = tmp_path / "merged"
    assert main(["merge", str(tmp_path / "run"), "--out", str(merged)]) == 0
    assert ids == trained_prefix(merged, train_file)
    template = (adapter / "chat_template.jinja").read_text()
    assert (merged / "chat_template.jinja").read_text() == template
    peft = tmp_path / "peft"
    assert main(["export", str(tmp_path / "run"), "--to", "peft", "--out", str(peft)]) == 0
    assert (peft / "chat_template.jinja").read_text() == template


def test_a_gguf_file_has_the_template_with_its_defaults(
    thinking: Path, config_file: Config, tmp_path: Path
) -> None:
    gguf = pytest.importorskip("gguf")
    variable = "template_variables: {enable_thinking: false}"
    assert train(config_file(f"data: {{{variable}}}", model=thinking)) == 0
    out = tmp_path / "model.gguf"
    export = ["export", str(tmp_path / "run"), "--to", "merged-gguf", "--out", str(out)]
    assert main([*export, "--no-verify"]) == 0
    field = gguf.GGUFReader(out).fields["tokenizer.chat_template"]
    template = (tmp_path / "run" / "adapter" / "chat_template.jinja").read_text()
    assert field.contents() == template and "else false" in template


def test_full_fine_tuning_puts_the_template_into_the_model(
    thinking: Path, config_file: Config, train_file: Path, tmp_path: Path, capsys: Capture
) -> None:
    variable = "template_variables: {enable_thinking: false}"
    held_out = f"eval: '{train_file}'"
    config = config_file("method: full", f"data: {{{variable}, {held_out}}}", model=thinking)
    plain = yaml.safe_load(config.read_text())
    del plain["lora"]
    config.write_text(yaml.safe_dump(plain))
    assert train(config) == 0
    model = tmp_path / "run" / "model"
    text = AutoTokenizer.from_pretrained(model).decode(trained_prefix(model, train_file))
    assert text.endswith("<|im_start|>assistant\n<think></think>")
    capsys.readouterr()
    assert main(["eval", str(tmp_path / "run"), "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 2


def test_a_model_with_several_templates_keeps_both_with_the_variable(
    config_file: Config, tmp_path: Path
) -> None:
    named = {"default": THINKING, "tool_use": "TOOLS" + THINKING}
    base = make_base(tmp_path / "base", named)
    variable = "template_variables: {enable_thinking: false}"
    assert train(config_file(f"data: {{{variable}}}", model=base)) == 0
    opened = open_hub(None, {"a": tmp_path / "run"}, "float32")
    for tools, start in ([], "<|im_start|>user"), ([{"name": "f"}], "TOOLS"):
        ids = opened.ask("a", Conversation((Message("user", "x"),), tuple(tools))).ids
        text = opened.tokenizer.decode(ids)
        assert text.strip().startswith(start) and text.endswith("<think></think>")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ("template_variables: {enable_thinkin: false}", "expected enable_thinking; did you mean"),
        ("chat_template: chatlm", "did you mean chatml?"),
    ],
)
@pytest.mark.parametrize("command", ["train", "check"])
def test_what_the_template_cannot_take_is_refused_by_line(
    command: str, settings: str, words: str, thinking: Path, config_file: Config, capsys: Capture
) -> None:
    config = config_file(f"data: {{{settings}}}", model=thinking)
    key = settings.partition(":")[0]
    line = next(n for n, text in enumerate(config.read_text().splitlines(), 1) if key in text)
    line += key == "template_variables"
    assert main([command, str(config)]) == 2
    assert_refused(capsys, f"{config}:{line}: data.{key}", words)


def test_check_says_which_markers_the_tokenizer_lacks(
    bare: Path, config_file: Config, several_turns: str, capsys: Capture
) -> None:
    good = config_file(f"data: {{{several_turns}, chat_template: chatml}}", model=bare)
    assert finding(check(good, capsys), "markers")["state"] == "ok"
    other = config_file(f"data: {{{several_turns}, chat_template: gemma}}", model=bare)
    note = finding(check(other, capsys), "markers")
    assert note["state"] == "note"
    assert 'model.add_tokens: ["<start_of_turn>", "<end_of_turn>"]' in note["text"]


def test_a_variable_is_set_from_the_command_line(
    thinking: Path, config_file: Config, tmp_path: Path
) -> None:
    config = config_file(model=thinking)
    assert train(config, "--set", "data.template_variables.enable_thinking=false") == 0
    about = json.loads((tmp_path / "run" / "adapter" / "loractl.json").read_text())
    assert about["chat_template"] == {"is_set": True, "variables": {"enable_thinking": False}}
    opened = open_hub(None, {"a": tmp_path / "run"}, "float32")
    text = opened.tokenizer.decode(opened.prompt_ids("a", [Message("user", "x")]))
    assert text.endswith("<think></think>")


def test_a_combination_of_adapters_says_that_their_template_was_set(
    thinking: Path, config_file: Config, tmp_path: Path
) -> None:
    variable = "template_variables: {enable_thinking: false}"
    assert train(config_file(f"data: {{{variable}}}", model=thinking)) == 0
    run, made = tmp_path / "run", tmp_path / "made"
    combine = ["adapters", "combine", str(run), str(run / "checkpoints" / "step-000002")]
    assert main([*combine, "--how", "cat", "--out", str(made)]) == 0
    about, of_run = (json.loads((d / "loractl.json").read_text()) for d in (made, run / "adapter"))
    assert about["chat_template"] == of_run["chat_template"]


@pytest.fixture
def stopped(
    bare: Path, config_file: Config, several_turns: str, tmp_path: Path, stop_after: Any
) -> Path:
    """The config of a run that stopped, whose template stands in a file."""
    (tmp_path / "own.jinja").write_text(built_in("chatml"))
    template = f"chat_template: '{tmp_path / 'own.jinja'}'"
    config = config_file(f"data: {{{several_turns}, {template}}}", model=bare)
    stop_after(2)
    assert train(config) == 130
    return config


def test_a_run_resumes_from_its_own_config_anywhere_without_the_templates_file(
    stopped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_after: Any
) -> None:
    (tmp_path / "own.jinja").unlink()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    shutil.copy(tmp_path / "run" / "config.yaml", "again.yaml")
    stop_after(99)
    assert train(Path("again.yaml"), "--resume") == 0
    template = tmp_path / "run" / "adapter" / "chat_template.jinja"
    assert template.read_text() == built_in("chatml")


def test_a_template_that_was_edited_meanwhile_is_refused(
    stopped: Path, tmp_path: Path, capsys: Capture
) -> None:
    (tmp_path / "own.jinja").write_text(built_in("chatml") + "{# another #}")
    capsys.readouterr()
    assert train(stopped, "--resume") == 3
    assert_refused(
        capsys, "data.chat_template: the text of the template changed since the run started"
    )
    (tmp_path / "own.jinja").write_text(built_in("chatml"))
    assert train(stopped, "--resume") == 0


def test_a_run_begun_before_the_keys_existed_resumes(
    config_file: Config, tmp_path: Path, stop_after: Any
) -> None:
    config = config_file()
    stop_after(2)
    assert train(config) == 130
    path = tmp_path / "run" / "config.yaml"
    written = yaml.safe_load(path.read_text())
    del written["data"]["chat_template"], written["data"]["template_variables"]
    path.write_text(yaml.safe_dump(written, sort_keys=False))
    stop_after(99)
    assert train(config, "--resume") == 0
    assert (tmp_path / "run" / "adapter").is_dir()


def test_a_relative_path_counts_from_the_working_directory_as_data_does(
    bare: Path,
    config_file: Callable[..., Path],
    several_turns: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Capture,
) -> None:
    (tmp_path / "own.jinja").write_text(built_in("phi3"))
    config = config_file(f"data: {{{several_turns}, chat_template: own.jinja}}", model=bare)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert main(["check", str(config)]) == 2
    assert_refused(capsys, "data.chat_template: ", "next to the config")
    monkeypatch.chdir(tmp_path)
    assert main(["check", str(config)]) == 0


@pytest.mark.parametrize(("end", "name"), [("<|im_end|>", "chatml"), ("</s>", "vicuna")])
def test_init_and_recommend_name_a_template_where_the_base_has_none_and_the_rows_need_one(
    end: str, name: str, bare: Path, tmp_path: Path, several_turns: str, capsys: Capture
) -> None:
    base = shutil.copytree(bare, tmp_path / "base")
    for path in (base / "tokenizer.json", base / "tokenizer_config.json"):
        path.write_text(path.read_text().replace("<|im_end|>", end))
    asked = ["--model", str(base), "--data", str(tmp_path / "turns.jsonl")]
    config = tmp_path / "first.yaml"
    assert main(["init", *asked, "--out", str(config)]) == 0
    assert yaml.safe_load(config.read_text())["data"]["chat_template"] == name
    assert main(["check", str(config)]) == 0
    other = tmp_path / "other.yaml"
    capsys.readouterr()
    assert main(["recommend", "--task", "simple", *asked, "--write", str(other)]) == 0
    assert f"data.chat_template: {name}" in capsys.readouterr().out.replace("\n", " ")
    assert yaml.safe_load(other.read_text())["data"]["chat_template"] == name
    one = write_jsonl(tmp_path / "one.jsonl", [{"messages": TURNS[:2]}] * 8)
    single = [*asked[:-1], str(one), "--out", str(tmp_path / "single.yaml")]
    assert main(["init", *single]) == 0
    assert "chat_template" not in yaml.safe_load((tmp_path / "single.yaml").read_text())["data"]
