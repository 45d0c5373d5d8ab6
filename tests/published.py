"""Figures that others published, as shapes and plans of ours. Used by tests of planning and models.

`fixtures/published_numbers.json` holds each figure with its conditions and source. A model whose
own code names or fuses its modules otherwise than the figure does (LoRA's q and v of GPT-3,
litgpt's of StableLM) stands here in a layout with the same sizes and separate q, k and v.
"""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from loractl.lora.ranks import ModuleRank, RankSpec, resolve
from loractl.models.shape.read import from_config
from loractl.models.shape.types import ModelShape
from loractl.planning.frameworks import FRAMEWORKS
from loractl.planning.peak_memory import Plan
from loractl.planning.work import Work

Row = dict[str, Any]
ROWS: list[Row] = json.loads(
    (Path(__file__).parent / "fixtures" / "published_numbers.json").read_text(encoding="utf-8")
)
NAMES = {"q": "q_proj", "v": "v_proj"}
LONGEST = 768  # tokens: the longest rows of MetaMathQA in PEFT's comparison


def rows(*quantities: str) -> Iterator[Row]:
    return (row for row in ROWS if row["quantity"] in quantities)


def label(row: Row) -> str:
    targets = "+".join(row["target_modules"] or [])
    asked = [row["method"], row["quant"], f"r{row['rank']}", targets, row["seq_len"], row["batch"]]
    return " ".join([row["model"], *(str(one) for one in asked if one is not None)])


def config_of(row: Row) -> dict[str, Any]:
    """The config.json of a row's model."""
    name = row["model"]
    sizes = {
        "hidden_size": row["hidden"], "num_hidden_layers": row["layers"],
        "num_attention_heads": row["heads"], "num_key_value_heads": row["kv_heads"],
        "head_dim": row["head_dim"], "intermediate_size": row["intermediate"],
        "vocab_size": row["vocab"], "tie_word_embeddings": row["tied"],
    }  # fmt: skip
    if name.startswith(("Llama", "Mistral")):
        return {"model_type": "llama", **sizes}
    if name.startswith("Qwen2.5"):
        return {"model_type": "qwen2", **sizes}
    if name.startswith("Qwen3"):
        return {"model_type": "qwen3", **sizes}
    if name.startswith("Qwen-"):
        return {"model_type": "qwen", **sizes, "intermediate_size": 2 * row["intermediate"]}
    if name.startswith("Gemma-2"):
        return {"model_type": "gemma2", **sizes}
    if name.startswith("bloom"):
        return {"model_type": "bloom", **sizes, "n_layer": row["layers"], "n_head": row["heads"]}
    if name.startswith(("phi-1.5", "StableLM", "Falcon")):
        # one input for attention and MLP, no gates; litgpt's MLP calls torch's own gelu
        return {"model_type": "phi", **sizes, "hidden_act": "gelu"}
    layers = 72 if name.startswith("Flan-T5") else row["layers"]  # attention twice in a decoder's
    opt = {"ffn_dim": row["intermediate"], "max_position_embeddings": 512}
    if name == "OPT-350M":
        opt |= {"word_embed_proj_dim": 512, "max_position_embeddings": 2048}
        opt["do_layer_norm_before"] = False
    if name == "OPT-6.7B":
        opt["max_position_embeddings"] = 2048
    return {"model_type": "opt", **sizes, "num_hidden_layers": layers, **opt}


def shape_of(row: Row) -> ModelShape:
    found = from_config(config_of(row), where=row["model"])
    # two norms of the one input
    return replace(found, norms=2) if row["model"].startswith("StableLM") else found


def ranks_of(row: Row, shape: ModelShape) -> dict[str, ModuleRank]:
    if row["method"] in ("full", "inference"):
        return {}
    targets = [NAMES.get(name, name) for name in row["target_modules"]]
    if "lm_head" in targets and shape.head is None:
        raise AssertionError(row)
    return resolve(RankSpec(row["rank"], 2 * row["rank"], targets), shape.kinds, head=shape.head)


def formula_of(row: Row) -> str:
    return row["method"] if row["method"] in ("dora", "adalora") else "lora"


def framework_of(row: Row) -> str:
    source = row["source"]
    if "litgpt" in source or "Lit-GPT" in source:
        return "litgpt"
    return "torchtune" if "torchtune" in source else "peft"


def quantization_of(row: Row) -> str:
    quant = str(row["quant"] or "none")
    if quant.startswith("nf4-dq"):
        return "nf4-double"
    return "none" if quant == "none" else "nf4"  # GPTQ's groups of 128 take about as much


def optimizer_of(row: Row) -> str:
    named = str(row.get("optimizer"))
    if "8bit" in named and row["method"] in ("full", "qlora") and "PagedAdamW8bit" in named:
        return "adamw-paged" if row["method"] == "full" else "adamw"
    return "adamw-paged" if named.startswith("paged") else "sgd" if named == "SGD" else "adamw"


def measure_of(row: Row) -> str:
    """What was read: allocated, reserved or nvidia-smi."""
    if row["quantity"] == "allocated_after_step_bytes":
        return "allocated"
    told = f"{row.get('measure')} {row.get('unit_published')} {row['source']}"
    if "max_memory_allocated" in told or "Lit-GPT" in told or "peak active" in told:
        return "allocated"
    return "nvidia-smi" if "nvidia-smi" in told else "reserved"


def length_of(row: Row) -> int:
    length = row["seq_len"]
    if isinstance(length, int) and row.get("packed") is not False:
        return length
    # Rows of unequal length: MetaMathQA's longest decides the peak, its mean what is seen after a
    # step. torchtune's alpaca rows are short: some 500 tokens at most.
    if "MetaMathQA" in str(length):
        return 210 if row["quantity"] == "allocated_after_step_bytes" else LONGEST
    return 512


def plan_of(row: Row, shape: ModelShape) -> Plan:
    width = 4 if row["precision"] == "fp32" else 2
    framework = FRAMEWORKS[framework_of(row)]
    if "ONLY layers with LoRA" in str(row.get("notes")) or "torchao" in str(row["quant"]):
        framework = replace(framework, quantizes="adapted")  # torchtune in April 2024
    work = Work(
        batch=row["batch"] or 2,
        length=length_of(row),
        width=width,
        checkpointing=bool(row.get("grad_checkpointing")),
        formula=formula_of(row),
        full=row["method"] == "full",
        eager=row["model"].startswith("BERT"),  # before transformers called torch's own attention
        quantized=quantization_of(row) != "none",
        # litgpt's scripts of 2023 begin with the longest example: no batch came before
        previous=0 if "longest" in str(row.get("notes")) else None,
    )
    return Plan(
        ranks=ranks_of(row, shape),
        work=work,
        quantization=quantization_of(row),
        optimizer=optimizer_of(row),
        framework=framework,
    )
