"""Which modules get adapters and how large: on module lists of real models, and as PEFT reads."""

import math
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft.utils.other import get_pattern_key
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from loractl.lora.inject import adaptable
from loractl.lora.ranks import (
    ModuleRank,
    RankSpec,
    UnmatchedError,
    not_low,
    parse_layers,
    resolve,
    sizes,
)
from loractl.models.load import head_name

ATTENTION = {
    "llama": {"q_proj", "k_proj", "v_proj", "o_proj"},
    "qwen3": {"q_proj", "k_proj", "v_proj", "o_proj"},
    "gemma3": {"q_proj", "k_proj", "v_proj", "o_proj"},
    "phi3": {"qkv_proj", "o_proj"},
    "opt": {"q_proj", "k_proj", "v_proj", "out_proj"},
    "gpt-neox": {"query_key_value", "dense"},
    "gpt2": {"c_attn", "c_proj"},
}
MINIMAL = {
    "llama": {"q_proj", "v_proj"},
    "qwen3": {"q_proj", "v_proj"},
    "gemma3": {"q_proj", "v_proj"},
    "phi3": {"qkv_proj"},
    "opt": {"q_proj", "v_proj"},
    "gpt-neox": {"query_key_value"},
    "gpt2": {"c_attn"},
}
LINEAR = {
    "llama": ATTENTION["llama"] | {"gate_proj", "up_proj", "down_proj"},
    "qwen3": ATTENTION["llama"] | {"gate_proj", "up_proj", "down_proj"},
    "gemma3": ATTENTION["llama"] | {"gate_proj", "up_proj", "down_proj"},
    "phi3": ATTENTION["phi3"] | {"gate_up_proj", "down_proj"},
    "opt": ATTENTION["opt"] | {"fc1", "fc2"},
    "gpt-neox": ATTENTION["gpt-neox"] | {"dense_h_to_4h", "dense_4h_to_h"},
    "gpt2": {"c_attn", "c_proj", "c_fc"},
}
PRESETS = {"attention": ATTENTION, "minimal": MINIMAL, "all-linear": LINEAR}

Base = Callable[..., Path]

# PEFT asks transformers for a name that is going away; nothing to do with adapters.
pytestmark = pytest.mark.filterwarnings(
    "ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"
)


@cache
def skeleton(directory: Path) -> PreTrainedModel:
    """The modules of a model without values."""
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(
            AutoConfig.from_pretrained(directory)
        )
    return model


def resolved(directory: Path, **settings: Any) -> dict[str, Any]:
    model = skeleton(directory)
    return resolve(
        RankSpec(**{"rank": 8, "alpha": 16, **settings}), adaptable(model), head=head_name(model)
    )


def message(directory: Path, **settings: Any) -> tuple[str, str]:
    """(setting, message) of the error that these settings bring."""
    with pytest.raises(UnmatchedError) as caught:
        resolved(directory, **settings)
    return caught.value.key, str(caught.value)


def last(path: str) -> str:
    return path.rpartition(".")[2]


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("architecture", LINEAR)
def test_a_preset_means_these_modules_of_every_block(
    preset: str, architecture: str, base: Base
) -> None:
    found = resolved(base(architecture), target_modules=preset)
    assert {last(name) for name in found} == PRESETS[preset][architecture]
    for block in ("0", "1"):
        names = {last(name) for name in found if f".{block}." in name}
        assert names == PRESETS[preset][architecture]
    if architecture == "gpt2" and preset != "all-linear":
        assert not any(".mlp." in name for name in found), "the c_proj of the MLP is no attention"


def test_all_linear_leaves_the_output_head_out_but_a_list_may_name_it(base: Base) -> None:
    llama = base("llama")
    assert "lm_head" not in resolved(llama)
    assert list(resolved(llama, target_modules=["lm_head"])) == ["lm_head"]
    assert list(resolved(llama, target_modules=["embed_tokens"])) == ["model.embed_tokens"]


@pytest.mark.parametrize("architecture", LINEAR)
def test_all_linear_means_what_peft_means(architecture: str, base: Base) -> None:
    assert set(resolved(base(architecture))) == peft_modules(base(architecture), "all-linear")


