"""How records read in RESULTS.md: the machine's line, and the tables of `bench speed`."""

import statistics
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, NoReturn

from bench.jobs import LIMIT, LORACTL, OWN_LIMIT

Found = dict[str, Any]
Jobs = Mapping[str, list[Found]]
RESULTS = Path(__file__).with_name("results.json")


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def chosen(names: Iterable[str], only: Sequence[str]) -> list[str]:
    """The names that hold one of these parts. Ends with 2 for a part that is in none of them."""
    names = list(names)
    for part in only:
        if not any(part in name for name in names):
            refuse_only(part, names)
    return [name for name in names if any(part in name for part in only)]


def refuse_only(word: str, names: Iterable[str]) -> NoReturn:
    """End with 2, as argparse does: there is nothing of that name to measure."""
    say(f"error: --only {word}: found nothing of that name, expected one of {'; '.join(names)}")
    raise SystemExit(2)


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def machine_line(machine: Mapping[str, Any]) -> str:
    """All that is known of it; old records know less."""
    told = [
        machine["cpu"],
        f"{machine['cores']} cores",
        f"{machine['threads']} threads" if "threads" in machine else "",
        f"{machine['memory_gib']:.0f} GiB" if "memory_gib" in machine else "",
        *(f"{name} {version}" for name, version in machine.get("versions", {}).items() if version),
        machine["date"],
    ]
    start = f"In {machine['dtype']} on " if "dtype" in machine else "On "
    return start + ", ".join(filter(None, told))


def by_machine(records: Mapping[str, Found], section: Callable[[Mapping[str, Found]], str]) -> str:
    """What `section` makes of each group of records, under the machine that it was measured on."""
    parts = []
    for line, group in groupby(records, lambda name: machine_line(records[name]["machine"])):
        some = {name: records[name] for name in group}
        parts += [f"{line}:", section(some)]
        if rounded := [name for name, record in some.items() if record.get("rounded")]:
            which = "" if len(rounded) == len(some) else f" of {', '.join(rounded)}"
            parts.append(
                f"Figures{which} were rounded when recorded: ratios may be off in the last digit."
            )
    return "\n\n".join(parts)


def short(found: Mapping[str, Any]) -> str:
    """A run in a line, from its summary."""
    if "failed" in found:
        return f"failed: {found['failed']}"
    parts = []
    if "tokens_per_s" in found:
        parts.append(f"{found['tokens_per_s']:.1f} tokens/s")
    if "between_steps" in found:
        parts.append(f"{found['between_steps']:.1%} of the time between steps")
    if "peak_rss_bytes" in found:
        parts.append(f"{found['peak_rss_bytes'] / 2**30:.2f} GiB")
    if "start_s" in found:
        parts.append(f"first step after {found['start_s']:.1f} s")
    if found.get("losses"):
        parts.append(f"losses {found['losses'][0]:.5f} ... {found['losses'][-1]:.5f}")
    for name in (LORACTL, "transformers"):
        if name in found:
            parts.append(
                f"{name} {found[name]['mean']:+.2e} +- {found[name]['standard_error']:.0e}"
            )
    return ", ".join(parts)


def workloads(records: Mapping[str, Found]) -> str:
    """Workloads of one machine, each with its table."""
    parts = []
    for name, record in records.items():
        jobs = {
            job: [one for one in runs if "failed" not in one]
            for job, runs in record.get("jobs", {}).items()
        }
        notes = [f"{job} failed." for job, runs in jobs.items() if not runs]
        if record["unequal"]:
            notes += ["**Losses differ.**", *record["unequal"]]
        elif record["apart"] is not None:
            told = "The first losses of runs that train the same labels agree to"
            notes.append(f"{told} {record['apart']:.0e}.")
        notes += [record["note"]] if "note" in record else []
        if name == "curves":
            body = curves_text(record) if "curves" in record else ""
        else:
            body = TABLES.get(name, speed_table)({job: runs for job, runs in jobs.items() if runs})
        once = " One run each." if record.get("asked", {}).get("repeats") == 1 else ""
        head = f"**{name}**, {record['model']}: {record['title']}.{once}"
        parts += filter(None, [head, body, *notes])
    return "\n\n".join(parts)


