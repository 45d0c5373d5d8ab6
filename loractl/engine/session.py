"""From a config to everything a run needs: base, tokenizer, data, adapters. Writes nothing."""

import math
import platform
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import torch
import transformers
from torch import nn
from transformers import PreTrainedTokenizerBase as Tokenizer

from loractl import __version__, console
from loractl.config.loader import Loaded
from loractl.config.settings import RunConfig
from loractl.data import account, batches, ends
from loractl.engine.adapters import Adapted, adapt_, check_phases
from loractl.engine.base import compute_beside, locate_base
from loractl.engine.data import Data, load_data
from loractl.engine.layers import trunk_of_
from loractl.engine.memory import Size, beside_the_weights
from loractl.engine.new_tokens import NewTokens, add_tokens_, grow_to_
from loractl.engine.offload import streams
from loractl.engine.optimizer import device_for
from loractl.engine.packed_base import about_packed, as_configured
from loractl.engine.run_rows import about_rows
from loractl.engine.speakers import about_template, tokenizer_of_run
from loractl.engine.start_from import Start, adopt, fill_, read_start, require_base, tokens_of
from loractl.errors import NumericError
from loractl.evaluation.loss import held_out_loss
from loractl.lora.layer import LoraLayer
from loractl.lora.token_rows import Saved
from loractl.models import forward, load
from loractl.models.device import choose_dtype, free_memory
from loractl.models.fast.trunk import Trunk
from loractl.models.fingerprints import fingerprint
from loractl.models.objective import BUILDERS, TokenLoss
from loractl.models.proving_run import ProvingRun
from loractl.models.torch_dtypes import dtype_word
from loractl.records import Batch, DataState, Example, HeldOutLoss
from loractl.training.distributed import sum_over_ranks
from loractl.training.heap import HUGE, LARGE, hold_mmap_threshold_
from loractl.training.optim import LearningRate
from loractl.training.steps import Loss
from loractl.world import ALONE, World

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Session:
    """A model ready to be trained, and the data it is trained on."""

    config: RunConfig
    source: load.Source
    base_fingerprint: str
    model: "PreTrainedModel"
    tokenizer: Tokenizer
    device: torch.device
    dtype: torch.dtype  # of the products; trained weights are stored in float32
    layers: dict[str, LoraLayer]  # empty for method: full
    whole: dict[str, Saved]  # trained beside the adapters: modules, or rows of them
    new_tokens: NewTokens
    module_names: tuple[str, ...]  # of the plain base
    parameters: dict[str, nn.Parameter]  # the trained parameters, by name
    data: Data
    plan: batches.BatchPlan
    epochs: batches.Epochs
    total_steps: int
    positions: int | None  # of the model: data.max_length cannot be above them
    trunk: Trunk | None  # None if every weight is trained
    loss: Loss
    start: Start | None = None  # the adapter that is trained further
    world: World = ALONE

    def windows(self, start: DataState) -> Iterator[tuple[list[Batch], DataState]]:
        return batches.windows(self.epochs, start, self.world)

    def eval_loss(self) -> HeldOutLoss:
        """The loss on the held-out rows. Raises NumericError if it is not finite."""
        return self._loss_on(self.data.held_out, "the held-out rows")

    def retain_loss(self) -> HeldOutLoss:
        """The loss on general text, over all its tokens. Raises NumericError likewise."""
        return self._loss_on(self.data.retain, "data.retain")

    def _loss_on(self, examples: Sequence[Example], what: str) -> HeldOutLoss:
        found = held_out_loss(
            self.model,
            self.loss.of_rows,
            batches.in_order(examples, self.plan, self.world),
            self.device,
            partial(sum_over_ranks, self.world),
        )
        if not math.isfinite(found.mean):
            raise NumericError(f"the loss on {what} is {found.mean}")
        return found

    @property
    def is_fast(self) -> bool:
        """Whether hand-written layers are used in place of transformers' own."""
        return self.trunk is not None and not self.trunk.fallback_reason

    @property
    def learning_rate(self) -> LearningRate:
        train = self.config.train
        return LearningRate(train.learning_rate, train.schedule, train.warmup, self.total_steps)

    @cached_property
    def ends(self) -> list[int]:
        """The tokens that are trained as the end of an answer."""
        return ends.ends_of_training(
            self.tokenizer, self.data.train, max_length=self.plan.max_length
        )

    def about(self) -> dict[str, Any]:
        """The provenance of an adapter, as loractl.json records it."""
        return {
            "loractl": __version__,
            "base": {"name_or_path": self.source.address, "fingerprint": self.base_fingerprint},
            "data": {name: account.sha256 for name, account in self.data.accounts.items()},
            **({"start_from": self.start.about()} if self.start else {}),
            **about_template(self.config.data),
            **about_rows(self.config.data),
            "dtype": dtype_word(self.dtype),
            **about_packed(self.source),
            "ends": ends.texts_of(self.tokenizer, self.ends),
            "method": self.config.method,
            "versions": {
                "python": platform.python_version(),
                "torch": torch.__version__,
                "transformers": transformers.__version__,
            },
        }


