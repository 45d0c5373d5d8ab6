"""The cache of compiled code: this user's alone, and nothing is run that another could have
written."""

import contextlib
import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from loractl.ops import native_cache
from loractl.ops.native_cache import load_library
from loractl.paths import make_private_directory

NAMES = ("answer",)
OTHER = "12345"  # a user that is not there

pytestmark = [
    pytest.mark.native,
    pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler (cc)"),
]
as_root = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("setpriv") is None,
    reason="needs root and setpriv (util-linux) to be another user",
)


@contextlib.contextmanager
def umask(value: int) -> Iterator[None]:
    before = os.umask(value)
    try:
        yield
    finally:
        os.umask(before)


@pytest.fixture
def shared() -> Iterator[Path]:
    """A directory that everybody may write to, as /tmp is."""
    path = Path(tempfile.mkdtemp(prefix="loractl-shared-"))
    path.chmod(0o1777)
    yield path
    shutil.rmtree(path)


def compile_library(directory: Path, source: str) -> Path:
    made = directory / "made.so"
    (directory / "made.c").write_text(source)
    command = ["cc", "-shared", "-fPIC", "-o", str(made), str(directory / "made.c")]
    subprocess.run(command, check=True)
    return made


def good(directory: Path) -> Path:
    return compile_library(directory, "int answer(void) { return 42; }")


def load(place: Path) -> ctypes.CDLL:
    return load_library(place, NAMES, good)


def evil(path: Path, marker: Path) -> Path:
    """A library with the right functions and the right hash, whose loading leaves a mark."""
    with tempfile.TemporaryDirectory() as name:
        made = compile_library(
            Path(name),
            f"""#include <stdio.h>
            __attribute__((constructor)) static void run(void) {{ fopen("{marker}", "w"); }}
            int answer(void) {{ return 13; }}""",
        )
        content = made.read_bytes()
    path.write_bytes(content + hashlib.sha256(content).digest())
    path.chmod(0o755)
    return path


def run_as_other(script: str, *, group: str = OTHER) -> None:
    """What another user tries; whether it succeeds is not looked at."""
    identity = ["setpriv", f"--reuid={OTHER}", f"--regid={group}", "--clear-groups"]
    subprocess.run([*identity, "sh", "-c", script], capture_output=True)


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


@pytest.mark.parametrize("mask", [0o000, 0o002, 0o022, 0o077])
def test_directory_and_file_are_private_whatever_the_umask(tmp_path: Path, mask: int) -> None:
    place = tmp_path / "cache" / "kernels" / "a.so"
    with umask(mask):
        assert load(place).answer() == 42
    assert [mode(one) for one in (place.parent.parent, place.parent)] == [0o700, 0o700]
    assert mode(place) == 0o600


@pytest.mark.parametrize("what", ["file", "directory"])
@pytest.mark.parametrize("bits", [0o666, 0o777, 0o660])
def test_what_others_may_have_written_is_built_again(tmp_path: Path, what: str, bits: int) -> None:
    place, marker = tmp_path / "kernels" / "a.so", tmp_path / "marker"
    place.parent.mkdir(mode=0o700)
    evil(place, marker)
    (place if what == "file" else place.parent).chmod(bits | 0o100)
    assert load(place).answer() == 42
    assert not marker.exists()
    assert (mode(place.parent), mode(place)) == (0o700, 0o600)


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    place, marker = tmp_path / "kernels" / "a.so", tmp_path / "marker"
    place.parent.mkdir(mode=0o700)
    place.symlink_to(evil(tmp_path / "elsewhere.so", marker))
    assert load(place).answer() == 42
    assert not marker.exists() and not place.is_symlink()


def test_a_link_in_the_place_of_the_directory_is_not_followed(tmp_path: Path) -> None:
    place, marker, other = tmp_path / "kernels" / "a.so", tmp_path / "marker", tmp_path / "other"
    other.mkdir(mode=0o700)
    theirs = evil(other / "a.so", marker)
    theirs.chmod(0o600)
    place.parent.symlink_to(other)
    assert load(place).answer() == 42
    assert not marker.exists() and list(other.iterdir()) == [theirs]


@pytest.mark.parametrize("what", ["pipe", "directory"])
def test_what_is_no_file_is_not_read(tmp_path: Path, what: str) -> None:
    place = tmp_path / "kernels" / "a.so"
    place.parent.mkdir(mode=0o700)
    if what == "pipe":
        os.mkfifo(place, 0o600)
    else:
        place.mkdir(mode=0o700)
    assert load(place).answer() == 42


