"""Which two bases an adapter of a quantized one has: those it records, and those that are named."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from loractl.artifacts.model import quantized
from loractl.artifacts.peft.adapter import ABOUT
from loractl.models.load import locate
from tests.commands.conftest import Capture, assert_refused
from tests.commands.merges import NF4, amend, merge, record

Make = Callable[..., Path]
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")


def test_the_original_of_quantized_files_must_be_named(
    base: Make, adapter_dir: Make, gguf_base: Make, capsys: Capture, tmp_path: Path
) -> None:
    files = tmp_path / "nf4"
    files.mkdir()
    quantized.write(files, replace(locate(str(base("llama"))), quantization=NF4))
    for number, where in enumerate((files, gguf_base("llama"))):
        adapter = adapter_dir(where, f"adapter-{number}")
        amend(adapter, ABOUT, dtype="float32")
        assert merge(adapter, tmp_path / "out", "--into", "original") == 2
        assert_refused(capsys, str(where), "its own weights are quantized", "--base DIR")


def test_a_named_original_is_compared_with_the_quantized_files_that_were_trained_on(
    base: Make, adapter_dir: Make, capsys: Capture, tmp_path: Path
) -> None:
    files = tmp_path / "files"
    files.mkdir()
    quantized.write(files, replace(locate(str(base("llama"))), quantization=NF4))
    adapter = adapter_dir(files)
    amend(adapter, ABOUT, dtype="float32")
    flags = ("--into", "original", "--base", str(base("llama")))
    assert merge(adapter, tmp_path / "one", *flags) == 0
    assert "a merge into the base as trained (nf4)" in capsys.readouterr().err
    found = record(tmp_path / "one")
    assert found["base"] == {"name_or_path": str(base("llama"))}
    here = found["merged"]["difference"]
    # Without them the original is packed again, as the adapter records it: into the same numbers.
    amend(adapter, ABOUT, quantization=NF4.about())
    amend(files, "config.json", changed=True)
    assert merge(adapter, tmp_path / "two", *flags) == 0
    assert record(tmp_path / "two")["merged"]["difference"] == here
    shutil.rmtree(files)
    assert merge(adapter, tmp_path / "three", *flags) == 0
    assert record(tmp_path / "three")["merged"]["difference"] == here


def test_an_original_that_was_copied_is_merged_into_by_its_flag(
    on_nf4: Make, base: Make, capsys: Capture, tmp_path: Path
) -> None:
    adapter, copy = on_nf4(), tmp_path / "copy"
    shutil.copytree(base("llama"), copy)
    assert merge(adapter, tmp_path / "out", "--into", "original", "--base", str(copy)) == 0
    assert "a merge into the base as trained (nf4)" in capsys.readouterr().err
    assert record(tmp_path / "out")["base"] == {"name_or_path": str(copy)}


def test_files_that_came_quantized_are_merged_into_without_a_comparison(
    base: Make, adapter_dir: Make, capsys: Capture, tmp_path: Path
) -> None:
    files = tmp_path / "files"
    files.mkdir()
    quantized.write(files, replace(locate(str(base("llama"))), quantization=NF4))
    adapter = adapter_dir(files)
    amend(adapter, ABOUT, dtype="float32")
    assert merge(adapter, tmp_path / "out") == 0
    said = capsys.readouterr().err
    assert "to keep the base in nf4" in said and "KL" not in said
    assert record(tmp_path / "out")["merged"]["difference"] is None


@pytest.mark.parametrize("into", ["trained", "original"])
def test_a_gguf_file_has_an_original_too_if_it_is_named(
    into: str, base: Make, adapter_dir: Make, gguf_base: Make, capsys: Capture, tmp_path: Path
) -> None:
    adapter = adapter_dir(gguf_base("llama"))
    flags = ("--into", into, "--base", str(base("llama")))
    assert merge(adapter, tmp_path / "out", *flags) == 0
    made, said = record(tmp_path / "out")["merged"], capsys.readouterr().err
    assert made["into"] == into
    assert (made["difference"] is None) == (into == "trained")
    assert ("a merge into the base as trained (" in said) == (into == "original")
