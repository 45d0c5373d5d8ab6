"""Options and arguments shared by several commands, each with one help text. No torch."""

from pathlib import Path
from typing import Annotated

import typer

Config = Annotated[Path, typer.Argument(help="The YAML config file.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a setting. Repeatable."),
]
AdapterDir = Annotated[Path, typer.Argument(help="An adapter, run or checkpoint directory.")]
Adapters = Annotated[
    list[str] | None,
    typer.Option(
        "--adapter", metavar="NAME=DIR", help="Load this adapter under this name. Repeatable."
    ),
]
AdapterDirs = Annotated[
    list[str] | None,
    typer.Argument(metavar="[[NAME=]DIR]...", help="Adapters, like --adapter.", show_default=False),
]
Model = Annotated[
    str | None, typer.Option(help="The base model, or a run trained with method: full.")
]
Base = Annotated[
    str | None,
    typer.Option("--base", help="The base model. By default, the one the adapter names."),
]
Dtype = Annotated[
    str | None,
    typer.Option(
        help="The dtype to load in: auto, float32, bfloat16 or float16. By default, the one trained"
        " in."
    ),
]
Columns = Annotated[
    list[str] | None,
    typer.Option(
        "--columns",
        metavar="FIELD=COLUMN",
        help="The file's name for a field, such as prompt=question. Repeatable.",
    ),
]
Rank = Annotated[int | None, typer.Option(min=1, help="The rank of A and B.")]
MaxNewTokens = Annotated[int, typer.Option(min=1, help="Generate at most this many tokens.")]
Json = Annotated[bool, typer.Option("--json", help="Print machine-readable JSON.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace existing output.")]
NoVerify = Annotated[bool, typer.Option("--no-verify", help="Skip verifying the result.")]
Plot = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Also draw a plot to this .png or .svg file."),
]
