"""The two bases that an adapter can be merged into where training quantized one: the numbers it was
trained against, and the weights that these were made from. Torch is imported only to load them."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from loractl import console
from loractl.engine.base import find_trained_base
from loractl.errors import ModelError

if TYPE_CHECKING:
    from loractl.artifacts.peft.adapter import Adapter
    from loractl.models.load import Source

TRAINED, ORIGINAL = "trained", "original"
INTO = (TRAINED, ORIGINAL)


@dataclass(frozen=True)
class Bases:
    """Where an adapter is merged into, and what it could have been merged into instead."""

    into: str  # TRAINED or ORIGINAL
    trained: "Source"  # as it was quantized in training, if it was
    original: "Source | None"  # None: there is no other base, or it is not known

    @property
    def is_original(self) -> bool:
        return self.into == ORIGINAL

    @property
    def chosen(self) -> "Source":
        return self.original if self.is_original and self.original else self.trained

    @property
    def kind(self) -> str | None:
        """How the base of training is quantized: by training, or in its files; None: not at all."""
        from loractl.models.prequantized import method_of

        if self.trained.quantization is not None:
            return self.trained.quantization.kind
        return (
            None
            if self.original is None
            else self.trained.gguf or method_of(self.trained.directory)
        )


def find_bases(adapter: "Adapter", named: str | None, into: str | None) -> Bases:
    """The bases of an adapter; `into` None: that of training, whose merge is the evaluated model.

    Without quantization both are one, which is a note if `into` is given: a command for many
    adapters works for all of them. Raises ArtifactError; ModelError too for an original base that
    is not known.
    """
    source = find_trained_base(adapter, named)
    if into == ORIGINAL and not _is_dense(source):
        raise ModelError(
            f"{source.name}: --into original: its own weights are quantized, and nothing tells what"
            " they were made from; name that directory with --base DIR, or merge --into trained"
        )
    original = replace(source, quantization=None) if _is_dense(source) else None
    trained = source
    if into == ORIGINAL and named:
        trained = _quantized_by_files(adapter) or source
    if trained != original and (trained.quantization or into == ORIGINAL):
        return Bases(into or TRAINED, trained, original)
    if into is not None:
        console.note(
            f"note: --into {into} changes nothing: the adapter records no quantization of its base"
        )
    return Bases(TRAINED, source, None)


def _is_dense(source: "Source") -> bool:
    """Whether its files hold plain numbers."""
    from loractl.models.prequantized import method_of

    return not source.gguf and method_of(source.directory) is None


def _quantized_by_files(adapter: "Adapter") -> "Source | None":
    """The base that an adapter records, if it is here as it was and its own files are quantized:
    then these are the numbers it was trained against, whichever original is named."""
    if not adapter.base or not Path(adapter.base).exists():
        return None  # a hub id would be downloaded
    try:
        found = find_trained_base(adapter, None)
    except ModelError:  # damaged, or other bytes than the adapter was trained on
        return None
    return None if _is_dense(found) else found
