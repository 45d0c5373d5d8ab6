"""Every setting of a run, once: its name, type, bounds, default and meaning.

Reading YAML into these models, with line numbers and good errors, is the job of `loader`. The
JSON Schema that editors use and the reference in the README are generated from here.
"""

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Positive = Annotated[int, Field(ge=1)]
Rank = Annotated[int, Field(ge=1, le=65536)]
Amount = Annotated[int, Field(gt=0)] | Annotated[float, Field(gt=0)]


class Section(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, protected_namespaces=()
    )


class ModelSection(Section):
    name_or_path: str = Field(
        min_length=1, description="the base model: a hub id, a directory, or a .gguf file"
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="how the base rests and computes; auto: bfloat16 where it is fast"
    )
    quantization: Literal["none", "nf4", "nf4-double", "int8"] = Field(
        "none", description="how the frozen base is quantized"
    )
    trust_remote_code: bool = Field(
        False, description="run Python code that the base model's directory brings"
    )


class AdaloraSection(Section):
    initial_rank: Rank = Field(12, description="rank of each module at the start, in place of rank")
    target_rank: Rank = Field(8, description="average rank at the end")
    warmup_steps: int = Field(200, ge=0, description="steps before the budget falls")
    final_steps: int = Field(1000, ge=0, description="steps at the end with the final budget")
    every: Positive = Field(10, description="steps between two allocations")
    beta1: float = Field(0.85, ge=0, lt=1, description="smoothing of the importance")
    beta2: float = Field(0.85, ge=0, lt=1, description="smoothing of its uncertainty")
    orthogonality: float = Field(0.5, ge=0, description="weight of the orthogonality term")


class LoraSection(Section):
    rank: Rank = Field(8, description="r: the width of the update B A")
    alpha: Amount | None = Field(
        None,
        description="the update is scaled by alpha / rank; null: 2 x rank (adalora: initial_rank)",
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout on the adapter's input")
    target_modules: Annotated[list[str], Field(min_length=1)] | str = Field(
        "all-linear",
        description="which modules: a list of names, a regex for whole module paths, or minimal "
        "(q, v), attention (q, k, v, o), all-linear (every linear layer but the output head)",
    )
    scaling: Literal["standard", "rslora"] = Field(
        "standard", description="standard: alpha / rank; rslora: alpha / sqrt(rank)"
    )
    init: Literal["default", "gaussian", "pissa", "olora"] = Field(
        "default",
        description="how A and B start: default and gaussian at random and zero; pissa and olora "
        "at the weight's main directions. Each changes nothing at first",
    )
    layers: list[Annotated[int, Field(ge=0)]] | str | None = Field(
        None, description="block numbers that get adapters: a list, or a range as '8-15'; null: all"
    )
    rank_schedule: dict[Positive, Rank] = Field(
        {},
        description="step -> rank of every module after it; the scale stays that of the first rank",
    )
    rank_pattern: dict[str, Rank] = Field(
        {}, description="module name or regex -> its own rank, where it differs"
    )
    alpha_pattern: dict[str, Amount] = Field(
        {}, description="module name or regex -> its own alpha, where it differs"
    )
    modules_to_save: list[str] = Field(
        [],
        description="modules that are trained whole and saved beside the adapter: names or paths",
    )
    adalora: AdaloraSection = Field(AdaloraSection(), description="settings of method: adalora")


class SourceSection(Section):
    path: str = Field(min_length=1, description="file, directory or hub id")
    format: Literal["auto", "messages", "sharegpt", "alpaca", "prompt-completion", "text"] = Field(
        "auto", description="as data.format, for this source"
    )
    weight: float = Field(
        1.0, gt=0, description="how often an epoch takes each row: 2 twice, 0.5 a random half"
    )
    split: str | None = Field(None, description="split of a hub data set")


class DataSection(Section):
    train: (
        Annotated[str, Field(min_length=1)] | Annotated[list[SourceSection], Field(min_length=1)]
    ) = Field(
        description="the training rows: a file (.jsonl, .json, .csv, .tsv, .parquet), a directory "
        "of such files, a hub id, or a list of {path, format, weight, split}"
    )
    eval: Annotated[str, Field(min_length=1)] | Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None, description="held-out rows: a path, or a fraction of train (split by content)"
    )
    retain: Annotated[str, Field(min_length=1)] | None = Field(
        None, description="general text whose loss shows forgetting, measured as data.eval is"
    )
    columns: dict[str, str] = Field({}, description="our field -> the column that holds it")
    format: Literal["auto", "messages", "sharegpt", "alpaca", "prompt-completion", "text"] = Field(
        "auto", description="how a row is written; auto: seen from its fields"
    )
    max_length: int = Field(1024, ge=2, description="tokens of the longest row")
    packing: bool = Field(
        True, description="several examples a row, none of which sees another; false: one, padded"
    )
    train_on: Literal["assistant", "last", "all"] = Field(
        "assistant", description="assistant: every answer; last: the last one; all: every token"
    )
    too_long: Literal["error", "truncate", "drop"] = Field(
        "error", description="what to do with a row of more than max_length tokens"
    )


