"""An adapter that brings a tokenizer of its own, as trainers save it beside one: its tokens, end
and chat template are used by every command, or it is refused by name."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from loractl.cli.main import main
from loractl.engine.speakers import open_hub
from loractl.records import Message
from tests.commands.conftest import assert_refused
from tests.ggufbases import UNUSED_ROWS, save
from tests.tiny import CHATML, make_tokenizer, write_jsonl

Make = Callable[..., Path]
Capture = pytest.CaptureFixture[str]
NEW = "<relevant>"
pytestmark = pytest.mark.filterwarnings(
    "ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"
)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base with spare rows and without a chat template, whose eos is <|endoftext|>."""
    tokenizer = make_tokenizer()
    tokenizer.chat_template = None
    tokenizer.eos_token = tokenizer.pad_token = "<|endoftext|>"
    return save(tmp_path_factory.mktemp("plain"), "llama", tokenizer)


def own_tokenizer(n_new: int = 1) -> Any:
    tokenizer = copy.deepcopy(make_tokenizer())
    tokenizer.add_tokens([NEW, *(f"<new{i}>" for i in range(1, n_new))], special_tokens=True)
    return tokenizer


@pytest.fixture(params=["in a file", "in tokenizer_config.json"])
def adapter(request: Any, plain: Path, adapter_dir: Make) -> Path:
    """An adapter for `plain` with such a tokenizer, its template in either of its two places."""
    directory = adapter_dir(plain, size=0.05)
    (directory / "loractl.json").unlink()
    own_tokenizer().save_pretrained(directory)
    if request.param != "in a file":
        (directory / "chat_template.jinja").unlink()
        path = directory / "tokenizer_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": CHATML}))
    return directory


def test_its_tokens_template_and_end_are_used(plain: Path, adapter: Path, capsys: Capture) -> None:
    opened = open_hub(None, {"a": adapter}, "float32")
    new = own_tokenizer().convert_tokens_to_ids(NEW)
    ids = opened.prompt_ids("a", [Message("user", NEW)])
    assert ids.count(new) == 1 and ids[0] == opened.tokenizer.convert_tokens_to_ids("<|im_start|>")
    assert opened.prompt_ids(None, [Message("user", NEW)]).count(new) == 0
    assert opened.speech("a").text([new]) == NEW
    assert set(opened.speech("a").stops) == {0, 2}
    said = capsys.readouterr().err
    where = adapter / "tokenizer.json"
    assert f"note: {where} is used; 1 of its tokens are not the base's, the first: '{NEW}'" in said


@pytest.mark.parametrize("to", ["merge", "peft", "resize", "combine"])
def test_it_is_passed_on(to: str, adapter: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = {
        "merge": ["merge", str(adapter)],
        "peft": ["export", str(adapter), "--to", "peft"],
        "resize": ["adapters", "resize", str(adapter), "--rank", "2"],
        "combine": ["adapters", "combine", "--adapter", f"a={adapter}", "--how", "cat"],
    }[to]
    assert main([*command, "--out", str(out)]) == 0
    expected = AutoTokenizer.from_pretrained(adapter)
    found = AutoTokenizer.from_pretrained(out)
    assert found.get_vocab() == expected.get_vocab() and NEW in found.get_vocab()
    assert (found.eos_token, found.chat_template) == (expected.eos_token, CHATML)


def test_llama_cpp_gets_it_too(adapter: Path, tmp_path: Path) -> None:
    from gguf import GGUFReader

    out = tmp_path / "m.gguf"
    assert main(["export", str(adapter), "--to", "merged-gguf", "--out", str(out)]) == 0
    fields = GGUFReader(out).fields
    tokens = fields["tokenizer.ggml.tokens"].contents()
    assert tokens[own_tokenizer().convert_tokens_to_ids(NEW)] == NEW
    assert fields["tokenizer.chat_template"].contents() == CHATML


def test_eval_measures_with_it(adapter: Path, capsys: Capture, tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "rows.jsonl", [{"prompt": "a", "completion": f"{NEW} b"}] * 2)
    rows = tmp_path / "rows-out.jsonl"
    words = ["--data", str(data), "--metrics", "loss", "--rows", str(rows), "--dtype", "float32"]
    assert main(["eval", str(adapter), *words]) == 0
    base, tuned = (json.loads(rows.read_text().splitlines()[at])["tokens"] for at in (0, 2))
    plain_ids = make_tokenizer()(f"{NEW} b", add_special_tokens=False)["input_ids"]
    own_ids = own_tokenizer()(f"{NEW} b", add_special_tokens=False)["input_ids"]
    assert (base, tuned) == (len(plain_ids) + 1, len(own_ids) + 1)


@pytest.mark.parametrize("command", ["generate", "merge", "export", "eval"])
def test_tokens_that_the_base_has_no_row_for_are_refused_by_name(
    command: str, plain: Path, adapter_dir: Make, capsys: Capture, tmp_path: Path
) -> None:
    directory = adapter_dir(plain)
    own_tokenizer(UNUSED_ROWS + 2).save_pretrained(directory)
    data = write_jsonl(tmp_path / "rows.jsonl", [{"prompt": "a", "completion": "b"}])
    out = ["--out", str(tmp_path / "out")]
    words = {
        "generate": ["--adapter", str(directory), "--prompt", "a"],
        "merge": [str(directory), *out],
        "export": [str(directory), "--to", "merged-gguf", *out],
        "eval": [str(directory), "--data", str(data)],
    }[command]
    assert main([command, *words]) == 2
    first = f"<new{UNUSED_ROWS}>"
    assert_refused(capsys, str(directory / "tokenizer.json"), "2 tokens", first, "larger embedding")


def test_the_bases_own_tokenizer_beside_an_adapter_is_no_news(
    base: Make, adapter_dir: Make, capsys: Capture
) -> None:
    directory = adapter_dir(base("llama"))
    make_tokenizer().save_pretrained(directory)
    open_hub(None, {"a": directory}, None)
    assert capsys.readouterr().err == ""


def test_a_link_out_of_the_adapter_is_not_followed(
    base: Make, adapter_dir: Make, capsys: Capture, tmp_path: Path
) -> None:
    directory = adapter_dir(base("llama"))
    make_tokenizer().save_pretrained(directory)
    secret = tmp_path / "secret"
    secret.write_text("{}")
    (directory / "vocab.json").symlink_to(secret)
    assert main(["merge", str(directory), "--out", str(tmp_path / "out")]) == 2
    assert_refused(capsys, "vocab.json: links to", "outside the adapter")
    assert not (tmp_path / "out").exists()
