"""Training with layers read from disk, against the same steps with the layers in memory.

The base is quantized to `nf4-double` on the way in and kept in a cache; before each step of the run
from disk, the files are dropped from the page cache, so that every layer is read from the disk.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench import report, run, store

Found = dict[str, Any]
TITLE = "Layers read from disk"
ABOUT = """\
Steps of `loractl train` over random models of the shape named, quantized to `nf4-double`, rank 16
on all linear layers, gradient checkpointing. From disk (`model.offload: disk`), the files of the
layers are dropped from the page cache before each step. The first step of a run does not count."""
WAYS = {"in memory": "none", "from disk": "disk"}
CHUNK = 1 << 24  # bytes that one read asks for


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", type=Path, required=True, help="from `python -m bench.shaped`")
    parser.add_argument("--tokens", type=int, default=512, help="of a step, one row (%(default)s)")
    parser.add_argument("--steps", type=int, default=3, help="of each run (%(default)s)")
    parser.add_argument("--only", nargs="+", default=[""], metavar="TEXT", help="part of a way")


def measure(asked: argparse.Namespace) -> int:
    model = asked.model.resolve()
    with tempfile.TemporaryDirectory(prefix="loractl-bench-", dir=model.parent) as name:
        place = Path(name)
        cache = place / "cache"
        record: Found = {
            "machine": run.module("machine", cache=place),
            "model": model.name, "tokens": asked.tokens, "ways": {},
        }  # fmt: skip
        for way in report.chosen(WAYS, asked.only):
            found = trained(model, place / way, cache, WAYS[way], asked.tokens, asked.steps)
            record["ways"][way] = found
            report.say(f"{way}: {seconds_of(found):.1f} s a step, {peak_of(found):.2f} GiB")
        record["kept_bytes"] = sum(path.stat().st_size for path in packed_files(cache))
        record["disk_bytes_per_s"] = round(speed_of_disk(cache))
        store.keep(asked.results, "offload", f"{model.name}, {asked.tokens} tokens", record)
    print(section({"": record}))
    return 0


def trained(model: Path, place: Path, cache: Path, offload: str, tokens: int, steps: int) -> Found:
    """Seconds of each step and the peak resident size of a run. Raises run.Failed."""
    place.mkdir(parents=True)
    rows, config = place / "rows.jsonl", config_of(model, place, offload, tokens, steps)
    line = json.dumps({"text": "a " * (tokens + 8)})
    rows.write_text(f"{line}\n" * steps, encoding="utf-8")
    found = run.train(
        config, place / "trained", cache=cache,
        at_step=(lambda: drop(model, cache)) if offload == "disk" else None,
    )  # fmt: skip
    return {key: found[key] for key in ("seconds", "losses", "start_s", "peak_rss_bytes")}


def config_of(model: Path, place: Path, offload: str, tokens: int, steps: int) -> Found:
    return {
        "model": {"name_or_path": str(model), "quantization": "nf4-double", "offload": offload},
        "lora": {"rank": 16, "target_modules": "all-linear"},
        "data": {
            "train": str(place / "rows.jsonl"), "format": "text", "too_long": "truncate",
            "max_length": tokens,
        },
        "train": {
            "steps": steps, "save_every": 1000, "gradient_checkpointing": True,
            "learning_rate": 0.0002,
        },
    }  # fmt: skip


def files_in(*places: Path) -> list[Path]:
    return [path for place in places for path in sorted(place.rglob("*")) if path.is_file()]


def packed_files(cache: Path) -> list[Path]:
    return [path for path in files_in(cache) if path.suffix == ".safetensors"]


def drop(*places: Path) -> None:
    """Have the kernel forget the pages of all files, so that the next read is from disk."""
    for path in files_in(*places):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def speed_of_disk(place: Path) -> float:
    """Bytes a second of reading a file from start to end, not from the page cache."""
    path = max(packed_files(place), key=lambda one: one.stat().st_size)
    drop(place)
    buffer, began = bytearray(CHUNK), time.perf_counter()
    with path.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass
    return path.stat().st_size / (time.perf_counter() - began)


def seconds_of(found: Found) -> float:
    """The median over the steps after the first."""
    return statistics.median(found["seconds"][1:] or found["seconds"])


def peak_of(found: Found) -> float:
    return float(found["peak_rss_bytes"] / 2**30)


def section(records: Mapping[str, Found]) -> str:
    return report.by_machine(records, _table)


def _table(records: Mapping[str, Found]) -> str:
    rows = []
    for record in records.values():
        in_memory = record["ways"].get("in memory")
        for way, found in record["ways"].items():
            ratio = seconds_of(found) / seconds_of(in_memory) if in_memory else None
            rows.append([
                f"{record['model']}, {record['tokens']} tokens", way,
                f"{seconds_of(found):.1f} s", f"{ratio:.2f}" if ratio else "",
                f"{peak_of(found):.2f} GiB", f"{record['kept_bytes'] / 2**30:.2f} GiB",
                f"{record['disk_bytes_per_s'] / 1e6:,.0f} MB/s",
            ])  # fmt: skip
    head = ["model", "layers", "a step", "over in memory", "peak resident", "packed", "the disk"]
    return report.markdown(head, rows)
