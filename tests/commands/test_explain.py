"""`loractl explain`: from which models and settings it makes its page, and what it refuses."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from loractl.cli.main import main
from tests.commands.conftest import assert_refused
from tests.reports.explain.lessons import few_sizes

Make = Callable[..., Path]
Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def two_sizes(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    few_sizes(monkeypatch, "0.5B", "8B")


def explain(tmp_path: Path, capsys: Capture, *flags: str) -> dict[str, Any]:
    """The data of the page that the command writes."""
    out = tmp_path / "lesson.html"
    assert main(["explain", *flags, "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    assert [one for one in tmp_path.iterdir() if ".tmp-" in one.name] == []
    found = re.search(r'id="data">(.*?)</script>', out.read_text("utf-8"), re.DOTALL)
    assert found is not None
    content: dict[str, Any] = json.loads(found[1])
    return content


def test_a_size_is_the_model_of_the_page(tmp_path: Path, capsys: Capture) -> None:
    found = explain(tmp_path, capsys, "--model", "0.5b", "--rank", "4")
    assert (found["chosen"]["model"], found["chosen"]["rank"]) == ("0.5B", 4)
    assert found["command"] == {"0.5B": "--model 0.5b"} and found["spectrum"] is None


def test_without_a_model_it_is_8b(tmp_path: Path, capsys: Capture) -> None:
    assert explain(tmp_path, capsys)["chosen"]["model"] == "8B"


def test_a_directory_is_a_model_under_its_name(base: Make, tmp_path: Path, capsys: Capture) -> None:
    directory = base("llama-tied")
    found = explain(tmp_path, capsys, "--model", str(directory))
    assert found["chosen"]["model"] == "own"
    assert found["models"]["own"]["name"] == directory.name
    assert main(["estimate", "--model", str(directory), "--json"]) == 0
    exact = json.loads(capsys.readouterr().out)
    assert found["models"]["own"]["parameters"] == exact["model"]["parameters"]


def test_a_config_gives_its_settings(config_file: Make, tmp_path: Path, capsys: Capture) -> None:
    config = config_file(
        "lora: {rank: 3, alpha: 5, target_modules: [q_proj]}", "train: {batch_size: 2}"
    )
    found = explain(tmp_path, capsys, "--model", str(config))
    assert found["chosen"]["rank"] == 3 and found["alpha"] == 5
    assert found["chosen"]["targets"] == "own" and found["spectrum"] is None
    assert found["command"] == {"own": str(config)} and "--batch 2" in found["flags"]
    assert explain(tmp_path, capsys, "--model", str(config), "--rank", "9")["chosen"]["rank"] == 9


def test_an_adapter_shows_its_spectrum(
    base: Make, adapter_dir: Make, tmp_path: Path, capsys: Capture
) -> None:
    adapter = adapter_dir(base("llama"), rank=3, alpha=6, target_modules=["q_proj", "down_proj"])
    found = explain(tmp_path, capsys, "--model", str(adapter))
    assert (found["chosen"]["rank"], found["alpha"]) == (3, 6)
    assert main(["inspect", str(adapter), "--json"]) == 0
    exact = json.loads(capsys.readouterr().out)
    assert set(found["spectrum"]) == {"q_proj", "down_proj"}
    page = (tmp_path / "lesson.html").read_text("utf-8")
    # An adapter of its own is called by its directory, which here has the name of a run's.
    assert f"every update in {tmp_path.name}, largest first" in page
    for kind, one in found["spectrum"].items():
        assert one["rank"] == 3
        assert one["effective"] == exact["kinds"][kind]["mean_effective_rank"]
        modules = [m for name, m in exact["modules"].items() if name.endswith(kind)]
        for values, module in zip(one["values"], modules, strict=True):
            assert values == pytest.approx(module["singular_values"], rel=1e-3)


def test_a_run_shows_the_spectrum_of_its_adapter(
    base: Make, adapter_dir: Make, config_file: Make, tmp_path: Path, capsys: Capture
) -> None:
    config = config_file()
    run = tmp_path / "run"
    run.mkdir()
    adapter_dir(base("llama"), rank=4, target_modules="all-linear").rename(run / "adapter")
    found = explain(tmp_path, capsys, "--model", str(config))  # by the config's out
    assert len(found["spectrum"]) == 7
    page = (tmp_path / "lesson.html").read_text("utf-8")
    assert "every update in run, largest first" in page  # its name, not where it lies
    config.rename(run / "config.yaml")
    again = explain(tmp_path, capsys, "--model", str(run))
    assert again["spectrum"] == found["spectrum"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--model", "9B"], "9B: no such directory, not in the hub cache"),
        (["--lang", "de"], "--lang: found 'de', expected one of en, zh"),
        (["--out", "page.pdf"], "--out: found page.pdf, expected a name that ends in .html"),
        (["--out", "absent/page.html"], "is not in an existing directory"),
        (["--model", "absent.yaml"], "absent.yaml: does not exist"),
        (["--rank", "0"], "--rank"),
    ],
)
def test_what_cannot_be_explained_is_refused_with_2(
    flags: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["explain", *flags]) == 2
    assert_refused(capsys, message)
    assert list(tmp_path.iterdir()) == []


def test_an_adapter_without_a_base_is_refused(
    base: Make, adapter_dir: Make, tmp_path: Path, capsys: Capture
) -> None:
    adapter = adapter_dir(base("llama"))
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(
        json.dumps({**config, "base_model_name_or_path": None})
    )
    assert main(["explain", "--model", str(adapter), "--out", str(tmp_path / "x.html")]) == 2
    assert_refused(capsys, "names no base model; give --model the base itself")


def test_patterns_that_fit_nothing_are_refused_by_their_key(
    config_file: Make, tmp_path: Path, capsys: Capture
) -> None:
    config = config_file("lora: {target_modules: [q_proj], rank_pattern: {up_proj: 2}}")
    out = str(tmp_path / "x.html")
    assert main(["explain", "--model", str(config), "--out", out]) == 2
    assert_refused(capsys, "lora.rank_pattern: 'up_proj' matches no targeted module")


LIGHT = """
import sys
from loractl.cli.main import main
code = main(sys.argv[1:])
print(code, [m for m in ("torch", "transformers", "safetensors", "matplotlib") if m in sys.modules])
"""


def test_it_loads_no_torch(tmp_path: Path, config_file: Make) -> None:
    argv = ["explain", "--model", str(config_file()), "--out", str(tmp_path / "x.html")]
    done = subprocess.run(
        [sys.executable, "-c", LIGHT, *argv], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "0 []"
