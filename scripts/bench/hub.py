"""What the hub costs: a switch, a token, a mixed batch.

A random model of SmolLM2-135M's shape in float32, one thread, medians of CPU time, so that what
else the machine does matters little.
"""

import argparse
import copy
import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from bench import report, store

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

    from loractl.lora.layer import LoraLayer

TITLE = "Many adapters on one base"
ABOUT = """\
The hub behind `chat` and `generate --prompts`, on a random model of SmolLM2-135M's shape: one
thread, medians of CPU time."""
SHAPE = {
    "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
    "num_attention_heads": 9, "num_key_value_heads": 3, "tie_word_embeddings": True,
}  # fmt: skip
RANK = 8


def adapter(model: "LlamaForCausalLM") -> "dict[str, LoraLayer]":
    import torch

    from loractl.lora.dense import size_of
    from loractl.lora.inject import FORMULAS, adaptable

    layers = {}
    for path, kind in adaptable(model).items():
        if kind == "linear" and path != "lm_head":
            base = model.get_submodule(path)
            size = size_of(base, kind)
            A, B = torch.randn(RANK, size.d_in) * 0.02, torch.randn(size.d_out, RANK) * 0.02
            layers[path] = FORMULAS["lora"][kind](base, A, B, scale=2.0)
    return layers


def seconds(work: Callable[[], object], times: int, each: int = 1) -> float:
    """The median of some measurements, each of the mean of some runs."""
    taken = []
    for _ in range(times):
        began = time.process_time()
        for _ in range(each):
            work()
        taken.append((time.process_time() - began) / each)
    return statistics.median(taken)


def in_rounds(works: list[Callable[[], object]], rounds: int = 7) -> list[float]:
    """The median of each, run by turns, so that what else the machine does falls on all alike."""
    taken = [[seconds(work, 1) for work in works] for _ in range(rounds)]
    return [statistics.median(times) for times in zip(*taken, strict=True)]


def answers(model: "LlamaForCausalLM", rows: int, tokens: int) -> None:
    import torch

    ids = torch.arange(rows * 16).view(rows, 16)
    model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens,
        min_new_tokens=tokens, do_sample=False, pad_token_id=0,
    )  # fmt: skip


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--adapters", type=int, default=4)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=8)


def measure(asked: argparse.Namespace) -> int:
    import torch

    from bench import machine

    torch.manual_seed(0)
    torch.set_num_threads(1)
    found = measured(asked.adapters, asked.rows, asked.tokens)
    record = {"machine": {**machine.describe(), "dtype": "float32"}, **found}
    store.keep(asked.results, "hub", f"{asked.adapters} adapters", record)
    print(table(record))
    return 0


def measured(n_adapters: int, rows: int, tokens: int) -> dict[str, Any]:
    from transformers import LlamaConfig, LlamaForCausalLM

    from loractl.lora.hub import Hub

    model = LlamaForCausalLM(LlamaConfig(**SHAPE)).eval()
    same = {id(weight): weight for weight in model.parameters()}
    bare = copy.deepcopy(model, same)  # without hooks, on the same weights
    hub = Hub(model)
    names = [f"a{i}" for i in range(n_adapters)]
    for name in names:
        hub.add_(name, adapter(model))
    found = {
        "modules": len(hub.layers(names[0])), "adapters": n_adapters, "rank": RANK, "rows": rows,
        "tokens": tokens, "adapter_bytes": hub.n_bytes(names[0]),
    }  # fmt: skip

    def one_row(on: "LlamaForCausalLM", name: str | None) -> None:
        hub.use(name)
        answers(on, 1, tokens)

    ways = [(bare, None), (model, None), (model, names[0])]
    taken = in_rounds([partial(one_row, on, name) for on, name in ways])
    plain, idle, used = (each / tokens for each in taken)
    turn = iter(range(10**9))
    switch = seconds(lambda: hub.use(names[next(turn) % len(names)]), 200, 50)
    mix = [names[row % len(names)] for row in range(rows)]
    switch_rows = seconds(lambda: hub.use_rows(mix), 100, 10)

    def mixed() -> None:
        hub.use_rows(mix)
        answers(model, rows, tokens)

    def in_turn() -> None:
        for name in names:
            hub.use(name)
            answers(model, mix.count(name), tokens)

    together, apart = in_rounds([mixed, in_turn])
    for name in names:
        hub.remove_(name)
    times = {
        "switch": switch, "switch_rows": switch_rows, "swap": seconds(swapping(model), 5),
        "token_without_hub": plain, "token_of_base": idle, "token_of_adapter": used,
        "one_batch": together, "one_after_another": apart,
    }  # fmt: skip
    return {**found, "seconds": times}


def swapping(model: "LlamaForCausalLM") -> Callable[[], None]:
    """What a change of adapters would take without the hub: layers put in and taken out."""
    from loractl.lora.inject import inject_, remove_
    from loractl.lora.ranks import ModuleRank

    ranks = {path: ModuleRank(RANK, 16.0, 2.0) for path in adapter(model)}

    def swap() -> None:
        inject_(model, ranks)
        remove_(model)

    return swap


def section(records: Mapping[str, dict[str, Any]]) -> str:
    return report.by_machine(
        records, lambda group: "\n\n".join(table(record) for record in group.values())
    )


def table(record: Mapping[str, Any]) -> str:
    labels = {
        "switch": "switch to another adapter",
        "switch_rows": f"give each of {record['rows']} rows its adapter",
        "swap": "the same layers put into the model and taken out again, without the hub",
        "token_without_hub": "a token, without the hub",
        "token_of_base": "a token, with the hub, of the base",
        "token_of_adapter": "a token, with the hub, of an adapter",
        "one_batch": f"{record['tokens']} tokens for each of {record['rows']} rows,"
        f" {record['adapters']} adapters: in one batch",
        "one_after_another": "the same, one adapter after another",
    }
    size = f"{record['adapter_bytes'] / 2**20:.1f} MiB"
    head = f"{record['adapters']} adapters of rank {record['rank']} on {record['modules']} layers"
    rows = [[label, duration(record["seconds"][key])] for key, label in labels.items()]
    return report.markdown([f"{head}, {size} each", "time"], rows)


def duration(seconds: float) -> str:
    unit, size = next(
        (one for one in (("s", 1.0), ("ms", 1e-3)) if seconds >= one[1]), ("µs", 1e-6)
    )
    return f"{seconds / size:.{1 if seconds < 9.95 * size else 0}f} {unit}"
