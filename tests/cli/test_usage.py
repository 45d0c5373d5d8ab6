"""A wrong command line is answered in the tool's own words: what was found, what was expected."""

import re

import pytest

from loractl.cli.main import main

Capture = pytest.CaptureFixture[str]


@pytest.mark.parametrize(
    ("line", "command", "told"),
    [
        (
            "estimate --rank 1.5",
            "loractl estimate",
            "--rank: found '1.5', expected a whole number of at least 1",
        ),
        (
            "estimate --rank 0",
            "loractl estimate",
            "--rank: found '0', expected a whole number of at least 1",
        ),
        (
            "estimate --price -1",
            "loractl estimate",
            "--price: found '-1', expected a number of at least 0",
        ),
        (
            "estimate --trained-share 2",
            "loractl estimate",
            "--trained-share: found '2', expected a number of at least 0 and at most 1",
        ),
        (
            "generate --temperature hot",
            "loractl generate",
            "--temperature: found 'hot', expected a number of at least",
        ),
        (
            "generate --temperature nan",
            "loractl generate",
            "--temperature: found 'nan', expected a number of at least",
        ),
        (
            "generate --seed 99999999999999999999",
            "loractl generate",
            "a whole number of at least 0 and at most 9223",
        ),
        (
            "adapters resize a --energy much --out b",
            "loractl adapters resize",
            "--energy: found 'much', expected a number;",
        ),
        (
            "train a.yaml b.yaml",
            "loractl train",
            "loractl train: found b.yaml, expected nothing after CONFIG",
        ),
        (
            "doctor now",
            "loractl doctor",
            "loractl doctor: found now, expected no argument; remove it",
        ),
        (
            "adapters",
            "loractl adapters",
            "loractl adapters: no command given, expected resize, combine or extract",
        ),
        ("adapters shrink", "loractl adapters", "shrink: unknown command"),
        ("trian", "loractl", "trian: unknown command; did you mean train?"),
        ("train", "loractl train", "CONFIG: not given, but required: the YAML config file"),
        (
            "merge a",
            "loractl merge",
            "--out: not given, but required: write the merged model to this directory",
        ),
        (
            "train a.yaml --resum",
            "loractl train",
            "--resum: unknown option; did you mean --resume?",
        ),
        ("train a.yaml -x", "loractl train", "-x: unknown option"),
        ("estimate --seq", "loractl estimate", "--seq: found no value after it, expected one"),
        ("train a.yaml --resume=1", "loractl train", "--resume: found a value, expected none"),
    ],
)
def test_an_error_says_what_was_found_and_what_was_expected(
    line: str, command: str, told: str, capsys: Capture
) -> None:
    assert main(line.split()) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1
    assert told in err and err.endswith(f"ee {command} --help\n")
    assert not re.search(r"Input should|Invalid value|Got unexpected|argument\(s\)|No such", err)


def test_a_long_value_and_its_control_characters_are_shown_safely(capsys: Capture) -> None:
    assert main(["estimate", "--rank", "\x1b[31m" + "9" * 500 + "x"]) == 2
    err = capsys.readouterr().err
    assert "\x1b" not in err and len(err) < 200
    assert main(["train", "a.yaml", "\x1b[31m" + "b" * 500]) == 2
    err = capsys.readouterr().err
    assert "\x1b" not in err and len(err) < 250
