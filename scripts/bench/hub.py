#!/usr/bin/env python3
"""What the hub costs: a switch, a token, a mixed batch.

A random model of SmolLM2-135M's shape in float32, one thread, medians of CPU time, so that what
else the machine does matters little.
"""

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from loractl.lora.dense import size_of
from loractl.lora.hub import Hub
from loractl.lora.inject import FORMULAS, adaptable, inject_, remove_
from loractl.lora.layer import LoraLayer
from loractl.lora.ranks import ModuleRank

SHAPE = {
    "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
    "num_attention_heads": 9, "num_key_value_heads": 3, "tie_word_embeddings": True,
}  # fmt: skip
RANK = 8


def adapter(model: LlamaForCausalLM) -> dict[str, LoraLayer]:
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


def answers(model: LlamaForCausalLM, rows: int, tokens: int) -> None:
    ids = torch.arange(rows * 16).view(rows, 16)
    model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens,
        min_new_tokens=tokens, do_sample=False, pad_token_id=0,
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--adapters", type=int, default=4)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=8)
    asked = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = LlamaForCausalLM(LlamaConfig(**SHAPE)).eval()
    same = {id(weight): weight for weight in model.parameters()}
    bare = copy.deepcopy(model, same)  # without hooks, on the same weights
    hub = Hub(model)
    names = [f"a{i}" for i in range(asked.adapters)]
    for name in names:
        hub.add_(name, adapter(model))
    modules = len(hub.layers(names[0]))

    def one_row(on: LlamaForCausalLM, name: str | None) -> None:
        hub.use(name)
        answers(on, 1, asked.tokens)

    ways = [(bare, None), (model, None), (model, names[0])]
    times = in_rounds([partial(one_row, on, name) for on, name in ways])
    plain, idle, used = (each / asked.tokens for each in times)
    turn = iter(range(10**9))
    switch = seconds(lambda: hub.use(names[next(turn) % len(names)]), 200, 50)
    mix = [names[row % len(names)] for row in range(asked.rows)]
    switch_rows = seconds(lambda: hub.use_rows(mix), 100, 10)

    def mixed() -> None:
        hub.use_rows(mix)
        answers(model, asked.rows, asked.tokens)

    def in_turn() -> None:
        for name in names:
            hub.use(name)
            answers(model, mix.count(name), asked.tokens)

    together, apart = in_rounds([mixed, in_turn])
    memory = hub.n_bytes(names[0])
    for name in names:
        hub.remove_(name)
    ranks = {path: ModuleRank(RANK, 16.0, 2.0) for path in adapter(model)}

    def swap() -> None:
        inject_(model, ranks)
        remove_(model)

    print(f"{modules} modules, {asked.adapters} adapters of {memory / 2**20:.1f} MiB, rank {RANK}")
    print(f"switch, one for all rows      {switch * 1e6:10.2f} us")
    print(f"switch, {asked.rows} rows of {asked.adapters}           {switch_rows * 1e6:10.2f} us")
    print(f"modules swapped in and out    {seconds(swap, 5) * 1e6:10.0f} us")
    print(f"a token, no hub               {plain * 1e3:10.1f} ms")
    print(f"a token, hub, base in use     {idle * 1e3:10.1f} ms")
    print(f"a token, hub, adapter in use  {used * 1e3:10.1f} ms")
    print(f"{asked.rows} rows of {asked.adapters}, one batch         {together:10.2f} s")
    print(f"{asked.rows} rows of {asked.adapters}, one after another {apart:10.2f} s")


if __name__ == "__main__":
    main()
