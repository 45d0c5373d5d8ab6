"""What to plan: the settings of a run, from a config or from flags, and the plans made of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from loractl.dtypes import WIDTHS
from loractl.lora.ranks import ModuleRank, RankSpec, is_named, resolve
from loractl.models.shape.types import ModelShape
from loractl.planning.frameworks import FRAMEWORKS
from loractl.planning.peak_memory import Memory, Plan, memory
from loractl.planning.work import Work

if TYPE_CHECKING:
    from loractl.config.settings import DataSection, LoraSection, ModelSection, TrainSection

METHODS = ("full", "lora", "qlora")
FINAL_NORM = "model.norm"
"""Its path in the models that have hand-written layers."""


@dataclass(frozen=True)
class Request:
    """The settings of a run that matter to planning. `method`: full, lora, dora or adalora."""

    rank: int = 8
    alpha: float | None = None
    target_modules: str | Sequence[str] = "all-linear"
    layers: Sequence[int] | str | None = None
    rank_pattern: Mapping[str, int] | None = None
    method: str = "lora"
    length: int = 1024
    batch: int = 8
    accumulation: int = 1
    dtype: str = "bfloat16"
    quantization: str = "none"
    streamed: bool = False  # layers pass through two buffers
    checkpointing: bool = False
    packing: bool = True
    dropout: float = 0.0
    optimizer: str = "adamw"
    has_starts: bool = False
    modules_to_save: tuple[str, ...] = ()
    new_tokens: int = 0  # each with a row of its own in the embedding and the head
    trained_share: float = 1.0
    eager: bool = False
    fast: bool = True  # hand-written layers, if the run can use them
    fused: bool = True  # activations in one operation each
    real_tokens: int | None = None  # of the micro-batch, without padding, if known
    longest: int | None = None  # tokens of its longest example, if known
    framework: str = "loractl"

    @property
    def spec(self) -> RankSpec:
        return RankSpec(
            rank=self.rank,
            alpha=self.alpha or 2 * self.rank,
            target_modules=self.target_modules,
            layers=self.layers,
            rank_pattern=self.rank_pattern,
        )


def of_settings(
    model: "ModelSection",
    method: str,
    lora: "LoraSection",
    data: "DataSection",
    train: "TrainSection",
    *,
    dtype: str,
) -> Request:
    """The request that a config makes; `dtype` is used where the config says auto."""
    from loractl.config.settings import first_rank  # importing pydantic takes 0.1 s

    first = first_rank(method, rank=lora.rank, initial_rank=lora.adalora.initial_rank)
    return Request(
        rank=first if method == "adalora" else max([first, *lora.rank_schedule.values()]),
        alpha=lora.alpha,
        target_modules=lora.target_modules,
        layers=lora.layers,
        rank_pattern=lora.rank_pattern,
        method=method,
        length=data.max_length,
        batch=train.batch_size,
        accumulation=train.gradient_accumulation,
        dtype=dtype if model.dtype == "auto" else model.dtype,
        quantization=model.quantization,
        streamed=model.offload not in ("none", "auto"),
        checkpointing=train.gradient_checkpointing is True or model.offload not in ("none", "auto"),
        packing=data.packing,
        dropout=lora.dropout,
        optimizer=train.optimizer,
        has_starts=lora.init in ("pissa", "olora"),
        modules_to_save=tuple(lora.modules_to_save),
        new_tokens=len(model.add_tokens),
        fast=train.kernels == "auto",
        fused=train.kernels == "auto",
    )


def ranks_of(shape: ModelShape, request: Request) -> dict[str, ModuleRank]:
    """The adapters of a request, by the rules that training follows. Raises UnmatchedError."""
    return resolve(request.spec, shape.kinds, head=shape.head)


def plan_of(
    shape: ModelShape,
    request: Request,
    method: str,
    *,
    on_cpu: bool = False,
    ranks: Mapping[str, ModuleRank] | None = None,
) -> Plan:
    """The plan of a request as full fine-tuning, LoRA or QLoRA; `ranks` saves computing them."""
    framework = FRAMEWORKS[request.framework]
    full, width = method == "full", WIDTHS[request.dtype]
    packed = request.quantization if request.quantization != "none" else "nf4"
    whole = () if full else request.modules_to_save
    work = Work(
        batch=request.batch,
        length=request.length,
        width=width,
        checkpointing=request.checkpointing,
        masked=request.packing,
        eager=request.eager,
        dropout=0.0 if full else request.dropout,
        trained_share=request.trained_share,
        formula=request.method if request.method in ("dora", "adalora") else "lora",
        full=full,
        quantized=method == "qlora" and not framework.own_ops,
        autocast=full and framework.full_width == 4 and width == 2,
        on_cpu=on_cpu,
        starts=request.has_starts and not full,
        whole_head=_names_role(shape, "head", whole),
        trains_embedding=request.new_tokens > 0 or _names_role(shape, "embedding", whole),
        fused=request.fused,
        fast=request.fast and all(_is_outside(shape, name) for name in whole),
        real=request.real_tokens,
        longest=request.longest,
    )
    return Plan(
        ranks={} if full else ranks or ranks_of(shape, request),
        work=work,
        quantization=packed if method == "qlora" else "none",
        optimizer=request.optimizer,
        accumulation=request.accumulation,
        has_starts=request.has_starts and not full,
        modules_to_save=whole,
        new_tokens=request.new_tokens,
        streamed=request.streamed and not full,
        framework=framework,
    )


def _names_role(shape: ModelShape, role: str, names: Sequence[str]) -> bool:
    """Whether one of the names refers to a module with this role: the embedding or the head."""
    paths = [module.path for module in shape.modules if module.role == role]
    return any(is_named(path, name) for path in paths for name in names)


def _is_outside(shape: ModelShape, name: str) -> bool:
    """Whether a name refers to something outside the blocks: embedding, head or final norm."""
    outside = [m.path for m in shape.modules if m.role in ("embedding", "head")]
    return any(is_named(path, name) for path in (*outside, FINAL_NORM))


def memory_of(
    shape: ModelShape,
    request: Request,
    method: str,
    *,
    checkpointing: bool | None = None,
    on_cpu: bool = False,
    ranks: Mapping[str, ModuleRank] | None = None,
) -> Memory:
    """The memory of a request as full fine-tuning, LoRA or QLoRA."""
    if checkpointing is not None:
        request = replace(request, checkpointing=checkpointing)
    return memory(shape, plan_of(shape, request, method, on_cpu=on_cpu, ranks=ranks))


def chosen(request: Request) -> str:
    """Which of the three methods the request itself asks for."""
    if request.method == "full":
        return "full"
    return "lora" if request.quantization == "none" else "qlora"
