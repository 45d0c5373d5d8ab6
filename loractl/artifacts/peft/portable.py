"""An adapter for vLLM and other readers of PEFT's layout: one rank, one alpha, scale alpha / r.

They read only r, lora_alpha and target_modules; rows of new tokens, which PEFT alone reads, stay as
they are. The scale of rsLoRA is folded into alpha; modules
of smaller rank are padded with zeros; remaining differences in scale are folded into B.
"""

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch.nn.functional import pad

from loractl.artifacts import probe
from loractl.artifacts.peft import adapter as adapters
from loractl.artifacts.peft import config as peft_config
from loractl.artifacts.peft.adapter import Adapter
from loractl.artifacts.peft.attach import load_, rows_of
from loractl.artifacts.peft.names import PREFIX, ROWS, SUFFIXES
from loractl.artifacts.peft.updates import tensors_beside, updates
from loractl.errors import ArtifactError
from loractl.lora.inject import adaptable
from loractl.lora.ranks import ModuleRank, RankSpec
from loractl.models.load import Source, head_name, load_model, n_rows

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def write(
    directory: Path, adapter: Adapter, skeleton: "PreTrainedModel", *, dtype: torch.dtype, base: str
) -> int:
    """Write the portable form; return its rank. Raises ArtifactError naming what does not fit."""
    beside = tensors_beside(adapter)
    strange = sorted(n for n in beside if ".base_layer." not in n and not n.endswith(f".{ROWS}"))
    if strange:
        raise _not_held(adapter, f"{strange[0]} is not part of a plain low-rank update")
    found = updates(adapter)
    head = head_name(skeleton)
    for module, update in found.items():
        if update.kind == "embedding" or module == head:
            raise _not_held(adapter, f"{module} is not an attention or MLP layer")
    rank = max(update.factors.rank for update in found.values())
    first = next(iter(found.values()))
    scale = first.factors.scale
    alpha = scale * rank
    tensors = {n: one.to(dtype) for n, one in beside.items() if n.endswith(f".{ROWS}")}
    for module, update in found.items():
        A, B, missing = update.factors.A, update.factors.B, rank - update.factors.rank
        gain = update.factors.scale / scale
        scaled = B if gain == 1.0 else (B.double() * gain).float()
        sized = pad(A, (0, 0, 0, missing)), pad(scaled, (0, missing))
        for suffix, tensor in zip(SUFFIXES[update.kind], sized, strict=True):
            tensors[f"{PREFIX}{module}.{suffix}"] = tensor.to(dtype)
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise ArtifactError(
                f"{adapter.directory}: {name} is too large for f16; use bf16 or f32"
            )
    config = peft_config.content(
        {module: ModuleRank(rank, alpha, scale) for module in found},
        [name for name, _ in skeleton.named_modules()],
        spec=RankSpec(rank=rank, alpha=int(alpha) if alpha == int(alpha) else alpha),
        kinds=adaptable(skeleton),
        dropout=0.0,
        base=base,
        rows=rows_of(adapter, skeleton).owned,
    )
    adapters.write(
        directory,
        tensors,
        config=config,
        about=adapter.about,
        chat_template=adapter.chat_template,
    )
    adapters.copy_tokenizer(adapter, directory)
    return rank


def _not_held(adapter: Adapter, what: str) -> ArtifactError:
    return ArtifactError(
        f"{adapter.directory}: {what}, which vLLM and others do not read; use loractl merge"
    )


def prove(
    directory: Path, source: Source, adapter: Adapter, dtype: torch.dtype
) -> tuple[str, bool]:
    """Compare PEFT's result for it with base + adapter: a sentence, and whether they agree."""
    from peft import PeftModel

    cpu = torch.device("cpu")
    model = load_model(source, dtype=torch.float32, device=cpu, dense=True)
    ids = probe.probe_ids(model, adapter.own_tokens)
    layers = load_(model, adapter)
    rows = n_rows(model)
    expected = probe.probe_logits(model, ids)
    rounding = 0.0
    if dtype != torch.float32:
        parts = [part for layer in layers.values() for part in (layer.A, layer.B)]
        parts += [p for n, p in model.named_parameters() if n.endswith("trainable_tokens_delta")]
        rounding = probe.rounding_effect(
            model, ids, expected, parts, lambda exact: exact.to(dtype).float()
        )
    del model, layers
    base = load_model(source, dtype=torch.float32, device=cpu, dense=True)
    if rows > n_rows(base):
        base.resize_token_embeddings(rows, mean_resizing=False)  # as PEFT's users do
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PEFT's, about names in transformers
        found = probe.probe_logits(PeftModel.from_pretrained(base, directory).eval(), ids)
    agreement = probe.compare_logits(found, expected, rounding=rounding)
    return agreement.say("in PEFT", proven=agreement.holds), agreement.holds