class TrainSection(Section):
    epochs: Amount | None = Field(
        None, description="passes over the data; null: 1, unless steps says how long to train"
    )
    steps: Positive | None = Field(None, description="optimizer steps, in place of epochs")
    batch_size: Positive = Field(8, description="rows a micro-batch")
    gradient_accumulation: Positive = Field(1, description="micro-batches an optimizer step")
    learning_rate: float = Field(
        2e-4, ge=0, le=1e30, description="the highest learning rate of the schedule"
    )
    lora_plus_ratio: float = Field(
        1.0, gt=0, description="learning rate of B over that of A (LoRA+)"
    )
    schedule: Literal["constant", "linear", "cosine"] = Field(
        "cosine", description="how the learning rate falls after the warm-up"
    )
    warmup: float = Field(0.03, ge=0, description="below 1: a share of the steps; else steps")
    weight_decay: float = Field(0.0, ge=0, description="AdamW's decoupled weight decay")
    max_grad_norm: float = Field(
        1.0, gt=0, description="gradients longer than this are scaled down to it"
    )
    optimizer: Literal["adamw", "adamw-8bit", "adamw-paged"] = Field(
        "adamw", description="how the optimizer keeps its state"
    )
    on_non_finite: Literal["stop", "skip"] = Field(
        "stop",
        description="what to do when a loss or gradient is not finite: stop, or leave the weights "
        "alone and go on",
    )
    non_finite_limit: Positive = Field(3, description="steps skipped in a row before the run stops")
    cache_trunk: Literal["auto", "off"] = Field(
        "auto", description="keep what the layers below the lowest adapter compute"
    )
    kernels: Literal["auto", "plain", "compile", "liger"] = Field(
        "auto",
        description="what computes the layers; auto: our own where they fit; plain: transformers'; "
        "compile: these through torch.compile; liger: with Liger's kernels, on a GPU",
    )
    gradient_checkpointing: Literal["auto"] | bool = Field(
        "auto", description="compute activations twice to hold fewer; auto: when memory is short"
    )
    eval_every: Positive | None = Field(
        None,
        description="steps between evaluations; null: before the first step and after the last",
    )
    save_every: Positive = Field(100, description="steps between checkpoints")
    keep_checkpoints: Positive = Field(2, description="how many checkpoints stay on disk")
    log_every: Positive = Field(1, description="steps between printed lines")
    early_stopping: Positive | None = Field(
        None, description="stop after this many evaluations without a better one"
    )
    report_to: list[Literal["tensorboard", "trackio", "wandb"]] = Field(
        [], description="experiment trackers that get the metrics"
    )


class RunConfig(Section):
    model: ModelSection = Field(description="the base model")
    method: Literal["lora", "dora", "adalora", "full"] = Field(
        "lora",
        description="lora: a small trained update; dora: that and a trained length an output; "
        "adalora: an update whose ranks go where they matter; full: every weight is trained",
    )
    objective: Literal["sft"] = Field(
        "sft", description="what is trained for; sft: the tokens that data.train_on names"
    )
    lora: LoraSection = Field(LoraSection(), description="the adapter")
    data: DataSection = Field(description="what is trained on")
    train: TrainSection = Field(TrainSection(), description="how it is trained")
    seed: int = Field(0, ge=0, lt=2**63, description="fixes order, dropout and initial values")
    out: Annotated[str, Field(min_length=1)] | None = Field(
        None, description="directory of the run; null: runs/<name of the config>"
    )


ABSENT = "not available in this version"

ANY = None
"""In NOT_YET: every value but the default."""

NOT_YET: dict[str, tuple[Any, ...] | None] = {
    "model.quantization": ("nf4", "nf4-double", "int8"),
    "train.optimizer": ("adamw-8bit", "adamw-paged"),
    "train.report_to": ANY,
}
"""Settings of the contract that no code serves in this version; `loader` refuses them."""


def not_yet(config: RunConfig) -> Iterator[tuple[str, str]]:
    """Yield (key, message) for every setting that this version does not serve."""
    for key, refused in NOT_YET.items():
        value: Any = config
        default: Any = None
        for name in key.split("."):
            default = type(value).model_fields[name].get_default()
            value = getattr(value, name)
        if value in refused if refused is not None else value != default:
            what = "other than its default" if isinstance(value, Section) else repr(value)
            yield key, f"found {what}, which is {ABSENT}; remove it"


def first_rank(method: str, *, rank: int, initial_rank: int) -> int:
    """The rank with which every module begins: `lora.rank`, or `lora.adalora.initial_rank`."""
    return initial_rank if method == "adalora" else rank


def resolve(config: RunConfig, *, name: str) -> RunConfig:
    """Fill in the defaults that depend on other settings; `name` is the config file's stem."""
    lora, train = config.lora, config.train
    if lora.alpha is None:
        first = first_rank(config.method, rank=lora.rank, initial_rank=lora.adalora.initial_rank)
        lora = lora.model_copy(update={"alpha": 2 * first})
    if train.epochs is None and train.steps is None:
        train = train.model_copy(update={"epochs": 1})
    out = config.out if config.out is not None else f"runs/{name}"
    return config.model_copy(update={"lora": lora, "train": train, "out": out})
