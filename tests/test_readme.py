"""The README keeps its word: commands run as printed, links lead somewhere, and it is short."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from transformers import PreTrainedTokenizerFast

from loractl.cli.main import app
from tests.tiny import save_tiny

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
DOCUMENTS = sorted(
    path
    for pattern in ("*.md", "*/README.md", "*/*/README.md", ".github/*.md", "scripts/**/*.md")
    for path in ROOT.glob(pattern)
    if not {".venv", "build", "runs"} & set(path.relative_to(ROOT).parts)
)
BASE = ".models/SmolLM2-135M-Instruct"  # where scripts/quickstart puts it
ANSWERS = ("shipping", "billing", "account")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README.read_text("utf-8"), re.M | re.S)


def commands() -> list[str]:
    lines = [line for block in blocks("console") for line in block.splitlines()]
    assert all(line.startswith("$ ") for line in lines), "a console block holds commands alone"
    return [line.removeprefix("$ ") for line in lines]


def installation() -> list[str]:
    """The commands up to the quickstart."""
    return commands()[: commands().index("scripts/quickstart")]


def use() -> list[str]:
    """The commands after the quickstart."""
    return commands()[commands().index("scripts/quickstart") + 1 :]


def run(line: str, directory: Path, *, said: str = "") -> str:
    """Run one line as a shell does; its stdout."""
    tools = Path(sys.executable).parent
    environment = {
        **os.environ,
        "PATH": f"{tools}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),  # the files beside this one, wherever loractl is installed from
    }
    done = subprocess.run(
        ["bash", "-c", line], cwd=directory, env=environment, input=said,
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_the_readme_is_short() -> None:
    assert len(README.read_text("utf-8").splitlines()) <= 170


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_and_pictures_lead_somewhere(path: Path) -> None:
    text = path.read_text("utf-8")
    targets = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'(?:src|href)="([^"]+)"', text)
    for target in targets:
        if "://" in target:
            continue
        file, _, heading = target.partition("#")
        place = path.parent / file if file else path
        assert place.exists(), f"{path.name}: {target}"
        if heading:
            titles = re.findall(r"^#+ (.+)$", place.read_text("utf-8"), re.M)
            assert heading in {title.lower().replace(" ", "-") for title in titles}, target


def test_every_file_of_the_code_map_exists() -> None:
    text = (ROOT / "loractl" / "README.md").read_text("utf-8")
    named = re.findall(r"`((?:[\w.]+/)+(?:[\w.]+\.\w+)?|[a-z_]+\.py)`", text)
    assert len(named) > 80
    places = {name: [ROOT / "loractl" / name, ROOT / name] for name in named}
    missing = [name for name, tried in places.items() if not any(p.exists() for p in tried)]
    assert not missing


def test_every_command_of_the_program_is_in_the_table_and_no_other() -> None:
    rows = re.findall(r"^\| `loractl (\w+)` \|", README.read_text("utf-8"), re.M)
    assert rows == list(dict.fromkeys(rows))
    assert set(rows) == set(typer.main.get_command(app).commands)  # type: ignore[attr-defined]


def test_the_quickstart_is_run_by_ci() -> None:
    (line,) = re.findall(r"^exec scripts/test .*$", (ROOT / ".ci/run").read_text("utf-8"), re.M)
    assert {"--quickstart", "--slow"} <= set(line.split())
    assert "scripts/quickstart" in (ROOT / "scripts" / "test").read_text("utf-8")


@pytest.mark.slow
def test_installing_as_the_readme_says_gives_a_program_that_works(tmp_path: Path) -> None:
    checkout = tmp_path / "loractl"
    kept = shutil.ignore_patterns(
        ".venv", ".git", ".models", "runs", "build", "__pycache__", ".*_cache"
    )
    shutil.copytree(ROOT, checkout, ignore=kept)
    home = tmp_path / "home"
    home.mkdir()
    lines = ["set -e", f"export HOME={home} SHELL=/bin/bash; unset PYTHONPATH", *installation()]
    assert any("activate" in line for line in lines)
    out = run(
        "\n".join([*lines, "command -v loractl", "loractl --install-completion", "true"]), checkout
    )
    assert str(checkout / ".venv" / "bin" / "loractl") in out


@pytest.mark.slow
def test_the_commands_about_own_rows_run_as_printed(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    save_tiny(tmp_path / BASE, tokenizer, "llama", max_position_embeddings=2048)
    (sample,) = blocks("csv")
    rows = [f"Message {i} about my {ANSWERS[i % 3]},{ANSWERS[i % 3]}\n" for i in range(60)]
    (tmp_path / "tickets.csv").write_text(sample + "".join(rows))
    for line in use():
        out = run(line, tmp_path, said="/compare Hello\n/quit\n")
        if line.startswith("loractl eval"):
            assert "tickets-r16" in out
    trained = json.loads((tmp_path / "runs/tickets-r16/adapter/adapter_config.json").read_text())
    assert trained["r"] == 16
    for made in (
        "tickets-model/config.json",
        "tickets-peft/adapter_config.json",
        "plan.svg",
        "lesson.html",
    ):
        assert (tmp_path / made).stat().st_size > 100
