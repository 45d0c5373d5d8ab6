"""Settings, environment and hashes, as a report lists them."""

from dataclasses import replace

from loractl.config.changes import changes
from loractl.reports.run_page.content import WrittenFile
from loractl.reports.run_page.notes import Notes
from loractl.reports.run_page.provenance import changed_settings, environment, hashes, setting
from tests.reports.run_page.made import content, settings


def test_changed_settings_have_their_defaults_and_required_ones_none() -> None:
    config = settings(train={"learning_rate": 0.003}, data={"columns": {"prompt": "q"}})
    run = replace(content(), changed=changes(config))
    assert changed_settings(run) == [
        ("model.name_or_path", "m", "required"),
        ("data.train", "t.jsonl", "required"),
        ("data.eval", "e.jsonl", "null"),
        ("data.columns.prompt", "q", "null"),
        ("train.learning_rate", "0.003", "0.0002"),
    ]


def test_a_value_is_on_one_line_and_not_too_long() -> None:
    assert (
        setting("a\nb") == "a\\nb" and setting([1, "x"]) == '[1, "x"]' and setting(True) == "true"
    )
    assert (
        len(setting("x" * 5000)) < 400 and setting("https://me:pw@host/x") == "https://***@host/x"
    )


def test_the_environment_is_that_of_the_run_and_hashes_name_their_files() -> None:
    run = replace(
        content(),
        about={
            "loractl": "1.0",
            "versions": {"torch": "2"},
            "base": {"name_or_path": "b", "fingerprint": "ff"},
        },
        notes=Notes(environment={"device": "cpu (x)", "memory_bytes": 2**34}),
        accounts={"train": {"sha256": "aa"}, "eval": 3},
        files=[WrittenFile("adapter/x", 2048, "cc"), WrittenFile("adapter/big", 2**40, None)],
    )
    assert environment(run) == [
        ("loractl", "1.0"), ("torch", "2"), ("device", "cpu (x)"), ("memory", "16.00 GiB")
    ]  # fmt: skip
    assert hashes(run) == [
        ("base b", "ff"), ("data train", "aa"), ("adapter/x, 2 KiB", "cc"),
        ("adapter/big, 1024.00 GiB", "not hashed: large"),
    ]  # fmt: skip
    bare = replace(run, about={}, notes=Notes(), accounts={}, files=[])
    assert environment(bare) == [] and hashes(bare) == []
