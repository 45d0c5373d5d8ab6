"""The part of the command line under `loractl adapters`: signatures and help. No torch."""

from pathlib import Path
from typing import Annotated

import typer

from loractl.cli.options import AdapterDir, Json, Overwrite, Rank

Out = Annotated[Path, typer.Option(help="Directory of the adapter that is made.")]
Energy = Annotated[
    float | None,
    typer.Option(help="Smallest ranks that keep this share of the squared singular values."),
]
adapters_app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    help="Resize, combine and extract adapters.",
    epilog="Example: loractl adapters resize runs/name --rank 4 --out small",
)


@adapters_app.command(epilog="Example: loractl adapters resize runs/name --energy 0.95 --out small")
def resize(
    adapter: AdapterDir,
    out: Out,
    rank: Rank = None,
    energy: Energy = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> int:
    """Cut an adapter to a rank, or to the ranks that keep a share of it; tell the error."""
    from loractl.commands.adapters import resize as run

    return run(adapter, out, rank=rank, energy=energy, overwrite=overwrite, as_json=as_json)


@adapters_app.command(
    epilog="Example: loractl adapters combine --adapter a=runs/a --adapter b=runs/b --weight b=0.5"
    " --how cat --out both"
)
def combine(
    adapter: Annotated[list[str], typer.Option(metavar="NAME=DIR", help="Repeatable.")],
    how: Annotated[
        str,
        typer.Option(
            help="cat: the exact sum; svd: its best part of a rank; linear, ties, dare, dare_ties:"
            " A and B mixed apart, as PEFT does."
        ),
    ],
    out: Out,
    weight: Annotated[
        list[str] | None, typer.Option(metavar="NAME=W", help="Repeatable; default 1.")
    ] = None,
    rank: Rank = None,
    density: Annotated[
        float | None, typer.Option(help="Share of the values that ties and dare keep.")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Of what dare drops.")] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> int:
    """Make one adapter from several of the same base."""
    from loractl.commands.combine import run
    from loractl.engine.requests import Recipe

    recipe = Recipe(how, rank, density, seed)
    return run(adapter, weight or [], recipe, out, overwrite=overwrite, as_json=as_json)


@adapters_app.command(
    epilog="Example: loractl adapters extract --base B --tuned runs/full/model --rank 16 --out lora"
)
def extract(
    base: Annotated[str, typer.Option(help="Hub id, directory, or a run of method: full.")],
    tuned: Annotated[str, typer.Option(help="The same model after training.")],
    out: Out,
    rank: Rank = None,
    energy: Energy = None,
    embeddings: Annotated[
        bool, typer.Option("--embeddings", help="The embedding table too.")
    ] = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> int:
    """Find the adapter nearest to what changed between two models, and how much it keeps."""
    from loractl.commands.extract import run
    from loractl.engine.requests import ExtractRequest

    asked = ExtractRequest(rank, energy, embeddings)
    return run(base, tuned, out, asked=asked, overwrite=overwrite, as_json=as_json)
