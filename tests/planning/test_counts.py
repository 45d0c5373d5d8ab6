"""Trained parameters against what others published; files and products against real ones."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM

from loractl.artifacts.peft.names import parameters
from loractl.lora.dense import matrix_sizes
from loractl.lora.inject import adaptable, inject_
from loractl.lora.ranks import RankSpec, resolve
from loractl.models.load import head_name
from loractl.models.shape import read as shapes
from loractl.planning import counts
from tests.published import Row, config_of, formula_of, label, ranks_of, rows, shape_of

COUNTS = list(rows("trainable_params"))
SCORE_HEAD = 2 * 2304
"""Gemma-2's row is of a classifier: two rows of weights beside the adapters."""


def published(row: Row) -> int:
    """The figure that must come out: as printed where it is exact, else what its formula gives."""
    value = int(row["value"] if row["exact"] else row["computed"])
    return value - (SCORE_HEAD if "score head" in str(row["notes"]) else 0)


@pytest.mark.parametrize("row", COUNTS, ids=label)
def test_a_shape_gives_the_published_count_without_torch(row: Row) -> None:
    found = shape_of(row)
    assert counts.trained(found, ranks_of(row, found), formula_of(row)) == published(row)


# Rows whose modules have other names, or another layout, in transformers than in the figure.
NAMED_OTHERWISE = {
    "StableLM-base-alpha-3B": ("gpt_neox", {"q_proj": "query_key_value", "v_proj": ""}),
    "GPT-2-medium": ("gpt2", {"q_proj": "c_attn", "v_proj": ""}),
    "RoBERTa-base": ("roberta", {"q_proj": "query", "v_proj": "value"}),
    "DeBERTa-v2-XXL": ("deberta-v2", {"q_proj": "query_proj", "v_proj": "value_proj"}),
    "Flan-T5-large": ("t5", {}),
}


def is_whole(row: Row) -> bool:
    """Whether a row counts a causal LM's parameters one by one: not packed, no encoder."""
    return "PACKED" not in str(row["notes"]) and row["model"] != "Flan-T5-large"


def meta_model(row: Row) -> torch.nn.Module:
    """The model of a row as transformers builds it, without values."""
    config = config_of(row)
    if row["model"] in NAMED_OTHERWISE:
        config["model_type"] = NAMED_OTHERWISE[row["model"]][0]
    kind = config.pop("model_type")
    if kind == "gpt2":
        config |= {"n_embd": row["hidden"], "n_layer": row["layers"], "n_head": row["heads"]}
    if kind == "t5":
        config = {
            "d_model": 1024, "d_kv": 64, "d_ff": 2816, "num_heads": 16, "vocab_size": 32128,
            "num_layers": 24, "num_decoder_layers": 24, "tie_word_embeddings": False,
        }  # fmt: skip
    build = AutoModelForSeq2SeqLM if kind == "t5" else AutoModelForCausalLM
    if kind == "deberta-v2":
        build = AutoModel
    if kind == "roberta":
        config["is_decoder"] = True
    with torch.device("meta"):
        return build.from_config(AutoConfig.for_model(kind, **config))  # type: ignore[no-any-return]


@pytest.mark.parametrize("row", COUNTS, ids=label)
def test_our_adapters_on_a_model_without_values_have_the_published_count(row: Row) -> None:
    model = meta_model(row)
    names = NAMED_OTHERWISE.get(row["model"], ("", {}))[1]
    targets = [n for target in row["target_modules"] if (n := names.get(target, target))]
    ranks = resolve(
        RankSpec(row["rank"], 2 * row["rank"], targets), adaptable(model),
        head=None if row["model"] in NAMED_OTHERWISE else head_name(model),  # type: ignore[arg-type]
    )  # fmt: skip
    kinds, found = adaptable(model), 0
    for name, size in ranks.items():
        d_in, d_out = matrix_sizes(kinds[name], model.get_parameter(f"{name}.weight"))
        extra = {"dora": d_out, "adalora": size.rank}.get(row["method"], 0)
        found += size.rank * (d_in + d_out) + extra
    assert found == published(row)


