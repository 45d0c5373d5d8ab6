"""Examples on disk: what was written is what is read, and a damaged store is made again."""

import hashlib
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loractl import leftovers
from loractl.data.store import Mixture, Store, lengths_of, tokens_sha256
from loractl.data.store_cache import Cache, is_whole
from loractl.data.store_writer import Writer
from loractl.errors import StorageError
from loractl.records import UNTRAINED, Example

TOKEN = st.tuples(st.integers(0, 2**31 - 1), st.booleans())
ROWS = st.lists(st.lists(TOKEN, min_size=1, max_size=8), max_size=6)


def examples_of(rows: list[list[tuple[int, bool]]]) -> list[Example]:
    return [
        Example(
            [token for token, _ in row],
            [token if trained else UNTRAINED for token, trained in row],
            line,
        )
        for line, row in enumerate(rows, 1)
    ]


SOME = examples_of([[(0, True), (5, False)], [(2**31 - 1, True)], [(7, False), (0, False)]])


def write(cache: Cache, examples: list[Example], key: str = "k", path: str = "a.jsonl") -> Path:
    def make(writer: Writer) -> dict[str, Any]:
        for example in examples:
            writer.append(example.ids, example.labels, path, example.line, weights=example.weights)
        return {"made": time.time_ns()}

    return cache.open(key, make)


@given(ROWS)
def test_what_is_written_is_read_back(rows: list[list[tuple[int, bool]]]) -> None:
    from tempfile import TemporaryDirectory

    with TemporaryDirectory() as directory:
        store = Store(write(Cache(Path(directory)), examples_of(rows)))
        assert list(store) == examples_of(rows)
        assert store.lengths.tolist() == [len(row) for row in rows]


def weighted(*weights: float) -> Example:
    """An example with these weights; 0 is untrained."""
    ids = [7 + n for n in range(len(weights))]
    labels = [one if weight else UNTRAINED for one, weight in zip(ids, weights, strict=True)]
    return Example(ids, labels, 1, weights=list(weights))


WEIGHTED = [*SOME, weighted(0.0, 0.5, 2.0), *SOME, weighted(0.0, 0.25), weighted(0.0, 1.0)]


def test_weights_are_kept_from_the_first_that_is_neither_0_nor_1(tmp_path: Path) -> None:
    store = Store(write(Cache(tmp_path), WEIGHTED))
    assert [one.weights for one in store] == [
        *[None] * 3, [0.0, 0.5, 2.0], *[None] * 3, [0.0, 0.25], None,
    ]  # fmt: skip
    assert [one.labels for one in store] == [one.labels for one in WEIGHTED]
    mixture = Mixture([Store(write(Cache(tmp_path), SOME, "b")), store])
    assert mixture[6] == store[3] and mixture[6].weights == [0.0, 0.5, 2.0]


def test_a_store_in_which_each_trained_token_weighs_1_has_no_weights(tmp_path: Path) -> None:
    plain, marked = [weighted(0.0, 1.0)], [Example([7, 8], [UNTRAINED, 8], 1)]
    one, other = (write(Cache(tmp_path), rows, key) for rows, key in ((plain, "a"), (marked, "b")))
    assert {path.name for path in one.iterdir()} == {"tokens", "index", "lengths", "account.json"}
    assert tokens_sha256([Store(one)]) == tokens_sha256([Store(other)])
    assert list(Store(one)) == marked


def test_the_hash_of_tokens_tells_weights_apart(tmp_path: Path) -> None:
    halves, thirds = weighted(0.0, 0.5), weighted(0.0, 0.3)
    stores = [
        Store(write(Cache(tmp_path), [one], key))
        for key, one in (("a", halves), ("b", thirds), ("c", weighted(0.0, 1.0)), ("d", halves))
    ]
    found = [tokens_sha256([store]) for store in stores]
    assert len(set(found)) == 3 and found[0] == found[3]


