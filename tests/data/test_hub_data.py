"""Data sets of the datasets library: what is asked of it, and how its faults are told."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import pytest

from loractl.data import hub_data
from loractl.data.row_files import Row
from loractl.errors import DataError
from loractl.paths import is_hub_data
from tests.tiny import write_jsonl

ROWS = [{"prompt": f"{i}?", "completion": f"{i}."} for i in range(5)]


def test_a_split_is_streamed_from_the_named_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load_dataset(*arguments: Any, **options: Any) -> Any:
        asked.append((arguments, options))
        return datasets.Dataset.from_list(ROWS).to_iterable_dataset()

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    rows = list(hub_data.read_streamed("owner/name:main", None))
    assert rows == [Row(i, row, "owner/name:main") for i, row in enumerate(ROWS, 1)]
    list(hub_data.read_streamed("owner/name", "test"))
    assert asked == [
        (("owner/name", "main"), {"split": "train", "streaming": True}),
        (("owner/name", None), {"split": "test", "streaming": True}),
    ]


def test_nulls_that_arrow_puts_into_messages_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"m": [{"role": "user"}, {"role": "assistant", "tool_calls": [{"name": "f"}]}]}]
    found = datasets.Dataset.from_list(rows)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: found.to_iterable_dataset())
    assert [row.fields for row in hub_data.read_streamed("owner/name", None)] == rows


CACHED = """
import sys
import datasets
from loractl.data import sources
builder = datasets.load_dataset_builder("json", data_files={"train": sys.argv[1]})
# As datasets lays a dataset out that it once downloaded.
builder.repo_id, builder.dataset_name, builder.config_id = "owner/tiny", "tiny", "default"
builder.hash = "0123abcd"
builder._cache_dir = builder._output_dir = builder._build_cache_dir()
builder.download_and_prepare()
print([row.fields["prompt"] for row in sources.read("owner/tiny")])
print(sources.fingerprint("owner/tiny") == sources.fingerprint("owner/tiny", "train"))
for name, split in (("owner/tiny", "dev"), ("owner/tiny:other", None), ("owner/absent", None)):
    try:
        list(sources.read(name, split))
    except sources.DataError as error:
        print(error)
"""


@pytest.mark.slow
def test_what_was_downloaded_before_is_read_without_a_connection(tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "a.jsonl", ROWS)  # type: ignore[arg-type]
    done = subprocess.run(
        [sys.executable, "-c", CACHED, str(file)],
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")},
    )
    assert done.returncode == 0, done.stderr
    prompts, same, split, configuration, absent = done.stdout.splitlines()
    assert prompts == str([row["prompt"] for row in ROWS]) and same == "True"
    assert split.startswith("owner/tiny: Bad split: dev. Available splits: ['train']; set split")
    assert configuration.startswith("owner/tiny:other: its configurations are default; name one")
    assert absent.startswith("owner/absent: neither a path here") and "HF_HUB_OFFLINE" in absent


def test_a_data_set_that_is_not_here_cannot_be_read_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    asked = (
        lambda: list(hub_data.read_streamed("owner/name", None)),
        lambda: hub_data.revision("owner/name"),
    )
    for ask in asked:
        with pytest.raises(DataError) as caught:
            ask()
        message = str(caught.value)
        assert message.startswith("owner/name: neither a path here") and str(tmp_path) in message
        assert "hf download --repo-type dataset owner/name" in message


class HfHubHTTPError(OSError):
    """Stands in for one of huggingface_hub's, which need a response."""


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            datasets.exceptions.DatasetNotFoundError(
                "Dataset 'o/n' is a gated dataset on the Hub. You must be authenticated"
            ),
            "gated: accept its terms at https://huggingface.co/datasets/o/n, then run hf auth",
        ),
        (
            datasets.exceptions.DatasetNotFoundError(
                "Dataset 'o/n' doesn't exist on the Hub or cannot be accessed."
            ),
            "nor a hub dataset that you can read; check the name",
        ),
        (
            ValueError(
                "Config name is missing.\nPlease pick one among the available configs:"
                " ['main', 'socratic']\nExample of usage:"
            ),
            "its configurations are main, socratic; name one, as in o/n:NAME",
        ),
        (
            ValueError("BuilderConfig 'x' not found. Available: ['main', 'socratic']"),
            "its configurations are main, socratic; name one, as in o/n:NAME",
        ),
        (
            ValueError("Bad split: x. Available splits: ['train', 'test']"),
            r"Bad split: x. Available splits: \['train', 'test'\]; set split to one of them",
        ),
        (
            RuntimeError("Dataset scripts are no longer supported, but found n.py"),
            "a script of its own, which is never run",
        ),
        (HfHubHTTPError("503 Service Unavailable\nmore"), "HfHubHTTPError: 503 Service Unavail"),
        (KeyError(), "KeyError: no reason given"),
    ],
)
def test_every_fault_on_the_way_to_the_hub_is_one_message(
    monkeypatch: pytest.MonkeyPatch, error: Exception, words: str
) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise error

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(DataError, match=rf"^o/n: .*{words}") as caught:
        list(hub_data.read_streamed("o/n", None))
    assert "\n" not in str(caught.value)


def test_a_connection_that_breaks_off_between_rows_is_told_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def rows(*_: Any, **__: Any) -> Any:
        yield from ROWS[:2]
        raise TimeoutError("timed out")

    monkeypatch.setattr(datasets, "load_dataset", rows)
    with pytest.raises(DataError, match="o/n: cannot be read: TimeoutError: timed out"):
        list(hub_data.read_streamed("o/n", None))


def test_what_save_to_disk_wrote_is_read_by_split(tmp_path: Path) -> None:
    one = datasets.Dataset.from_list(ROWS)
    one.save_to_disk(str(tmp_path / "one"))
    several = datasets.DatasetDict({"train": one, "test": one.select([1, 3])})
    several.save_to_disk(str(tmp_path / "several"))
    alone = datasets.DatasetDict({"sft": one})
    alone.save_to_disk(str(tmp_path / "alone"))
    assert all(hub_data.is_saved(tmp_path / name) for name in ("one", "several", "alone"))
    assert not hub_data.is_saved(tmp_path)

    def fields(name: str, split: str | None = None) -> list[dict[str, Any]]:
        return [row.fields for row in hub_data.read_saved(tmp_path / name, split)]

    assert fields("one") == fields("one", "train") == fields("several") == fields("alone") == ROWS
    assert fields("several", "test") == [ROWS[1], ROWS[3]]
    with pytest.raises(DataError, match="no split dev, found train, test; set split"):
        fields("several", "dev")
    with pytest.raises(DataError, match="no split test, the dataset has no splits"):
        fields("one", "test")


def test_a_saved_data_set_without_its_data_is_refused(tmp_path: Path) -> None:
    datasets.Dataset.from_list(ROWS).save_to_disk(str(tmp_path / "a"))
    for file in (tmp_path / "a").glob("*.arrow"):
        file.unlink()
    with pytest.raises(DataError, match=f"^{tmp_path}/a: cannot be read: FileNotFoundError"):
        list(hub_data.read_saved(tmp_path / "a", None))


@pytest.mark.parametrize("name", ["openai/gsm8k", "a/b.c-d_e", "openai/gsm8k:main"])
def test_names_of_the_hub_are_known_by_their_form(name: str) -> None:
    assert is_hub_data(name)


@pytest.mark.parametrize(
    "name", ["gsm8k", "a/b/c", "./a/b", "/a/b", "a/", "a/b c", "../a", "a/..b"]
)
def test_other_names_have_not_the_form_of_the_hub(name: str) -> None:
    assert not is_hub_data(name)
