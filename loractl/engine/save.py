"""Trained layers as adapter files: in a checkpoint, and in the form that every reader loads.

The input is a set of layers and the settings that made them, whoever trained them; `trained`
collects those of a session.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedTokenizerBase as Tokenizer

from loractl.artifacts.peft import adalora_files
from loractl.artifacts.peft import adapter as adapters
from loractl.artifacts.peft import config as peft_config
from loractl.artifacts.peft import names as peft_names
from loractl.lora.adalora import AdaloraLayer, Budget, Smoothing
from loractl.lora.layer import LoraLayer
from loractl.lora.ranks import ModuleRank, RankSpec, sizes
from loractl.lora.token_rows import Saved, only_rows, only_whole


@dataclass(frozen=True)
class Allocation:
    """How AdaLoRA distributes ranks, which its checkpoints record for PEFT."""

    initial_rank: int  # per module, like `target_rank`
    target_rank: int
    budget: Budget
    smoothing: Smoothing
    orthogonality: float


@dataclass(frozen=True)
class TrainedAdapter:
    """Trained layers, and everything that their files say about them."""

    layers: Mapping[str, LoraLayer]
    whole: Mapping[str, Saved]
    module_names: Sequence[str]  # of the plain base
    spec: RankSpec  # of the present ranks; for AdaLoRA, of the initial ones
    base: str
    formula: str
    init: str
    dropout: float
    about: Mapping[str, Any]
    chat_template: str | None
    tokenizer: Tokenizer | None = None  # where it is not the base's
    allocation: Allocation | None = None  # AdaLoRA only

    @property
    def triplets(self) -> dict[str, AdaloraLayer]:
        """The layers of AdaLoRA."""
        return {n: layer for n, layer in self.layers.items() if isinstance(layer, AdaloraLayer)}


def write_checkpoint(directory: Path, trained: TrainedAdapter) -> None:
    """Write what restores the layers bit for bit; for AdaLoRA in PEFT's own layout."""
    tensors = peft_names.checkpoint_tensors(trained.layers, trained.whole)
    _write_files(directory, trained, tensors, _checkpoint_config(trained))


def write_final(directory: Path, trained: TrainedAdapter) -> None:
    """Write the adapter in the form that every reader loads onto the plain base."""
    if trained.triplets:
        tensors, config = _plain_triplets(trained)
    else:
        tensors = peft_names.plain_tensors(trained.layers, trained.whole)
        config = _plain_config(trained)
        if peft_config.starts_at_parts(config):
            config = peft_config.doubled(config)
    _write_files(directory, trained, tensors, config)


def _write_files(
    directory: Path, trained: TrainedAdapter, tensors: dict[str, Tensor], config: dict[str, Any]
) -> None:
    adapters.write(
        directory,
        tensors,
        config=config,
        about=trained.about,
        chat_template=trained.chat_template,
    )
    if trained.tokenizer is not None:
        trained.tokenizer.save_pretrained(directory)


def _plain_config(trained: TrainedAdapter) -> dict[str, Any]:
    return _config_content(trained, trained.spec, sizes(trained.spec, trained.layers))


def _config_content(
    trained: TrainedAdapter, spec: RankSpec, ranks: dict[str, ModuleRank]
) -> dict[str, Any]:
    return peft_config.content(
        ranks,
        trained.module_names,
        spec=spec,
        kinds={name: layer.kind for name, layer in trained.layers.items()},
        dropout=trained.dropout,
        base=trained.base,
        init=trained.init,
        formula=trained.formula,
        whole=only_whole(trained.whole),
        rows={path: one.indices.tolist() for path, one in only_rows(trained.whole).items()},
    )


def _checkpoint_config(trained: TrainedAdapter) -> dict[str, Any]:
    plain, allocation = _plain_config(trained), trained.allocation
    if allocation is None:
        return plain
    return adalora_files.checkpoint_content(
        plain,
        rank=allocation.initial_rank,
        target=allocation.target_rank,
        scale=next(iter(trained.layers.values())).scale,
        budget=allocation.budget,
        smoothing=allocation.smoothing,
        orthogonality=allocation.orthogonality,
    )


def _plain_triplets(trained: TrainedAdapter) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """AdaLoRA's update as plain LoRA with the final ranks."""
    triplets = trained.triplets
    pairs, rank, alpha = adalora_files.plain_of(triplets)
    tensors: dict[str, Tensor] = {
        **peft_names.parameters({}, trained.whole),
        **peft_names.buffers(trained.whole),
    }
    stems = peft_names.stems_of(triplets)
    for name, pair in pairs.items():
        named = zip(peft_names.SUFFIXES[triplets[name].kind], pair, strict=True)
        tensors |= {f"{stems[name]}.{suffix}": factor for suffix, factor in named}
    ranks = {name: ModuleRank(len(A), alpha, alpha / len(A)) for name, (A, _) in pairs.items()}
    spec = replace(trained.spec, rank=rank, alpha=alpha, scaling="standard")
    return tensors, _config_content(trained, spec, ranks)
