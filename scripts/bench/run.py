"""Run one measurement in a process of its own: `loractl train`, or a module of this package.

What is measured comes back as a plain dict, the same for ours and for peers: `losses`, `tokens`
(real ones, padding apart) and `seconds` a step, `start_s`, `peak_rss_bytes`.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

SCRIPTS = Path(__file__).resolve().parent.parent
ROOT = SCRIPTS.parent
POLL = 0.02  # seconds between two looks at metrics.jsonl
PER_STEP = ("tokens", "trained_tokens", "seconds", "arrived", "epochs", "losses_of")
WARM = 2  # steps that do not count: caches fill, pages are touched, code is compiled


class Failed(Exception):
    """A process that was measured did not end well; the message is the end of what it said."""


def environment(cache: Path) -> dict[str, str]:
    """What every process sees: this checkout, no network, and a cache of its own for rows."""
    # As a user has it, Python keeps what it compiled of our files: the first step comes sooner.
    found = [str(ROOT), str(SCRIPTS), os.environ.get("PYTHONPATH")]
    inherited = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    return {
        **inherited,
        "PYTHONPATH": os.pathsep.join(filter(None, found)),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "LORACTL_CACHE": str(cache),
    }


def module(name: str, *options: object, cache: Path) -> dict[str, Any]:
    """Run a module of this package and read the JSON object on its last line. Raises Failed.

    `first_step_at`, a time of the clock, becomes `start_s`: seconds from the start of the process.
    """
    began = time.time()
    done = subprocess.run(
        [sys.executable, "-m", f"bench.{name}", *(str(option) for option in options)],
        capture_output=True, text=True, errors="replace", env=environment(cache), cwd=cache,
    )  # fmt: skip
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        raise Failed(_end(done.returncode, done.stderr))
    found: dict[str, Any] = json.loads(lines[-1])
    if "first_step_at" in found:
        found["start_s"] = found.pop("first_step_at") - began
    return found


def train(
    config: Mapping[str, Any],
    directory: Path,
    *,
    cache: Path,
    at_step: Callable[[], None] | None = None,
) -> dict[str, Any]:
    """Run `loractl train` in a new directory and read its metrics. Raises Failed.

    `at_step` is called when a step's row of metrics has been seen.

    `start_s` is the time from the start of the process until the first row of metrics is there,
    less the seconds of that step. `arrived` holds when each row was there: between two of them lies
    the step and all that is done around it.
    """
    directory.mkdir(parents=True)
    path, out = directory / "config.yaml", directory / "run"
    path.write_text(yaml.safe_dump({**config, "out": str(out)}), encoding="utf-8")
    arrived: list[float] = []
    with (directory / "said").open("w") as said:
        began = time.time()
        process = subprocess.Popen(
            [sys.executable, "-m", "loractl", "train", str(path)],
            stdout=said, stderr=said, env=environment(cache), cwd=ROOT,
        )  # fmt: skip
        try:
            while process.poll() is None:
                time.sleep(POLL)
                new = _n_lines(out / "metrics.jsonl") - len(arrived)
                arrived += [time.time() - began] * new
                if new and at_step is not None:
                    at_step()
        finally:
            process.kill()  # where this was interrupted; it does nothing to one that ended
            process.wait()
    if process.returncode:
        raise Failed(_end(process.returncode, (directory / "said").read_text("utf-8", "replace")))
    lines = (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    arrived += [time.time() - began] * (len(lines) - len(arrived))
    rows = [json.loads(line) for line in lines]
    steps = [(row, at) for row, at in zip(rows, arrived, strict=True) if "loss" in row]
    return _as_measured([row for row, _ in steps], [at for _, at in steps])


def _as_measured(rows: list[dict[str, Any]], arrived: list[float]) -> dict[str, Any]:
    seconds = [row["tokens"] / row["tokens_per_s"] for row in rows]
    return {
        "losses": [row["loss"] for row in rows],
        "epochs": [row["epoch"] for row in rows],
        "tokens": [row["tokens"] for row in rows],
        "trained_tokens": [row["trained_tokens"] for row in rows],
        "seconds": seconds,
        "arrived": arrived,
        "start_s": arrived[0] - seconds[0],
        "peak_rss_bytes": rows[-1]["peak_memory_bytes"],
    }


def summary(found: Mapping[str, Any]) -> dict[str, Any]:
    """What results.json keeps of a run: speeds in place of the tokens and seconds of each step."""
    kept = {key: value for key, value in found.items() if key not in PER_STEP}
    if found.get("seconds"):
        kept |= {"steps": len(found["seconds"]), "tokens_per_s": round(tokens_per_s(found), 2)}
    if (around := around_steps(found)) is not None:
        kept["between_steps"] = round(around, 5)
    if found.get("epochs") and found["epochs"][-1] > 1:
        kept["epoch_tokens_per_s"] = [round(one, 2) for one in epochs(found)]
    if found.get("losses"):
        kept["losses"] = [found["losses"][0], found["losses"][-1]]
    if "start_s" in found:
        kept["start_s"] = round(found["start_s"], 3)
    return kept


def tokens_per_s(found: Mapping[str, Any]) -> float:
    """Real tokens a second over the steps after the second; of fewer steps over the last."""
    if "tokens_per_s" in found:
        return float(found["tokens_per_s"])
    first = min(WARM, len(found["seconds"]) - 1)
    return float(sum(found["tokens"][first:]) / sum(found["seconds"][first:]))


def epochs(found: Mapping[str, Any]) -> tuple[float, float]:
    """Tokens a second of the first and the second epoch, the first two steps of each left out."""
    rows = list(zip(found["epochs"], found["tokens"], found["seconds"], strict=True))
    speeds = []
    for number in (0, 1):
        steps = [row[1:] for row in rows if number < row[0] <= number + 1]
        counted = steps[min(WARM, len(steps) - 1) :]
        speeds.append(sum(n for n, _ in counted) / sum(s for _, s in counted))
    return speeds[0], speeds[1]


def around_steps(found: Mapping[str, Any]) -> float | None:
    """The share of the time after the second step that lies between steps; None without any."""
    if len(found.get("arrived", ())) <= WARM:
        return None
    between = found["arrived"][-1] - found["arrived"][WARM - 1]
    return float(max(0.0, 1 - sum(found["seconds"][WARM:]) / between))


def _n_lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.is_file() else 0


def _end(code: int, said: str) -> str:
    last = said.strip().splitlines()[-12:]
    killed = " (killed: out of memory?)" if code == -9 else ""
    return "\n".join([f"exit code {code}{killed}", *last])
