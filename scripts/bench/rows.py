"""Write the rows that a peer trains, as `loractl` tokenises them: the same ids and labels.

    python -m bench.rows CONFIG --out FILE --steps N [--batch B]

With --batch they are the examples in the order of the file, B a step; without, those of the
windows that `loractl train CONFIG` takes, in its order. FILE gets {"steps": [[{"ids", "labels"},
...], ...], "messages": [...]}; printed is what share of the tokens is trained, and from which lines
of the data the first step comes.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from loractl.config import loader
from loractl.config.settings import RunConfig
from loractl.data import batches
from loractl.data import reading as reading_of
from loractl.data.reading import Reading
from loractl.engine.data import load_data
from loractl.models import load
from loractl.records import UNTRAINED, Batch, DataState


def rows_of(batch: Batch) -> list[dict[str, list[int]]]:
    """The examples of a micro-batch, each by itself: positions restart where one begins."""
    found = []
    for ids, labels, positions in zip(
        batch.input_ids.tolist(), batch.labels.tolist(), batch.position_ids.tolist(), strict=True
    ):
        starts = [i for i, position in enumerate(positions) if position == 0]
        for start, end in zip(starts, [*starts[1:], len(ids)], strict=True):
            row = {"ids": ids[start:end], "labels": labels[start:end]}
            while row["labels"] and row["labels"][-1] == UNTRAINED:  # padding; ends are trained
                row = {key: values[:-1] for key, values in row.items()}
            if row["ids"]:
                found.append(row)
    return found


def plan_of(config: RunConfig) -> batches.BatchPlan:
    return batches.BatchPlan(
        batch_size=config.train.batch_size,
        accumulation=config.train.gradient_accumulation,
        max_length=config.data.max_length,
        packing=config.data.packing,
        seed=config.seed,
    )


def conversations(config: RunConfig, count: int) -> Iterator[list[dict[str, str]]]:
    """The first rows of the data as messages, for tools that tokenise them themselves."""
    reading = Reading(config.data.format, config.data.max_length, "all", "drop")
    assert isinstance(config.data.train, str), "the data of a benchmark is one file"
    found = reading_of.conversations(config.data.train, reading, on_error=print)
    for (_, conversation, _), _ in zip(found, range(count), strict=False):
        yield [{"role": m.role, "content": m.content} for m in conversation.messages]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("config", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--batch", type=int)
    asked = parser.parse_args()
    config = loader.load(asked.config).config
    tokenizer = load.load_tokenizer(load.locate(config.model.name_or_path))
    data = load_data(config.data, tokenizer, max_length=config.data.max_length)
    steps: list[list[dict[str, Any]]] = []
    lines: list[Any] = []
    if asked.batch:
        for start in range(0, asked.steps * asked.batch, asked.batch):
            taken = [data.train[i] for i in range(start, start + asked.batch)]
            lines = lines or [example.where for example in taken]
            steps.append([{"ids": one.ids, "labels": one.labels} for one in taken])
    else:
        epochs = batches.Epochs(data.train, plan_of(config))
        windows = batches.windows(epochs, DataState(0, 0))
        for (window, _), _ in zip(windows, range(asked.steps), strict=False):
            steps.append([row for batch in window for row in rows_of(batch)])
    messages = list(conversations(config, max(200, asked.steps * 64))) if asked.batch else []
    asked.out.write_text(json.dumps({"steps": steps, "messages": messages}), encoding="utf-8")
    every = [row for step in steps for row in step]
    tokens = sum(len(row["ids"]) for row in every)
    trained = sum(label != UNTRAINED for row in every for label in row["labels"][1:])
    print(json.dumps({"tokens": tokens, "trained_share": trained / tokens, "lines": lines}))


if __name__ == "__main__":
    main()
