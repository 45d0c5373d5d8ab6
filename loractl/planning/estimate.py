"""The numbers of `loractl estimate` as one plain mapping: full fine-tuning, LoRA and QLoRA."""

from dataclasses import asdict, dataclass
from typing import Any

from loractl.dtypes import WIDTHS
from loractl.models.shape.types import ModelShape
from loractl.planning import counts, devices
from loractl.planning.frameworks import FRAMEWORKS
from loractl.planning.peak_memory import (
    CUDA_CONTEXT,
    Memory,
    inference_bytes,
    quantized_parameters,
    trained_parameters,
    weights_bytes,
)
from loractl.planning.request import METHODS, Request, chosen, memory_of, plan_of, ranks_of


@dataclass(frozen=True)
class Pace:
    """The measured training speed of a machine, the tokens to train on, and the price."""

    tokens_per_s: float
    tokens: int
    price: float | None = None  # per hour

    def as_dict(self) -> dict[str, Any]:
        hours = self.tokens / self.tokens_per_s / 3600
        cost = None if self.price is None else hours * self.price
        return {**asdict(self), "hours": hours, "cost": cost}


def report(
    name: str, shape: ModelShape, request: Request, *, tasks: int = 1, pace: Pace | None = None
) -> dict[str, Any]:
    """Everything that is known about a request without torch. Byte counts are plain integers."""
    methods = {method: _describe_method(shape, request, method) for method in METHODS}
    found: dict[str, Any] = {
        "model": _describe_model(name, shape),
        "settings": {
            **asdict(request),
            "alpha": request.spec.alpha,
            "framework": request.framework,
        },
        "chosen": chosen(request),
        "methods": methods,
        "disk": disk(shape, request, tasks),
        "flops_per_step": _describe_flops(shape, request),
        "inference_bytes": {
            packed: inference_bytes(shape, plan_of(shape, request, "lora"), packed)
            for packed in ("none", "nf4", "nf4-double", "int8")
        },
        "reads": {
            "cuda_allocated_bytes": "torch.cuda.max_memory_allocated() at the peak of a step",
            "cuda_after_step_bytes": "torch.cuda.memory_allocated() after optimizer.step()",
            "gpu_bytes": "allocated bytes plus the CUDA context: the least nvidia-smi would show",
            "cpu_rss_bytes": "peak resident size of a process that trains on the CPU while memory"
            " is tight; with memory to spare, glibc keeps up to a quarter more",
            "framework": FRAMEWORKS[request.framework].source,
        },
    }
    if pace is not None:
        found["pace"] = pace.as_dict()
    return found


def _describe_model(name: str, shape: ModelShape) -> dict[str, Any]:
    return {
        "name": name,
        "architecture": shape.architecture,
        "parameters": shape.parameters,
        "linear_parameters": shape.linear_parameters,
        "hidden": shape.hidden,
        "layers": shape.layers,
        "heads": shape.heads,
        "kv_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "intermediate": shape.intermediate,
        "vocabulary": shape.vocabulary,
        "tied": shape.tied,
        "experts": asdict(shape.experts) if shape.experts else None,
    }


def _describe_method(shape: ModelShape, request: Request, method: str) -> dict[str, Any]:
    ranks = ranks_of(shape, request)
    plan = plan_of(shape, request, method, ranks=ranks)
    memory = memory_of(shape, request, method, ranks=ranks)
    trained = trained_parameters(shape, plan)
    in_all = shape.parameters + (0 if method == "full" else trained)
    by_kind = counts.by_kind(shape, plan.ranks, plan.work.formula)
    return {
        "trainable_parameters": trained,
        "all_parameters": in_all,
        "trainable_percent": 100 * trained / in_all,
        "percent_of_base": 100 * trained / shape.parameters,
        "by_kind": {kind: asdict(one) for kind, one in by_kind.items()},
        "quantization": plan.quantization,
        "quantized_parameters": quantized_parameters(shape, plan)
        if plan.quantization != "none"
        else 0,
        "weights_bytes": weights_bytes(shape, plan),
        **figures(memory),
        "cpu_rss_bytes": memory_of(shape, request, method, on_cpu=True, ranks=ranks).rss,
        "with_checkpointing": figures(
            memory_of(shape, request, method, checkpointing=True, ranks=ranks)
        ),
        "without_checkpointing": figures(
            memory_of(shape, request, method, checkpointing=False, ranks=ranks)
        ),
    }


def figures(memory: Memory) -> dict[str, Any]:
    """Memory by phase and part, its peak, and the GPUs that it fits on."""
    return {
        "parts_bytes": memory.largest,
        "phases_bytes": memory.phases,
        "peak_phase": memory.peak_phase,
        "peak_parts_bytes": memory.parts,
        "cuda_allocated_bytes": memory.allocated,
        "cuda_after_step_bytes": memory.after_step,
        "cuda_context_bytes": CUDA_CONTEXT,
        "gpu_bytes": memory.on_gpu,
        "fits": [gpu.label for gpu in devices.fitting(memory.on_gpu)],
    }


def disk(shape: ModelShape, request: Request, tasks: int) -> dict[str, Any]:
    """Disk for N tasks: N full models, or one base and N adapters (in float32, as in PEFT)."""
    width = WIDTHS[request.dtype]
    model = width * shape.parameters
    formula = request.method if request.method in ("dora", "adalora") else "lora"
    adapter = counts.file_bytes(shape, ranks_of(shape, request), formula)
    adapter += 4 * counts.saved_whole(shape, request.modules_to_save)
    adapter += 4 * counts.new_rows(shape, request.new_tokens)
    return {
        "tasks": tasks,
        "model_bytes": model,
        "adapter_bytes": adapter,
        "as_full_models_bytes": tasks * model,
        "as_adapters_bytes": model + tasks * adapter,
        "times_smaller": tasks * model / (model + tasks * adapter),
    }


def _describe_flops(shape: ModelShape, request: Request) -> dict[str, Any]:
    found = counts.flops(
        shape, ranks_of(shape, request), batch=request.batch, length=request.length
    )
    return {
        **asdict(found),
        "lora_over_full": found.lora / found.full,
        "product_over_low_rank": found.product / found.low_rank if found.low_rank else None,
    }
