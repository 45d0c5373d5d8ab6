"""RESULTS.md, made of results.json alone."""

import argparse
import sys
from pathlib import Path

from bench import forgetting, hub, memory, offload, ops, safety, speed, store, tokenise

HEAD = """\
# Benchmark results

<!-- Written by `python scripts/bench results` from results.json; changes here are overwritten. -->

Run `python scripts/bench SUBJECT` with the `dev` extra installed: `ops`, `hub`, `memory` (after
`scripts/fetch_base`), `offload --model DIR`, `speed --model DIR --data CHATS.jsonl`, `safety CONFIG
--out DIR`, `tokenise --data CHATS.jsonl` or `forgetting --retain TEXT.jsonl`. Each updates its own
records and this page. `ops`, `memory`, `offload`, `speed` and `tokenise` measure single ones with
`--only`; `--help` lists the options of each.

What counts are ratios from one run on one machine: speeds depend on the processor and, on a
shared machine, on the hour.
"""
SECTIONS = {
    "speed": speed,
    "memory": memory,
    "offload": offload,
    "ops": ops,
    "hub": hub,
    "safety": safety,
    "tokenise": tokenise,
    "forgetting": forgetting,
}


def page(results: store.Results) -> str:
    parts = [HEAD]
    for name, benchmark in SECTIONS.items():
        if records := results.get(name):
            parts.append(f"## {benchmark.TITLE}\n\n{benchmark.ABOUT}\n")
            parts.append(benchmark.section(records) + "\n")
    return "\n".join(parts)


def page_of(path: Path) -> Path:
    """RESULTS.md stands beside results.json, NAME.md beside any other NAME.json."""
    return path.with_name("RESULTS.md") if path.name == "results.json" else path.with_suffix(".md")


def write(path: Path) -> None:
    page_of(path).write_text(page(store.read(path)), encoding="utf-8")


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--check", action="store_true", help="write nothing; 1 when it is stale")


def make(asked: argparse.Namespace) -> int:
    if not asked.results.is_file():
        sys.exit(f"error: {asked.results}: no such file")
    out = page_of(asked.results)
    if not asked.check:
        write(asked.results)
        return 0
    if out.is_file() and out.read_text(encoding="utf-8") == page(store.read(asked.results)):
        return 0
    print(f"error: {out} is stale; run `python scripts/bench results`", file=sys.stderr)
    return 1
