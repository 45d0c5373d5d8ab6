"""`loractl recommend`: settings for a task and a model, each with its reason and source."""

import json
import textwrap
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from loractl import console, text
from loractl.commands.arguments import bytes_of, count_of
from loractl.dtypes import WIDTHS
from loractl.errors import ConfigError
from loractl.lora.ranks import UnmatchedError
from loractl.models.shape.types import ModelShape
from loractl.planning import devices, recommend
from loractl.planning.known_model import shape_of
from loractl.planning.recommend import Choice, RecommendRequest, Rows
from loractl.planning.request import Request, memory_of, ranks_of
from loractl.planning.search import of_memory


def run(asked: RecommendRequest, *, as_json: bool) -> int:
    """Print what is recommended, and write it as a config where that is asked for.

    Raises ConfigError, DataError or ModelError.
    """
    if asked.task not in recommend.RANKS:
        words = ", ".join(recommend.RANKS)
        raise ConfigError(f"--task: found {asked.task!r}, expected one of {words}")
    if asked.dtype not in WIDTHS:
        raise ConfigError(f"--dtype: found {asked.dtype!r}, expected one of {', '.join(WIDTHS)}")
    if asked.data is not None and asked.data_size is not None:
        raise ConfigError("--data-size: found together with --data, which is counted; remove one")
    shape = shape_of(asked.model)
    found = _found(asked, shape, _rows(asked, shape))
    if asked.write is not None:
        from loractl.commands.init import write_new
        from loractl.reports.recommended_config import config_text

        write_new(asked.write, config_text(asked, found))
        console.note(f"wrote {asked.write}; next: loractl check {asked.write}")
    console.result(json.dumps(found, indent=2) if as_json else "\n".join(_lines(found)))
    return 0


def _rows(asked: RecommendRequest, shape: ModelShape) -> Rows | None:
    if asked.data is not None:
        from loractl.planning.row_counts import count

        return count(asked.data, asked.model)
    if asked.data_size is not None:
        return Rows(count_of(asked.data_size, "--data-size"))
    return None


def _found(asked: RecommendRequest, shape: ModelShape, data: Rows | None) -> dict[str, Any]:
    chosen = recommend.choices(asked.task, shape, data)
    most = chosen["effective_batch"].value
    request = Request(
        rank=chosen["rank"].value,
        target_modules=chosen["target_modules"].value,
        length=chosen["max_length"].value,
        batch=most,
        dtype=asked.dtype,
        packing=True,
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
        found["gpus"] = _gpus(shape, request)
    except UnmatchedError as error:
        raise ConfigError(f"{asked.model}: {error.key}: {error}") from None
    found["choices"] = {key: asdict(one) for key, one in chosen.items()}
    return found


def _without_memory(most: int) -> dict[str, Choice]:
    batch = min(8, most)
    why = "no --memory was given"
    return {
        "method": Choice("lora", f"{why}; the table below says what each needs", recommend.OURS),
        "gradient_checkpointing": Choice(
            "auto", f"{why}: training decides by what is free", "the config's default"
        ),
        "batch_size": Choice(batch, f"{why}: halve it when memory is short", recommend.OURS),
        "gradient_accumulation": Choice(
            -(-most // batch), f"{batch} rows at a time make {most} a step", recommend.OURS
        ),
    }


def _gpus(shape: ModelShape, request: Request) -> list[dict[str, Any]]:
    """What each method needs with one row, and the GPUs that hold it."""
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


TITLES = {"full": "full", "lora": "LoRA", "qlora": "QLoRA"}


def _lines(found: Mapping[str, Any]) -> list[str]:
    lines = [f"{found['task']} task, {found['model']} ({found['parameters']:,} parameters)"]
    if (data := found["data"]) is not None and data["tokens"] is not None:
        lines.append(f"{data['rows']:,} rows, {data['tokens']:,} tokens ({data['counted']})")
    lines.append("")
    width = max(map(len, found["choices"]))
    for key, one in found["choices"].items():
        value = one["value"]
        shown = ", ".join(map(str, value)) if isinstance(value, list) else _shown(value)
        lines.append(f"{key:{width}}  {shown}")
        left = " " * (width + 4)
        for words in (one["reason"], f"[{one['source']}]"):
            lines += textwrap.wrap(words, 100, initial_indent=left, subsequent_indent=left)
    lines.append("")
    if "search" in found:
        rows = [
            [
                TITLES[fit["method"]], "with" if fit["checkpointing"] else "without",
                str(fit["batch"]) if fit["batch"] else "none", text.size(fit["gpu_bytes"]),
            ]
            for fit in found["search"]
        ]  # fmt: skip
        lines.append(f"what fits {text.size(found['memory_bytes'])}:")
        lines += [text.table(["method", "checkpointing", "rows at most", "takes"], rows), ""]
    rows = [
        [
            TITLES[one["method"]], "with" if one["checkpointing"] else "without",
            text.size(one["gpu_bytes"]), one["fits"][0] if one["fits"] else "none alone",
        ]
        for one in found["gpus"]
    ]  # fmt: skip
    lines.append("with one row:")
    lines.append(text.table(["method", "checkpointing", "takes", "smallest GPU"], rows))
    return lines


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
