"""The wheel that scripts/wheel builds: what is in it, and that it works where no checkout is.

It is installed into a new venv, which sees the dependencies of this one but no loractl of ours, and
used from another folder: its C files must compile from the installed package.
"""

import ast
import hashlib
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable
from email.message import Message
from email.parser import Parser
from importlib.metadata import distribution, packages_distributions
from pathlib import Path

import pytest
import torch

import loractl
from tests.tiny import chat_rows, write_jsonl

ROOT = Path(__file__).parents[1]
APACHE_2 = "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30"
"""SHA-256 of the license's text as its authors publish it."""
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a source archive alone."""
    out = tmp_path_factory.mktemp("wheel")
    before = left_in_checkout()
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "wheel", out], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    (archive,) = out.glob("*.tar.gz")
    (made,) = out.glob("*.whl")
    assert done.stdout == f"{made}\n" and archive.name == f"loractl-{loractl.__version__}.tar.gz"
    assert left_in_checkout() == before
    return made


def left_in_checkout() -> list[Path]:
    """What building in place would leave there: stale files of it came into a later wheel."""
    return sorted(path for pattern in ("build", "*.egg-info") for path in ROOT.glob(pattern))


@pytest.fixture(scope="module")
def metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        name = f"loractl-{loractl.__version__}.dist-info/METADATA"
        return Parser().parsestr(archive.read(name).decode())


def outside() -> dict[str, str]:
    """The environment without what may lead to a checkout, or change what is under test."""
    return {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "LORACTL"))}


class Installed:
    """A venv with the wheel, an empty folder to work in, and a cache without kernels."""

    def __init__(self, wheel: Path, home: Path) -> None:
        self.venv, self.folder, self.cache = home / "venv", home / "folder", home / "cache"
        self.folder.mkdir()
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", self.venv], check=True)
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
        into = ["--python", self.venv / "bin" / "python", "install", "-q", "--no-deps"]
        subprocess.run([*pip, *into, "--no-index", wheel], check=True, env=outside())
        (site,) = self.venv.glob("lib/python*/site-packages")
        # A folder that a .pth file adds has its own .pth files left alone: no editable install.
        (site / "dependencies.pth").write_text(f"{Path(torch.__file__).parents[1]}\n")

    def run(self, *command: str | Path) -> subprocess.CompletedProcess[str]:
        """Run a program of the venv there; it must end with 0."""
        program = self.venv / "bin" / command[0]
        done = subprocess.run(
            [program, *command[1:]],
            cwd=self.folder,
            env={**outside(), "LORACTL_CACHE": str(self.cache)},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, f"{command}:\n{done.stdout}{done.stderr}"
        return done

    def kernels(self) -> int:
        return len(list(self.cache.glob("kernels/*.so")))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    return Installed(wheel, tmp_path_factory.mktemp("installed"))


def test_it_holds_every_file_of_the_package_but_its_documents_and_no_other(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        inside = {name for name in archive.namelist() if not name.endswith("/")}
    about = f"loractl-{loractl.__version__}.dist-info"
    files = ("METADATA", "WHEEL", "RECORD", "entry_points.txt", "top_level.txt")
    package = ROOT / "loractl"
    sources = {
        path.relative_to(ROOT).as_posix()
        for path in package.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".md"
    }
    assert {path.rpartition(".")[2] for path in sources} == {
        "py",
        "c",
        "h",
        "jinja",
        "css",
        "js",
        "toml",
        "loractl/LICENSE",
    }
    licensed = f"{about}/licenses/loractl/LICENSE"
    assert inside == sources | {f"{about}/{name}" for name in files} | {licensed}


def test_the_license_is_the_text_that_is_named(metadata: Message) -> None:
    text = (ROOT / "loractl" / "LICENSE").read_bytes()
    assert hashlib.sha256(text).hexdigest() == APACHE_2
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["License-File"] == "loractl/LICENSE"


def test_every_package_that_we_import_comes_with_ours_or_with_an_extra(metadata: Message) -> None:
    asked = [
        package_of(one)
        for one in metadata.get_all("Requires-Dist", [])
        if not re.search(r"extra == .dev.", one)
    ]
    needed: set[str] = set()
    while asked:
        name = asked.pop()
        if name not in needed | {"loractl"}:  # one extra of ours may ask for another
            needed.add(name)
            asked += required(name)
    owners = packages_distributions()
    for path in (ROOT / "loractl").rglob("*.py"):
        for module in top_modules(path) - set(sys.stdlib_module_names) - OPTIONAL - {"loractl"}:
            assert {package_of(owner) for owner in owners[module]} & needed, f"{path}: {module}"


OPTIONAL = {"peft", "liger_kernel"}
"""Modules that we go without where nobody has installed them."""


def required(name: str) -> list[str]:
    """What a package needs itself; nothing where it is an extra's that is not installed."""
    try:
        requirements = distribution(name).requires or []
    except ModuleNotFoundError:
        return []
    return [package_of(one) for one in requirements if "extra ==" not in one]


def package_of(requirement: str) -> str:
    """The name in a requirement, in its normal form."""
    return re.sub(r"[-_.]+", "-", re.split(r"[^\w.-]", requirement)[0]).lower()


def top_modules(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or "").split(".")[0])
    return found


def test_it_is_what_the_venv_imports_and_its_program_starts(installed: Installed) -> None:
    found = installed.run("python", "-c", "import loractl; print(loractl.__file__)").stdout.strip()
    assert Path(found).is_relative_to(installed.venv)
    assert installed.run("loractl", "--version").stdout == f"loractl {loractl.__version__}\n"
    assert installed.run("python", "-m", "loractl", "-h").stdout


def test_it_trains_merges_and_exports_with_kernels_compiled_from_it(
    installed: Installed, wide: Callable[..., Path]
) -> None:
    write_jsonl(installed.folder / "train.jsonl", chat_rows())
    installed.run("loractl", "init", "--model", wide("llama"), "--data", "train.jsonl")
    assert installed.kernels() == 0
    assert "memory" in installed.run("loractl", "check", "config.yaml").stdout
    said = installed.run("loractl", "train", "config.yaml").stderr
    layers = re.search(r"^layers +(.+)", said, re.MULTILINE)
    assert layers and "transformers" not in layers[1], said
    assert_compiled(installed)

    assert_proven(installed, "merge", "--out", "merged", judge="the merged model")
    assert_proven(installed, "export", "--to", "peft", "--out", "peft", judge="PEFT")
    to = ("--to", "merged-gguf", "--out", "m.gguf")
    assert_proven(installed, "export", *to, judge="llama.cpp")
    made = {path.name for path in installed.folder.iterdir()}
    assert made == {"train.jsonl", "config.yaml", "runs", "merged", "peft", "m.gguf"}


def assert_proven(installed: Installed, command: str, *options: str, judge: str) -> None:
    said = installed.run("loractl", command, "runs/config", *options).stderr
    assert re.search(f"^proven: .*{re.escape(judge)}", said, re.MULTILINE), said


def assert_compiled(installed: Installed) -> None:
    """The run has left the library that its dtype needs, and this is made of the wheel's files."""
    asked = """
import torch
from loractl.models.device import choose_dtype
from loractl.ops import native
dtype = choose_dtype("auto", torch.device("cpu"))
print(native.HERE, native.compiled(dtype) is not None, native.why_missing(dtype), sep="|")
"""
    before = installed.kernels()
    here, is_there, why = installed.run("python", "-c", asked).stdout.strip().split("|")
    assert Path(here).is_relative_to(installed.venv) and (is_there, why) == ("True", "")
    assert before == installed.kernels() >= 1
