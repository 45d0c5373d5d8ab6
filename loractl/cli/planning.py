"""The planning commands, init, estimate, recommend and explain: signatures and help. No torch."""

from pathlib import Path
from typing import Annotated

import typer

from loractl.cli import completion
from loractl.cli.options import Columns, Json, Overrides, Plot, Rank

Shape = Annotated[
    str | None,
    typer.Option(help="Instead of a config, a size (0.5B to 72B) or a model directory."),
]
Targets = Annotated[
    str | None,
    typer.Option(
        help="Target modules: minimal, attention, all-linear, or names separated by commas."
    ),
]
BaseDtype = Annotated[
    str | None, typer.Option(help="The dtype of the base model: float32, bfloat16 or float16.")
]
Quantization = Annotated[
    str | None, typer.Option(help="Quantization for QLoRA: nf4, nf4-double or int8.")
]
Optimizer = Annotated[
    str | None, typer.Option(help="One of adamw, adamw-8bit, adamw-paged, sgd, adafactor or lion.")
]
Checkpointing = Annotated[
    bool | None,
    typer.Option(
        "--checkpointing/--no-checkpointing", help="Recompute activations to save memory."
    ),
]
Packing = Annotated[
    bool | None,
    typer.Option("--packing/--no-packing", help="Pack several examples per row, with a mask."),
]
Share = Annotated[
    float | None, typer.Option(min=0.0, max=1.0, help="The share of tokens that are trained.")
]
Eager = Annotated[
    bool | None, typer.Option("--eager", help="Assume attention that stores all scores.")
]
Framework = Annotated[
    str | None,
    typer.Option(help="The training loop to assume: loractl, peft, litgpt or torchtune."),
]
Method = Annotated[str | None, typer.Option(help="One of lora, dora, adalora or full.")]
Length = Annotated[int | None, typer.Option(min=2, help="Tokens per row.")]
Rows = Annotated[int | None, typer.Option(min=1, help="Rows per micro-batch.")]
Micro = Annotated[int | None, typer.Option(min=1, help="Micro-batches per optimizer step.")]
Tokens = Annotated[str | None, typer.Option(help="Total number of training tokens, such as 5M.")]
Speed = Annotated[
    str | None, typer.Option(help="Measured speed: a number, or a run directory to read it from.")
]
Price = Annotated[float | None, typer.Option(min=0.0, help="Price of that machine per hour.")]


def estimate(
    config: Annotated[Path | None, typer.Argument(help="The YAML config file.")] = None,
    overrides: Overrides = None,
    model: Shape = None,
    method: Method = None,
    rank: Rank = None,
    targets: Targets = None,
    seq: Length = None,
    batch: Rows = None,
    accumulation: Micro = None,
    dtype: BaseDtype = None,
    quantization: Quantization = None,
    optimizer: Optimizer = None,
    checkpointing: Checkpointing = None,
    packing: Packing = None,
    trained_share: Share = None,
    eager: Eager = None,
    framework: Framework = None,
    tasks: Annotated[
        int, typer.Option(min=1, help="Estimate disk space for this many fine-tuned models.")
    ] = 1,
    tokens: Tokens = None,
    tokens_per_s: Speed = None,
    price: Price = None,
    plot: Plot = None,
    as_json: Json = False,
) -> int:
    """Estimate parameters, memory, disk and time for a run. No model is loaded."""
    from loractl.commands.estimate import EstimateRequest, run

    flags = {
        "method": method, "rank": rank, "target_modules": targets, "length": seq, "batch": batch,
        "accumulation": accumulation, "dtype": dtype, "quantization": quantization,
        "optimizer": optimizer, "checkpointing": checkpointing, "packing": packing,
        "trained_share": trained_share, "eager": eager, "framework": framework,
    }  # fmt: skip
    asked = EstimateRequest(tasks, tokens, tokens_per_s, price, plot)
    return run(config, overrides or [], model, flags, asked, as_json=as_json)


def recommend(
    task: Annotated[str, typer.Option(help="One of simple, medium or complex.")],
    model: Annotated[str, typer.Option(help="A size (0.5B to 72B) or a model directory.")],
    data_size: Annotated[
        str | None, typer.Option(help="Number of training rows, such as 5000 or 5k.")
    ] = None,
    data: Annotated[
        str | None, typer.Option(metavar="FILE", help="The training data; its tokens are counted.")
    ] = None,
    columns: Columns = None,
    memory: Annotated[
        str | None, typer.Option(help="GPU memory to fit into, such as 24GB.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="One of float32, bfloat16 or float16.")] = "bfloat16",
    write: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write a commented config file.")
    ] = None,
    as_json: Json = False,
) -> int:
    """Recommend settings for a task, with reasons."""
    from loractl.commands.recommend import run
    from loractl.planning.recommend import RecommendRequest

    asked = RecommendRequest(
        task, model, data_size, data, memory, dtype, write, tuple(columns or ())
    )
    return run(asked, as_json=as_json)


def explain(
    model: Annotated[
        str | None,
        typer.Option(
            help="A size (0.5B to 72B), model directory, config, run or adapter. By default, 8B."
        ),
    ] = None,
    rank: Rank = None,
    lang: Annotated[str, typer.Option(help="The language of the page: en or zh.")] = "en",
    out: Annotated[Path, typer.Option(metavar="FILE", help="The .html file to write.")] = Path(
        "explain.html"
    ),
) -> int:
    """Explain LoRA on a model, as an interactive page."""
    from loractl.commands.explain import run

    return run(model, rank, lang, out)


def init(
    template: Annotated[
        list[str] | None,
        typer.Option(
            help="A method (lora, dora, adalora or full), or what the rows are: classification,"
            " chat, json-extraction, tool-calls or continued-pretraining. Repeatable: one of each.",
            autocompletion=completion.templates,
        ),
    ] = None,
    model: Annotated[str | None, typer.Option(help="A hub id, directory or .gguf file.")] = None,
    data: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="The training data, which is opened and measured."),
    ] = None,
    columns: Columns = None,
    source: Annotated[
        Path | None,
        typer.Option(
            "--from",
            metavar="FILE",
            help="Convert a config of LLaMA-Factory, axolotl, TRL, unsloth, PEFT or torchtune.",
        ),
    ] = None,
    out: Annotated[
        Path, typer.Option(metavar="FILE", help="The file to write; - for stdout.")
    ] = Path("config.yaml"),
) -> int:
    """Write a commented config that trains well on the data."""
    from loractl.commands.init import InitRequest, run

    return run(InitRequest(template or (), model, data, source, columns or ()), out)
