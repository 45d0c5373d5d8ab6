"""Complete model directories: an adapter merged into its base, or a model trained whole.

A merged weight is W + s B A in float32, rounded once. The base is read in strips of rows and never
written; no tensor of it is in memory whole.
"""

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import PreTrainedTokenizerBase as Tokenizer

from loractl.artifacts import files
from loractl.artifacts.model.plan import Plan, is_tied, plan_merge, shards
from loractl.artifacts.model.stops import add_ends
from loractl.artifacts.model.strips import StoredRows, Strips, opened, write_strips
from loractl.artifacts.peft.adapter import ABOUT, TEMPLATE, Adapter, copy_tokenizer
from loractl.artifacts.peft.attach import load_, ranks_of
from loractl.artifacts.peft.vocabulary_size import fit_
from loractl.errors import ArtifactError
from loractl.lora.inject import merge_
from loractl.models.base_directory import INDEX, is_inside
from loractl.models.load import Source, load_model, load_skeleton, load_tokenizer
from loractl.models.prequantized import method_of
from loractl.models.torch_dtypes import DTYPES, STORED_FLOATS, dtype_word
from loractl.ops.finite import all_finite
from loractl.ops.threads import one_thread

if TYPE_CHECKING:
    from transformers import PreTrainedModel

COPIED = {".json", ".txt", ".model", ".jinja", ".tiktoken", ".py"}
NOT_COPIED = {INDEX, "adapter_config.json", ABOUT}


@dataclass(frozen=True)
class Written:
    """What happened to the base."""

    untied: bool  # whether a tied head got a weight of its own
    dtype: torch.dtype | None  # the one every tensor was rounded to; None: each kept its own


def write(
    directory: Path, source: Source, adapter: Adapter, *, dtype: torch.dtype | None
) -> Written:
    """Write base + adapter as a model directory of the same shards; `dtype` None: the base's.

    Raises ArtifactError if adapter and base do not fit, or a weight does not fit into `dtype`.
    """
    refuse_quantized(source)
    if source.quantization is not None:  # what came out of the packing fits into that dtype
        dtype = dtype or DTYPES[source.quantization.dtype]
    skeleton = load_skeleton(source)
    fit_(skeleton, adapter)
    ranks_of(adapter, skeleton)  # refuses before any weight is read
    is_packed = source.gguf or method_of(source.directory)
    plan = None if is_packed else plan_merge(source, skeleton, adapter)
    if plan is None:
        written = _write_whole(directory, source, adapter, dtype or own_dtype(source))
    else:
        _write_shards(directory, source, plan, dtype)
        _copy_beside(source.directory, directory, dtype=dtype, plan=plan)
        written = Written(plan.untie, dtype)
    copy_tokenizer(adapter, directory)
    if adapter.chat_template:
        (directory / TEMPLATE).write_text(adapter.chat_template, encoding="utf-8")
    return written


def refuse_quantized(source: Source) -> None:
    """Raise ArtifactError for a base whose files are packed in a way that is not read."""
    if source.gguf or source.quantization is not None:
        return  # unpacked by its loader
    if config := files.read_json(source.directory / "config.json").get("quantization_config"):
        method = config.get("quant_method") if isinstance(config, dict) else config
        raise ArtifactError(
            f"{source.directory / 'config.json'}: the base is quantized ({method}); pass the base"
            " it was quantized from with --base"
        )


def float_dtypes(source: Source) -> Counter[torch.dtype]:
    """How many tensors of each floating dtype a model directory holds."""
    found: Counter[torch.dtype] = Counter()
    for shard in shards(source):
        with safe_open(shard, framework="pt") as file:
            names = [file.get_slice(name).get_dtype() for name in file.keys()]  # noqa: SIM118
            found.update(STORED_FLOATS[name] for name in names if name in STORED_FLOATS)
    return found


def own_dtype(source: Source) -> torch.dtype:
    """The default dtype of a whole merge: the base's; bfloat16 for a GGUF."""
    if source.gguf:
        return torch.bfloat16
    if source.quantization is not None:  # in its files most floats are scales
        return DTYPES[source.quantization.dtype]
    return float_dtypes(source).most_common(1)[0][0]


def _write_shards(directory: Path, source: Source, plan: Plan, dtype: torch.dtype | None) -> None:
    """Write the base's shards one by one, each tensor in strips with its update."""
    weight_map: dict[str, str] = {}
    total = 0
    for shard in shards(source):
        with opened(shard) as stored, one_thread():
            tensors = list(_merged_tensors(stored, shard, plan, dtype))
            write_strips(directory / shard.name, tensors)
        weight_map |= dict.fromkeys((one.name for one in tensors), shard.name)
        total += sum(one.n_bytes for one in tensors)
    if (source.directory / INDEX).is_file():
        files.write_json(
            directory / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map}
        )


