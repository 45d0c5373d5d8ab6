"""The tokenizer that planning loads without torch is the one that training loads."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer
from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING_NAMES

from loractl.data.encoding import encode
from loractl.errors import ModelError
from loractl.models import light_tokenizer
from loractl.models.shape.families import FAMILIES
from loractl.records import Message

DECLARED = [
    None, "PreTrainedTokenizerFast", "PreTrainedTokenizer", "TokenizersBackend", "GPT2Tokenizer",
    "LlamaTokenizerFast", "Qwen2Tokenizer", "NoSuchTokenizer",
]  # fmt: skip
KINDS = ("llama", "mistral", "qwen2", "qwen3", "phi3", "gpt2", "olmo2", "smollm3", "bloom")


def made(directory: Path, tokenizer: Any, kind: str, declared: str | None) -> Path:
    """A directory with the files of a tokenizer and a config that names an architecture."""
    tokenizer.save_pretrained(directory)
    path = directory / "tokenizer_config.json"
    content = json.loads(path.read_text("utf-8"))
    content.pop("tokenizer_class")
    named = {"tokenizer_class": declared} if declared else {}
    path.write_text(json.dumps({**content, **named}), "utf-8")
    (directory / "config.json").write_text(json.dumps({"model_type": kind}), "utf-8")
    return directory


@pytest.mark.parametrize("declared", DECLARED)
@pytest.mark.parametrize("kind", KINDS)
def test_the_class_and_the_ids_are_those_of_autotokenizer(
    kind: str, declared: str | None, tokenizer: Any, tmp_path: Path
) -> None:
    directory = made(tmp_path, tokenizer, kind, declared)
    row = [Message("user", "What is 123 plus 4?  Straße"), Message("assistant", "It is 127.")]
    theirs = AutoTokenizer.from_pretrained(directory, local_files_only=True)
    ours = light_tokenizer.load_light(directory)
    assert type(ours) is type(theirs)
    assert encode(ours, row, train_on="assistant") == encode(theirs, row, train_on="assistant")


def test_the_registered_classes_are_those_of_transformers() -> None:
    theirs = {
        kind: TOKENIZER_MAPPING_NAMES[kind] for kind in FAMILIES.keys() & TOKENIZER_MAPPING_NAMES
    }
    assert {kind: name for kind, name in theirs.items() if name} == light_tokenizer.REGISTERED


ALONE = """
import sys
from pathlib import Path
from loractl.models import light_tokenizer
light_tokenizer.load_light(Path(sys.argv[1]))
assert "transformers" in sys.modules and "torch" not in sys.modules
"""


def test_it_loads_without_torch(tokenizer: Any, tmp_path: Path) -> None:
    directory = made(tmp_path, tokenizer, "llama", "GPT2Tokenizer")
    subprocess.run([sys.executable, "-c", ALONE, str(directory)], check=True)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("tokenizer.json", None, "not found; it is needed to count tokens"),
        ("tokenizer.json", "{}", "cannot be read"),
        ("tokenizer_config.json", "{", "tokenizer_config.json: cannot be read"),
    ],
)
def test_a_tokenizer_that_cannot_be_read_is_refused(
    name: str, text: str | None, message: str, tokenizer: Any, tmp_path: Path
) -> None:
    directory = made(tmp_path, tokenizer, "llama", None)
    (directory / name).unlink() if text is None else (directory / name).write_text(text, "utf-8")
    with pytest.raises(ModelError, match=message):
        light_tokenizer.load_light(directory)
