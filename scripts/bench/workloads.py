"""What each workload of `bench speed` runs, and what must come out equal."""

import json
from collections.abc import Callable
from dataclasses import replace

from bench.jobs import (
    FULL,
    LORACTL,
    PLAIN,
    TRL_PACKED,
    TRL_PADDED,
    Found,
    Job,
    Setting,
    Workload,
    config_of,
    fixed_rows,
    limits,
    ours,
    peer,
    texts_file,
    written_rows,
)

LENGTH = 1024  # tokens of a packed row of chats, loractl's and TRL's
FIRST = f"{LORACTL} on the peers' first rows"


def chats(s: Setting, name: str) -> Workload:
    """Chats of very different length, answers trained: ours packs, peers pad."""
    config = config_of(s, s.data, length=LENGTH, rows=s.packed_rows)
    rows = s.place / name / "rows.json"
    about = written_rows(s, config, rows, "--batch", s.batch)
    first = s.place / name / "first.jsonl"  # the chats of the peers' first step
    lines = s.data.read_text(encoding="utf-8").splitlines()
    chosen = [lines[int(number) - 1] for number in about["lines"]]
    first.write_text("\n".join(chosen) + "\n", encoding="utf-8")
    same = config_of(s, first, length=LENGTH, rows=s.batch, train={"steps": 1})
    packed = ("--batch", s.packed_rows, "--length", LENGTH)
    return Workload(
        f"rows of very different length, answers trained; a step takes {s.packed_rows} packed rows"
        f" of {LENGTH} tokens (loractl, and TRL packed) or {s.batch} padded ones",
        [
            *limits(s, s.packed_rows * LENGTH, about["trained_share"]),
            replace(ours(s, name, FIRST, same), once=True),
            ours(s, name, LORACTL, config),
            peer(s, PLAIN, "plain", rows),
            peer(s, FULL, "full", rows),
            peer(s, TRL_PADDED, "trl", rows, "--batch", s.batch, "--length", LENGTH),
            peer(s, TRL_PACKED, "trl-packed", rows, *packed),
        ],
        [[FIRST, PLAIN, FULL]],
    )


def texts(s: Setting, name: str, *, length: int = 256, batch: int = 4) -> Workload:
    """Rows of exactly 256 tokens, all trained: nothing to gain from packing or masks."""
    config, rows, share = fixed_rows(s, name, length=length, batch=batch)
    return Workload(
        f"{batch} rows of {length} tokens, all trained",
        [
            *limits(s, length * batch, share),
            ours(s, name, LORACTL, config),
            peer(s, PLAIN, "plain", rows),
        ],
        [[LORACTL, PLAIN]],
    )


def long(s: Setting, name: str) -> Workload:
    """One long row a step, with gradient checkpointing; all tokens trained. Ours alone."""
    jobs = []
    for length in (2048, 4096, 8192):
        path = s.place / name / f"{length}.jsonl"
        changes = {
            "data": {"format": "text", "too_long": "truncate"},
            "train": {"gradient_checkpointing": True, "steps": min(s.steps, 3)},
        }
        config = config_of(s, path, length=length, rows=1, **changes)
        texts_file(s.data, path, length=length, rows=3)
        jobs.append(ours(s, name, f"{LORACTL}, {length} tokens", config))
    return Workload("one long row a step, all trained, gradient checkpointing", jobs)


def other(s: Setting, name: str) -> Workload:
    """Architectures without a block of their own here: random models of about 100M parameters."""
    jobs, same = [], []
    for kind in ("gpt2", "phi"):
        model = s.place / name / kind
        s.module("other", kind, "--tokenizer", s.model, "--dtype", s.dtype, "--out", model)
        inner = replace(s, model=model)
        part = texts(inner, f"{name}/{kind}")
        jobs += [replace(job, name=f"{kind}: {job.name}") for job in part.jobs]
        same += [[f"{kind}: {one}" for one in group] for group in part.same_losses]
    return Workload(
        "its tokenizer with random models of other architectures, 4 rows of 256 tokens", jobs, same
    )


def trunk(s: Setting, name: str) -> Workload:
    """The second epoch with `cache_trunk` over the first, adapters on the last layers alone."""
    layers = json.loads((s.model / "config.json").read_text("utf-8"))["num_hidden_layers"]
    steps = max(s.steps, 4)
    # Chats of the peers' steps are a little less than packed rows hold: an epoch has about `steps`.
    lines = s.data.read_text(encoding="utf-8").splitlines()[: (steps + 1) * s.batch]
    path = s.place / name / "chats.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    jobs = []
    for what, share in (("top third", 3), ("top sixth", 6)):
        config = config_of(
            s, path, length=LENGTH, rows=s.packed_rows,
            lora={"layers": f"{layers - max(1, round(layers / share))}-{layers - 1}"},
            train={"epochs": 2, "cache_trunk": "auto"},
        )  # fmt: skip
        del config["train"]["steps"]
        jobs.append(ours(s, name, what, config))
    return Workload("two epochs with `cache_trunk: auto`", jobs)


def curves(s: Setting, name: str) -> Workload:
    """The losses of 100 steps of ours, and of the formula written down naively."""
    steps = 100 if s.steps >= 6 else s.steps
    train = {"steps": steps, "max_grad_norm": 1e9}  # the formula has no clipping
    config = config_of(s, s.data, length=192, rows=1, train=train)
    path = s.place / name / "curves.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(config), encoding="utf-8")

    def naive(_: int) -> Found:
        return s.module("naive", "curves", path, "--steps", steps)

    jobs = [replace(ours(s, name, LORACTL, config), once=True), Job("naive", naive, once=True)]
    return Workload(f"{steps} steps against the naive formula", jobs, [[LORACTL, "naive"]])


def bias(s: Setting, name: str) -> Workload:
    """The mean signed difference of bfloat16 losses from float32 ones, over 30 batches."""
    length, batches = (24 if s.bf16_is_slow else 512), (30 if s.steps >= 6 else s.steps)
    path = texts_file(s.data, s.place / name / "texts.jsonl", length=length, rows=batches)
    data = {"format": "text", "too_long": "truncate"}
    config = config_of(s, path, length=length, rows=1, data=data, model={"dtype": "bfloat16"})
    told = path.with_suffix(".yaml")
    told.write_text(json.dumps(config), encoding="utf-8")

    def run(_: int) -> Found:
        return s.module("naive", "bias", told, "--steps", batches)

    return Workload(
        f"bfloat16 against float32, {batches} batches of {length} tokens",
        [Job("bias", run, once=True)],
    )


def start(s: Setting, name: str) -> Workload:
    """From the command to the first step, with all caches warm; the step itself is a small one."""
    config = config_of(s, s.data, length=LENGTH // 4, rows=1, train={"steps": 1})
    rows = s.place / name / "rows.json"
    written_rows(s, config, rows, "--batch", 1)
    mine = ours(s, name, LORACTL, config)
    mine.run(-1)  # fills them

    def imports(_: int) -> Found:
        return s.module("imports", s.model)

    jobs = [
        Job("imports of torch and transformers alone", imports),
        mine,
        peer(replace(s, peer_steps=1), f"{PLAIN}, its tokens given", "plain", rows),
    ]
    return Workload("from the command to the first step, caches warm", jobs)


WORKLOADS: dict[str, Callable[[Setting, str], Workload]] = {
    "chats": chats,
    "256x4": texts,
    "long": long,
    "other": other,
    "trunk": trunk,
    "curves": curves,
    "bias": bias,
    "start": start,
}
