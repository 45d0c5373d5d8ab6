"""Values of another tool's config that no run can have are listed, not written."""

import pytest

from loractl.config.imports.tools import DEFAULTS
from tests.config.imports.test_tools import converted


@pytest.mark.parametrize(
    ("tool", "line", "ours", "told"),
    [
        ("stage: sft", "num_train_epochs: 0", "train.epochs", "found 0, expected a number greater"),
        ("stage: sft", "learning_rate: 0", "train.learning_rate", "found 0, expected a number"),
        ("stage: sft", "learning_rate: fast", "train.learning_rate", "'fast', expected a number"),
        ("stage: sft", "learning_rate: .nan", "train.learning_rate", "nan, expected a finite"),
        ("stage: sft", "learning_rate: nan", "train.learning_rate", "expected a finite number"),
        ("stage: sft", "learning_rate: true", "train.learning_rate", "found true, expected a num"),
        ("stage: sft", "lora_rank: 0", "lora.rank", "found 0, expected an integer of at least 1"),
        ("stage: sft", "lora_rank: 1e999", "lora.rank", "expected an integer of at least 1"),
        ("stage: sft", "lora_dropout: 1.5", "lora.dropout", "found 1.5, expected a number"),
        ("stage: sft", "cutoff_len: -1", "data.max_length", "found -1, expected an integer of at"),
        ("stage: sft", "warmup_ratio: 5", "train.warmup", "found 5, expected a share of the steps"),
        ("stage: sft", "warmup_steps: -5", "train.warmup", "found -5, expected a number"),
        ("stage: sft", "val_size: -0.1", "data.eval", "found -0.1, expected a share of the rows"),
        ("stage: sft", "seed: -1", "seed", "found -1, expected an integer of at least 0"),
        ("stage: sft", "max_steps: many", "train.steps", "'many', expected an integer"),
        ("base_model: b", "num_epochs: -1", "train.epochs", "found -1, expected a number greater"),
        ("base_model: b", "micro_batch_size: 0", "train.batch_size", "found 0, expected an int"),
        ("base_model: b", "gradient_accumulation_steps: auto", "train.gradient_accumulation",
         "the string 'auto', expected an integer of at least 1"),
        ("use_peft: true", "max_grad_norm: 0", "train.max_grad_norm", "found 0, expected a number"),
        ("use_peft: true", "packing: perhaps", "data.packing", "'perhaps', expected true or false"),
        ("peft_type: LORA", "rank_pattern: {q: 0}", "lora.rank_pattern", "found 0, expected"),
        ("peft_type: ADALORA", "tinit: -1", "lora.adalora.warmup_steps", "found -1, expected"),
        ("optimizer: {_component_: AdamW}", "optimizer.lr: x", "train.learning_rate", "'x'"),
    ],
)  # fmt: skip
def test_an_invalid_value_is_listed_with_what_was_found_and_expected(
    tool: str, line: str, ours: str, told: str
) -> None:
    found = converted(f"{tool}\n{line}\n")
    key = line.partition(":")[0]
    assert found.not_mapped[key].startswith("invalid: ") and told in found.not_mapped[key]
    assert found.settings.get(ours) == DEFAULTS[found.tool].get(ours)
    assert key not in found.off


@pytest.mark.parametrize("value", ["-1", "0", "null"])
def test_a_number_of_steps_that_switches_itself_off_is_no_error(value: str) -> None:
    found = converted(f"{{base_model: b, max_steps: {value}, save_total_limit: {value}}}")
    assert found.off == ["max_steps", "save_total_limit"] and not found.not_mapped
