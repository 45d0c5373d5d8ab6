"""`loractl init`: what it writes loads, and nothing is overwritten."""

from pathlib import Path

import pytest

from loractl.commands import init
from loractl.config.loader import load
from loractl.errors import ConfigError, StorageError


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("template", init.TEMPLATES)
def test_the_config_loads_once_model_and_data_exist(template: str, folder: Path) -> None:
    odd = "off: it's #1.jsonl"
    (folder / odd).write_text("{}\n")
    (folder / "my model").mkdir()
    assert init.run(template, "./my model", odd, Path("new.yaml")) == 0
    config = load(Path("new.yaml")).config
    assert (config.method, config.out) == (template, "runs/new")
    assert (config.model.name_or_path, config.data.train) == ("./my model", odd)


@pytest.mark.parametrize("template", init.TEMPLATES)
def test_every_key_that_is_set_is_explained(template: str) -> None:
    for line in init.template_text(template, "m", "d").splitlines():
        assert len(line) <= 100
        assert not line or line.startswith("#") or line.endswith(":") or "  # " in line


def test_a_dash_writes_to_stdout(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    assert init.run("lora", None, None, Path("-")) == 0
    assert init.DEFAULT_MODEL in capsys.readouterr().out
    assert list(folder.iterdir()) == []


def test_the_file_written_is_named_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    init.run("full", None, None, Path("a.yaml"))
    captured = capsys.readouterr()
    assert captured.out == "" and "wrote a.yaml" in captured.err


def test_an_existing_file_is_left_as_it_is() -> None:
    Path("a.yaml").write_text("mine")
    with pytest.raises(ConfigError, match="^a.yaml: already exists; choose another --out"):
        init.run("lora", None, None, Path("a.yaml"))
    assert Path("a.yaml").read_text() == "mine"
    with pytest.raises(ConfigError, match="no/such is not a directory"):
        init.run("lora", None, None, Path("no/such/a.yaml"))


def test_a_failed_write_leaves_no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(init.os, "fsync", fail)
    with pytest.raises(StorageError, match="No space left"):
        init.run("lora", None, None, Path("a.yaml"))
    assert not Path("a.yaml").exists()


@pytest.mark.parametrize("template", init.NOT_YET)
def test_a_template_of_a_later_version_says_so(template: str, folder: Path) -> None:
    with pytest.raises(ConfigError, match=f"{template} is not available in this version"):
        init.run(template, None, None, Path("a.yaml"))
    assert list(folder.iterdir()) == []


def test_an_unknown_template_leads_to_the_right_one() -> None:
    expected = "expected lora, dora, adalora or full; did you mean lora"
    with pytest.raises(ConfigError, match=expected):
        init.run("lroa", None, None, Path("a.yaml"))
