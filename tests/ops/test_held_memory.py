import subprocess
import sys
import threading

import pytest
import torch

from loractl.ops import held_memory

PAGE = 4096


@pytest.fixture(autouse=True)
def nothing_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(held_memory, "kept", held_memory.OfThread())


def test_scratch_is_one_memory_by_name_until_more_is_asked_for() -> None:
    first = held_memory.scratch("a", 1000)
    assert first.shape == (1000,) and first.dtype == torch.float32
    assert first.data_ptr() % PAGE == 0
    assert held_memory.scratch("a", 10).data_ptr() == first.data_ptr(), "kept"
    assert held_memory.scratch("b", 10).data_ptr() != first.data_ptr(), "another name"
    larger = held_memory.scratch("a", 10 * PAGE)
    assert larger.fill_(1.0).sum() == 10 * PAGE
    assert held_memory.scratch("a", 1000).data_ptr() == larger.data_ptr(), "kept again"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_scratch_has_any_dtype(dtype: torch.dtype) -> None:
    found = held_memory.scratch("a", 77, dtype).fill_(3.0)
    assert found.dtype == dtype and found.shape == (77,) and bool((found == 3.0).all())


def test_a_thread_has_its_own() -> None:
    mine, others = held_memory.scratch("a", 10).fill_(1.0), []
    held_memory.give(held_memory.take(10))
    thread = threading.Thread(
        target=lambda: others.extend(
            (held_memory.scratch("a", 10).fill_(2.0), held_memory.take(10))
        )
    )
    thread.start()
    thread.join()
    assert bool((mine == 1.0).all()) and held_memory.take(10).data_ptr() != others[1].data_ptr()


def test_what_was_taken_is_nobody_elses_until_it_is_given_back() -> None:
    blocks = [held_memory.take(1000).fill_(i) for i in range(4)]
    assert all(bool((block == i).all()) for i, block in enumerate(blocks))
    places = {block.data_ptr() for block in blocks}
    for block in blocks:
        held_memory.give(block)
    again = [held_memory.take(900) for _ in range(4)]
    assert {block.data_ptr() for block in again} == places


def test_the_smallest_block_that_fits_is_taken() -> None:
    small, large = held_memory.take(PAGE), held_memory.take(8 * PAGE)
    held_memory.give(large)
    held_memory.give(small)
    assert held_memory.take(PAGE).data_ptr() == small.data_ptr()
    assert held_memory.take(PAGE).data_ptr() == large.data_ptr(), "no other is left"


def test_larger_blocks_come_in_the_place_of_smaller_ones() -> None:
    for block in [held_memory.take(PAGE) for _ in range(3)]:
        held_memory.give(block)
    larger = [held_memory.take(2 * PAGE) for _ in range(2)]
    assert all(len(block) >= 2 * PAGE for block in larger)
    assert len(held_memory.kept.idle) == 1, "as many as were in use at a time"


def test_more_than_there_is_is_told_as_such() -> None:
    for ask in (held_memory.take, lambda values: held_memory.scratch("a", values)):
        with pytest.raises(MemoryError, match="bytes"):
            ask(2**50)
    assert len(held_memory.scratch("a", 10)) == len(held_memory.take(10)[:10])


FORK = """
import os
from loractl.ops import held_memory
mine = held_memory.scratch("a", 1000).fill_(1.0)
child = os.fork()
if child == 0:
    mine.fill_(2.0)
    os._exit(0)
os.waitpid(child, 0)
assert bool((mine == 1.0).all())
"""


def test_a_forked_process_has_its_own() -> None:
    subprocess.run([sys.executable, "-c", FORK], check=True)
