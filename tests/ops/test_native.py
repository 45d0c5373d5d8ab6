"""The library is built once, found again, built anew where it is damaged, and done without."""

import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest
import torch

from loractl.ops import native, pieces


@pytest.fixture(scope="module")
def compiler(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The machine's own without optimisation: a third of the time, and no speed is measured."""
    path = tmp_path_factory.mktemp("compiler") / "cc"
    path.write_text(f'#!/bin/sh\nexec {os.environ.get("CC") or "cc"} "$@" -O0\n')
    path.chmod(0o755)
    return str(path)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compiler: str) -> Iterator[Path]:
    """A cache of its own for the test; returns the directory where the libraries will lie."""
    monkeypatch.setenv("LORACTL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("CC", compiler)
    native.find_library.cache_clear()
    yield tmp_path / "cache" / "kernels"
    native.find_library.cache_clear()


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, compiler: str) -> tuple[str, bytes]:
    """Name and content of a good library; every test puts it where this process has opened none:
    a loader gives the file that it has under a path already."""
    root = tmp_path_factory.mktemp("built")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LORACTL_CACHE", str(root))
        patch.setenv("CC", compiler)
        native.find_library.cache_clear()
        assert native.compiled(torch.float32) is not None
        native.find_library.cache_clear()
    (path,) = (root / "kernels").iterdir()
    return path.name, path.read_bytes()


def put(cache: Path, name: str, content: bytes) -> Path:
    cache.mkdir(parents=True)
    (cache / name).write_bytes(content)
    os.utime(cache / name, (1e9, 1e9))
    return cache / name


def works() -> bool:
    x = torch.ones(2, 3)
    y, _ = pieces.rms_norm(x, torch.full((3,), 2.0), 0.0)
    return torch.equal(y, 2 * x)


def test_a_library_in_the_cache_is_opened_and_not_built_again(
    cache: Path, built: tuple[str, bytes]
) -> None:
    path = put(cache, *built)
    assert native.compiled(torch.float32) is not None and works()
    assert path.stat().st_mtime == 1e9 and list(cache.iterdir()) == [path]


@pytest.mark.parametrize("damage", ["empty", "cut short", "a flipped bit", "no library at all"])
def test_a_damaged_library_is_built_again(
    cache: Path, built: tuple[str, bytes], damage: str
) -> None:
    name, good = built
    flipped = bytearray(good)
    flipped[len(good) // 2] ^= 1
    bad = {"empty": b"", "cut short": good[:-5000], "a flipped bit": bytes(flipped)}
    path = put(cache, name, bad.get(damage, b"#!/bin/sh\n" * 100))
    assert native.compiled(torch.float32) is not None and works()
    assert path.stat().st_mtime > 1e9 and list(cache.iterdir()) == [path]
    assert len(path.read_bytes()) == len(good)


def test_a_library_of_another_user_is_not_run(cache: Path, built: tuple[str, bytes]) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give a file away")
    path = put(cache, *built)
    os.chown(path, 12345, 12345)
    assert native.compiled(torch.float32) is not None
    assert path.stat().st_uid == 0 and path.stat().st_mtime > 1e9


def test_each_dtype_has_a_library_of_its_own_and_other_dtypes_none(
    cache: Path, built: tuple[str, bytes]
) -> None:
    put(cache, *built)
    assert native.compiled(torch.bfloat16) is not None
    assert len(list(cache.iterdir())) == 2
    assert native.compiled(torch.float16) is None
    assert "float16" in native.why_missing(torch.float16)


def test_where_the_cache_cannot_be_written_the_library_is_built_for_this_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path, built: tuple[str, bytes]
) -> None:
    (tmp_path / "cache").write_text("a file, where a directory should be")
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    assert native.compiled(torch.float32) is not None and works()
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"CC": "/nowhere/cc", "PATH": "/nowhere"}, "no C compiler"),
        ({"CC": "false"}, "cannot compile"),
        ({"CC": "true"}, "the library cannot be written or loaded"),
        ({"LORACTL_NATIVE": "0"}, "LORACTL_NATIVE is 0"),
    ],
    ids=["no compiler", "one that fails", "one that writes nothing", "not wanted"],
)
def test_without_a_library_the_formula_serves_and_the_reason_is_known(
    cache: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, str], reason: str
) -> None:
    monkeypatch.delenv("LORACTL_NATIVE", raising=False)
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    assert native.compiled(torch.float32) is None and works()
    assert reason in native.why_missing(torch.float32)
    assert not cache.exists() or list(cache.iterdir()) == []


def test_every_file_of_the_package_that_is_no_python_is_installed_with_it() -> None:
    package = native.HERE.parent.parent
    settings = tomllib.loads((package.parent / "pyproject.toml").read_text("utf-8"))
    listed = settings["tool"]["setuptools"]["package-data"]
    read = (".py", ".pyc", ".md")  # Python, and documents for readers of the source
    others = [p for p in package.rglob("*") if p.is_file() and p.suffix not in read]
    used = {*native.INCLUDED, *native.SOURCES}
    assert {native.HERE / name for name in used} <= set(others)
    for path in others:
        room = ".".join(path.parent.relative_to(package.parent).parts)
        assert any(fnmatch(path.name, pattern) for pattern in listed[room]), path


USE = """
import torch
from loractl.ops import native, pieces
y, _ = pieces.rms_norm(torch.ones(2, 3), torch.ones(3), 0.0)
assert native.compiled(torch.float32) is not None, native.why_missing(torch.float32)
assert torch.equal(y, torch.ones(2, 3))
"""


@pytest.mark.slow
def test_two_processes_that_build_at_once_both_work_and_leave_one_library(
    cache: Path, built: tuple[str, bytes]
) -> None:
    runs = [subprocess.Popen([sys.executable, "-c", USE]) for _ in range(2)]
    assert [run.wait() for run in runs] == [0, 0]
    assert [path.name for path in cache.iterdir()] == [built[0]]
