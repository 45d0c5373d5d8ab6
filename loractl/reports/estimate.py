"""The text and tables of `loractl estimate`."""

from collections.abc import Iterator, Mapping
from typing import Any

from loractl import text

TITLES = {"full": "full", "lora": "LoRA", "qlora": "QLoRA"}
PARTS = (
    "weights", "adapters", "gradients", "optimizer", "activations", "logits", "quantization",
    "update",
)  # fmt: skip
MEANS = {
    "quantization": "one matrix unpacked",
    "update": "optimizer step",
}


def report_lines(found: Mapping[str, Any]) -> Iterator[str]:
    """The report in reading order: settings, the three methods side by side, disk, work, time."""
    model, settings = found["model"], found["settings"]
    yield (
        f"{model['name']}: {model['architecture']}, {model['parameters']:,} parameters,"
        f" {model['layers']} layers of width {model['hidden']}"
    )
    targets = settings["target_modules"]
    listed = targets if isinstance(targets, str) else ", ".join(targets)
    yield (
        f"{settings['method']}, rank {settings['rank']} on {listed}; {settings['batch']} x"
        f" {settings['length']} tokens, {settings['dtype']},"
        f" {'with' if settings['checkpointing'] else 'without'} gradient checkpointing,"
        f" {settings['optimizer']}"
    )
    yield ""
    yield text.table(["", *TITLES.values()], list(_side_by_side(found["methods"])))
    yield ""
    yield "The parts are not all in memory at once. The peak is the largest of a few moments: the"
    yield "loss, the backward pass of a block, the optimizer's update; with litgpt also a forward"
    yield "pass, while the previous batch is still in memory. On a CPU with memory to spare, add up"
    yield "to a quarter, since glibc keeps freed memory."
    yield ""
    yield from _module_lines(found)
    yield from _disk_lines(found["disk"])
    yield from _work_lines(found)
    if "pace" in found:
        yield from _time_lines(found["pace"])
    if "plot" in found:
        yield f"plot: {found['plot']}"


def _side_by_side(methods: Mapping[str, Any]) -> Iterator[list[str]]:
    ones = [methods[method] for method in TITLES]
    yield ["trained parameters", *(f"{one['trainable_parameters']:,}" for one in ones)]
    yield ["share of the base", *(f"{one['percent_of_base']:.4g} %" for one in ones)]
    for part in PARTS:
        name = f"{part} ({MEANS[part]})" if part in MEANS else part
        yield [name, *(text.size(one["parts_bytes"].get(part, 0)) for one in ones)]
    yield ["peak allocated memory", *(text.size(one["cuda_allocated_bytes"]) for one in ones)]
    yield ["  reached in", *(one["peak_phase"] for one in ones)]
    yield ["total on a GPU, with CUDA context", *(text.size(one["gpu_bytes"]) for one in ones)]
    yield ["  smallest GPU that fits", *(_smallest_gpu(one) for one in ones)]
    both = [one["with_checkpointing"] for one in ones]
    yield ["total with checkpointing", *(text.size(one["gpu_bytes"]) for one in both)]
    yield ["  smallest GPU that fits", *(_smallest_gpu(one) for one in both)]
    yield ["process memory on a CPU", *(text.size(one["cpu_rss_bytes"]) for one in ones)]


def _smallest_gpu(one: Mapping[str, Any]) -> str:
    return str(one["fits"][0]).partition(" (")[0] if one["fits"] else "no single GPU"


def _module_lines(found: Mapping[str, Any]) -> Iterator[str]:
    kinds = found["methods"]["lora"]["by_kind"]
    if not kinds:
        return
    rows = [
        [
            name, str(one["modules"]), ", ".join(f"{a} -> {b}" for a, b in one["shapes"]),
            f"{one['parameters']:,}",
        ]
        for name, one in kinds.items()
    ]  # fmt: skip
    yield text.table(["module", "count", "shape", "trained"], rows)
    yield ""


def _compare_sizes(times: float) -> str:
    return f"{times:.3g} times smaller" if times > 1 else f"{1 / times:.3g} times as much"


def _disk_lines(disk: Mapping[str, Any]) -> Iterator[str]:
    n = disk["tasks"]
    yield (
        f"disk for {n} task{'s' if n > 1 else ''}: {text.size(disk['as_full_models_bytes'])} as"
        f" full models; {text.size(disk['as_adapters_bytes'])} as one base and {n}"
        f" adapter{'s' if n > 1 else ''} of {text.size(disk['adapter_bytes'])}"
        f" ({_compare_sizes(disk['times_smaller'])})"
    )


def _work_lines(found: Mapping[str, Any]) -> Iterator[str]:
    flops = found["flops_per_step"]
    yield (
        f"compute per step: {flops['lora'] / 1e12:.4g} TFLOP with LoRA, which is"
        f" {flops['lora_over_full']:.0%} of the {flops['full'] / 1e12:.4g} with full fine-tuning"
    )
    if flops["product_over_low_rank"]:
        yield (
            f"adapter forward pass: {flops['low_rank'] / 1e12:.4g} TFLOP as B (A x),"
            f" {flops['product'] / 1e12:.4g} as (B A) x: {flops['product_over_low_rank']:.3g} times"
            " as much"
        )


def _time_lines(pace: Mapping[str, Any]) -> Iterator[str]:
    cost = (
        "" if pace["cost"] is None else f", costs {pace['cost']:,.2f} at {pace['price']:g} per hour"
    )
    yield (
        f"{pace['tokens']:,} tokens at {pace['tokens_per_s']:,.0f} per second:"
        f" {text.duration(pace['hours'] * 3600)}{cost}"
    )
