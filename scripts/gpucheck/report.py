"""What a check found: figures with their bounds, on a line and in a JSON file.

No torch here. The file is written anew after each check, by a rename: a run that is killed leaves
what it had found.
"""

import json
import math
import os
import platform
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

TINY = 1e-30
"""In place of a bound of 0, where one is divided by."""
OK, FAILED, SKIPPED, LEFT_OUT = "ok", "FAILED", "skipped", "left out"


@dataclass(frozen=True)
class Figure:
    """A measured value; with a bound it must not be above it, and NaN is above any."""

    name: str
    value: float
    bound: float | None = None
    unit: str = ""

    @property
    def holds(self) -> bool:
        return self.bound is None or self.value <= self.bound

    @property
    def share(self) -> float:
        """How much of its bound it takes; NaN counts as more than any."""
        assert self.bound is not None
        if self.value != self.value:
            return math.inf
        return self.value / max(self.bound, TINY)

    def __str__(self) -> str:
        unit = f" {self.unit}" if self.unit else ""
        bound = "" if self.bound is None else f" (at most {self.bound:.3g})"
        return f"{self.name} {self.value:.4g}{unit}{bound}"


@dataclass(frozen=True)
class Found:
    """The figures of a check, and what else belongs into the file."""

    figures: tuple[Figure, ...] = ()
    note: str = ""
    more: Mapping[str, Any] = field(default_factory=dict)

    @property
    def holds(self) -> bool:
        return all(figure.holds for figure in self.figures)

    def __str__(self) -> str:
        """All figures without a bound, and of the others the one nearest to its own."""
        bounded = [one for one in self.figures if one.bound is not None]
        said = []
        if bounded:
            above = sum(not one.holds for one in bounded)
            count = (
                f"{above} of {len(bounded)} too high, " if above else f"{len(bounded)} figures, "
            )
            worst = max(bounded, key=lambda one: one.share)
            said.append(f"{count if len(bounded) > 1 else ''}{worst}")
        said += [str(one) for one in self.figures if one.bound is None]
        return "; ".join([*said, *([self.note] if self.note else [])])


class SkippedError(Exception):
    """A check cannot be made here; the message is why."""


@dataclass(frozen=True)
class Line:
    """The result of one check."""

    name: str
    status: str
    seconds: float
    text: str
    found: Found | None = None

    def __str__(self) -> str:
        return f"{self.name:<34} {self.status:<8} {self.seconds:6.1f} s  {self.text}"

    def plain(self) -> dict[str, Any]:
        found = self.found or Found()
        figures = [
            {
                "name": f.name, "value": f.value if math.isfinite(f.value) else str(f.value),
                "bound": f.bound, "unit": f.unit, "holds": f.holds,
            }
            for f in found.figures
        ]  # fmt: skip
        seconds = round(self.seconds, 3)
        said = {"name": self.name, "status": self.status, "seconds": seconds, "text": self.text}
        return {**said, "figures": figures, **({"more": found.more} if found.more else {})}


class Report:
    """Prints each line at once, and keeps all of them in a file."""

    def __init__(self, out: Path, about: Mapping[str, Any]) -> None:
        self.out, self.lines = out, list[Line]()
        self.about = {"python": platform.python_version(), **about}
        self._write(finished=False)

    def add(self, line: Line) -> None:
        self.lines.append(line)
        print(line, flush=True)
        self._write(finished=False)

    def finish(self) -> int:
        """The exit status: 1 if a check failed."""
        self._write(finished=True)
        counts = Counter(line.status for line in self.lines)
        print(", ".join(f"{n} {status}" for status, n in counts.items()), f"-> {self.out}")
        return int(counts[FAILED] > 0)

    def _write(self, *, finished: bool) -> None:
        content = {
            "about": self.about,
            "written": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "finished": finished,
            "checks": [line.plain() for line in self.lines],
        }
        self.out.parent.mkdir(parents=True, exist_ok=True)
        new = self.out.with_name(f"{self.out.name}.new")
        new.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        os.replace(new, self.out)
