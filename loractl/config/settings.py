"""Every setting of a run, defined once: name, type, bounds, default and meaning.

Reading YAML into these models, with line numbers and good errors, is the job of `loader`. The
JSON Schema that editors use and the table of keys in configs/README.md are generated from here.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from loractl.config.optimizers import OPTIMIZER_WORDS, OptimizerName

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
        "auto",
        description="dtype the base is stored and computed in; auto: bfloat16 where it is fast",
    )
    quantization: Literal["none", "nf4", "nf4-double", "int8"] = Field(
        "none", description="the frozen base in few bits a weight: 4.5, 4.13 or 8"
    )
    offload: Literal["none", "cpu", "disk", "auto"] = Field(
        "none", description="where the frozen layers are while others compute; auto: where it fits"
    )
    quantize_head: bool = Field(False, description="quantize the output head too")
    trust_remote_code: bool = Field(
        False, description="run Python code that comes with the base model"
    )
    add_tokens: list[Annotated[str, Field(min_length=1)]] = Field(
        [], description="tokens to add; embedding and head grow, and their new rows are trained"
    )


class AdaloraSection(Section):
    initial_rank: Rank = Field(
        12, description="rank of each module at the start; replaces lora.rank"
    )
    target_rank: Rank = Field(8, description="average rank per module at the end")
    warmup_steps: int = Field(200, ge=0, description="steps before the rank budget starts to fall")
    final_steps: int = Field(1000, ge=0, description="steps at the end with the final rank budget")
    every: Positive = Field(10, description="steps between rank reallocations")
    beta1: float = Field(0.85, ge=0, lt=1, description="smoothing of the importance scores")
    beta2: float = Field(0.85, ge=0, lt=1, description="smoothing of their uncertainty")
    orthogonality: float = Field(0.5, ge=0, description="weight of the orthogonality penalty")


class LoraSection(Section):
    rank: Rank = Field(8, description="r: the width of the update B A")
    alpha: Amount | None = Field(
        None,
        description="the update is scaled by alpha / rank; null: 2 x rank (adalora: initial_rank)",
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout on the input of the adapter")
    target_modules: Annotated[list[str], Field(min_length=1)] | str = Field(
        "all-linear",
        description="modules that get adapters: a list of names, a regex for whole module paths, "
        "or minimal (q, v), attention (q, k, v, o) or all-linear (all but the output head)",
    )
    scaling: Literal["standard", "rslora"] = Field(
        "standard", description="standard: alpha / rank; rslora: alpha / sqrt(rank)"
    )
    init: Literal["default", "gaussian", "pissa", "olora"] = Field(
        "default",
        description="how A and B start: default and gaussian: A random, B zero; pissa and olora: "
        "from the weight's principal directions. The model's output is unchanged at the start",
    )
    layers: list[Annotated[int, Field(ge=0)]] | str | None = Field(
        None, description="blocks that get adapters: a list or a range such as '8-15'; null: all"
    )
    rank_schedule: dict[Positive, Rank] = Field(
        {},
        description="step -> rank of every module from then on; the scale does not change",
    )
    rank_pattern: dict[str, Rank] = Field(
        {}, description="module name or regex -> rank, where it differs from lora.rank"
    )
    alpha_pattern: dict[str, Amount] = Field(
        {}, description="module name or regex -> alpha, where it differs from lora.alpha"
    )
    modules_to_save: list[str] = Field(
        [],
        description="names or paths of modules to train in full and save with the adapter",
    )
    start_from: Annotated[str, Field(min_length=1)] | None = Field(
        None, description="an adapter to train further, with its own ranks and modules"
    )
    adalora: AdaloraSection = Field(AdaloraSection(), description="settings for method: adalora")


class SourceSection(Section):
    path: str = Field(min_length=1, description="file, directory or hub id")
    format: Literal["auto", "messages", "sharegpt", "alpaca", "prompt-completion", "text"] = Field(
        "auto", description="like data.format, for this source"
    )
    weight: float = Field(
        1.0, gt=0, description="uses of each row per epoch; 2: twice; 0.5: half the rows at random"
    )
    split: str | None = Field(None, description="split of a hub dataset")


class HeldOutSection(Section):
    path: str = Field(min_length=1, description="file, directory or hub id")
    format: Literal["auto", "messages", "sharegpt", "alpaca", "prompt-completion", "text"] = Field(
        "auto", description="like data.format, for these rows"
    )
    split: str | None = Field(None, description="split of a hub dataset")


class DataSection(Section):
    train: (
        Annotated[str, Field(min_length=1)] | Annotated[list[SourceSection], Field(min_length=1)]
    ) = Field(
        description="the training rows: a file (.jsonl, .json, .csv, .tsv, .parquet), a directory "
        "of such files, a hub id, or a list of {path, format, weight, split}"
    )
    eval: (
        Annotated[str, Field(min_length=1)]
        | Annotated[float, Field(gt=0, lt=1)]
        | Annotated[list[HeldOutSection], Field(min_length=1)]
        | None
    ) = Field(
        None,
        description="held-out rows: a path, a fraction of train (split by content), or a list of "
        "{path, format, split}",
    )
    retain: Annotated[str, Field(min_length=1)] | None = Field(
        None, description="general text whose loss shows forgetting, evaluated like data.eval"
    )
    columns: dict[str, str] = Field({}, description="field name in loractl -> column that holds it")
    format: Literal["auto", "messages", "sharegpt", "alpaca", "prompt-completion", "text"] = Field(
        "auto", description="layout of a row; auto: detected from its fields"
    )
    max_length: int = Field(1024, ge=2, description="maximum number of tokens per row")
    packing: bool = Field(
        True,
        description="true: several examples per row, isolated from each other; false: one, padded",
    )
    train_on: Literal["assistant", "last", "all"] = Field(
        "assistant", description="assistant: every answer; last: the last one; all: every token"
    )
    too_long: Literal["error", "truncate", "drop"] = Field(
        "error", description="what to do with a row longer than max_length tokens"
    )
    chat_template: Annotated[str, Field(min_length=1)] | None = Field(
        None,
        description="a Jinja file, the text of a template, or a built-in one: chatml, "
        "chatml-tools, llama3, mistral, gemma, phi3, alpaca, vicuna; null: the model's own",
    )
    template_variables: dict[str, Any] = Field(
        {}, description="values that the template reads, e.g. {enable_thinking: false}"
    )
    thoughts: Literal["auto", "keep", "last", "drop"] = Field(
        "auto",
        description="reasoning in answers; auto: what the chat template writes; keep: all, or an "
        "error; last: after the last question; drop: none",
    )
    split_turns: bool = Field(
        False, description="make one example of each answer, with the turns before it as context"
    )


class TrainSection(Section):
    epochs: Amount | None = Field(
        None, description="passes over the data; null: 1, unless train.steps is set"
    )
    steps: Positive | None = Field(None, description="number of optimizer steps, instead of epochs")
    batch_size: Positive = Field(8, description="rows per micro-batch")
    gradient_accumulation: Positive = Field(1, description="micro-batches per optimizer step")
    learning_rate: float = Field(
        2e-4, ge=0, le=1e30, description="peak learning rate of the schedule"
    )
    lora_plus_ratio: float = Field(
        1.0, gt=0, description="learning rate of B divided by that of A (LoRA+)"
    )
    schedule: Literal["constant", "linear", "cosine"] = Field(
        "cosine", description="how the learning rate falls after warmup"
    )
    warmup: float = Field(0.03, ge=0, description="below 1: share of the steps; else steps")
    weight_decay: float = Field(0.0, ge=0, description="decoupled weight decay of matrices")
    max_grad_norm: float = Field(
        1.0, gt=0, description="gradients with a larger norm are scaled down to this norm"
    )
    optimizer: OptimizerName = Field("adamw", description=OPTIMIZER_WORDS)
    on_non_finite: Literal["stop", "skip"] = Field(
        "stop",
        description="what to do when a loss or gradient is not finite: stop, or skip the step and "
        "keep the weights",
    )
    non_finite_limit: Positive = Field(3, description="steps skipped in a row before the run stops")
    cache_trunk: Literal["auto", "off"] = Field(
        "auto", description="reuse the outputs of the layers below the lowest adapter"
    )
    kernels: Literal["auto", "plain", "compile", "liger"] = Field(
        "auto",
        description="which code runs the layers; auto: loractl's own where they apply; plain: "
        "transformers'; compile: transformers' with torch.compile; liger: with Liger kernels (GPU)",
    )
    gradient_checkpointing: Literal["auto"] | bool = Field(
        "auto", description="recompute activations to save memory; auto: when memory is short"
    )
    eval_every: Positive | None = Field(
        None,
        description="steps between evaluations; null: only at the start and the end of training",
    )
    save_every: Positive = Field(100, description="steps between checkpoints")
    keep_checkpoints: Positive = Field(2, description="number of checkpoints kept on disk")
    log_every: Positive = Field(1, description="steps between progress lines")
    early_stopping: Positive | None = Field(
        None, description="stop after this many evaluations without improvement"
    )
    keep: Literal["best", "last"] = Field(
        "best",
        description="which weights are published; best: those with the lowest held-out loss, if "
        "there are evaluations; last: the final ones",
    )
    report: bool = Field(False, description="write report.html at the end of the training")
    report_to: list[Literal["tensorboard", "trackio", "wandb"]] = Field(
        [], description="experiment trackers that receive the metrics"
    )


class RunConfig(Section):
    model: ModelSection = Field(description="the base model")
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?|mps)$")] = Field(
        "auto", description="auto, cpu, cuda, cuda:N (the GPU numbered N, from 0) or mps"
    )
    method: Literal["lora", "dora", "adalora", "full"] = Field(
        "lora",
        description="lora: a small trained update; dora: LoRA with one trained length per output; "
        "adalora: LoRA with ranks moved to where they matter; full: every weight is trained",
    )
    objective: Literal["sft"] = Field(
        "sft", description="training objective; sft: the tokens that data.train_on selects"
    )
    lora: LoraSection = Field(LoraSection(), description="the adapter")
    data: DataSection = Field(description="the data")
    train: TrainSection = Field(TrainSection(), description="the training settings")
    seed: int = Field(
        0, ge=0, lt=2**63, description="random seed for row order, dropout and initial values"
    )
    out: Annotated[str, Field(min_length=1)] | None = Field(
        None, description="run directory; null: runs/<name of the config file>"
    )


UNSET_MEANT = {"train.keep": "last"}
"""The old meaning of keys that a run's config lacks because they are newer than the run."""

FROM_ADAPTER = frozenset(
    ("rank", "alpha", "scaling", "rank_pattern", "alpha_pattern", "modules_to_save")
) | {"target_modules", "layers", "init"}
"""Settings of the lora section that an adapter named in lora.start_from decides."""


def first_rank(method: str, *, rank: int, initial_rank: int) -> int:
    """The initial rank of every module: `lora.rank`, or `lora.adalora.initial_rank`."""
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
