"""The commands that generate text, generate and chat: signatures and help. No torch."""

from pathlib import Path
from typing import Annotated

import typer

from loractl.cli.options import AdapterDirs, Adapters, Dtype, Json, MaxNewTokens, Model

Temperature = Annotated[float, typer.Option(min=0.0, help="Sampling temperature; 0 is greedy.")]
TopP = Annotated[
    float,
    typer.Option(min=0.0, max=1.0, help="Sample from the top tokens with this total probability."),
]
Seed = Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Random seed for sampling.")]


def generate(
    adapters: AdapterDirs = None,
    prompt: Annotated[list[str] | None, typer.Option(help="A prompt. Repeatable.")] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="JSON lines with prompt or messages, and optionally adapter."
        ),
    ] = None,
    model: Model = None,
    adapter: Adapters = None,
    max_new_tokens: MaxNewTokens = 256,
    temperature: Temperature = 0.0,
    top_p: TopP = 1.0,
    seed: Seed = 0,
    dtype: Dtype = None,
    as_json: Json = False,
) -> int:
    """Generate text with a base model or an adapter."""
    from loractl.commands.arguments import GenerationOptions
    from loractl.commands.generate import run

    return run(
        prompts=prompt or [],
        prompts_file=prompts,
        model=model,
        adapters=[*(adapters or []), *(adapter or [])],
        options=GenerationOptions(max_new_tokens, temperature, top_p, seed, dtype),
        as_json=as_json,
    )


def chat(
    adapters: AdapterDirs = None,
    model: Model = None,
    adapter: Adapters = None,
    max_new_tokens: MaxNewTokens = 512,
    temperature: Temperature = 0.0,
    top_p: TopP = 1.0,
    seed: Seed = 0,
    dtype: Dtype = None,
) -> int:
    """Chat with a base model and switch its adapters. /help lists the commands."""
    from loractl.commands.arguments import GenerationOptions
    from loractl.commands.chat import run

    options = GenerationOptions(max_new_tokens, temperature, top_p, seed, dtype)
    return run(model=model, adapters=[*(adapters or []), *(adapter or [])], options=options)