def assemble(loaded: Loaded, world: World = ALONE) -> Session:
    """Load and check everything, cheapest first: names, data, weights. Raises LoractlError."""
    config, remote = loaded.config, loaded.config.model.trust_remote_code
    device = device_for(loaded)
    dtype = choose_dtype(config.model.dtype, device)
    source = as_configured(locate_base(loaded), config.model, dtype)
    start = read_start(loaded)
    base_fingerprint = compute_beside(lambda: fingerprint(source))  # reads all weights
    tokenizer, new, data, max_length = _read_rows(loaded, source, start)
    plan = _plan_batches(config, data, max_length)
    epochs = batches.Epochs(data.train, plan)
    total_steps = _total_steps(loaded, epochs)
    check_phases(loaded, total_steps)
    full, streamed = config.method == "full", streams(loaded, source, device, dtype)
    # Trained weights are stored in float32: an AdamW update is often too small for bfloat16.
    model = load.load_model(
        source,
        dtype=torch.float32 if full else dtype,
        device=device,
        trust_remote_code=remote,
        finite=False,
        dense=full,  # also what a GGUF file has in blocks
        fingerprint=base_fingerprint.result,
        streams=streamed,
    )
    grow_to_(model, new)
    if start is not None:
        require_base(start, base_fingerprint.result(), source.name)
        loaded = adopt(loaded, start, model)
        config = loaded.config
    adapted = Adapted({}, {}, ()) if full else adapt_(model, loaded, new)
    if start is not None:
        fill_(adapted, start)
    if full:
        model.requires_grad_(True)
    _set_checkpointing_(model, config, max_length, device, needed=streamed)
    trunk, loss = _prove_ways_(model, config, epochs, total_steps, dtype)
    return Session(
        config=config,
        source=source,
        base_fingerprint=base_fingerprint.result(),
        model=model,
        tokenizer=tokenizer,
        device=device,
        dtype=dtype,
        layers=adapted.layers,
        whole=adapted.whole,
        new_tokens=new,
        module_names=adapted.module_names,
        parameters=dict(model.named_parameters()) if full else adapted.parameters(),
        data=data,
        plan=plan,
        epochs=epochs,
        total_steps=total_steps,
        positions=load.limits(source, trust_remote_code=remote).positions,
        trunk=trunk,
        loss=loss,
        start=start,
        world=world,
    )


def _prove_ways_(
    model: "PreTrainedModel",
    config: RunConfig,
    epochs: batches.Epochs,
    total_steps: int,
    dtype: torch.dtype,
) -> tuple[Trunk | None, TokenLoss]:
    """How hidden states and losses are computed, both verified in one run of the plain model."""
    run = ProvingRun(model)
    trunk = trunk_of_(model, config, epochs, total_steps, run)
    wide = config.method == "full" and dtype != torch.float32
    build = BUILDERS[config.objective]
    return trunk, build(model, autocast=dtype if wide else None, trunk=trunk, run=run)


def _plan_batches(config: RunConfig, data: Data, max_length: int) -> batches.BatchPlan:
    return batches.BatchPlan(
        batch_size=config.train.batch_size,
        accumulation=config.train.gradient_accumulation,
        max_length=max_length,
        packing=config.data.packing,
        seed=config.seed,
        parts=data.parts,
    )


def _read_rows(
    loaded: Loaded, source: load.Source, start: Start | None
) -> tuple[Tokenizer, NewTokens, Data, int]:
    """The tokenizer and the tokens added to it; the rows as tokens, each of which the embedding
    will have a row for, and their largest length."""
    config, remote = loaded.config, loaded.config.model.trust_remote_code
    tokenizer = tokenizer_of_run(loaded, source)
    limits = load.limits(source, trust_remote_code=remote)
    if start is not None and start.adapter.rows:
        tokenizer, new = tokens_of(start, loaded, tokenizer, limits.rows)
    else:
        new = add_tokens_(tokenizer, loaded, limits.rows)
    max_length = _max_length(config, limits.positions)
    data = load_data(config.data, tokenizer, max_length=max_length, positions=limits.positions)
    data.require_rows(tokenizer, new.n_rows)
    for one in data.accounts.values():
        for warning in account.warnings(one, max_length=max_length, positions=limits.positions):
            console.note(f"note: {warning}")
    return tokenizer, new, data, max_length


def _max_length(config: RunConfig, positions: int | None) -> int:
    """Tokens of the longest row: data.max_length, or as many as the model has positions."""
    wanted = config.data.max_length
    if positions is None or positions >= wanted:
        return wanted
    console.note(
        f"note: data.max_length is {wanted}, but the model has {positions} positions;"
        f" {positions} is used"
    )
    return positions


def _total_steps(loaded: Loaded, epochs: batches.Epochs) -> int:
    train = loaded.config.train
    if train.steps is not None:
        return train.steps
    assert train.epochs is not None, "resolve() fills epochs in"
    total = batches.count_windows(epochs, train.epochs)
    if train.warmup >= 1 and train.warmup > total:
        raise loaded.error(
            "train.warmup",
            f"{train.warmup:g} warmup steps are more than the {total} steps of the run; a value"
            " below 1 is a fraction of the steps",
        )
    return total


SHARE = {False: 0.5, True: 0.85}
"""Of the free memory, from which on activations are recomputed. A GPU has its memory for itself."""


def _set_checkpointing_(
    model: "PreTrainedModel",
    config: RunConfig,
    max_length: int,
    device: torch.device,
    *,
    needed: bool,
) -> None:
    """Turn gradient checkpointing on if asked for, or if memory is tight. In both cases freed CPU
    memory is also returned to the system: with 8,192 tokens the heap kept a gigabyte."""
    wanted = config.train.gradient_checkpointing
    need = beside_the_weights(model, config, Size(config.train.batch_size, max_length))
    short = need > SHARE[device.type == "cuda"] * free_memory(device)
    if (short or wanted is True) and device.type == "cpu":
        hold_mmap_threshold_(LARGE if short else HUGE)
    if wanted == "auto":
        wanted = short
    if wanted or needed:  # a layer's weights are gone when the next one computes
        forward.recompute_activations_(model)
