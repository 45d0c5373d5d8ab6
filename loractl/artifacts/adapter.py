"""Adapter directories in PEFT's layout: write ours, read anyone's, put them into a model.

Tensor names as PEFT 0.21 writes them: `base_model.model.<module>.lora_A.weight` (r, d_in) and
`.lora_B.weight` (d_out, r); for embeddings `.lora_embedding_A` (r, vocabulary) and
`.lora_embedding_B` (width, r); with DoRA `.lora_magnitude_vector` (d_out). Beside
adapter_config.json (`peftconfig`) lie the chat template and loractl.json, which PEFT leaves alone.

An adapter that starts at parts of the base (PiSSA, OLoRA) is checkpointed as A, B and where they
started, `.lora_A0.weight` and so on, and published as an update of the plain base, twice as wide.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from loractl.artifacts import checkpoint, files, peftconfig
from loractl.errors import ArtifactError
from loractl.lora.dora import DoraLayer
from loractl.lora.inject import adaptable, inject_, sizes
from loractl.lora.layer import LoraLayer
from loractl.lora.ranks import ModuleRank, RankSpec, UnmatchedError
from loractl.lora.ranks import sizes as rank_sizes

PREFIX = "base_model.model."
WEIGHTS, CONFIG, ABOUT, TEMPLATE = (
    "adapter_model.safetensors", "adapter_config.json", "loractl.json", "chat_template.jinja",
)  # fmt: skip
SUFFIXES = {
    "linear": ("lora_A.weight", "lora_B.weight"),
    "conv1d": ("lora_A.weight", "lora_B.weight"),
    "embedding": ("lora_embedding_A", "lora_embedding_B"),
}
STARTS = {
    "linear": ("lora_A0.weight", "lora_B0.weight"),
    "conv1d": ("lora_A0.weight", "lora_B0.weight"),
    "embedding": ("lora_embedding_A0", "lora_embedding_B0"),
}
MAGNITUDE = "lora_magnitude_vector"


@dataclass(frozen=True)
class Adapter:
    """An adapter as read from a directory: settings and tensors, checked against no model yet."""

    directory: Path
    spec: RankSpec
    tensors: dict[str, Tensor]  # by PEFT's names
    base: str | None  # base_model_name_or_path
    about: dict[str, Any]  # loractl.json, empty for adapters of other tools
    chat_template: str | None
    formula: str = "lora"  # or dora
    has_starts: bool = False  # whether A and B are counted from where they started

    def suffixes(self, kind: str) -> tuple[str, ...]:
        """The ends of the names of a module's tensors, those of A before those of B."""
        starts = STARTS[kind] if self.has_starts else ()
        return (*SUFFIXES[kind], *starts, *([MAGNITUDE] if self.formula == "dora" else []))

    @property
    def trained_on(self) -> str | None:
        """The fingerprint of the base it was trained on, where loractl.json tells it."""
        base = self.about.get("base")
        found = base.get("fingerprint") if isinstance(base, dict) else None
        return found if isinstance(found, str) else None


def parameters(layers: Mapping[str, LoraLayer]) -> dict[str, nn.Parameter]:
    """The trained tensors of adapted layers by PEFT's names."""
    named = {}
    for name, layer in layers.items():
        suffix_A, suffix_B = SUFFIXES[layer.kind]
        named[f"{PREFIX}{name}.{suffix_A}"] = layer.A
        named[f"{PREFIX}{name}.{suffix_B}"] = layer.B
        if isinstance(layer, DoraLayer):
            named[f"{PREFIX}{name}.{MAGNITUDE}"] = layer.m
    return named


def checkpoint_tensors(layers: Mapping[str, LoraLayer]) -> dict[str, Tensor]:
    """What brings adapted layers back to the last bit: what is trained, and where it started."""
    named: dict[str, Tensor] = dict(parameters(layers))
    for name, layer in layers.items():
        for suffix, start in zip(STARTS[layer.kind], (layer.A0, layer.B0), strict=True):
            if start is not None:
                named[f"{PREFIX}{name}.{suffix}"] = start
    return named


def plain_tensors(layers: Mapping[str, LoraLayer]) -> dict[str, Tensor]:
    """Adapted layers as an update of the plain base; twice as wide when they have starts.

    `peftconfig.doubled` gives the config that goes with the wider ones.
    """
    named: dict[str, Tensor] = dict(parameters(layers))
    for name, layer in layers.items():
        for suffix, factor in zip(SUFFIXES[layer.kind], layer.factors(), strict=True):
            named[f"{PREFIX}{name}.{suffix}"] = factor.detach()
    return named


