"""The part of the command line that plans: signatures and help of its two commands. No torch."""

from pathlib import Path
from typing import Annotated

import typer

from loractl.cli.options import Json, Overrides, Plot, Rank

Shape = Annotated[
    str | None, typer.Option(help="In place of a config: 7B, 13B, 30B, 70B or a directory.")
]
Targets = Annotated[
    str | None, typer.Option(help="minimal, attention, all-linear, or names with commas between.")
]
BaseDtype = Annotated[str | None, typer.Option(help="float32, bfloat16 or float16, of the base.")]
Quantization = Annotated[str | None, typer.Option(help="Of QLoRA: nf4, nf4-double or int8.")]
Optimizer = Annotated[str | None, typer.Option(help="adamw, adamw-8bit, adamw-paged or sgd.")]
Checkpointing = Annotated[
    bool | None,
    typer.Option("--checkpointing/--no-checkpointing", help="Compute activations twice."),
]
Packing = Annotated[
    bool | None,
    typer.Option("--packing/--no-packing", help="Several examples a row: a mask is kept."),
]
Share = Annotated[
    float | None, typer.Option(min=0.0, max=1.0, help="Of the tokens, those that are trained.")
]
Eager = Annotated[
    bool | None, typer.Option("--eager", help="Attention whose scores are computed whole.")
]
Framework = Annotated[
    str | None, typer.Option(help="Whose training loop: loractl, peft, litgpt, torchtune.")
]
Method = Annotated[str | None, typer.Option(help="lora, dora, adalora or full.")]
Length = Annotated[int | None, typer.Option(min=2, help="Tokens of a row.")]
Rows = Annotated[int | None, typer.Option(min=1, help="Rows of a micro-batch.")]
Micro = Annotated[int | None, typer.Option(min=1, help="Micro-batches of a step.")]
Tokens = Annotated[str | None, typer.Option(help="To train on in all, as 5M.")]
Speed = Annotated[str | None, typer.Option(help="Measured: a number, or a run on that machine.")]
Price = Annotated[float | None, typer.Option(min=0.0, help="Of that machine, an hour.")]


def estimate(
    config: Annotated[Path | None, typer.Argument(help="The YAML file.")] = None,
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
    tasks: Annotated[int, typer.Option(min=1, help="For disk: that many fine-tunings.")] = 1,
    tokens: Tokens = None,
    tokens_per_s: Speed = None,
    price: Price = None,
    plot: Plot = None,
    as_json: Json = False,
) -> int:
    """Count parameters, memory, disk and time of a run; nothing is loaded."""
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
    task: Annotated[str, typer.Option(help="simple, medium or complex.")],
    model: Annotated[str, typer.Option(help="7B, 13B, 30B, 70B, or a directory.")],
    data_size: Annotated[str | None, typer.Option(help="Rows, as 5000 or 5k.")] = None,
    data: Annotated[
        str | None, typer.Option(help="The rows themselves: their tokens are counted.")
    ] = None,
    memory: Annotated[
        str | None, typer.Option(help="Of the GPU, as 24GB: what fits is searched.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "bfloat16",
    write: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write it as a commented config.")
    ] = None,
    as_json: Json = False,
) -> int:
    """Say which rank, targets, learning rate, batch and method suit a task, and why."""
    from loractl.commands.recommend import run
    from loractl.planning.recommend import RecommendRequest

    asked = RecommendRequest(task, model, data_size, data, memory, dtype, write)
    return run(asked, as_json=as_json)
