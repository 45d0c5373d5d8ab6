"""Lessons for the tests: of one known size and two others, so that they are made in no time."""

import pytest

from loractl.models.shape import read as shapes
from loractl.models.shape.sizes import SIZES
from loractl.planning.request import Request
from loractl.reports.explain import model_tables
from loractl.reports.explain.lesson import Lesson


def few_sizes(monkeypatch: pytest.MonkeyPatch, *sizes: str) -> None:
    """Only these of the known sizes."""
    monkeypatch.setattr(model_tables, "SIZES", {size: SIZES[size] for size in sizes})


def lesson(name: str = "7B", request: Request | None = None, **more: object) -> Lesson:
    """The lesson of a known size, by its name or under another."""
    shape = shapes.named(name if name in SIZES else "0.5B")
    return Lesson(name, shape, request or Request(), f"--model {name}", **more)  # type: ignore[arg-type]
