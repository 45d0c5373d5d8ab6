"""How many megabytes of chats a second are tokenised, by one process and by two, here and by TRL.

The rows are made of a file of chats: its rows again and again, with some words of each swapped by a
seeded generator, so that no two are alike. Every measurement is a process of its own, run by turns.
"""

import argparse
import json
import random
import statistics
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench import machine, report, run, store

TITLE = "Tokenising"
ABOUT = """\
A file of chats to token ids and labels, in a process of its own each: megabytes of the file a
second once all processes have started, the lowest and the highest in parentheses. One
core: one process whose tokenizer has no threads. The store that several processes write is the
same, byte for byte. TRL tokenises with `SFTTrainer`, all tokens trained. Processor time, starts
included, changes least with what else the machine does."""
WAYS = {
    "one process, one core": ("ours", 1, True),
    "one process, the tokenizer's threads": ("ours", 1, False),
    "two processes": ("ours", 2, False),
    "TRL, one process": ("trl", 1, False),
    "TRL, `dataset_num_proc=2`": ("trl", 2, False),
}
ONE_CORE = next(iter(WAYS))


def add_options(parser: argparse.ArgumentParser) -> None:
    model = run.ROOT / ".models" / "SmolLM2-135M-Instruct"
    parser.add_argument("--model", type=Path, default=model, help="its tokenizer (%(default)s)")
    parser.add_argument("--data", type=Path, required=True, help="JSONL of messages to vary")
    parser.add_argument("--mb", type=float, default=50.0, help="of chats (%(default)s)")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", action="append", default=[], help="ways with this in their names")
    parser.add_argument("--seed", type=int, default=0)


def measure(asked: argparse.Namespace) -> int:
    names = report.chosen(WAYS, asked.only) if asked.only else list(WAYS)
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    about = {key: value for key, value in machine.describe().items() if key != "dtype"}
    record = {"machine": about, "model": asked.model.name, "ways": found}
    with tempfile.TemporaryDirectory(prefix="bench-tokenise-") as directory:
        rows = Path(directory) / "chats.jsonl"
        size = write_rows(rows, asked.data, int(asked.mb * 1e6), random.Random(asked.seed))
        record["megabytes"] = round(size / 1e6, 1)
        for repeat in range(asked.repeats):
            for name in names:
                found[name].append(once(rows, asked.model, name))
                speed = size / 1e6 / found[name][-1]["seconds"]
                report.say(f"{repeat + 1}: {name}: {speed:.2f} MB/s {found[name][-1]}")
            if (
                len({one["sha256"] for runs in found.values() for one in runs if "sha256" in one})
                > 1
            ):
                report.say("error: the stores differ")
                return 1
            store.keep(asked.results, "tokenise", f"{size / 1e6:.0f} MB of chats", record)
    print(table(record))
    return 0


def once(rows: Path, model: Path, name: str) -> dict[str, Any]:
    kind, count, is_alone = WAYS[name]
    options = ["--one-core"] if is_alone else []
    given = [kind, rows, "--model", model, "--count", count, *options]
    return run.module("tokenise_once", *given, cache=rows.parent)


def write_rows(path: Path, source: Path, size: int, chance: random.Random) -> int:
    """Write rows of at least so many bytes; return how many."""
    rows = [json.loads(line) for line in source.read_text(encoding="utf-8").splitlines()]
    written = 0
    with path.open("w", encoding="utf-8") as file:
        while written < size:
            for row in rows:
                messages = [
                    {"role": one["role"], "content": varied(one["content"], chance)}
                    for one in row["messages"]
                ]
                line = json.dumps({"messages": messages}, ensure_ascii=False) + "\n"
                written += len(line.encode())
                file.write(line)
                if written >= size:
                    break
    return written


def varied(text: str, chance: random.Random) -> str:
    """The text with an eighth of its words in other places."""
    words = text.split(" ")
    for _ in range(max(1, len(words) // 8)):
        a, b = chance.randrange(len(words)), chance.randrange(len(words))
        words[a], words[b] = words[b], words[a]
    return " ".join(words)


def section(records: Mapping[str, dict[str, Any]]) -> str:
    return report.by_machine(
        records, lambda group: "\n\n".join(table(record) for record in group.values())
    )


def table(record: Mapping[str, Any]) -> str:
    size, ways = record["megabytes"], record["ways"]
    base = [size / one["seconds"] for one in ways.get(ONE_CORE, ())]
    rows = []
    for name, runs in ways.items():
        speeds = [size / one["seconds"] for one in runs]
        ratios = [b / a for a, b in zip(base, speeds, strict=False)]
        rows.append([
            name,
            f"{statistics.median(speeds):.2f} ({min(speeds):.2f}, {max(speeds):.2f})",
            f"{statistics.median(ratios):.2f}x" if ratios else "",
            f"{statistics.median(one['start_s'] for one in runs):.1f} s",
            f"{statistics.median(one['cpu_s'] for one in runs):.0f} s",
        ])  # fmt: skip
    head = f"{size:.0f} MB of chats, tokenizer of {record['model']}"
    return report.markdown([head, "MB/s", "of one core's", "start", "processor time"], rows)
