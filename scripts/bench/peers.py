"""Train with what others use, for comparison: a loop over transformers and PEFT, or TRL.

    python -m bench.peers plain|full|trl|trl-packed ROWS.json --model DIR --dtype T [--rank R] ...

`plain` is a loop over transformers with PEFT's LoRA, `full` the same loop training every weight:
rows padded to the longest, all logits, the loss on the labels of ROWS.json (see rows.py).
`trl` is TRL's SFTTrainer with PEFT on the same conversations, which trains all tokens; with
`trl-packed` in rows of --length tokens. Prints one JSON line: losses, real tokens and seconds a
step, peak resident memory, and when the first step began.
"""

import argparse
import contextlib
import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

IGNORED = -100  # the label of what is not trained, in transformers


class Clock:
    """Seconds, real tokens and losses of each step."""

    def __init__(self) -> None:
        self.first_step_at = 0.0  # time.time()
        self.seconds: list[float] = []
        self.tokens: list[int] = []
        self.losses: list[float] = []

    def start(self) -> None:
        self.first_step_at = self.first_step_at or time.time()
        self.began = time.perf_counter()

    def stop(self) -> None:
        self.seconds.append(time.perf_counter() - self.began)

    def found(self) -> dict[str, Any]:
        return {
            "losses": self.losses,
            "tokens": self.tokens[: len(self.seconds)],  # TRL draws a batch ahead
            "seconds": self.seconds,
            "first_step_at": self.first_step_at,
            "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        }


def padded(rows: Sequence[Mapping[str, list[int]]]) -> dict[str, Tensor]:
    """Rows of ids and labels as tensors (rows, longest); no mask where nothing is padded."""
    width = max(len(row["ids"]) for row in rows)

    def filled(lists: Sequence[list[int]], value: int) -> Tensor:
        return torch.tensor([values + [value] * (width - len(values)) for values in lists])

    batch = {
        "input_ids": filled([row["ids"] for row in rows], 0),
        "labels": filled([row["labels"] for row in rows], IGNORED),
    }
    if any(len(row["ids"]) < width for row in rows):
        batch["attention_mask"] = filled([[1] * len(row["ids"]) for row in rows], 0)
    return batch


def lora_config(rank: int) -> Any:
    from peft import LoraConfig

    return LoraConfig(
        r=rank, lora_alpha=2 * rank, lora_dropout=0.0, target_modules="all-linear",
        task_type="CAUSAL_LM",
    )  # fmt: skip


def loop(model: nn.Module, steps: Sequence[Sequence[Mapping[str, list[int]]]], lr: float) -> Clock:
    """Forward, backward, AdamW: one padded batch a step."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr)
    clock = Clock()
    batches = [padded(rows) for rows in steps]
    for rows, batch in zip(steps, batches, strict=True):
        clock.start()
        loss = model(**batch, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        clock.losses.append(loss.item())
        clock.stop()
        clock.tokens.append(sum(len(row["ids"]) for row in rows))
    return clock


def with_trl(
    model: nn.Module, messages: Sequence[Any], asked: argparse.Namespace, *, packing: bool
) -> Clock:
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer

    clock = Clock()

    class Steps(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            clock.start()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            clock.stop()

    with tempfile.TemporaryDirectory() as out:
        settings = SFTConfig(
            output_dir=out, max_steps=asked.steps, per_device_train_batch_size=asked.batch,
            learning_rate=asked.lr, lr_scheduler_type="constant", logging_steps=1,
            save_strategy="no", report_to=[], use_cpu=not torch.cuda.is_available(), bf16=False,
            packing=packing, max_length=asked.length, gradient_checkpointing=False, seed=0,
            disable_tqdm=True,
        )  # fmt: skip
        trainer = SFTTrainer(
            model=model,
            args=settings,
            train_dataset=Dataset.from_list([{"messages": one} for one in messages]),
            processing_class=AutoTokenizer.from_pretrained(asked.model),
            peft_config=lora_config(asked.rank),
            callbacks=[Steps()],
        )
        collate = trainer.data_collator

        def counted(features: Any) -> Any:
            batch = collate(features)
            mask = batch.get("attention_mask")
            count = batch["input_ids"].numel() if mask is None else int(mask.sum())
            clock.tokens.append(count)
            return batch

        trainer.data_collator = counted
        trainer.train()
    clock.losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    return clock


def run(asked: argparse.Namespace) -> dict[str, Any]:
    torch.manual_seed(0)
    content = json.loads(asked.rows.read_text(encoding="utf-8"))
    model = AutoModelForCausalLM.from_pretrained(asked.model, dtype=getattr(torch, asked.dtype))
    model.train()
    if asked.kind in ("trl", "trl-packed"):
        packing = asked.kind == "trl-packed"
        return with_trl(model, content["messages"], asked, packing=packing).found()
    if asked.kind == "plain":
        from peft import get_peft_model

        model = get_peft_model(model, lora_config(asked.rank))
    return loop(model, content["steps"][: asked.steps], asked.lr).found()


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("kind", choices=["plain", "full", "trl", "trl-packed"])
    parser.add_argument("rows", type=Path)
    parser.add_argument("--model", required=True)
    parser.add_argument("--dtype", required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--batch", type=int, default=8, help="rows a step of TRL")
    parser.add_argument("--length", type=int, default=1024, help="tokens of TRL's longest row")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--lr", type=float, default=2e-4)
    return parser.parse_args(argv)


if __name__ == "__main__":
    with contextlib.redirect_stdout(sys.stderr):  # the last line of stdout is ours
        measured = run(arguments())
    print(json.dumps(measured))
