"""Options and arguments that several commands take, each with its one help text. No torch."""

from pathlib import Path
from typing import Annotated

import typer

Config = Annotated[Path, typer.Argument(help="The YAML file.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="K=V", help="Override a setting; repeatable."),
]
AdapterDir = Annotated[Path, typer.Argument(help="Adapter, run or checkpoint directory.")]
Adapters = Annotated[
    list[str] | None,
    typer.Option("--adapter", metavar="NAME=DIR", help="An adapter; repeatable."),
]
Model = Annotated[str | None, typer.Option(help="The base, or a run of method: full.")]
Base = Annotated[
    str | None, typer.Option("--base", help="The base model; default: the one the adapter names.")
]
Dtype = Annotated[str, typer.Option(help="As model.dtype of a config.")]
Rank = Annotated[int | None, typer.Option(min=1, help="Rank of A and B.")]
MaxNewTokens = Annotated[int, typer.Option(min=1, help="Length of an answer at most.")]
Json = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")]
NoVerify = Annotated[bool, typer.Option("--no-verify", help="Write without the proof.")]
Plot = Annotated[Path | None, typer.Option(metavar="FILE", help="Draw it, as .png or .svg.")]
