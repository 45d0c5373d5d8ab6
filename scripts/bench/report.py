"""What the benchmarks found: the results file, tables, the plot, and their place in README.md."""

import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import bench_run

Found = dict[str, Any]
Jobs = Mapping[str, list[Found]]


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def read(path: Path) -> Found:
    """The workloads measured before, which stay in the file until they are measured again."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def write(path: Path, results: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def around(readme: Path, name: str) -> tuple[str, str]:
    """What stands up to <!-- name --> and from <!-- /name --> on; ends the command without them."""
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    text = readme.read_text(encoding="utf-8") if readme.is_file() else ""
    before, found, rest = text.partition(begin)
    _, closed, after = rest.partition(end)
    if not (found and closed):
        sys.exit(f"error: {readme} has no {begin} ... {end}")
    return before + begin, end + after


def put(readme: Path, name: str, text: str) -> None:
    """Replace what stands between the two marks."""
    before, after = around(readme, name)
    readme.write_text(f"{before}\n{text}\n{after}", encoding="utf-8")


def machine_line(machine: Mapping[str, Any]) -> str:
    versions = machine["versions"]
    cores = f"{machine['cores']} cores, {machine['threads']} threads"
    named = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
    return f"{machine['cpu']}, {cores}, {machine['memory_gib']:.0f} GiB, {named}, {machine['date']}"


def short(run: Mapping[str, Any]) -> str:
    """A run in a line."""
    if "failed" in run:
        return f"failed: {run['failed']}"
    parts = []
    if "seconds" in run or "tokens_per_s" in run:
        parts.append(f"{bench_run.tokens_per_s(run):.1f} tokens/s")
    if (around := bench_run.around_steps(run)) is not None:
        parts.append(f"{around:.1%} of the time between steps")
    if "peak_rss_bytes" in run:
        parts.append(f"{run['peak_rss_bytes'] / 2**30:.2f} GiB")
    if "start_s" in run:
        parts.append(f"first step after {run['start_s']:.1f} s")
    if run.get("losses"):
        parts.append(f"losses {run['losses'][0]:.5f} ... {run['losses'][-1]:.5f}")
    for name in ("ours", "transformers"):
        if name in run:
            parts.append(f"{name} {run[name]['mean']:+.2e} +- {run[name]['standard_error']:.0e}")
    return ", ".join(parts)


def tables(results: Mapping[str, Any]) -> str:
    """Every workload as Markdown, under the machine on which it was measured."""
    parts, machines = [], []
    for name, found in results.items():
        machine = f"In {found['machine']['dtype']} on {machine_line(found['machine'])}:"
        if machine not in machines[-1:]:
            parts.append(machine)
        machines.append(machine)
        jobs = {
            job: [run for run in runs if "failed" not in run] for job, runs in found["jobs"].items()
        }
        head = f"**{name}**: {found['title']}."
        body = KINDS.get(name, speed_table)({job: runs for job, runs in jobs.items() if runs})
        notes = [f"{job} failed." for job, runs in jobs.items() if not runs]
        if found["apart"] is not None:
            notes.append(
                "Runs that train the same labels begin with the same loss, to"
                f" {found['apart']:.0e}."
                if not found["unequal"]
                else "**Losses differ.**"
            )
        parts.append("\n\n".join([head, body, *notes, *found["unequal"]]))
    return "\n\n".join(parts)


def speed_table(jobs: Jobs) -> str:
    """Medians over the repeats; what a job reaches of the limit, and ours over it."""
    lines = [
        "| | tokens/s (lowest, highest) | of the limit | ours is faster by | peak memory"
        " | first step after |",
        "|---|---|---|---|---|---|",
    ]
    for name, runs in jobs.items():
        if len(runs[0].get("seconds", "**")) == 1:
            continue  # it was run for its loss
        speeds = [bench_run.tokens_per_s(run) for run in runs]
        group = name.rpartition(": ")[0]  # of several models in a workload
        prefix = f"{group}: " if group else ""
        limit, ours = (_speed(jobs, prefix + other) for other in ("limit", "ours"))
        mine = statistics.median(speeds)
        peak = statistics.median(run["peak_rss_bytes"] for run in runs) / 2**30
        starts = [run["start_s"] for run in runs if "start_s" in run]
        is_peer = ours is not None and not name.endswith(("limit", "ours"))
        cells = [
            name,
            f"{mine:.0f} ({min(speeds):.0f}, {max(speeds):.0f})",
            f"{mine / limit:.2f}" if limit and not name.endswith("limit") else "",
            f"{ours / mine:.2f} x" if ours is not None and is_peer else "",
            f"{peak:.2f} GiB" if not name.endswith("limit") else "",
            f"{statistics.median(starts):.1f} s" if starts else "",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    shares = [bench_run.around_steps(run) for runs in jobs.values() for run in runs]
    if known := [share for share in shares if share is not None]:
        lines += ["", f"Ours spends {statistics.median(known):.1%} of the time between its steps."]
    return "\n".join(lines)


def _speed(jobs: Jobs, name: str) -> float | None:
    runs = jobs.get(name)
    return statistics.median(map(bench_run.tokens_per_s, runs)) if runs else None


def trunk_table(jobs: Jobs) -> str:
    lines = [
        "| adapters on the | tokens/s of the first epoch | of the second | second over first |",
        "|---|---|---|---|",
    ]
    for name, runs in jobs.items():
        both = [epochs(run) for run in runs]
        first, second = (statistics.median(speeds) for speeds in zip(*both, strict=True))
        ratio = statistics.median(b / a for a, b in both)
        lines.append(f"| {name} of the layers | {first:.0f} | {second:.0f} | {ratio:.2f} x |")
    return "\n".join(lines)


def epochs(run: Mapping[str, Any]) -> tuple[float, float]:
    """Tokens a second of the first and the second epoch, the first two steps of each left out."""
    rows = list(zip(run["epochs"], run["tokens"], run["seconds"], strict=True))
    speeds = []
    for number in (0, 1):
        steps = [row[1:] for row in rows if number < row[0] <= number + 1]
        counted = steps[min(bench_run.WARM, len(steps) - 1) :]
        speeds.append(sum(n for n, _ in counted) / sum(s for _, s in counted))
    return speeds[0], speeds[1]


def curves_table(jobs: Jobs) -> str:
    if len(jobs) < 2:
        return ""
    ours, naive = (jobs[name][0]["losses"] for name in ("ours", "naive"))
    worst, step = largest_difference(ours, naive)
    return (
        f"Losses of {len(ours)} steps, from {ours[0]:.4f} to {ours[-1]:.4f}: the largest difference"
        f" from the naive formula is {worst:.1e}, at step {step}; at the first"
        f" {abs(ours[0] - naive[0]):.1e}."
    )


def largest_difference(a: Sequence[float], b: Sequence[float]) -> tuple[float, int]:
    """The largest absolute difference of two lists of losses, and its step, counted from 1."""
    return max((abs(x - y), step) for step, (x, y) in enumerate(zip(a, b, strict=True), 1))


def bias_table(jobs: Jobs) -> str:
    if not jobs:
        return ""
    lines = [
        "| loss in bfloat16 less transformers' in float32 | mean | standard error | spread |",
        "|---|---|---|---|",
    ]
    run = jobs["bias"][0]
    for name in ("ours", "transformers"):
        cells = [f"{run[name][what]:+.1e}" for what in ("mean", "standard_error", "spread")]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    off = abs(run["ours"]["mean"] - run["transformers"]["mean"])
    off /= run["transformers"]["standard_error"]
    lines += ["", f"The two means are {off:.1f} standard errors of transformers' apart."]
    return "\n".join(lines)


def start_table(jobs: Jobs) -> str:
    """Medians, and of how many starts."""
    lines = ["| | seconds (lowest, highest) | starts |", "|---|---|---|"]
    for name, runs in jobs.items():
        found = [run["start_s"] for run in runs]
        spread = f"{statistics.median(found):.2f} ({min(found):.2f}, {max(found):.2f})"
        lines.append(f"| {name} | {spread} | {len(found)} |")
    return "\n".join(lines)


KINDS = {
    "trunk": trunk_table, "curves": curves_table, "bias": bias_table, "start": start_table
}  # fmt: skip


def plot_curves(found: Mapping[str, Any], path: Path) -> None:
    """Both curves, and below them how far apart they are."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    if len(found["jobs"]) < 2:
        return
    ours, naive = (found["jobs"][name][0]["losses"] for name in ("ours", "naive"))
    steps = range(1, len(ours) + 1)
    figure, (above, below) = pyplot.subplots(
        2, 1, sharex=True, figsize=(7, 5), height_ratios=(2, 1), layout="constrained"
    )
    above.plot(steps, naive, label="naive formula, transformers", color="tab:orange", linewidth=3)
    above.plot(steps, ours, label="loractl train", color="tab:blue", linewidth=1)
    above.set_ylabel("training loss")
    above.set_title(f"{len(ours)} steps, {found['machine']['dtype']}")
    above.legend()
    floor = 1e-9  # equal losses on a logarithmic axis
    below.semilogy(steps, [max(floor, abs(a - b)) for a, b in zip(ours, naive, strict=True)])
    below.set_ylabel("difference")
    below.set_xlabel("step")
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
