"""An adapter as vLLM and other readers of PEFT's layout take it: one rank, one alpha, alpha / r.

They read r, lora_alpha and target_modules alone. The scale of rsLoRA is folded into alpha; modules
of a smaller rank are padded with zeros; what then still differs in scale is folded into B.
"""

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import pad

from loractl.artifacts.model.proof import FP32_TOLERANCE, probe_ids, probe_logits
from loractl.artifacts.peft import adapter as adapters
from loractl.artifacts.peft import config as peft_config
from loractl.artifacts.peft.adapter import Adapter
from loractl.artifacts.peft.attach import load_
from loractl.artifacts.peft.names import PREFIX, SUFFIXES
from loractl.artifacts.peft.updates import others, updates
from loractl.errors import ArtifactError
from loractl.lora.inject import adaptable
from loractl.lora.ranks import ModuleRank, RankSpec
from loractl.models.load import Source, head_name, load_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ROUNDING_FACTOR = 4.0


def write(
    directory: Path, adapter: Adapter, skeleton: "PreTrainedModel", *, dtype: torch.dtype, base: str
) -> int:
    """Write the portable form; return its rank. Raises ArtifactError naming what it cannot hold."""
    strange = sorted(name for name in others(adapter) if ".base_layer." not in name)
    if strange:
        raise _not_held(adapter, f"{strange[0]} is no part of a plain low-rank update")
    found = updates(adapter)
    head = head_name(skeleton)
    for module, update in found.items():
        if update.kind == "embedding" or module == head:
            raise _not_held(adapter, f"{module} is no layer of attention or MLP")
    rank = max(update.factors.rank for update in found.values())
    first = next(iter(found.values()))
    scale = first.factors.scale
    alpha = scale * rank
    tensors: dict[str, Tensor] = {}
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
    )
    adapters.write(
        directory,
        tensors,
        config=config,
        about=adapter.about,
        chat_template=adapter.chat_template,
    )
    return rank


def _not_held(adapter: Adapter, what: str) -> ArtifactError:
    return ArtifactError(
        f"{adapter.directory}: {what}, which vLLM and others do not read; use loractl merge"
    )


def prove(
    directory: Path, source: Source, adapter: Adapter, dtype: torch.dtype
) -> tuple[str, bool]:
    """Compare what PEFT makes of it with base + adapter: a sentence, and whether they agree."""
    from peft import PeftModel

    cpu = torch.device("cpu")
    model = load_model(source, dtype=torch.float32, device=cpu)
    ids = probe_ids(model)
    layers = load_(model, adapter)
    expected = probe_logits(model, ids)
    bound = FP32_TOLERANCE * max(1.0, float(expected.abs().max()))
    if dtype != torch.float32:
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for part in (part for layer in layers.values() for part in (layer.A, layer.B)):
                signs = torch.randint(0, 2, part.shape, generator=generator) * 2 - 1
                part.add_((part.to(dtype).float() - part) * signs)
        bound += ROUNDING_FACTOR * float((probe_logits(model, ids) - expected).abs().max())
    del model, layers
    base = load_model(source, dtype=torch.float32, device=cpu)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PEFT's, of names in transformers
        found = probe_logits(PeftModel.from_pretrained(base, directory).eval(), ids)
    difference = float((found - expected).abs().max())
    agreement = float((found.argmax(-1) == expected.argmax(-1)).float().mean())
    holds = difference <= bound
    return (
        f"{'proven' if holds else 'FAILED'}: logits in PEFT and of base + adapter differ by at most"
        f" {difference:.2e}, allowed {bound:.2e}; same next token in {agreement:.1%}"
    ), holds
