"""Configs of other tools become ours: every key is mapped, or listed with the reason."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from loractl.config import loader, strict_yaml
from loractl.config.imports import few_bits
from loractl.config.imports.key_tables import KEYS
from loractl.config.imports.tools import Converted, convert
from loractl.config.settings import FROM_ADAPTER, RunConfig
from loractl.errors import ConfigError
from tests.config.imports.examples import EXAMPLES

EACH = pytest.mark.parametrize(("tool", "name"), EXAMPLES)


def converted(text: str) -> Converted:
    return convert(strict_yaml.parse(text).value, Path("."))


def leaves(value: Any) -> set[str]:
    """Every key of a config, without its sections."""
    if not isinstance(value, dict):
        return set()
    return {
        name
        for key, inner in value.items()
        for name in (leaves(inner) if isinstance(inner, dict) and inner else {str(key)})
    }


@EACH
def test_every_key_is_mapped_or_listed(tool: str, name: str) -> None:
    text = EXAMPLES[tool, name]
    found = converted(text)
    assert found.tool == tool
    told = " ".join([*found.source.values(), *found.not_mapped, *found.off]).replace(".", " ")
    words = set(told.replace(",", " ").replace("[", " ").replace("]", " ").split())
    document = strict_yaml.parse(text).value
    top = {key for key, value in document.items() if not isinstance(value, dict)}
    inside = leaves({k: v for k, v in document.items() if isinstance(v, dict)})
    silent = {"path", "role", "content", "use_reentrant", "min_lr_rate", "pad_token", "q_proj",
              "WANDB_MODE", "input", "output", "model.layers.0.self_attn.q_proj"}  # fmt: skip
    assert (top | inside) - words - silent == set()
    assert all(why for why in found.not_mapped.values())


@EACH
def test_what_comes_out_is_a_valid_config(tool: str, name: str, tmp_path: Path) -> None:
    found = converted(EXAMPLES[tool, name])
    (tmp_path / "rows.jsonl").write_text('{"text": "x"}\n')
    replaced = {"model.name_or_path": "own/model", "data.train": str(tmp_path / "rows.jsonl")}
    if "data.eval" in found.settings and isinstance(found.settings["data.eval"], str):
        replaced["data.eval"] = str(tmp_path / "rows.jsonl")
    if str(template := found.settings.get("data.chat_template")).endswith(".jinja"):
        replaced["data.chat_template"] = str(tmp_path / str(template))
        (tmp_path / str(template)).parent.mkdir()
        (tmp_path / str(template)).write_text("{{ messages }}")
    tree: dict[str, Any] = {}
    for key, value in {**found.settings, **replaced}.items():
        section = tree
        *above, last = key.split(".")
        for part in above:
            section = section.setdefault(part, {})
        section[last] = value
    path = tmp_path / "c.yaml"
    path.write_text(strict_yaml.dump(tree))
    assert isinstance(loader.load(path).config, RunConfig)


def test_there_are_ten_examples_of_each_of_the_three_large_tools() -> None:
    counts = Counter(tool for tool, _ in EXAMPLES)
    assert all(counts[tool] >= 10 for tool in ("LLaMA-Factory", "axolotl", "TRL"))


@pytest.mark.parametrize(
    ("example", "expected"),
    [
        (("LLaMA-Factory", "lora-sft"), {
            "model.name_or_path": "meta-llama/Meta-Llama-3-8B-Instruct", "model.dtype": "bfloat16",
            "method": "lora", "lora.rank": 8, "lora.target_modules": "all-linear",
            "data.eval": 0.1, "data.max_length": 2048, "data.packing": False,
            "data.too_long": "truncate", "train.batch_size": 1, "train.gradient_accumulation": 8,
            "train.learning_rate": 1e-4, "train.schedule": "cosine", "train.warmup": 0.1,
            "train.eval_every": 500, "train.save_every": 500, "out": "saves/llama3-8b/lora/sft",
        }),
        (("LLaMA-Factory", "pretrain"), {"data.format": "text", "data.packing": True}),
        (("LLaMA-Factory", "pissa"), {
            "lora.init": "pissa", "lora.target_modules": ["q_proj", "v_proj"],
        }),
        (("LLaMA-Factory", "dora-rslora"), {
            "method": "dora", "lora.scaling": "rslora", "train.steps": 30, "train.warmup": 5,
            "data.train_on": "last", "data.packing": True, "train.schedule": "linear",
        }),
        (("LLaMA-Factory", "full-deepspeed"), {"method": "full", "train.learning_rate": 1e-5}),
        (("axolotl", "chat-lora"), {
            "data.train": "fozziethebeat/alpaca_messages_2k_test", "data.format": "messages",
            "lora.target_modules": "all-linear", "data.packing": True, "data.eval": 0.05,
            "model.dtype": "auto", "train.warmup": 10, "data.max_length": 4096,
        }),
        (("axolotl", "full"), {"method": "full", "data.format": "alpaca"}),
        (("axolotl", "instruct-columns"), {
            "data.columns": {"instruction": "question", "output": "answer"},
            "train.schedule": "linear", "data.train_on": "assistant",
        }),
        (("axolotl", "completion"), {
            "data.train": "allenai/c4:en", "data.format": "text", "train.steps": 200,
        }),
        (("axolotl", "two-sources"), {
            "data.train": [{"path": "tatsu-lab/alpaca", "format": "alpaca"},
                           {"path": "data/own.jsonl", "format": "sharegpt"}],
            "data.eval": "data/held.jsonl", "train.eval_every": 50,
        }),
        (("TRL", "peft"), {
            "method": "lora", "lora.rank": 32, "lora.alpha": 16, "data.packing": True,
            "train.gradient_checkpointing": True, "train.epochs": 1,
        }),
        (("TRL", "minimal"), {"method": "full", "train.schedule": "cosine", "train.epochs": 3}),
        (("TRL", "all-linear-4bit"), {
            "data.train": [{"path": "HuggingFaceH4/ultrachat_200k", "split": "train_sft"}],
        }),
        (("TRL", "dora"), {
            "method": "dora", "lora.modules_to_save": ["lm_head"], "data.train_on": "assistant",
        }),
        (("TRL", "steps-share"), {"train.warmup": 0.1}),
        (("TRL", "8bit-optimizer"), {"train.optimizer": "adamw-8bit"}),
        (("unsloth", "lora-text"), {
            "lora.rank": 64, "train.epochs": 1, "train.gradient_checkpointing": True,
            "seed": 3407, "data.train": "tatsu-lab/alpaca",
        }),
        (("unsloth", "full"), {"method": "full", "data.format": "messages"}),
        (("PEFT", "lora"), {"lora.scaling": "rslora", "lora.rank": 16, "lora.dropout": 0.05}),
        (("PEFT", "adalora"), {"method": "adalora", "lora.adalora.initial_rank": 12}),
        (("torchtune", "lora"), {
            "lora.target_modules": ["q_proj", "v_proj", "o_proj", "gate_proj", "up_proj",
                                    "down_proj"],
            "train.learning_rate": 3e-4, "train.schedule": "cosine", "train.warmup": 100,
            "model.name_or_path": "/tmp/Meta-Llama-3.1-8B-Instruct/", "model.dtype": "bfloat16",
        }),
        (("torchtune", "qlora-chat"), {
            "data.train": "data/chats.json", "data.columns": {"conversations": "dialogue"},
            "lora.target_modules": "all-linear", "data.packing": True,
            "train.optimizer": "adamw-8bit",
        }),
        (("torchtune", "full"), {
            "method": "full", "data.columns": {"prompt": "question", "completion": "answer"},
        }),
    ],
    ids=str,
)  # fmt: skip
def test_values_are_translated(example: tuple[str, str], expected: dict[str, Any]) -> None:
    found = converted(EXAMPLES[example]).settings
    assert {key: found.get(key) for key in expected} == expected


@pytest.mark.parametrize(
    ("word", "ours"),
    [
        ("adamw_torch_fused", None),
        ("OptimizerNames.ADAMW_TORCH", None),
        ("adamw_8bit", "adamw-8bit"),
        ("adamw_bnb_8bit", "adamw-8bit"),
        ("paged_adamw_8bit", "adamw-8bit"),
        ("paged_adamw_32bit", "adamw-paged"),
        ("paged_adamw", "adamw-paged"),
        ("adafactor", "adafactor"),
        ("lion_32bit", "lion"),
        ("paged_lion_32bit", "lion"),
        ("sgd", "sgd"),
    ],
)
def test_an_optimizer_becomes_the_one_that_takes_the_same_steps(word: str, ours: str) -> None:
    found = converted(f"base_model: x\noptimizer: {word}\n")
    assert found.settings.get("train.optimizer") == ours and "optimizer" not in found.not_mapped


@pytest.mark.parametrize(
    ("word", "near"),
    [("lion_8bit", "lion"), ("adamw_torch_4bit", "adamw-8bit"), ("muon", None)],
)
def test_another_optimizer_is_named_with_the_nearest(word: str, near: str | None) -> None:
    why = converted(f"base_model: x\noptimizer: {word}\n").not_mapped["optimizer"]
    assert f"there is no optimizer {word} here: adamw is used" in why
    assert why.endswith(f"near is train.optimizer: {near}" if near else "adamw is used")


@pytest.mark.parametrize(
    ("example", "ours"),
    [
        (("LLaMA-Factory", "qlora-otfq"), "nf4-double"),
        (("axolotl", "qlora-sharegpt"), "nf4-double"),
        (("TRL", "all-linear-4bit"), "nf4-double"),
        (("unsloth", "flat"), "nf4-double"),
        (("torchtune", "qlora-chat"), "nf4-double"),
    ],
    ids=str,
)
def test_a_quantized_base_is_quantized_here(example: tuple[str, str], ours: str) -> None:
    found = converted(EXAMPLES[example])
    assert found.settings["model.quantization"] == ours and found.settings["method"] == "lora"


@pytest.mark.parametrize(
    ("text", "ours", "left_out"),
    [
        ("load_in_4bit: false", None, None),
        ("load_in_4bit: true\nbnb_4bit_use_double_quant: false", "nf4", None),
        ("load_in_8bit: true", "int8", None),
        ("quantization_bit: 8", "int8", None),
        ("quantization_bit: '4'\ndouble_quantization: false", "nf4", None),
        ("quantization_bit: 3", None, "quantization_bit"),
        ("quantization_bit: 4\nquantization_method: hqq", None, "quantization_method"),
        ("load_in_4bit: true\nbnb_4bit_quant_type: fp4", "nf4-double", "bnb_4bit_quant_type"),
        ("load_in_4bit: true\nbnb_4bit_quant_type: nf4", "nf4-double", None),
        ("load_in_4bit: true\nbnb_4bit_compute_dtype: bfloat16", "nf4-double",
         "bnb_4bit_compute_dtype"),
        ("adapter: qlora", "nf4-double", None),
        ("bnb_4bit_quant_type: nf4", None, None),
    ],
)  # fmt: skip
def test_bits_kind_and_scales_are_read_together(
    text: str, ours: str | None, left_out: str | None
) -> None:
    found = converted(f"base_model: x\n{text}\n")
    assert found.settings.get("model.quantization") == ours
    assert list(found.not_mapped) == ([left_out] if left_out else [])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{stage: dpo, finetuning_type: lora}", "stage: dpo is not available in this version"),
        ("{base_model: x, rl: orpo}", "rl: orpo is not available in this version"),
        ("{peft_type: IA3}", "peft_type: ia3 is not available in this version"),
        ("{colour: red}", "found no key of a config of PEFT, LLaMA-Factory, .*colour"),
        ("{}", "the first key is missing"),
    ],
)
def test_what_cannot_be_converted_is_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        converted(text)


def test_an_unknown_key_is_listed_and_an_empty_one_is_not_made_much_of() -> None:
    found = converted("{base_model: x, own_key: 3, other_key: null}")
    assert found.not_mapped["own_key"] == "there is no such setting here"
    assert "other_key" in found.off


def test_settings_that_exclude_each_other_are_settled_with_a_reason() -> None:
    found = converted("{base_model: x, adapter: lora, eval_steps: 5, early_stopping_patience: 2}")
    assert "no rows are held out" in found.not_mapped["eval_steps"]
    assert "train.eval_every" in found.not_mapped["early_stopping_patience"]
    found = converted("{model_name_or_path: x, lora_r: 4, max_steps: 9, num_train_epochs: 2}")
    assert found.not_mapped["lora_r"] == "method: full has no adapter"
    assert "train.epochs" not in found.settings and found.settings["train.steps"] == 9


@pytest.mark.parametrize(
    ("text", "theirs", "others"),
    [
        ("{stage: sft, model_name_or_path: b, adapter_name_or_path: old, lora_rank: 4,"
         " lora_alpha: 8, lora_target: all, finetuning_type: lora}", "adapter_name_or_path",
         {"lora_rank", "lora_alpha", "lora_target"}),
        ("{base_model: b, adapter: lora, lora_model_dir: old, lora_r: 4, lora_target_linear: true}",
         "lora_model_dir", {"lora_r", "lora_target_linear"}),
        ("{base_model: b, lora_model_dir: old}", "lora_model_dir", set()),
        ("{model: b, learning_rate: 1e-5, resume_adapter_file: old}", "resume_adapter_file", set()),
    ],
)  # fmt: skip
def test_an_adapter_to_train_further_is_named_and_its_own_settings_are_left_out(
    text: str, theirs: str, others: set[str]
) -> None:
    found = converted(text)
    assert found.settings["lora.start_from"] == "old"
    assert found.source["lora.start_from"] == theirs and theirs not in found.not_mapped
    assert not {"method", *(f"lora.{name}" for name in FROM_ADAPTER)} & found.settings.keys()
    why = "the adapter in lora.start_from has its own"
    assert {key for key, reason in found.not_mapped.items() if reason == why} == others


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{stage: sft, adapter_name_or_path: 'a,b'}", "found 2: merge the others into the base"),
        ("{stage: sft, adapter_name_or_path: [a, b]}", "found 2: merge the others into the base"),
        ("{stage: sft, adapter_name_or_path: a, create_new_adapter: true}",
         "merge this one into the base first"),
        ("{stage: sft, adapter_name_or_path: a, finetuning_type: full}", "method: full"),
        ("{base_model: b, adapter: adalora, adapter_name_or_path: a}", "method: adalora"),
    ],
)  # fmt: skip
def test_an_adapter_that_cannot_be_trained_further_is_listed_with_the_reason(
    text: str, why: str
) -> None:
    found = converted(text)
    assert "lora.start_from" not in found.settings and "method" in found.settings
    assert why in found.not_mapped["adapter_name_or_path"]


def test_no_adapter_to_start_from_changes_nothing() -> None:
    found = converted("{stage: sft, adapter_name_or_path: null, lora_rank: 4}")
    assert found.settings["lora.rank"] == 4 and found.settings["method"] == "lora"
    assert found.off == ["adapter_name_or_path"]


def test_names_of_a_registry_are_looked_up(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "dataset_info.json").write_text(
        '{"own": {"file_name": "own.json", "columns": {"prompt": "q", "response": "a"}}}'
    )
    document = {"dataset": "own", "stage": "sft", "model_name_or_path": "x"}
    found = convert(document, tmp_path).settings
    assert found["data.train"] == str(tmp_path / "data" / "own.json")
    assert found["data.columns"] == {"instruction": "q", "output": "a"}


def test_the_keys_of_trl_and_peft_are_all_known() -> None:
    trl, peft = pytest.importorskip("trl"), pytest.importorskip("peft")
    named = {"dataset_name", "dataset_config", "dataset_train_split", "dataset_test_split"}
    for config in (trl.SFTConfig, trl.ModelConfig, trl.ScriptArguments, peft.LoraConfig):
        fields = set(config.__dataclass_fields__)
        known = KEYS.keys() | few_bits.KEYS | named | {"peft_type"}
        assert fields - known == set(), config.__name__


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("tokens: ['<|call|>', '<|end|>']", ["<|call|>", "<|end|>"]),  # axolotl
        ("add_special_tokens: '<|call|>,<|end|>'", ["<|call|>", "<|end|>"]),  # LLaMA-Factory
        ("add_special_tokens: true", None),  # as a switch it says something else
        ("add_special_tokens: false", None),
    ],
)
def test_tokens_to_add_are_added_here_too(line: str, expected: list[str] | None) -> None:
    found = converted(f"model_name_or_path: a/b\ndataset: rows\n{line}\n")
    assert found.settings.get("model.add_tokens") == expected
    assert ("add_special_tokens" in found.not_mapped) == line.endswith("true")