@pytest.mark.parametrize(
    "row", [row for row in COUNTS if row.get("all_params") and is_whole(row)], ids=label
)
def test_all_parameters_are_those_that_were_printed(row: Row) -> None:
    notes, found = str(row["notes"]), shape_of(row)
    in_all = found.parameters + counts.trained(found, ranks_of(row, found), formula_of(row))
    # AdaLoRA: 56 scalars that hold ranks; a classifier: its score head, once more when saved
    beside = {"adalora": 56}.get(row["method"], 0) + (2 * SCORE_HEAD if "score" in notes else 0)
    assert in_all + beside == row["all_params"]


@pytest.mark.parametrize("formula", ["lora", "dora"])
def test_a_file_is_as_large_as_safetensors_writes_it(formula: str, tmp_path: Path) -> None:
    settings = {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 12, "vocab_size": 100,
        "num_attention_heads": 4, "num_key_value_heads": 2,
    }  # fmt: skip
    config = AutoConfig.for_model("llama", **settings)
    model = AutoModelForCausalLM.from_config(config)
    spec = RankSpec(4, 8, ["q_proj", "down_proj", "embed_tokens"])
    ranks = resolve(spec, adaptable(model))
    layers = inject_(model, ranks, formula=formula)
    tensors = {name: tensor.detach() for name, tensor in parameters(layers).items()}
    save_file(tensors, tmp_path / "adapter.safetensors", metadata={"format": "pt"})
    found = shapes.from_config({"model_type": "llama", **settings}, where="here")
    own = resolve(spec, found.kinds)
    size = (tmp_path / "adapter.safetensors").stat().st_size
    assert counts.file_bytes(found, own, formula) == size


def test_published_files_have_the_size_that_is_predicted() -> None:
    # Llama-3.2-3B, PEFT's comparison: 37,868,984 bytes for the MLP at rank 10; and 36,715,216 for
    # q and v at rank 32, header of 15,056 included.
    row = next(row for row in COUNTS if "target-mlp" in row["source"])
    found = shape_of(row)
    assert counts.file_bytes(found, ranks_of(row, found)) == 37_868_984
    ranks = resolve(RankSpec(32, 64, ["q_proj", "v_proj"]), found.kinds)
    assert counts.file_bytes(found, ranks) == 36_715_216


def test_products_are_those_that_torch_counts() -> None:
    settings = {
        "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 3, "vocab_size": 100,
        "num_attention_heads": 4, "num_key_value_heads": 2,
    }  # fmt: skip
    rows, length = 2, 32
    ids = torch.zeros(rows, length, dtype=torch.long)
    found = shapes.from_config({"model_type": "llama", **settings}, where="here")
    ranks = resolve(RankSpec(4, 8), found.kinds, head=found.head)
    predicted = counts.flops(found, ranks, batch=rows, length=length)

    def counted(*, adapted: bool) -> int:
        config = AutoConfig.for_model("llama", **settings, attn_implementation="eager")
        model = AutoModelForCausalLM.from_config(config)
        if adapted:
            inject_(model, ranks)
        # torch counts this product out of place alone
        in_place = {torch.ops.aten.addmm_: lambda y, a, b, **_: 2 * a[0] * a[1] * b[1]}
        with FlopCounterMode(display=False, custom_mapping=in_place) as counter:
            model(input_ids=ids, use_cache=False).logits.sum().backward()
        return int(counter.get_total_flops())

    # torch counts the whole square of the scores, causal attention needs half; the lowest block
    # passes no gradient on, of which the prediction knows nothing.
    square = 6 * found.layers * found.heads * found.head_dim * length * rows * length
    assert predicted.full + square == pytest.approx(counted(adapted=False), rel=0.01)
    assert predicted.lora + square == pytest.approx(counted(adapted=True), rel=0.06)


def test_two_thin_products_cost_less_than_one_whole() -> None:
    found = shapes.named("7B")
    ranks = resolve(RankSpec(8, 16, ["q_proj"]), found.kinds)
    flops = counts.flops(found, ranks, batch=1, length=1)
    # 2 r (d + k) a layer against 2 r d k to form B A and 2 d k to apply it
    assert flops.low_rank == 32 * 2 * 8 * (4096 + 4096)
    assert flops.product == 32 * (2 * 8 * 4096 * 4096 + 2 * 4096 * 4096)
    whole = counts.flops(found, resolve(RankSpec(8, 16), found.kinds, head="lm_head"),
                         batch=8, length=1024)  # fmt: skip
    assert 2 / 3 < whole.lora / whole.full < 0.7