@pytest.mark.parametrize(
    "targets",
    [
        ["q_proj", "v_proj"],
        ["model.layers.1.mlp.up_proj"],
        ["mlp.down_proj", "q_proj"],
        ["embed_tokens"],
        r".*\.1\..*_proj",
        r"model\.layers\.\d+\.self_attn\.(q|k)_proj",
    ],
)
def test_names_and_regexes_mean_what_peft_means(targets: str | list[str], base: Base) -> None:
    found = resolved(base("llama"), target_modules=targets)
    assert found and set(found) == peft_modules(base("llama"), targets)


def peft_layers(directory: Path, **settings: Any) -> dict[str, Any]:
    """PEFT's LoRA layers by module path."""
    config = AutoConfig.from_pretrained(directory)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    wrapped = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", **settings))
    return {
        name.removeprefix("base_model.model."): module
        for name, module in wrapped.named_modules()
        if isinstance(module, peft.tuners.lora.LoraLayer)
    }


def peft_modules(directory: Path, targets: str | list[str]) -> set[str]:
    conv = "GPT2" in type(skeleton(directory)).__name__
    return set(peft_layers(directory, r=2, target_modules=targets, fan_in_fan_out=conv))


PATTERNS: list[dict[str, Any]] = [
    {"rank_pattern": {"q_proj": 2, "self_attn.q_proj": 3}},
    {"rank_pattern": {"self_attn.q_proj": 3, "q_proj": 2}},
    {"rank_pattern": {r".*\.1\..*": 2}, "alpha_pattern": {"up_proj": 5, "1.mlp.up_proj": 7}},
    {"rank_pattern": {"model.layers.0.mlp.down_proj": 1}, "alpha_pattern": {"(q|v)_proj": 3}},
    {"rank_pattern": {"layers.0.self_attn.(q|k)_proj": 4}, "scaling": "rslora"},
    {"rank_pattern": {"^model.layers.1.*": 4, "o_proj": 2}, "alpha_pattern": {"o_proj": 32}},
]


@pytest.mark.parametrize("settings", PATTERNS)
def test_patterns_mean_what_peft_means(settings: dict[str, Any], base: Base) -> None:
    ours = resolved(base("llama"), **settings)
    theirs = peft_layers(
        base("llama"),
        r=8,
        lora_alpha=16,
        target_modules="all-linear",
        use_rslora=settings.get("scaling") == "rslora",
        rank_pattern=settings["rank_pattern"],
        alpha_pattern=settings.get("alpha_pattern", {}),
    )
    assert ours.keys() == theirs.keys()
    for name, layer in theirs.items():
        assert ours[name].rank == layer.r["default"], name
        assert ours[name].alpha == layer.lora_alpha["default"], name
        assert ours[name].scale == pytest.approx(layer.scaling["default"]), name


@pytest.mark.parametrize("pattern", ["proj", "_proj", "q_proj", "x.q_proj", "a.*", "a|b", "b.x$"])
def test_a_pattern_fits_the_paths_that_fit_in_peft(pattern: str) -> None:
    names = ["q_proj", "a.q_proj", "a.x.q_proj", "b.x", "a", "b", "xq_proj"]
    found = sizes(RankSpec(8, 16, rank_pattern={pattern: 1}), names)
    for name in names:
        assert (found[name].rank == 1) == (get_pattern_key([pattern], name) == pattern), name


def test_scales_are_alpha_over_rank_or_over_its_root(base: Base) -> None:
    (standard,) = set(resolved(base("llama"), alpha=3).values())
    (rslora,) = set(resolved(base("llama"), alpha=3, scaling="rslora").values())
    assert standard.scale == 3 / 8 and rslora.scale == 3 / math.sqrt(8)


@pytest.mark.parametrize(
    "layers,blocks", [([1], {"1"}), ([0, 1], {"0", "1"}), ("0-1", {"0", "1"}), (" 1 - 1 ", {"1"})]
)
def test_layers_leave_only_these_blocks(
    layers: list[int] | str, blocks: set[str], base: Base
) -> None:
    for architecture in LINEAR:
        found = resolved(base(architecture), layers=layers)
        assert {part for name in found for part in name.split(".") if part.isdigit()} == blocks


