"""adapter_config.json: what of PEFT's is refused by its field, and how PEFT reads ours."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft import LoraConfig, PeftModel
from transformers import AutoModelForCausalLM

from loractl.artifacts.peft.adapter import CONFIG, read
from loractl.artifacts.peft.attach import ranks_of
from loractl.artifacts.peft.config import NEUTRAL
from loractl.errors import ArtifactError

Make = Callable[..., Path]


def edit_config(directory: Path, changes: dict[str, Any]) -> None:
    config = json.loads((directory / CONFIG).read_text("utf-8"))
    (directory / CONFIG).write_text(json.dumps({**config, **changes}), "utf-8")


REFUSED: dict[str, Any] = {
    "bias": "all",
    "lora_bias": True,
    "layer_replication": [[0, 2], [1, 2]],
    "alora_invocation_tokens": [5],
    "ensure_weight_tying": True,
    "use_qalora": True,
    "use_bdlora": {"nblocks": 2},
    "arrow_config": {"top_k": 2},
    "kasa_config": {"beta": 1.0},
    "monteclora_config": {"n": 2},
    "velora_config": {"n": 2},
}
INITS = ["pissa", "pissa_niter_16", "olora", "corda", "loftq", "lora_ga", "to-come"]


@pytest.mark.parametrize(
    "field,value", [*REFUSED.items(), *(("init_lora_weights", init) for init in INITS)]
)
def test_what_is_not_held_here_is_refused_by_its_field(
    field: str, value: object, base: Make, adapter_dir: Make
) -> None:
    directory = adapter_dir(base("llama"))
    edit_config(directory, {field: value})
    with pytest.raises(ArtifactError, match=f"{CONFIG}: {field} is .*, which is not supported"):
        read(directory)


def test_every_field_of_pefts_config_is_known_to_be_neutral_or_is_refused() -> None:
    read_or_ignored = {
        "peft_type", "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora",
        "base_model_name_or_path", "modules_to_save", "target_parameters",
        "trainable_token_indices",  # read
        "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern",
        "target_modules_to_tie", "modules_to_tie",  # told by the names of the tensors
        "task_type", "auto_mapping", "peft_version", "revision", "inference_mode", "lora_dropout",
        "fan_in_fan_out", "megatron_config", "megatron_core", "runtime_config", "loftq_config",
        "eva_config", "corda_config", "lora_ga_config", "qalora_group_size",  # change nothing alone
    }  # fmt: skip
    fields = set(LoraConfig.__dataclass_fields__)
    assert fields - read_or_ignored - NEUTRAL.keys() == set(), f"new in PEFT {peft.__version__}"


WRONG_VALUES: list[tuple[str, Any]] = [
    ("peft_type", "IA3"),
    ("peft_type", None),
    ("r", 0),
    ("r", -4),
    ("r", "4"),
    ("r", 4.0),
    ("r", True),
    ("r", None),
    ("lora_alpha", 0),
    ("lora_alpha", -1),
    ("lora_alpha", "16"),
    ("lora_alpha", None),
    ("lora_alpha", float("nan")),
    ("lora_alpha", float("inf")),
    ("lora_alpha", 10**400),
    ("rank_pattern", {"q_proj": 0}),
    ("rank_pattern", {"q_proj": "8"}),
    ("rank_pattern", ["q_proj"]),
    ("alpha_pattern", {"q_proj": None}),
    ("use_rslora", "false"),
    ("base_model_name_or_path", 5),
    ("base_model_name_or_path", ["a"]),
]


@pytest.mark.parametrize("field,value", WRONG_VALUES)
def test_a_value_that_cannot_be_is_refused_with_what_was_expected(
    field: str, value: object, base: Make, adapter_dir: Make
) -> None:
    directory = adapter_dir(base("llama"))
    edit_config(directory, {field: value})
    with pytest.raises(ArtifactError, match=f"{CONFIG}: {field} is .*, expected "):
        read(directory)


def test_peft_finds_exactly_the_modules_of_our_config(
    base: Make, adapter_dir: Make, peft_model: Callable[..., PeftModel]
) -> None:
    where = base("llama")
    model = AutoModelForCausalLM.from_pretrained(where, dtype=torch.float32)
    some = ["model.layers.0.self_attn.q_proj", "mlp.up_proj"]
    for number, targets in enumerate((["q_proj"], some, "all-linear")):
        directory = adapter_dir(where, str(number), target_modules=targets)
        expected = set(ranks_of(read(directory), model))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            wrapped = peft_model(where, directory)
        names = (n for n, m in wrapped.named_modules() if isinstance(m, peft.tuners.lora.LoraLayer))
        assert {name.removeprefix("base_model.model.") for name in names} == expected
