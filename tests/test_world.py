"""One process is World(0, 1); of several, the first writes and speaks; shares make the whole."""

import pytest

from loractl import console
from loractl.progress import Progress
from loractl.world import ALONE, World


def test_one_process_takes_all_and_is_the_first() -> None:
    assert ALONE.is_first and list(ALONE.share_of(range(5))) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_shares_make_the_whole_and_differ_by_one_at_most(size: int) -> None:
    shares = [list(World(rank, size).share_of(range(11))) for rank in range(size)]
    assert sorted(row for share in shares for row in share) == list(range(11))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize(("rank", "size"), [(1, 1), (-1, 2), (0, 0)])
def test_a_rank_lies_within_its_size(rank: int, size: int) -> None:
    with pytest.raises(AssertionError, match="rank"):
        World(rank, size)


def test_the_first_process_speaks_for_all_and_errors_are_told_by_each(
    capsys: pytest.CaptureFixture[str],
) -> None:
    try:
        console.speak_as(World(1, 2))
        console.note("a note")
        console.result("a result")
        console.errors(["what went wrong here"])
        with Progress(1) as progress:
            progress.step(1, "loss", seconds_left=0.0)
        out, err = capsys.readouterr()
        assert (out, err) == ("", "error: what went wrong here\n")
    finally:
        console.speak_as(ALONE)
    console.note("a note")
    assert capsys.readouterr().err == "a note\n"
