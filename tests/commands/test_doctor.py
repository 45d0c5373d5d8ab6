"""`loractl doctor`: what this machine can do, for people and for programs."""

import json
import os
import platform

import pytest
import torch
import transformers

from loractl.cli.main import main


def test_it_names_versions_devices_and_room(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    out, err = capsys.readouterr()
    facts = json.loads(out)
    assert err == ""
    assert facts["python"] == platform.python_version()
    assert facts["torch"] == torch.__version__ and facts["transformers"] == transformers.__version__
    assert facts["cores"] == os.cpu_count()
    assert facts["device"].split()[0] in ("cuda", "mps", "cpu")
    assert facts["dtype auto"] in ("float32", "bfloat16", "float16")
    assert facts["free memory"].endswith("iB") and facts["free disk here"].endswith("iB")


def test_the_table_says_the_same_and_each_thing_missing_comes_with_its_remedy(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["doctor", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name in ("python", "torch", "device", "threads"):
        assert any(
            line.split(name, 1)[1].strip() == str(facts[name])
            for line in lines
            if line.startswith(name)
        )
    assert [
        line.removeprefix("missing: ") for line in lines if line.startswith("missing: ")
    ] == facts["missing"]


def test_a_package_that_is_not_there_is_missing_not_an_error(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("loractl.commands.doctor.EXTRAS", {"gguf": ("no-such-package-at-all",)})
    assert main(["doctor"]) == 0
    assert (
        "missing: no-such-package-at-all, for .gguf base models; pip install 'loractl[gguf]'"
        in capsys.readouterr().out
    )
