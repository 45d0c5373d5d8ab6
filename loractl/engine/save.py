"""What a run writes of what it trains: in a checkpoint, and when it is done."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from loractl.artifacts import files
from loractl.artifacts.peft import adalora_files
from loractl.artifacts.peft import adapter as adapters
from loractl.artifacts.peft import config as peft_config
from loractl.artifacts.peft import names as peft_names
from loractl.engine.adapters import budget, rank_spec, smoothing
from loractl.engine.session import Session
from loractl.lora.adalora import AdaloraLayer
from loractl.lora.ranks import ModuleRank, RankSpec, alpha_of, sizes
from loractl.training.state import TrainState
from loractl.training.steps import RankPolicy

MODEL = "model.safetensors"


def write_trained(
    session: Session, directory: Path, state: TrainState, ranks: RankPolicy | None = None
) -> None:
    """Write what is trained, as a checkpoint keeps it: the adapter, or every weight in float32."""
    if not session.layers:
        files.write_tensors(directory / MODEL, {n: p.cpu() for n, p in session.parameters.items()})
        return
    tensors = peft_names.checkpoint_tensors(session.layers, session.whole)
    _write(session, directory, state, tensors, checkpoint_config(session))
    if ranks is not None and (known := ranks.tensors()):
        files.write_tensors(directory / adalora_files.STATE, known)


def write_final(session: Session, directory: Path, state: TrainState) -> None:
    """Write the adapter as every reader takes it, on the plain base."""
    layers = session.layers
    triplets = {n: layer for n, layer in layers.items() if isinstance(layer, AdaloraLayer)}
    if triplets:
        tensors, config = _plain_triplets(session, triplets)
    else:
        tensors = peft_names.plain_tensors(layers, session.whole)
        config = adapter_config(session)
        if peft_config.starts_at_parts(config):
            config = peft_config.doubled(config)
    _write(session, directory, state, tensors, config)


def _write(
    session: Session,
    directory: Path,
    state: TrainState,
    tensors: dict[str, Tensor],
    config: dict[str, Any],
) -> None:
    template = session.tokenizer.chat_template
    adapters.write(
        directory,
        tensors,
        config=config,
        about={**session.about(), "step": state.step},
        chat_template=template if isinstance(template, str) else None,
    )


def adapter_config(session: Session) -> dict[str, Any]:
    """The content of adapter_config.json for the ranks as they are now."""
    spec = rank_spec(session.config)
    if session.config.lora.rank_schedule:  # one rank for all, at the scale of the first one
        layer = next(iter(session.layers.values()))
        if layer.rank != spec.rank:
            alpha = alpha_of(layer.scale, layer.rank, spec.scaling)
            spec = replace(spec, rank=layer.rank, alpha=alpha)
    return _content(session, spec, sizes(spec, session.layers))


def _content(session: Session, spec: RankSpec, ranks: dict[str, ModuleRank]) -> dict[str, Any]:
    config = session.config
    return peft_config.content(
        ranks,
        session.module_names,
        spec=spec,
        kinds={name: layer.kind for name, layer in session.layers.items()},
        dropout=config.lora.dropout,
        base=config.model.name_or_path,
        init=config.lora.init,
        formula=config.method,
        whole=session.whole,
    )


def checkpoint_config(session: Session) -> dict[str, Any]:
    """The same for a checkpoint: that of AdaLoRA is PEFT's own."""
    plain, config = adapter_config(session), session.config
    if config.method != "adalora":
        return plain
    return adalora_files.checkpoint_content(
        plain,
        rank=config.lora.adalora.initial_rank,
        target=config.lora.adalora.target_rank,
        scale=next(iter(session.layers.values())).scale,
        budget=budget(config, len(session.layers), session.total_steps),
        smoothing=smoothing(config),
        orthogonality=config.lora.adalora.orthogonality,
    )


def _plain_triplets(
    session: Session, triplets: dict[str, AdaloraLayer]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """AdaLoRA's update as plain LoRA of the final ranks."""
    pairs, rank, alpha = adalora_files.plain_of(triplets)
    tensors: dict[str, Tensor] = {
        **peft_names.parameters({}, session.whole),
        **peft_names.buffers(session.whole),
    }
    stems = peft_names.stems_of(triplets)
    for name, pair in pairs.items():
        named = zip(peft_names.SUFFIXES[triplets[name].kind], pair, strict=True)
        tensors |= {f"{stems[name]}.{suffix}": factor for suffix, factor in named}
    ranks = {name: ModuleRank(len(A), alpha, alpha / len(A)) for name, (A, _) in pairs.items()}
    spec = replace(rank_spec(session.config), rank=rank, alpha=alpha, scaling="standard")
    return tensors, _content(session, spec, ranks)
