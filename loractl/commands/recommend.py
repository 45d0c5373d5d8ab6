"""`loractl recommend`: settings for a task and a model, each with its reason and source."""

import json
from dataclasses import asdict, replace
from typing import Any

from loractl import console
from loractl.commands.arguments import (
    DTYPES,
    bytes_of,
    count_of,
    parse_columns,
    require_word,
)
from loractl.errors import ConfigError
from loractl.lora.ranks import UnmatchedError
from loractl.models.shape.types import ModelShape
from loractl.planning import devices, recommend
from loractl.planning.known_model import shape_of
from loractl.planning.recommend import Choice, RecommendRequest, Rows
from loractl.planning.request import Request, memory_of, ranks_of
from loractl.planning.search import of_memory


def run(asked: RecommendRequest, *, as_json: bool) -> int:
    """Print the recommendation, and write it as a config if asked to.

    Raises ConfigError, DataError or ModelError.
    """
    require_word("--task", asked.task, recommend.RANKS)
    require_word("--dtype", asked.dtype, DTYPES)
    if asked.data is not None and asked.data_size is not None:
        raise ConfigError("--data-size: set together with --data, which is counted; remove one")
    if asked.columns and asked.data is None:
        raise ConfigError("--columns: set without --data, whose columns it names; add --data FILE")
    from loractl.engine.base import model_path

    asked = replace(asked, model=model_path(asked.model))
    shape = shape_of(asked.model)
    found = _choose_settings(asked, shape, _count_rows(asked, shape))
    if asked.write is not None:
        from loractl.commands.init import write_new
        from loractl.reports.recommended_config import config_text

        write_new(
            asked.write, config_text(asked, found, parse_columns(asked.columns)), option="--write"
        )
        console.note(f"wrote {asked.write}; next: loractl check {asked.write}")
    from loractl.reports.recommend import as_text

    console.result(json.dumps(found, indent=2) if as_json else as_text(found))
    return 0


def _count_rows(asked: RecommendRequest, shape: ModelShape) -> Rows | None:
    if asked.data is not None:
        from loractl.planning.row_counts import count

        return count(asked.data, asked.model, columns=parse_columns(asked.columns))
    if asked.data_size is not None:
        return Rows(count_of(asked.data_size, "--data-size"))
    return None


def _choose_settings(
    asked: RecommendRequest, shape: ModelShape, data: Rows | None
) -> dict[str, Any]:
    chosen = recommend.choices(asked.task, shape, data)
    most = chosen["effective_batch"].value
    request = Request(
        rank=chosen["rank"].value,
        target_modules=chosen["target_modules"].value,
        length=chosen["max_length"].value,
        batch=most,
        dtype=asked.dtype,
        packing=chosen["packing"].value,
    )
    found: dict[str, Any] = {
        "task": asked.task,
        "model": asked.model,
        "parameters": shape.parameters,
        "data": asdict(data) if data is not None else None,
    }
    try:
        if asked.memory is not None:
            memory = bytes_of(asked.memory, "--memory")
            more, found["search"] = of_memory(shape, request, memory, most)
            found["memory_bytes"] = memory
        else:
            more = _without_memory(most)
        chosen |= more
        if (room := recommend.capacity(shape, request, data)) is not None:
            chosen["capacity"] = room
        found["gpus"] = _fitting_gpus(shape, request)
    except UnmatchedError as error:
        raise ConfigError(f"{asked.model}: {error.key}: {error}") from None
    found["choices"] = {key: asdict(one) for key, one in chosen.items()}
    return found


def _without_memory(most: int) -> dict[str, Choice]:
    batch = min(8, most)
    why = "no --memory was given"
    return {
        "method": Choice("lora", f"{why}; the table below has the needs of each", recommend.OURS),
        "gradient_checkpointing": Choice(
            "auto", f"{why}: training decides by free memory", "the config's default"
        ),
        "batch_size": Choice(batch, f"{why}: halve it if memory is short", recommend.OURS),
        "gradient_accumulation": Choice(
            -(-most // batch), f"{batch} rows at a time make {most} per step", recommend.OURS
        ),
    }


def _fitting_gpus(shape: ModelShape, request: Request) -> list[dict[str, Any]]:
    """The memory each method needs with one row, and the GPUs that have it."""
    rows = []
    ranks = ranks_of(shape, request)
    for method in ("full", "lora", "qlora"):
        for checkpointing in (False, True):
            one = replace(request, batch=1)
            memory = memory_of(shape, one, method, checkpointing=checkpointing, ranks=ranks)
            fitting = [gpu.label for gpu in devices.fitting(memory.on_gpu)]
            rows.append(
                {"method": method, "checkpointing": checkpointing, "gpu_bytes": memory.on_gpu,
                 "fits": fitting}
            )  # fmt: skip
    return rows
