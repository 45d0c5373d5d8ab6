"""Figures that many introductions repeat, beside what comes out when they are computed."""

from collections.abc import Iterator
from typing import Any

from markupsafe import Markup

from loractl import text
from loractl.models.shape import read as shapes
from loractl.planning import counts
from loractl.planning.request import Request, memory_of, ranks_of

CLAIMS = ("count", "same", "memory", "times", "forget", "zero", "order")
RANK = 8
SETTING = Request(rank=RANK, batch=8, length=1024)


def claims(texts: dict[str, Any]) -> Iterator[tuple[Markup, Markup]]:
    """What is said, and what is so."""
    values = computed()
    for name in CLAIMS:
        yield texts[f"{name}_said"], texts[name].format(**values)


def computed() -> dict[str, str]:
    """The figures of the answers, for Llama 2 7B and its larger siblings."""
    one = {size: _trained(size, ["q_proj"]) for size in ("7B", "13B", "70B")}
    shape = shapes.named("7B")
    every = _trained("7B", "all-linear")
    full, lora = (memory_of(shape, SETTING, method) for method in ("full", "lora"))
    flops = counts.flops(
        shape, ranks_of(shape, SETTING), batch=SETTING.batch, length=SETTING.length
    )
    return {
        "one": f"{one['7B']:,}",
        "qv": f"{_trained('7B', 'minimal'):,}",
        "all": f"{every:,}",
        "share": f"{100 * every / shape.parameters:.3g}%",
        "parameters": f"{shape.parameters:,}",
        "q7": f"{one['7B']:,}",
        "q13": f"{one['13B']:,}",
        "q70": f"{one['70B']:,}",
        "full": text.size(full.on_gpu),
        "lora": text.size(lora.on_gpu),
        "activations": text.size(lora.parts["activations"]),
        "memory_times": f"{full.on_gpu / lora.on_gpu:.2g}",
        "work": f"{100 * flops.lora / flops.full:.3g}%",
        "speed": f"{flops.full / flops.lora:.2g}",
    }


def _trained(size: str, targets: str | list[str]) -> int:
    shape = shapes.named(size)
    return counts.trained(shape, ranks_of(shape, Request(rank=RANK, target_modules=targets)))
