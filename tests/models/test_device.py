"""Which device a run uses, in which dtype, and what is free there."""

from pathlib import Path

import pytest
import torch

from loractl.cli.main import main
from loractl.errors import ModelError
from loractl.models.device import choose_device, choose_dtype, free_memory, free_on_mac

VM_STAT = """\
Mach Virtual Memory Statistics: (page size of 16384 bytes)
Pages free:                               100.
Pages active:                             999.
Pages inactive:                            20.
Pages speculative:                          3.
Pages throttled:                          999.
Pages wired down:                         999.
Pages purgeable:                            4.
"Translation faults":                     999.
"""


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Two GPUs older than bfloat16, as far as torch is asked; and those that were chosen."""
    chosen: list[int] = []
    monkeypatch.delenv("PYTORCH_ALLOC_CONF", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation
    )
    return chosen


def test_a_gpu_comes_first_and_any_device_can_be_named(two_gpus: list[int]) -> None:
    names = ("auto", "cuda", "cuda:1", "cpu")
    assert [str(choose_device(name)) for name in names] == ["cuda:0", "cuda:0", "cuda:1", "cpu"]
    assert two_gpus == [0, 0, 1]


def test_a_device_that_is_not_there_is_refused_with_those_that_are(two_gpus: list[int]) -> None:
    with pytest.raises(ModelError, match="found cuda:2, expected one of .* cuda:0, cuda:1, cpu"):
        choose_device("cuda:2")


def test_a_gpu_that_only_emulates_bfloat16_computes_in_float16(two_gpus: list[int]) -> None:
    assert choose_dtype("auto", torch.device("cuda")) == torch.float16
    assert choose_dtype("bfloat16", torch.device("cuda")) == torch.bfloat16


def test_a_config_that_names_a_device_which_is_not_there_is_an_error_of_its_line(
    config_file: object, capsys: pytest.CaptureFixture[str]
) -> None:
    assert callable(config_file)
    path: Path = config_file("device: cuda:7")
    assert main(["train", str(path)]) == 2
    said = capsys.readouterr().err
    assert "device: found cuda:7, expected one of the devices here: cpu" in said
    assert f"{path}:" in said


def test_a_config_can_name_the_cpu(config_file: object) -> None:
    assert callable(config_file)
    assert main(["train", str(config_file("device: cpu", "train: {steps: 1}"))]) == 0


def test_free_memory_is_known_here_and_read_on_a_mac() -> None:
    assert 0 < free_memory(torch.device("cpu")) < 1 << 50
    assert free_on_mac(VM_STAT) == 127 * 16384