def test_what_was_checked_is_what_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, marker = tmp_path / "kernels" / "a.so", tmp_path / "marker"
    load(place)
    read = native_cache.read_checked

    def read_and_swap(descriptor: int, path: Path) -> bytes:
        content = read(descriptor, path)
        os.replace(evil(tmp_path / "evil.so", marker), place)
        return content

    monkeypatch.setattr(native_cache, "read_checked", read_and_swap)
    assert load(place).answer() == 42
    assert not marker.exists()


def test_a_library_without_our_functions_is_built_again(tmp_path: Path) -> None:
    place = tmp_path / "kernels" / "a.so"
    load_library(place, (), lambda path: compile_library(path, "int other(void) { return 1; }"))
    assert load(place).answer() == 42


def test_two_libraries_are_two_although_each_is_loaded_by_its_descriptor(tmp_path: Path) -> None:
    first = load(tmp_path / "a.so")
    second = load_library(
        tmp_path / "b.so",
        NAMES,
        lambda path: compile_library(path, "int answer(void) { return 43; }"),
    )
    assert (first.answer(), second.answer()) == (42, 43)


@as_root
@pytest.mark.parametrize("mask", [0o000, 0o002])
@pytest.mark.parametrize("attack", ["overwrite", "replace", "swap the directory", "be first"])
def test_code_of_another_user_never_runs(shared: Path, mask: int, attack: str) -> None:
    place, marker = shared / "loractl" / "kernels" / "a.so", shared / "marker"
    theirs = evil(shared / "evil.so", marker)
    group = OTHER if mask == 0 else str(os.getegid())  # who shares our group, under umask 002
    if attack == "be first":
        run_as_other(f"umask 0; mkdir -p {place.parent} && cp {theirs} {place}", group=group)
        assert place.exists()
    else:
        with umask(mask):
            assert load(place).answer() == 42
        run_as_other(
            {
                "overwrite": f"cat {theirs} > {place}",
                "replace": f"cp {theirs} {place}.new; mv -f {place}.new {place}",
                "swap the directory": f"mv {place.parent} {shared}/away;"
                f" mkdir -p {place.parent}; cp {theirs} {place}",
            }[attack],
            group=group,
        )
    with umask(mask):
        assert load(place).answer() == 42
    assert not marker.exists()


@as_root
def test_a_directory_of_another_user_is_refused(shared: Path) -> None:
    run_as_other(f"umask 0; mkdir {shared}/kernels")
    with pytest.raises(OSError, match="belongs to another user"):
        make_private_directory(shared / "kernels")


@as_root
@pytest.mark.parametrize("mask", [0o000, 0o002])
def test_what_an_older_version_left_open_and_another_wrote_is_not_run(
    shared: Path, mask: int
) -> None:
    """Directories and library as that version made them: as the umask let it."""
    place, marker = shared / "loractl" / "kernels" / "a.so", shared / "marker"
    theirs = evil(shared / "evil.so", marker)
    with umask(mask):
        place.parent.mkdir(parents=True)
        place.write_bytes(b"")
    run_as_other(f"cat {theirs} > {place}", group=str(os.getegid()))
    assert place.read_bytes() == theirs.read_bytes(), "it could be written"
    assert load(place).answer() == 42
    assert not marker.exists()
    assert (mode(place.parent), mode(place)) == (0o700, 0o600)


@as_root
def test_a_directory_swapped_while_the_compiler_runs_gets_no_code_of_ours_to_run(
    shared: Path,
) -> None:
    """Above the cache all may rename, as an umask of 000 leaves it."""
    above = shared / "open"
    place, marker = above / "kernels" / "a.so", shared / "marker"
    theirs = evil(shared / "evil.so", marker)
    precious = shared / "precious"
    precious.write_text("kept")
    above.mkdir()
    above.chmod(0o777)

    def compile_while_they_swap(directory: Path) -> Path:
        run_as_other(
            f"mv {place.parent} {above}/away; mkdir {place.parent}; cp {theirs} {place};"
            f" ln -s {precious} {place.parent}/made.so"
        )
        return good(directory)

    place.parent.mkdir(mode=0o700)
    assert load_library(place, NAMES, compile_while_they_swap).answer() == 42
    assert not marker.exists() and precious.read_text() == "kept"


def test_nothing_but_the_library_is_left_in_the_cache(tmp_path: Path) -> None:
    place = tmp_path / "kernels" / "a.so"
    place.parent.mkdir(mode=0o700)
    (place.parent / f".a.so.tmp-{2**22 + 1}").write_text("of a process that was killed")
    assert load(place).answer() == 42
    assert list(place.parent.iterdir()) == [place]