def _merged_tensors(
    stored: Mapping[str, StoredRows], shard: Path, plan: Plan, dtype: torch.dtype | None
) -> Iterator[Strips]:
    starts = {name: name for name in stored}
    starts |= {name: old for name, old in plan.untied.items() if old in stored}
    for name, start in starts.items():
        old, numbers = stored[start], plan.packed.get(start)
        target = dtype if dtype is not None and old.dtype.is_floating_point else old.dtype
        shape, values = _changed(old, numbers, plan, name, target)
        yield Strips(name, target, shape, partial(_finite, f"{shard.name}: {name}", values))


def _changed(
    old: StoredRows,
    numbers: Callable[[], Tensor] | None,
    plan: Plan,
    name: str,
    target: torch.dtype,
) -> tuple[tuple[int, ...], Callable[[], Iterator[Tensor]]]:
    """The shape of a tensor of the merged model, and its strips in `target`; `numbers` are those of
    a weight that training packed."""
    if (new := plan.new_rows.get(name)) is not None:
        shape = (max(new.n_rows, old.shape[0]), *old.shape[1:])
        return shape, lambda: iter([new.merged(old.whole(), target).detach()])
    if (layer := plan.updates.get(name)) is not None:
        rows = layer.merged_rows
        return old.shape, lambda: (
            exact.float().to(target) for _, _, exact in rows(numbers() if numbers else old)
        )
    if (tensor := plan.replaced.get(name)) is not None:
        return tensor.shape, lambda: iter([tensor.to(target)])
    if numbers is not None:
        return old.shape, lambda: iter([numbers().to(target)])
    return old.shape, lambda: (strip.to(target) for strip in old.strips())


def _finite(name: str, values: Callable[[], Iterator[Tensor]]) -> Iterator[Tensor]:
    for strip in values():
        _require_finite(name, strip)
        yield strip


def _require_finite(name: str, tensor: Tensor) -> None:
    if tensor.is_floating_point() and not all_finite(tensor):
        dtype = dtype_word(tensor.dtype)
        raise ArtifactError(
            f"{name}: the merged weight is not finite in {dtype}; merge with --dtype bfloat16 or"
            " float32"
        )


def _write_whole(directory: Path, source: Source, adapter: Adapter, dtype: torch.dtype) -> Written:
    """Merge in memory: for bases whose files lay weights out differently, such as GGUF."""
    model = load_model(source, dtype=torch.float32, device=torch.device("cpu"), dense=True)
    tied = is_tied(model)
    load_(model, adapter)
    merge_(model)
    untie = tied and not is_tied(model)
    if untie:
        model.config.tie_word_embeddings = False
        model.config.get_text_config().tie_word_embeddings = False
    _save_rounded(model, directory, dtype)
    load_tokenizer(source).save_pretrained(directory)
    return Written(untie, dtype)


def _save_rounded(model: "PreTrainedModel", directory: Path, dtype: torch.dtype) -> None:
    model.to(dtype)  # type: ignore[arg-type]
    for name, parameter in model.named_parameters():
        _require_finite(name, parameter.detach())
    model.save_pretrained(directory)
    for path in directory.glob("*.safetensors"):
        files.give_usual_mode(path)


def _copy_beside(base: Path, directory: Path, *, dtype: torch.dtype | None, plan: Plan) -> None:
    """Copy config, tokenizer and chat template; update config entries that the merge changed."""
    for path in sorted(base.iterdir()):
        if path.is_file() and path.suffix in COPIED and path.name not in NOT_COPIED:
            if not is_inside(path, base):  # a stranger's link might point at a secret
                raise ArtifactError(f"{path}: links to {path.resolve()}, outside the base; copy it")
            shutil.copyfile(path, directory / path.name)
    config: dict[str, Any] = files.read_json(base / "config.json")
    if dtype is not None:
        config["dtype"] = dtype_word(dtype)
        config.pop("torch_dtype", None)
    changed: dict[str, Any] = {"tie_word_embeddings": False} if plan.untie else {}
    changed |= {"vocab_size": plan.vocabulary} if plan.vocabulary else {}
    config |= changed
    if isinstance(config.get("text_config"), dict):
        config["text_config"] |= changed
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def write_model_(
    directory: Path,
    model: "PreTrainedModel",
    tokenizer: Tokenizer,
    *,
    dtype: torch.dtype,
    about: Mapping[str, Any],
    ends: Sequence[int],
) -> None:
    """Write a model with all weights trained, each weight rounded once to `dtype`.

    The model itself is left in that dtype.
    """
    _save_rounded(model, directory, dtype)
    tokenizer.save_pretrained(directory)
    add_ends(directory, ends)
    files.write_json(directory / ABOUT, about)
