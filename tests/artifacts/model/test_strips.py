"""Files written in strips are those of safetensors' own writer, byte for byte."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from loractl.artifacts.model.strips import DTYPES, Strips, opened, write_strips
from loractl.lora import dense


def every_kind() -> dict[str, Tensor]:
    found = {"scalar": torch.tensor(3), "empty": torch.zeros(0, 4), "ü.cube": torch.randn(2, 3, 5)}
    for number, dtype in enumerate(DTYPES):
        found[f"{number * 7 % 17}.weight"] = torch.randn(3, 2 * number + 1).to(dtype).clone()
        found[f"{number * 5 % 17}.bias"] = torch.randn(number + 1).to(dtype).clone()
    return found


def test_a_file_is_laid_out_as_safetensors_does_it(tmp_path: Path) -> None:
    tensors = every_kind()
    save_file(tensors, tmp_path / "theirs", metadata={"format": "pt"})
    ours = [
        Strips(name, t.dtype, tuple(t.shape), lambda t=t: iter(t.split(2) if t.dim() else [t]))
        for name, t in tensors.items()
    ]
    write_strips(tmp_path / "ours", ours)
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()


def test_rows_are_read_as_safetensors_reads_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = every_kind()
    save_file(tensors, tmp_path / "file")
    monkeypatch.setattr(dense, "STRIP", 20)
    with opened(tmp_path / "file") as stored:
        for name, tensor in load_file(tmp_path / "file").items():
            one = stored[name]
            assert (one.dtype, one.shape) == (tensor.dtype, tensor.shape)
            parts = [one.whole(), one.whole()]
            if tensor.dim():
                parts = [torch.cat(list(one.strips())) if len(tensor) else tensor, one[0:9999]]
            for part in parts:
                assert part.shape == tensor.shape
                assert torch.equal(raw(part), raw(tensor))


def raw(tensor: Tensor) -> Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)
