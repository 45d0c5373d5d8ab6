"""The commands for the results of a run, export, eval, plot and report: signatures and help. No
torch."""

from pathlib import Path
from typing import Annotated

import typer

from loractl.cli import completion
from loractl.cli.options import (
    AdapterDir,
    Base,
    Columns,
    Dtype,
    Json,
    MaxNewTokens,
    Model,
    NoVerify,
    Overwrite,
)


def export(
    adapter: AdapterDir,
    to: Annotated[
        str,
        typer.Option(
            help="One of peft, gguf, merged-gguf or ollama.", autocompletion=completion.formats
        ),
    ],
    out: Annotated[Path, typer.Option(help="The output file; a directory for peft and ollama.")],
    base: Base = None,
    dtype: Annotated[
        str | None,
        typer.Option(help="One of f32, f16 or bf16; for whole models also q8_0 or q4_k_m."),
    ] = None,
    overwrite: Overwrite = False,
    no_verify: NoVerify = False,
) -> int:
    """Export for PEFT, vLLM, llama.cpp or Ollama. Verifies the result where they are installed."""
    from loractl.commands.export import run

    return run(adapter, to, out, base=base, dtype=dtype, overwrite=overwrite, verify=not no_verify)


def evaluate(
    targets: Annotated[
        list[str],
        typer.Argument(metavar="[NAME=]PATH...", help="Adapters, runs or fully trained models."),
    ],
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="The held-out data. By default, the rows that the run held out."
        ),
    ] = None,
    columns: Columns = None,
    metrics: Annotated[
        str,
        typer.Option(
            help="Any of loss, perplexity, exact_match, contains, json_match, answer, tool_call, "
            "regex."
        ),
    ] = "loss,perplexity,exact_match",
    regex: Annotated[
        str | None, typer.Option(metavar="PATTERN", help="The pattern for the metric regex.")
    ] = None,
    retain: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="General text on which to measure forgetting."),
    ] = None,
    model: Model = None,
    max_length: Annotated[
        int | None,
        typer.Option(min=2, help="Maximum tokens per row. By default, the run's; 1024 for --data."),
    ] = None,
    max_new_tokens: MaxNewTokens = 256,
    batch_size: Annotated[
        int | None,
        typer.Option(min=1, help="Rows per batch, for the losses. By default, the run's, or 8."),
    ] = None,
    dtype: Dtype = None,
    rows: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the results of each row as JSONL.")
    ] = None,
    as_json: Json = False,
) -> int:
    """Evaluate models and adapters on held-out data."""
    from loractl.commands.arguments import parse_columns
    from loractl.commands.eval import run
    from loractl.evaluation.eval_request import EvalRequest

    wanted = tuple(name.strip() for name in metrics.split(","))
    asked = EvalRequest(
        data, wanted, regex, retain, max_length, max_new_tokens, batch_size, dtype,
        parse_columns(columns or ()),
    )  # fmt: skip
    return run(targets, asked, model=model, rows=rows, as_json=as_json)


def plot(
    runs: Annotated[list[Path], typer.Argument(help="Run directories, finished or not.")],
    out: Annotated[Path, typer.Option(metavar="FILE", help="The .png or .svg file to write.")],
) -> int:
    """Plot the losses, learning rate and gradient norm of runs."""
    from loractl.commands.plot import run

    return run(runs, out)


def report(
    runs: Annotated[list[Path], typer.Argument(help="Run directories, finished or not.")],
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="The .html file to write. By default, report.html in the run; of several runs, in"
            " the working directory.",
        ),
    ] = None,
    watch: Annotated[
        bool,
        typer.Option("--watch", help="Serve the page on this machine while the run goes on."),
    ] = False,
) -> int:
    """Show a run, or compare several, as a page."""
    from loractl.commands.report import run

    return run(runs, out, watch=watch)
