"""Two model directories of one architecture, read side by side, one tensor of each at a time."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from loractl.artifacts import files
from loractl.artifacts.model.plan import shards
from loractl.errors import ArtifactError, ModelError
from loractl.lora.inject import adaptable
from loractl.lora.ranks import EXPERTS
from loractl.models.load import Source, head_name, load_skeleton

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Side:
    """One of the two: where each tensor is, by its name in the model."""

    source: Source
    skeleton: "PreTrainedModel"  # on the meta device
    places: Mapping[str, tuple[Path, str]]  # name in the model -> shard, name in the files
    tied: str | None  # the head's tensor, if it is the embedding table
    shapes: Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class ModelPair:
    """A base and a model tuned from it, whose tensors have the same names and shapes."""

    base: Side
    tuned: Side
    kinds: Mapping[str, str]  # modules that can carry an adapter: linear, conv1d or embedding
    table: str  # the module that embeds the input
    head: str | None  # the module of the output head

    @property
    def names(self) -> list[str]:
        """The tensors to compare; a head that is tied in both models is not listed separately."""
        both_tied = self.base.tied and self.tuned.tied
        names = dict.fromkeys([*self.base.places, *([self.base.tied] if self.base.tied else [])])
        return [
            name
            for name in names
            if name in self.tuned.shapes and not (both_tied and name == self.base.tied)
        ]

    def tensors(self) -> Iterator[tuple[str, Tensor, Tensor]]:
        """(name, base tensor, tuned tensor), one after another. Raises ArtifactError."""
        with ExitStack() as stack:
            opened: dict[Path, Any] = {}
            for name in self.names:
                pair = []
                for side in (self.base, self.tuned):
                    at = f"{self.table}.weight" if name == side.tied else name
                    shard, stored = side.places[at]
                    if shard not in opened:
                        opened[shard] = stack.enter_context(safe_open(shard, framework="pt"))
                    pair.append(opened[shard].get_tensor(stored))
                yield name, pair[0], pair[1]


def open_pair(base: Source, tuned: Source) -> ModelPair:
    """Read the headers of both. Raises ModelError, or ArtifactError with the first difference."""
    sides = [_open_side(source) for source in (base, tuned)]
    one, other = sides
    types = [str(side.skeleton.config.model_type) for side in sides]
    if types[0] != types[1]:
        raise ArtifactError(
            f"{tuned.name}: model_type is {types[1]}, expected {types[0]} as in {base.name}"
        )
    known = one.skeleton.state_dict()
    for name in dict.fromkeys([*one.shapes, *other.shapes]):
        if name not in known and not (name in one.shapes and name in other.shapes):
            continue  # a table of angles or masks that old versions saved
        found = [side.shapes.get(name) for side in sides]
        if found[0] != found[1]:
            words = ["missing" if shape is None else str(list(shape)) for shape in found]
            raise ArtifactError(
                f"{tuned.name}: {name} is {words[1]}, expected {words[0]} as in {base.name}; only"
                " models of one architecture and the same shapes can be compared"
            )
    model = one.skeleton
    table = model.get_input_embeddings()
    return ModelPair(
        base=one,
        tuned=other,
        kinds=adaptable(model),
        table=next(name for name, module in model.named_modules() if module is table),
        head=head_name(model),
    )


def _open_side(source: Source) -> Side:
    if source.gguf:
        raise ModelError(f"{source.name}: a .gguf file; only safetensors directories are compared")
    config = source.directory / "config.json"
    if files.read_json(config).get("quantization_config"):
        raise ModelError(f"{config}: the model is quantized; use the one it was quantized from")
    skeleton = load_skeleton(source)
    head, table = head_name(skeleton), skeleton.get_input_embeddings()
    tied = head is not None and skeleton.get_submodule(head).weight is table.weight
    known = {name: tuple(tensor.shape) for name, tensor in skeleton.state_dict().items()}
    prefix = skeleton.base_model_prefix + "."
    places: dict[str, tuple[Path, str]] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for shard in shards(source):
        try:
            with safe_open(shard, framework="pt") as file:
                for stored in sorted(file.keys()):
                    options = (stored, prefix + stored, stored.removeprefix(prefix))
                    name = next((option for option in options if option in known), stored)
                    places[name] = shard, stored
                    shapes[name] = tuple(file.get_slice(stored).get_shape())
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{shard}: truncated or corrupt: {error}") from None
    own = f"{head}.weight" if tied else None
    if own is not None:  # a separate head tensor in the files is not used by the model
        places.pop(own, None)
        shapes[own] = known[own]
    fused = [name for name, kind in adaptable(skeleton).items() if kind in EXPERTS]
    if fused:
        raise ModelError(
            f"{source.name}: has fused experts such as {fused[0]}, which cannot be compared yet"
        )
    missing = [name for name in adaptable(skeleton) if f"{name}.weight" not in shapes]
    if missing:
        raise ModelError(
            f"{source.name}: {missing[0]}.weight ({len(missing)} such tensors) is not in its files,"
            " or has another name there, so it cannot be compared"
        )
    return Side(source, skeleton, places, own, shapes)
