"""Runs whose training wrote a report."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.runs import train

Config = Callable[..., Path]
REPORTED = ("data: {eval: 0.3}", "train: {report: true, steps: 2, save_every: 1}")


@pytest.fixture
def reported(config_file: Config, tmp_path: Path) -> Path:
    """A finished run with report.json and report.html."""
    assert train(config_file(*REPORTED)) == 0
    return tmp_path / "run"
