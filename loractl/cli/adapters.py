"""The commands under `loractl adapters`: signatures and help. No torch."""

from pathlib import Path
from typing import Annotated

import typer

from loractl.cli.options import AdapterDir, AdapterDirs, Json, Overwrite, Rank

Out = Annotated[Path, typer.Option(metavar="DIR", help="Write the new adapter to this directory.")]
Energy = Annotated[
    float | None,
    typer.Option(
        help="Use the smallest ranks that keep this share of the squared singular values."
    ),
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
    """Reduce an adapter to a lower rank and report the error."""
    from loractl.commands.adapters import resize as run

    return run(adapter, out, rank=rank, energy=energy, overwrite=overwrite, as_json=as_json)


@adapters_app.command(
    epilog="Example: loractl adapters combine --adapter a=runs/a --adapter b=runs/b --weight b=0.5"
    " --how cat --out both"
)
def combine(
    how: Annotated[
        str,
        typer.Option(
            help="How to combine: cat is the exact sum; svd its best approximation of a given"
            " rank; linear, ties, dare and dare_ties combine A and B separately, as PEFT does."
        ),
    ],
    out: Out,
    adapters: AdapterDirs = None,
    adapter: Annotated[
        list[str] | None, typer.Option(metavar="NAME=DIR", help="Combine this adapter. Repeatable.")
    ] = None,
    weight: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=W", help="Weight of an adapter, 1 by default. Repeatable."),
    ] = None,
    rank: Rank = None,
    density: Annotated[
        float | None, typer.Option(help="The share of values that ties and dare keep.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Random seed for the values that dare drops.")
    ] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> int:
    """Combine several adapters of one base model."""
    from loractl.commands.combine import run
    from loractl.engine.requests import Recipe

    recipe = Recipe(how, rank, density, seed)
    named = [*(adapters or []), *(adapter or [])]
    return run(named, weight or [], recipe, out, overwrite=overwrite, as_json=as_json)


@adapters_app.command(
    epilog="Example: loractl adapters extract --base B --tuned runs/full/model --rank 16 --out lora"
)
def extract(
    base: Annotated[
        str, typer.Option(help="A hub id, a directory, or a run trained with method: full.")
    ],
    tuned: Annotated[str, typer.Option(help="The same model after training.")],
    out: Out,
    rank: Rank = None,
    energy: Energy = None,
    embeddings: Annotated[
        bool, typer.Option("--embeddings", help="Include the embedding table.")
    ] = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> int:
    """Approximate the difference between two models by an adapter."""
    from loractl.commands.extract import run
    from loractl.engine.requests import ExtractRequest

    asked = ExtractRequest(rank, energy, embeddings)
    return run(base, tuned, out, asked=asked, overwrite=overwrite, as_json=as_json)
