"""Writes what a session has trained: in a checkpoint, and when the run is done."""

from dataclasses import replace
from pathlib import Path

from loractl.artifacts import files
from loractl.artifacts.peft import adalora_files
from loractl.engine import save
from loractl.engine.adapters import budget, rank_spec, smoothing
from loractl.engine.session import Session
from loractl.lora.ranks import RankSpec, alpha_of
from loractl.training.state import TrainState
from loractl.training.steps import RankPolicy

MODEL = "model.safetensors"


def write_trained(
    session: Session, directory: Path, state: TrainState, ranks: RankPolicy | None = None
) -> None:
    """Write the trained tensors for a checkpoint: the adapter, or every weight in float32."""
    if not session.layers:
        files.write_tensors(directory / MODEL, {n: p.cpu() for n, p in session.parameters.items()})
        return
    save.write_checkpoint(directory, trained_adapter(session, state))
    if ranks is not None and (known := ranks.tensors()):
        files.write_tensors(directory / adalora_files.STATE, known)


def write_final(session: Session, directory: Path, state: TrainState) -> None:
    """Write the adapter in the form that every reader loads onto the plain base."""
    save.write_final(directory, trained_adapter(session, state))


def trained_adapter(session: Session, state: TrainState) -> save.TrainedAdapter:
    """The session's layers as they are now, and what its config says about them."""
    config, template = session.config, session.tokenizer.chat_template
    return save.TrainedAdapter(
        layers=session.layers,
        whole=session.whole,
        module_names=session.module_names,
        spec=_present_spec(session),
        base=session.source.address,
        formula=config.method,
        init=config.lora.init,
        dropout=config.lora.dropout,
        about={**session.about(), "step": state.step},
        chat_template=template if isinstance(template, str) else None,
        tokenizer=session.tokenizer if session.new_tokens.ids else None,
        allocation=_allocation_of(session) if config.method == "adalora" else None,
    )


def _present_spec(session: Session) -> RankSpec:
    """The present ranks: a schedule has one for all layers, at the scale of the first layer."""
    spec = rank_spec(session.config)
    layer = next(iter(session.layers.values()))
    if not session.config.lora.rank_schedule or layer.rank == spec.rank:
        return spec
    return replace(spec, rank=layer.rank, alpha=alpha_of(layer.scale, layer.rank, spec.scaling))


def _allocation_of(session: Session) -> save.Allocation:
    adalora = session.config.lora.adalora
    return save.Allocation(
        initial_rank=adalora.initial_rank,
        target_rank=adalora.target_rank,
        budget=budget(session.config, len(session.layers), session.total_steps),
        smoothing=smoothing(session.config),
        orthogonality=adalora.orthogonality,
    )