def write(
    directory: Path,
    tensors: Mapping[str, Tensor],
    *,
    config: Mapping[str, Any],
    about: Mapping[str, Any],
    chat_template: str | None,
) -> None:
    """Write an adapter's files into a directory that exists."""
    files.write_tensors(directory / WEIGHTS, {name: t.cpu() for name, t in tensors.items()})
    files.write_json(directory / CONFIG, config)
    files.write_json(directory / ABOUT, about)
    if chat_template:
        (directory / TEMPLATE).write_text(chat_template, encoding="utf-8")


def find(path: Path) -> Path:
    """The adapter directory that a path means: itself, a checkpoint, or a run's final adapter."""
    if (path / CONFIG).is_file() or (path / WEIGHTS).is_file():
        return path
    if (path / "adapter" / CONFIG).is_file():
        return path / "adapter"
    if not path.is_dir():
        raise ArtifactError(
            f"{path}: no such directory, expected an adapter, a run or a checkpoint"
        )
    if (path / "model").is_dir():
        raise ArtifactError(
            f"{path}: a run of method: full has no adapter; its model lies in {path / 'model'}"
        )
    if (path / "checkpoints").is_dir():
        raise ArtifactError(
            f"{path}: the run has no final adapter yet; finish it with train --resume, or name one"
            " of its checkpoints"
        )
    if (path / "adapter_model.bin").is_file():
        raise ArtifactError(
            f"{path / 'adapter_model.bin'}: a pickle, which can run code and is not read; convert"
            " to safetensors"
        )
    raise ArtifactError(
        f"{path}: {CONFIG} not found; this is no adapter, run or checkpoint directory"
    )


def read(path: Path) -> Adapter:
    """Read an adapter, a run's final one or a checkpoint. Raises ArtifactError naming the file."""
    directory = find(path)
    config = files.read_json(directory / CONFIG)
    spec = peftconfig.spec(directory / CONFIG, config)
    if (directory / checkpoint.MANIFEST).is_file() and (wrong := checkpoint.faults(directory)):
        raise ArtifactError(*wrong)
    where = directory / WEIGHTS
    if not where.is_file():
        is_pickle = (directory / "adapter_model.bin").is_file()
        why = "; adapter_model.bin is a pickle, which is not read: convert to safetensors"
        raise ArtifactError(f"{where}: not found{why if is_pickle else ''}")
    tensors = files.read_tensors(where)
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor.float()).all():
            raise ArtifactError(f"{where}: {name} holds values that are not finite (NaN or Inf)")
    has_starts = peftconfig.starts_at_parts(config)
    if has_starts and not any(".lora_A0." in n or n.endswith("_A0") for n in tensors):
        raise ArtifactError(
            f"{directory / CONFIG}: init_lora_weights is {json.dumps(config['init_lora_weights'])},"
            " which is not supported: it changes the base, by tensors that are not here"
        )
    about, template = directory / ABOUT, directory / TEMPLATE
    found = Adapter(
        directory=directory,
        spec=spec,
        tensors=tensors,
        base=config.get("base_model_name_or_path"),
        about=files.read_json(about) if about.is_file() else {},
        chat_template=files.read_text(template) if template.is_file() else None,
        formula="dora" if config.get("use_dora") else "lora",
        has_starts=has_starts,
    )
    checkpoint.require_published(directory)
    return found