def test_a_store_reads_like_a_list(tmp_path: Path) -> None:
    store = Store(write(Cache(tmp_path), SOME))
    assert len(store) == 3 and store[-1] == SOME[-1] and list(store[1:]) == SOME[1:]
    with pytest.raises(IndexError):
        store[3]
    assert lengths_of(store).tolist() == lengths_of(SOME).tolist() == [2, 1, 2]


def test_a_mixture_is_its_stores_one_after_the_other(tmp_path: Path) -> None:
    first = Store(write(Cache(tmp_path), SOME, "a"))
    second = Store(write(Cache(tmp_path), SOME[:1], "b", "b.jsonl"), named=True)
    empty = Store(write(Cache(tmp_path), [], "c"))
    mixture = Mixture([first, empty, second])
    assert len(mixture) == 4 and mixture.lengths.tolist() == [2, 1, 2, 2]
    assert list(mixture[:3]) == SOME and mixture[3].where == "b.jsonl:1" and mixture[-4] == SOME[0]


def test_a_store_is_made_once_for_a_key(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    accounts = [Store(write(cache, SOME, key)).account["made"] for key in ("a", "a", "b")]
    assert accounts[0] == accounts[1] != accounts[2]


@pytest.mark.parametrize("name", ["tokens", "index", "lengths", "weights", "account.json"])
@pytest.mark.parametrize("fault", ["flip", "cut", "gone"])
def test_a_damaged_store_is_made_again(tmp_path: Path, name: str, fault: str) -> None:
    place = write(Cache(tmp_path), WEIGHTED)
    path = place / name
    data = bytearray(path.read_bytes())
    if fault == "gone":
        path.unlink()
    else:
        data[0] ^= 1
        path.write_bytes(data if fault == "flip" else data[: len(data) // 2])
    assert not is_whole(place)
    again = Store(write(Cache(tmp_path), WEIGHTED))
    assert list(again)[:7] == [*SOME, WEIGHTED[3], *SOME] and is_whole(place)


def test_a_store_whose_making_fails_leaves_nothing(tmp_path: Path) -> None:
    def fail(writer: Writer) -> dict[str, Any]:
        writer.append([1], [1], "a", 1)
        raise ValueError("bad row")

    with pytest.raises(ValueError, match="bad row"):
        Cache(tmp_path).open("k", fail)
    assert list(tmp_path.iterdir()) == []


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="LORACTL_CACHE"):
        write(Cache(tmp_path / "file"), SOME)


def test_stores_unused_for_a_month_are_removed(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    old, used, new_key = (hashlib.sha256(word).hexdigest() for word in (b"old", b"used", b"new"))
    old, used = write(cache, SOME, old), write(cache, SOME, used)
    left = tmp_path / f"{leftovers.MAKING}1"
    of_older = tmp_path / f".{new_key[:32]}-abc"  # an older version was making it
    theirs = [tmp_path / name for name in (".git", "notes", "b" * 31, "B" * 32)]
    for path in (left, of_older, *theirs):
        path.mkdir()
    days_of = {old: 31, used: 29, left: 2, of_older: 31, **dict.fromkeys(theirs, 400)}
    for path, days in days_of.items():
        then = time.time() - days * 86400
        os.utime(path, (then, then))
    new = write(cache, SOME, new_key)
    assert set(tmp_path.iterdir()) == {used, new, *theirs}


def test_the_place_of_the_cache_can_be_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORACTL_CACHE", "/a")
    assert Cache.default().root == Path("/a/tokens")
    monkeypatch.delenv("LORACTL_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/b")
    assert Cache.default().root == Path("/b/loractl/tokens")


def test_the_account_says_what_the_files_hash_to(tmp_path: Path) -> None:
    place = write(Cache(tmp_path), SOME)
    content = json.loads((place / "account.json").read_text())
    assert content["paths"] == ["a.jsonl"] and content["sha256"].keys() == {
        "tokens",
        "index",
        "lengths",
    }
