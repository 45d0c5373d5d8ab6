"""The content of runs, made by hand: tests of what a page shows need no training."""

from dataclasses import replace
from functools import cache
from typing import Any

from loractl.config.changes import changes, flatten
from loractl.config.settings import RunConfig, resolve
from loractl.data.account import Account
from loractl.models.shape.read import named
from loractl.planning import estimate
from loractl.planning.request import Request
from loractl.records import HeldOutLoss
from loractl.reports.run_page.content import FINISHED, Proof, RunContent, WrittenFile
from loractl.reports.run_page.notes import Compared, Given, Notes, Said, ShownRow, Span, Weight

MODULES = [
    f"model.layers.{layer}.self_attn.{kind}" for layer in range(3) for kind in ("q_proj", "v_proj")
]


def steps(n: int, **more: Any) -> list[dict[str, Any]]:
    return [
        {"step": i + 1, "epoch": (i + 1) / n, "loss": 2 / (i + 1), "lr": 1e-4, "grad_norm": 1.0,
         "tokens": 100, "tokens_per_s": 50.0, "peak_memory_bytes": 2**30, **more}
        for i in range(n)
    ]  # fmt: skip


def update(rank: int = 2, scale: float = 2.0) -> dict[str, Any]:
    """What `inspect` measures of one module."""
    return {
        "kind": "linear", "d_out": 40, "d_in": 80, "rank": rank, "scale": scale, "norm": 0.5,
        "effective_rank": 1.5, "rank_90": 1, "singular_values": [0.4, 0.3][:rank],
    }  # fmt: skip


def settings(**sections: Any) -> RunConfig:
    plain: dict[str, Any] = {
        "model": {"name_or_path": "m"},
        "data": {"train": "t.jsonl", "eval": "e.jsonl"},
    }
    for name, values in sections.items():
        old = plain.get(name)
        plain[name] = {**old, **values} if isinstance(old, dict) else values
    return resolve(RunConfig.model_validate(plain), name="run")


@cache
def planned() -> dict[str, Any]:
    return estimate.report("7B", named("7B"), Request())


def content(text: str = "text", **changed: Any) -> RunContent:
    """A finished run in which every text is `text`."""
    config = settings()
    account = Account(text, "ab", "messages", rows=4, examples=4, tokens=80, trained_tokens=20,
                      longest=30, lengths=[(10, 1), (20, 2), (30, 1)])  # fmt: skip
    account.truncated.add(text)
    given, right = Given(text, is_cut=True, is_right=False), Given(text, False, True)
    run = RunContent(
        name=text,
        path=text,
        state=FINISHED,
        settings=flatten(config.model_dump()) | {"model.name_or_path": text},
        changed=changes(config),
        metrics=[{"step": 0, "eval_loss": 2.0}, *steps(30), {"step": 30, "eval_loss": 1.0}],
        accounts={"train": account.as_dict(), text: account.as_dict()},
        about={"step": 30, "loractl": text, "versions": {text: text},
               "base": {"name_or_path": text, "fingerprint": text}},
        notes=Notes(
            environment={"device": text, text: text, "memory_bytes": 2**34},
            rows=[ShownRow(text, 9, 4, [Span(False, text), Span(True, text)])],
            answers=[Compared(text, [Said(text, text)], text, given, right)],
            weights={name: Weight(4.0, intruders=3 if "0" in name else None) for name in MODULES},
        ),
        updates={name: update() for name in [*MODULES, text]},
        estimate=planned(),
        held_out=HeldOutLoss([1.0, 2.0, 3.5], [2.0, 2.0, 3.0]),
        proofs=[Proof(text, False, text), Proof("resume", True, text)],
        files=[WrittenFile(text, 10, None), WrittenFile("adapter/x", 10, text)],
        absent={"updates": text, "notes": text, "about": text, "accounts": text},
    )  # fmt: skip
    return replace(run, **changed)
