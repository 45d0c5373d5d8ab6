"""The runs that must come to the same numbers on the device as on the CPU, in YAML's words."""

from dataclasses import dataclass, field, replace
from typing import Any

Sections = dict[str, Any]
PACKED: Sections = {"data": {"packing": True}}
ADALORA = {"initial_rank": 4, "target_rank": 2, "warmup_steps": 1, "final_steps": 1, "every": 1}


@dataclass(frozen=True)
class Case:
    """A config's changes to the usual one, and what is done with the run afterwards."""

    sections: Sections = field(default_factory=dict)
    architecture: str = "llama"
    dtype: str = "float32"
    then: tuple[tuple[str, ...], ...] = ()
    """Command lines; RUN, DATA and OUT stand for the run, its rows, and a place to write to."""


def of(architecture: str = "llama", dtype: str = "float32", **sections: Any) -> Case:
    return Case(sections, architecture, dtype)


ANSWERS = ("--max-new-tokens", "6")
FORMULAS: dict[str, Case] = {
    "lora": of(),
    "dropout": of(lora={"dropout": 0.2}),
    "dora": of(method="dora"),
    "dora-dropout": of(method="dora", lora={"dropout": 0.2}),
    "adalora": of(method="adalora", lora={"rank": 8, "adalora": ADALORA}),
    "pissa": of(lora={"init": "pissa"}),
    "olora": of(lora={"init": "olora"}),
    "rslora-plus": of(lora={"scaling": "rslora"}, train={"lora_plus_ratio": 16}),
    "ranks": of(lora={"rank_schedule": {1: 6, 3: 2}}),
    "tables": of(lora={"target_modules": ["q_proj", "embed_tokens", "lm_head"]}),
    "whole-head": of(lora={"modules_to_save": ["lm_head"], "target_modules": "minimal"}),
    "whole-norms": of(lora={"modules_to_save": ["norm", "input_layernorm"]}),
    "new-tokens": of(model={"add_tokens": ["<call>"]}),
    "full": of(method="full"),
    "plain": of(train={"kernels": "plain"}),
    "nf4": of(model={"quantization": "nf4-double"}),
    "int8": of(model={"quantization": "int8"}),
    "lion": of(train={"optimizer": "lion", "learning_rate": 1e-3}),
    "adafactor": of(train={"optimizer": "adafactor"}),
    "sgd": of(train={"optimizer": "sgd", "learning_rate": 0.5}),
}
SHAPES: dict[str, Case] = {
    "packed": of(**PACKED),
    "checkpointing": of(train={"gradient_checkpointing": True}),
    "accumulation": of(train={"gradient_accumulation": 3, "batch_size": 2}),
    "packed-dora": of(method="dora", **PACKED),
    "packed-checkpointing": of(train={"gradient_checkpointing": True}, **PACKED),
    "all-tokens": of(data={"train_on": "all"}),
    "upper-layers": of(lora={"layers": [1]}, train={"cache_trunk": "auto", "steps": 8}),
}
ARCHITECTURES: dict[str, Case] = {
    name: of(name, **PACKED)
    for name in ("gpt2", "gemma3", "qwen3", "mistral", "gpt-neox", "phi3", "mixtral")
} | {"experts": of("mixtral", lora={"target_modules": ["q_proj", "gate_up_proj", "down_proj"]})}
HALVES: dict[str, Case] = {
    "bfloat16": of(dtype="bfloat16"),
    "bfloat16-packed": of(dtype="bfloat16", **PACKED),
    "bfloat16-dropout": of(dtype="bfloat16", lora={"dropout": 0.1}, **PACKED),
    "bfloat16-dora": of(dtype="bfloat16", method="dora"),
    "bfloat16-gemma3": of("gemma3", "bfloat16", **PACKED),
    "bfloat16-full": of(dtype="bfloat16", method="full"),
    "float16-packed": of(dtype="float16", **PACKED),
}
COMMANDS: dict[str, Case] = {
    "evaluation": of(
        data={"eval": 0.25, "retain": "DATA"}, train={"eval_every": 2, "early_stopping": 9}
    ),
    "check": Case(then=(("check", "CONFIG", "--set", "out=OUT"),)),
    "eval": Case(
        then=(("eval", "RUN", "--data", "DATA", "--metrics", "loss,exact_match", "--json"),)
    ),
    "generate": Case(then=(("generate", "--adapter", "a=RUN", "--prompt", "2 plus 2?", *ANSWERS),)),
    "chat": Case(then=(("chat", "--adapter", "a=RUN", *ANSWERS),)),
    "merge": Case(then=(("merge", "RUN", "--out", "OUT"),)),
    "inspect": Case(then=(("inspect", "RUN", "--json"),)),
}
RESUMED = (
    "lora", "dora", "adalora", "pissa", "ranks", "full", "dropout", "packed", "nf4", "lion",
)  # fmt: skip
"""Runs whose last checkpoint is taken away, and which then go on."""
WAITING = {
    "lora": 1, "packed": 1, "accumulation": 1, "checkpointing": 1, "dropout": 1, "adalora": 1,
    "dora": 3, "plain": 3, "full": 3,
}  # fmt: skip
"""How often a step waits for the device: once for its loss and norm. transformers' layers look
once more for packed rows, and whether the mask they made of them is ours is seen on the device."""
CASES = FORMULAS | SHAPES | ARCHITECTURES | HALVES | COMMANDS


def _longer(case: Case) -> Case:
    """The same for twice as many steps."""
    train = {**case.sections.get("train", {}), "steps": 8}
    return replace(case, sections={**case.sections, "train": train})


LONGER = {f"{name}-longer": _longer(CASES[name]) for name in WAITING}
