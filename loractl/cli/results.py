"""The part of the command line about what came of a run: export and eval. No torch."""

from pathlib import Path
from typing import Annotated

import typer

from loractl.cli.options import (
    AdapterDir,
    Base,
    Dtype,
    Json,
    MaxNewTokens,
    Model,
    NoVerify,
    Overwrite,
)


def export(
    adapter: AdapterDir,
    to: Annotated[str, typer.Option(help="peft, gguf, merged-gguf or ollama.")],
    out: Annotated[Path, typer.Option(help="The file, or for peft and ollama the directory.")],
    base: Base = None,
    dtype: Annotated[
        str | None, typer.Option(help="f32, f16, bf16, or for whole models q8_0.")
    ] = None,
    overwrite: Overwrite = False,
    no_verify: NoVerify = False,
) -> int:
    """Write what PEFT and vLLM, llama.cpp or Ollama load, and prove it where they are installed."""
    from loractl.commands.export import run

    return run(adapter, to, out, base=base, dtype=dtype, overwrite=overwrite, verify=not no_verify)


def evaluate(
    targets: Annotated[
        list[str],
        typer.Argument(metavar="[NAME=]PATH...", help="Adapters, runs, or fully trained models."),
    ],
    data: Annotated[Path, typer.Option(help="Held-out rows.")],
    metrics: Annotated[
        str,
        typer.Option(help="Of loss, perplexity, exact_match, contains, json_match, regex."),
    ] = "loss,perplexity,exact_match",
    regex: Annotated[
        str | None, typer.Option(metavar="PATTERN", help="What the metric regex looks for.")
    ] = None,
    retain: Annotated[
        Path | None, typer.Option(help="General text: how much of it was forgotten?")
    ] = None,
    model: Model = None,
    max_length: Annotated[int, typer.Option(min=2, help="Tokens of a row at most.")] = 1024,
    max_new_tokens: MaxNewTokens = 256,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows of a batch, for the losses.")] = 8,
    dtype: Dtype = "auto",
    rows: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the figures of each row as JSONL.")
    ] = None,
    as_json: Json = False,
) -> int:
    """Measure base, adapters and fully trained models on held-out rows, in one table."""
    from loractl.commands.eval import run
    from loractl.evaluation.eval_request import EvalRequest

    wanted = tuple(name.strip() for name in metrics.split(","))
    asked = EvalRequest(data, wanted, regex, retain, max_length, max_new_tokens, batch_size, dtype)
    return run(targets, asked, model=model, rows=rows, as_json=as_json)
