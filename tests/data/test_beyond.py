"""Tokens without a row: found in the rows by file and line, wherever a command reads them."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from loractl.cli.main import main
from loractl.data import beyond, examples
from loractl.data.store import Mixture
from loractl.data.store_cache import Cache
from tests.commands.conftest import assert_refused
from tests.tiny import make_tokenizer, write_jsonl

Make = Callable[..., Path]
Capture = pytest.CaptureFixture[str]
NEW = ["<|new1|>", "<|new2|>"]
ROW = {"prompt": "<|new1|> hi", "completion": "ok <|new2|>"}
PLAIN = {"prompt": "hi", "completion": "ok"}


@pytest.fixture(scope="module")
def unresized(base: Make, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base with two special tokens added to its tokenizer, whose embedding has no rows for
    them."""
    model = shutil.copytree(base("llama"), tmp_path_factory.mktemp("unresized") / "base")
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.add_special_tokens({"additional_special_tokens": NEW})
    tokenizer.save_pretrained(model)
    return model


@pytest.fixture(scope="module")
def n_rows(unresized: Path) -> int:
    return len(make_tokenizer())


@pytest.mark.parametrize("command", ["check", "train"])
def test_a_row_with_a_token_beyond_the_embedding_is_refused_before_any_step(
    command: str, unresized: Path, n_rows: int, config_file: Make, tmp_path: Path, capsys: Capture
) -> None:
    rows = write_jsonl(tmp_path / "rows.jsonl", [PLAIN, PLAIN, ROW])
    config = config_file(f"data: {{train: {rows}}}", model=unresized)
    assert main([command, str(config)]) == 2
    what = f"{rows}:3: token '<|new1|>' (id {n_rows}) is beyond the {n_rows} rows of the model's"
    assert_refused(capsys, what, "list it in model.add_tokens", "has been resized")
    assert not (tmp_path / "run").exists()


def test_held_out_rows_are_looked_at_too(
    unresized: Path, config_file: Make, tmp_path: Path, capsys: Capture
) -> None:
    train = write_jsonl(tmp_path / "rows.jsonl", [PLAIN] * 3)
    held = write_jsonl(tmp_path / "held.jsonl", [PLAIN, ROW])
    config = config_file(f"data: {{train: {train}, eval: {held}}}", model=unresized)
    assert main(["check", str(config)]) == 2
    assert_refused(capsys, f"{held}:2: token '<|new1|>'")


def test_rows_without_such_a_token_are_trained_on(
    unresized: Path, config_file: Make, tmp_path: Path
) -> None:
    rows = write_jsonl(tmp_path / "rows.jsonl", [PLAIN] * 3)
    assert main(["train", str(config_file(f"data: {{train: {rows}}}", model=unresized))]) == 0


@pytest.mark.parametrize("metrics", ["loss", "exact_match"])
def test_eval_names_the_row(
    metrics: str, unresized: Path, adapter_dir: Make, tmp_path: Path, capsys: Capture
) -> None:
    rows = write_jsonl(tmp_path / "rows.jsonl", [PLAIN, ROW])
    words = [str(adapter_dir(unresized)), "--data", str(rows), "--metrics", metrics]
    assert main(["eval", *words]) == 2
    assert_refused(capsys, f"{rows}:2: token '<|new1|>'", "an adapter trained with model.add_token")


def test_generate_names_the_prompt(unresized: Path, tmp_path: Path, capsys: Capture) -> None:
    prompts = write_jsonl(tmp_path / "prompts.jsonl", [{"prompt": "hi"}, {"prompt": "<|new2|>"}])
    assert main(["generate", "--model", str(unresized), "--prompts", str(prompts)]) == 2
    assert_refused(capsys, f"{prompts}:2: token '<|new2|>'", "has been resized")
    assert main(["generate", "--model", str(unresized), "--prompt", "a <|new1|>"]) == 2
    assert_refused(capsys, "--prompt: token '<|new1|>'")


def test_chat_says_it_and_goes_on(
    unresized: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = iter(["<|new1|> hi", None])
    monkeypatch.setattr("loractl.console.ask", lambda prompt: next(lines))
    assert main(["chat", "--model", str(unresized)]) == 0
    assert_refused(capsys, "base: token '<|new1|>'")


@pytest.fixture
def load(unresized: Path, tmp_path: Path) -> Callable[..., Any]:
    """load(rows) -> a store of them, as the unresized base's tokenizer reads them."""

    def make(rows: list[dict[str, Any]], name: str = "rows.jsonl") -> Any:
        tokenizer = AutoTokenizer.from_pretrained(unresized)
        reading = examples.Reading("auto", 64, "assistant", "error")
        path = write_jsonl(tmp_path / name, rows)
        return examples.load(str(path), tokenizer, reading, cache=Cache(tmp_path / "cache"))[0]

    return make


def test_every_block_of_every_store_is_searched(
    load: Any, unresized: Path, n_rows: int, tmp_path: Path
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(unresized)
    mixture = Mixture([load([PLAIN] * 5), load([PLAIN] * 7 + [ROW], "more.jsonl")])
    for store in mixture.stores:
        usual = store.blocks
        store.blocks = lambda usual=usual: usual(5)
    with pytest.raises(Exception, match=r"more.jsonl:8: token '<\|new1\|>'"):
        beyond.require_rows(mixture, tokenizer, n_rows, cure="")
    assert beyond.used_ids(mixture, [n_rows, n_rows + 1, 9999]) == {n_rows, n_rows + 1}
    beyond.require_rows(mixture, tokenizer, n_rows + 2, cure="")


def test_ids_are_those_of_the_examples_whatever_is_trained(load: Any) -> None:
    store = load([PLAIN, ROW] * 3)
    found = [index for _, ids in store.blocks(7) for index in ids.tolist()]
    assert found == [index for example in store for index in example.ids]


def test_nothing_is_read_where_the_tokenizer_fits(n_rows: int) -> None:
    tokenizer = make_tokenizer()
    assert beyond.count_ids(tokenizer) == n_rows
    beyond.require_rows([], tokenizer, n_rows, cure="")