def test_layers_leave_out_what_stands_in_no_block(base: Base) -> None:
    found = resolved(base("llama"), target_modules=["embed_tokens", "q_proj"], layers=[0])
    assert list(found) == ["model.layers.0.self_attn.q_proj"]


@pytest.mark.parametrize("layers,first", [([2], 2), ([0, 7, 9], 7), ("1-4", 2), ("5-6", 5)])
def test_a_block_that_is_not_there_is_named(
    layers: list[int] | str, first: int, base: Base
) -> None:
    key, text = message(base("llama"), layers=layers)
    assert key == "lora.layers" and f"no block {first};" in text and "have blocks 0 to 1" in text


def test_blocks_of_modules_outside_any_block_are_missed(base: Base) -> None:
    key, text = message(base("llama"), target_modules=["lm_head"], layers=[0])
    assert key == "lora.layers" and "no numbered blocks" in text


def test_a_huge_range_of_layers_is_not_counted_through(base: Base) -> None:
    """Which would take hours, and more memory than there is."""
    assert "no block 2;" in message(base("llama"), layers="0-99999999999")[1]
    assert "expected a list or a range" in message(base("llama"), layers="0-" + "9" * 5000)[1]


@pytest.mark.parametrize("layers", ["3-1", "1-", "-1-2", "one", "", "1,2", "0x1-2"])
def test_what_is_no_range_of_layers_is_refused(layers: str) -> None:
    with pytest.raises(UnmatchedError, match="expected a list or a range such as 8-15"):
        parse_layers(layers)


def test_an_empty_list_of_layers_is_refused(base: Base) -> None:
    key, text = message(base("llama"), layers=[])
    assert key == "lora.layers" and "empty" in text


def test_an_unknown_name_brings_the_nearest_one(base: Base) -> None:
    key, text = message(base("llama"), target_modules=["q_proj", "v_porj"])
    assert key == "lora.target_modules"
    assert "'v_porj' matches no module" in text and "did you mean v_proj?" in text
    assert "down_proj, embed_tokens, gate_proj" in text


def test_an_unknown_preset_brings_the_nearest_one(base: Base) -> None:
    assert "did you mean all-linear?" in message(base("llama"), target_modules="all_linear")[1]
    assert "did you mean" not in message(base("llama"), target_modules=["zzzzzz"])[1]


def test_a_name_given_as_text_is_told_to_be_a_list(base: Base) -> None:
    assert "write [q_proj]" in message(base("llama"), target_modules="q_proj")[1]


def test_part_of_a_name_is_no_name(base: Base) -> None:
    message(base("llama"), target_modules=["proj"])
    message(base("llama"), target_modules=["attn.q_proj"])


@pytest.mark.parametrize("regex", ["(", "a{99999999999}", "*", "[z-a]"])
def test_what_is_no_regex_is_refused_wherever_it_stands(regex: str, base: Base) -> None:
    for field, value in (
        ("target_modules", regex),
        ("rank_pattern", {regex: 2}),
        ("alpha_pattern", {regex: 2}),
    ):
        key, text = message(base("llama"), **{field: value})
        assert key == f"lora.{field}" and "is not a valid regex" in text


def test_a_pattern_that_fits_no_targeted_module_is_refused(base: Base) -> None:
    for field in ("rank_pattern", "alpha_pattern"):
        settings = {"target_modules": ["q_proj"], field: {"q_proj": 2, "v_proj": 2}}
        assert message(base("llama"), **settings) == (
            f"lora.{field}",
            "'v_proj' matches no targeted module",
        )


@pytest.mark.parametrize("d,k", [(32, 16), (64, 64), (5, 300), (1, 1)])
def test_a_rank_is_low_while_a_and_b_hold_fewer_values_than_the_weight(d: int, k: int) -> None:
    ranks = {str(rank): ModuleRank(rank, 1, 1) for rank in range(1, d + k)}
    found = not_low(ranks, dict.fromkeys(ranks, (d, k)))
    assert found == [str(rank) for rank in range(1, d + k) if rank * d + rank * k >= d * k]
    assert found == [str(rank) for rank in range(1, d + k) if rank >= d * k / (d + k)]
