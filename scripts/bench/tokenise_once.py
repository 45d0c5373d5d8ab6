"""Tokenise a file of chats once, as loractl does or as TRL's SFTTrainer does.

    python -m bench.tokenise_once ours|trl ROWS.jsonl --model DIR --count N [--one-core]

`--count` is the number of processes. Prints one JSON line: the seconds from when all processes had
started, those of their start, and processor time; of ours also a hash of the store.
"""

import argparse
import contextlib
import hashlib
import json
import os
import resource
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

LENGTH = 2048  # tokens of the longest row
Found = dict[str, Any]


def ours(rows: Path, model: Path, count: int) -> Found:
    from loractl.data import examples, workers
    from loractl.data.reading import Reading
    from loractl.data.store_cache import Cache
    from loractl.models.light_tokenizer import load_light

    began = [0.0]

    class Started(workers._Crew):
        """Processes that have all begun before the first row is read."""

        def __enter__(self) -> "Started":
            super().__enter__()
            while any(not one.is_ready for one in self.workers):
                self._listen()
            assert len(self.workers) == count, "every process has the same tokenizer"
            began.append(time.perf_counter())
            return self

    tokenizer = load_light(model)
    setattr(workers, "count_for", lambda *_: count)  # noqa: B010  mypy knows it as a function
    setattr(workers, "_Crew", Started)  # noqa: B010
    reading = Reading("auto", LENGTH, "assistant", "truncate")
    with tempfile.TemporaryDirectory(prefix="bench-tokenise-") as directory:
        began[0] = time.perf_counter()
        store, _ = examples.load(str(rows), tokenizer, reading, cache=Cache(Path(directory)))
        ended = time.perf_counter()
    digest = hashlib.sha256(json.dumps(store.account, sort_keys=True).encode()).hexdigest()
    return {"seconds": ended - began[-1], "start_s": began[-1] - began[0], "sha256": digest}


def trl(rows: Path, model: Path, count: int) -> Found:
    """The part of SFTTrainer that tokenises, as its constructor calls it."""
    import datasets
    from transformers import AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    tokenizer = AutoTokenizer.from_pretrained(model)
    trainer = SimpleNamespace(chat_template=None, _tokenizer=tokenizer, completion_only_loss=False)
    with tempfile.TemporaryDirectory(prefix="bench-tokenise-") as directory:
        asked = SFTConfig(
            output_dir=directory, max_length=LENGTH, use_cpu=True, bf16=False,
            dataset_num_proc=count if count > 1 else None,
        )  # fmt: skip
        began = time.perf_counter()
        given = datasets.load_dataset(
            "json", data_files=str(rows), split="train", cache_dir=directory
        )
        made = SFTTrainer._prepare_dataset(trainer, given, tokenizer, asked, False, None, "train")
        assert len(made) == len(given)
        seconds = time.perf_counter() - began
    return {"seconds": seconds, "start_s": 0.0}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("kind", choices=["ours", "trl"])
    parser.add_argument("rows", type=Path)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--one-core", action="store_true")
    asked = parser.parse_args()
    os.environ["TOKENIZERS_PARALLELISM"] = str(not asked.one_core).lower()
    before = time.process_time()
    with contextlib.redirect_stdout(sys.stderr):  # the last line of stdout is ours
        found = {"ours": ours, "trl": trl}[asked.kind](asked.rows, asked.model, asked.count)
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    found["cpu_s"] = time.process_time() - before + children.ru_utime + children.ru_stime
    print(json.dumps(found))


if __name__ == "__main__":
    main()