def ranks_of(adapter: Adapter, model: nn.Module) -> dict[str, ModuleRank]:
    """Match an adapter's tensors with a model's modules, all of them or none.

    Raises ArtifactError listing names that match nothing, halves that are missing, shapes that
    differ, and base weights that the adapter brings of its own.
    """
    kinds = adaptable(model)
    expected = {
        f"{PREFIX}{name}.{suffix}": name
        for name, kind in kinds.items()
        for suffix in adapter.suffixes(kind)
    }
    where = adapter.directory / WEIGHTS
    brought = own_weights(adapter, kinds)
    for name, tensor in brought.items():
        require_same(adapter, name, tensor, _weight(model, name))
    known = expected.keys() | {f"{PREFIX}{name}.base_layer.weight" for name in brought}
    unexpected = sorted(adapter.tensors.keys() - known)
    matched = len(adapter.tensors) - len(unexpected)
    if unexpected or not adapter.tensors:
        raise ArtifactError(
            f"{where}: {matched} of {len(adapter.tensors)} tensors match a module of the model;"
            f" unexpected: {_some(unexpected)}; expected names such as"
            f" {next(iter(expected), 'none')}"
        )
    modules = list(dict.fromkeys(expected[name] for name in expected if name in adapter.tensors))
    missing = sorted(
        full
        for name in modules
        for suffix in adapter.suffixes(kinds[name])
        if (full := f"{PREFIX}{name}.{suffix}") not in adapter.tensors
    )
    if missing or not modules:
        listed = _some(missing) or "every lora_A and lora_B"
        raise ArtifactError(f"{where}: {len(missing)} tensors are missing: {listed}")
    try:
        ranks = rank_sizes(adapter.spec, modules)
    except UnmatchedError as error:
        field = error.key.removeprefix("lora.")
        raise ArtifactError(f"{adapter.directory / CONFIG}: {field}: {error}") from None
    for name, size in ranks.items():
        _require_shapes(adapter, name, kinds[name], size.rank, _weight(model, name))
    return ranks


def _require_shapes(adapter: Adapter, name: str, kind: str, rank: int, weight: Tensor) -> None:
    d_in, d_out = sizes(kind, weight)
    starts_A, starts_B = zip(SUFFIXES[kind], STARTS[kind], strict=True)
    for suffix in adapter.suffixes(kind):
        full = f"{PREFIX}{name}.{suffix}"
        shape: tuple[int, ...] = (d_out,)
        if suffix in starts_A or suffix in starts_B:
            shape = (rank, d_in) if suffix in starts_A else (d_out, rank)
        if (found := tuple(adapter.tensors[full].shape)) != shape:
            raise ArtifactError(
                f"{adapter.directory / WEIGHTS}: {full} has shape {list(found)}, expected"
                f" {list(shape)} (the rank r of {CONFIG} is {rank}, the layer is {d_in} -> {d_out})"
            )


def own_weights(adapter: Adapter, modules: Mapping[str, str]) -> dict[str, Tensor]:
    """Copies of base weights that PEFT lays beside an adapter of embed_tokens or lm_head."""
    full = {name: f"{PREFIX}{name}.base_layer.weight" for name in modules}
    return {name: adapter.tensors[key] for name, key in full.items() if key in adapter.tensors}


def require_same(adapter: Adapter, name: str, copy: Tensor, weight: Tensor) -> None:
    """Raise ArtifactError when a copied base weight differs from the base's.

    Values that are not there (meta) are not compared.
    """
    same = copy.shape == weight.shape
    if same and not weight.is_meta:
        # Each is rounded to the other's dtype: PEFT may have held the base in another one.
        ours = weight.to(device=copy.device, dtype=copy.dtype)
        same = torch.equal(copy.to(weight.dtype).to(copy.dtype), ours)
    if not same:
        raise ArtifactError(
            f"{adapter.directory / WEIGHTS}: {PREFIX}{name}.base_layer.weight differs from the"
            " base's own weight; adapters that bring a changed base are not supported"
        )


def _weight(model: nn.Module, name: str) -> Tensor:
    weight = model.get_submodule(name).weight
    assert isinstance(weight, Tensor), f"{name} has no weight"
    return weight


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f", ... ({len(names)} in all)" if len(names) > 3 else "")


def load_(model: nn.Module, adapter: Adapter, *, dropout: float = 0.0) -> dict[str, LoraLayer]:
    """Put an adapter into a model.

    Raises ArtifactError, with the model untouched, when they do not fit.
    """
    ranks = ranks_of(adapter, model)
    layers = inject_(model, ranks, formula=adapter.formula, dropout=dropout)
    restore_(layers, adapter.tensors)
    return layers


def restore_(layers: Mapping[str, LoraLayer], tensors: Mapping[str, Tensor]) -> None:
    """Copy tensors by PEFT's names into adapted layers; names and shapes were checked before."""
    with torch.no_grad():
        for name, parameter in parameters(layers).items():
            parameter.copy_(tensors[name])
    for name, layer in layers.items():
        A0, B0 = (tensors.get(f"{PREFIX}{name}.{suffix}") for suffix in STARTS[layer.kind])
        if A0 is not None and B0 is not None:
            layer.count_from_(A0, B0)
