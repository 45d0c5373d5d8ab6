"""torchtune's keys: components within sections, so each has a dotted name of its own."""

from collections.abc import Mapping
from typing import Any

from loractl.config.imports.key_tables import KEYS
from loractl.config.imports.values import (
    Ours,
    Translated,
    Translator,
    count,
    fixed,
    is_on,
    no,
    number,
    optimizer,
    switch,
    text,
    whole,
)

ATTENTION = {"q_proj": "q_proj", "k_proj": "k_proj", "v_proj": "v_proj", "output_proj": "o_proj"}
MLP = ["gate_proj", "up_proj", "down_proj"]
FILES = "all files of the model directory are found by their names"
MEASURED = "progress, speed and peak memory are always in metrics.jsonl"


def _scheduler(value: Any) -> Translated:
    return {"train.schedule": "cosine" if "cosine" in str(value) else "linear"}


def _optimizer(value: Any) -> Translated:
    word = str(value).lower()
    return optimizer(word if word == "torch.optim.adamw" else word.rpartition(".")[2])


TABLE: dict[str, Translator] = {
    "checkpointer.checkpoint_dir": text("model.name_or_path"),
    "checkpointer.adapter_checkpoint": no(
        "to train an adapter further, name its directory in PEFT's format in lora.start_from"
    ),
    "model.lora_rank": whole("lora.rank"),
    "model.lora_alpha": number("lora.alpha"),
    "model.lora_dropout": number("lora.dropout"),
    "model.use_dora": switch("method", "dora"),
    "model.apply_lora_to_output": no("all-linear leaves the output head out; name it in a list"),
    "tokenizer.max_seq_len": whole("data.max_length"),
    "optimizer._component_": _optimizer,
    "optimizer.lr": number("train.learning_rate"),
    "optimizer.weight_decay": number("train.weight_decay"),
    "optimizer.fused": no("the optimizer's state is one flat tensor"),
    "lr_scheduler._component_": _scheduler,
    "lr_scheduler.num_warmup_steps": KEYS["warmup_steps"],
    "loss._component_": fixed("the loss is the cross-entropy of the trained tokens"),
    "dataset.packed": switch("data.packing", True, False),
    "clip_grad_norm": KEYS["clip_grad_norm"],
    "enable_activation_checkpointing": switch("train.gradient_checkpointing", True, False),
    "enable_activation_offloading": no("activations stay on the device"),
    "max_steps_per_epoch": no("an epoch has all rows: set train.steps instead of train.epochs"),
    "device": no("the best device is found"),
    "log_every_n_steps": count("train.log_every"),
    "save_adapter_weights_only": fixed("an adapter is written without the base"),
}


def translator_of(key: str) -> Translator | None:
    """What a dotted key becomes."""
    if key in TABLE:
        return TABLE[key]
    section, dot, _ = key.partition(".")
    if dot:
        reasons = {
            "checkpointer": FILES, "tokenizer": FILES, "metric_logger": MEASURED,
            "profiler": MEASURED, "optimizer": "the optimizer's usual values are used",
            "lr_scheduler": "the schedule has no more settings", "loss": "the loss has no settings",
            "dataset": "rows are read by their own format", "model": "found from the model",
        }  # fmt: skip
        return no(reasons[section]) if section in reasons else None
    return no(MEASURED) if key.startswith("log_") else KEYS.get(key)


ADAPTER = ("model._component_", "model.lora_attn_modules", "model.apply_lora_to_mlp")
"""The keys that `adapter` reads."""


def _builder(document: Mapping[str, Any]) -> str:
    return str(document.get("model._component_", "")).rpartition(".")[2]


def is_packed(document: Mapping[str, Any]) -> bool:
    """Whether the name of the model's builder asks for 4 bits."""
    return _builder(document).startswith("qlora")


def adapter(document: Mapping[str, Any]) -> Ours:
    """The method, from the name of the model's builder, and the target modules."""
    builder = _builder(document)
    if "lora" not in builder:
        return {"method": "full"}
    attention = [ATTENTION.get(name, name) for name in document.get("model.lora_attn_modules", [])]
    mlp = is_on(document.get("model.apply_lora_to_mlp"))
    if mlp and set(attention) == set(ATTENTION.values()):
        return {"method": "lora", "lora.target_modules": "all-linear"}
    targets = attention + (MLP if mlp else [])
    return {"method": "lora", **({"lora.target_modules": targets} if targets else {})}