def speed_table(jobs: Jobs) -> str:
    """Medians over the repeats; what a job reaches of the limit, and loractl over it."""
    rows = []
    for name, runs in jobs.items():
        if runs[0].get("steps") == 1:
            continue  # it was run for its loss
        speeds = [one["tokens_per_s"] for one in runs]
        group = name.rpartition(": ")[0]  # of several models in a workload
        prefix = f"{group}: " if group else ""
        limit, ours = (_speed(jobs, prefix + other) for other in (LIMIT, LORACTL))
        is_limit = name.removeprefix(prefix) in (LIMIT, OWN_LIMIT)
        is_peer = not is_limit and name != prefix + LORACTL
        mine = statistics.median(speeds)
        peaks, starts = (_known(runs, key) for key in ("peak_rss_bytes", "start_s"))
        rows.append([
            name,
            f"{mine:.0f}" + (f" ({min(speeds):.0f}, {max(speeds):.0f})" if len(runs) > 1 else ""),
            f"{mine / limit:.2f}" if limit and not is_limit else "",
            f"{ours / mine:.2f}x" if ours is not None and is_peer else "",
            f"{statistics.median(peaks) / 2**30:.2f} GiB" if peaks and not is_limit else "",
            f"{statistics.median(starts):.1f} s" if starts else "",
        ])  # fmt: skip
    head = ["", "tokens/s (lowest, highest)", "share of the limit", "loractl's speedup"]
    table = markdown([*head, "peak memory", "first step after"], rows)
    shares = [share for runs in jobs.values() for share in _known(runs, "between_steps")]
    if not shares:
        return table
    told = f"loractl spends {statistics.median(shares):.1%} of its time between steps."
    return f"{table}\n\n{told}"


def _known(runs: Sequence[Found], key: str) -> list[float]:
    return [one[key] for one in runs if key in one]


def _speed(jobs: Jobs, name: str) -> float | None:
    runs = jobs.get(name)
    return statistics.median(_known(runs, "tokens_per_s")) if runs else None


def trunk_table(jobs: Jobs) -> str:
    rows = []
    for name, runs in jobs.items():
        both = [one["epoch_tokens_per_s"] for one in runs]
        first, second = (statistics.median(speeds) for speeds in zip(*both, strict=True))
        ratio = statistics.median(b / a for a, b in both)
        rows.append([f"{name} of the layers", f"{first:.0f}", f"{second:.0f}", f"{ratio:.2f}x"])
    head = ["adapters on the", "tokens/s of the first epoch", "of the second"]
    return markdown([*head, "second over first"], rows)


def curves_of(ours: Sequence[float], naive: Sequence[float]) -> Found:
    """What the record of `curves` keeps of the two lists of losses."""
    worst, step = largest_difference(ours, naive)
    return {
        "steps": len(ours), "first_loss": ours[0], "last_loss": ours[-1], "worst": worst,
        "worst_at_step": step, "at_first_step": abs(ours[0] - naive[0]),
    }  # fmt: skip


def largest_difference(a: Sequence[float], b: Sequence[float]) -> tuple[float, int]:
    """The largest absolute difference of two lists of losses, and its step, counted from 1."""
    return max((abs(x - y), step) for step, (x, y) in enumerate(zip(a, b, strict=True), 1))


def curves_text(record: Found) -> str:
    found = record["curves"]
    text = (
        f"The loss of `loractl train` goes from {found['first_loss']:.4f} to"
        f" {found['last_loss']:.4f} in {found['steps']} steps. Its largest difference from the"
        f" naive formula is {found['worst']:.1e}, at step {found['worst_at_step']}; at the first"
        f" step it is {found['at_first_step']:.1e}."
    )
    alt = "The two loss curves lie on each other; below them, their difference"
    return f"{text}\n\n![{alt}](../../.github/curves.png)"


def bias_table(jobs: Jobs) -> str:
    if not jobs:
        return ""
    one = jobs["bias"][0]
    rows = [
        [name, *(f"{one[name][what]:+.1e}" for what in ("mean", "standard_error", "spread"))]
        for name in (LORACTL, "transformers")
    ]
    head = "loss in bfloat16 minus transformers' in float32"
    off = abs(one[LORACTL]["mean"] - one["transformers"]["mean"])
    off /= one["transformers"]["standard_error"]
    told = f"The two means are {off:.1f} of transformers' standard errors apart."
    return markdown([head, "mean", "standard error", "spread"], rows) + f"\n\n{told}"


def start_table(jobs: Jobs) -> str:
    """Medians, and of how many starts."""
    rows = []
    for name, runs in jobs.items():
        found = [one["start_s"] for one in runs]
        spread = f"{statistics.median(found):.2f} ({min(found):.2f}, {max(found):.2f})"
        rows.append([name, spread, str(len(found))])
    return markdown(["", "seconds (lowest, highest)", "starts"], rows)


TABLES = {"trunk": trunk_table, "bias": bias_table, "start": start_table}
