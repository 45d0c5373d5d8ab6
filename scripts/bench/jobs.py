"""The single measurements of `bench speed`, and the rows and configs that they take."""

import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from bench import run

Found = dict[str, Any]
LORACTL = "loractl"  # jobs by whose names tables and the chart find them
LIMIT = "limit, torch's products"
OWN_LIMIT = "limit, loractl's products"
PLAIN = "plain PEFT loop"
FULL = "full fine-tuning, plain loop"
TRL_PADDED = "TRL, padded"
TRL_PACKED = "TRL, packed"


@dataclass(frozen=True)
class Setting:
    """What all workloads of a run share."""

    model: Path
    data: Path  # JSONL of chats, in any layout that loractl reads
    dtype: str
    place: Path  # a directory for what is made on the way
    steps: int = 6  # of loractl
    peer_steps: int = 4
    batch: int = 8  # chats a step of the peers
    rank: int = 8
    bf16_is_slow: bool = False
    plot: Path | None = None

    @cached_property
    def cache(self) -> Path:
        """Where ours keeps tokenised rows; the first of the repeats finds it empty."""
        path = self.place / "cache"
        path.mkdir(parents=True, exist_ok=True)
        return path

    @property
    def packed_rows(self) -> int:
        """Packed rows a step that hold about as many tokens as the peers' chats."""
        return max(1, self.batch // 4)

    def module(self, name: str, *options: object) -> Found:
        return run.module(name, *options, cache=self.cache)


@dataclass(frozen=True)
class Job:
    """One measurement; `name` is its row of the table."""

    name: str
    run: Callable[[int], Found]  # of the number of the repeat
    once: bool = False  # not again in each repeat


@dataclass(frozen=True)
class Workload:
    """Jobs that are run in turn."""

    title: str
    jobs: list[Job]
    same_losses: list[list[str]] = field(default_factory=list)
    """Groups of jobs whose first step trains the same labels from the same weights."""


def config_of(s: Setting, path: Path, *, length: int, rows: int, **sections: Any) -> Found:
    """A config of ours; `sections` replace single settings of model, lora, data and train."""
    config: Found = {
        "model": {"name_or_path": str(s.model), "dtype": s.dtype},
        "lora": {"rank": s.rank},
        "data": {"train": str(path), "max_length": length, "too_long": "drop"},
        "train": {
            "steps": s.steps, "batch_size": rows, "schedule": "constant", "warmup": 0,
            "gradient_checkpointing": False, "cache_trunk": "off", "save_every": 1_000_000,
        },
    }  # fmt: skip
    for name, changes in sections.items():
        config[name] = config.get(name, {}) | changes
    return config


def ours(s: Setting, workload: str, name: str, config: Mapping[str, Any]) -> Job:
    """The real command on a config."""

    def measure(repeat: int) -> Found:
        place = s.place / workload / f"{name}-{repeat}".replace(" ", "-")
        found = run.train(config, place, cache=s.cache)
        shutil.rmtree(place)
        return found

    return Job(name, measure)


def peer(s: Setting, name: str, kind: str, rows: Path, *options: object) -> Job:
    return Job(
        name,
        lambda _: s.module(
            "peers", kind, rows, "--model", s.model, "--dtype", s.dtype, "--rank", s.rank,
            "--steps", s.peer_steps, "--lr", 2e-5 if kind == "full" else 2e-4, *options,
        ),
    )  # fmt: skip


def limits(s: Setting, tokens: int, trained_share: float) -> list[Job]:
    """That of torch's products, and of loractl's where it has its own."""
    import torch

    from loractl.ops import gemm

    def job(name: str, by: str) -> Job:
        return Job(
            name,
            lambda _: s.module(
                "limit", "--model", s.model, "--dtype", s.dtype, "--tokens", tokens,
                "--trained", max(1, round(tokens * trained_share)), "--by", by,
            ),
        )  # fmt: skip

    serves = gemm.serves_here(getattr(torch, s.dtype))
    own = [job(OWN_LIMIT, "loractl")] if serves else []
    return [job(LIMIT, "torch"), *own]


def written_rows(s: Setting, config: Mapping[str, Any], out: Path, *options: object) -> Found:
    """The rows for peers, as the config of ours would train them; what rows.py says."""
    out.parent.mkdir(parents=True, exist_ok=True)
    path = out.with_suffix(".yaml")
    path.write_text(json.dumps(config), encoding="utf-8")  # JSON is YAML
    return s.module("rows", path, "--out", out, "--steps", s.peer_steps, *options)


def texts_file(data: Path, out: Path, *, length: int, rows: int) -> Path:
    """Text rows that are longer than `length` tokens, joined from the strings of the data's rows.

    Six characters a token are more than any tokenizer needs for English; ours cuts what is over.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    texts: list[str] = []
    parts: list[str] = []
    for line in [*data.read_text(encoding="utf-8").splitlines()] * 50:
        parts += strings(json.loads(line))
        if sum(map(len, parts)) >= 6 * length:
            texts.append("\n".join(parts))
            parts = []
        if len(texts) == rows:
            break
    lines = (json.dumps({"text": text}) for text in texts)
    out.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return out


def strings(value: Any) -> Iterable[str]:
    """Every text of more than one word in a row, roles and such left out."""
    if isinstance(value, str):
        if " " in value:
            yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from strings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from strings(inner)


def fixed_rows(s: Setting, name: str, *, length: int, batch: int) -> tuple[Found, Path, float]:
    """The config of ours, the same rows in the same order for peers, and the share trained."""
    count = batch * max(s.steps, s.peer_steps)
    path = texts_file(s.data, s.place / name / "texts.jsonl", length=length, rows=count)
    data = {"format": "text", "too_long": "truncate"}
    config = config_of(s, path, length=length, rows=batch, data=data)
    rows = s.place / name / "rows.json"
    return config, rows, written_rows(s, config, rows)["trained_share"]
