"""Token ids in, text out: batched generation with a KV cache, through transformers' `generate`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from transformers import GenerationConfig
from transformers import PreTrainedTokenizerBase as Tokenizer

from loractl.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen: the likeliest at temperature 0, else drawn."""

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    batch_size: int = 32


def generate(
    model: "PreTrainedModel",
    tokenizer: Tokenizer,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
) -> list[str]:
    """The model's continuation of each prompt, in the order given, special tokens left out.

    Prompts of like length share a batch, padded on the left. A draw depends on seed and batch
    alone. An answer ends at the latest where the model's positions do. Raises ModelError for a
    prompt that leaves none of them, or that has no tokens.
    """
    _require_room(model, prompts)
    texts = [""] * len(prompts)
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    config = _config(model, tokenizer, sampling)
    limit = _positions(model)
    torch.manual_seed(sampling.seed)
    for start in range(0, len(order), sampling.batch_size):
        taken = order[start : start + sampling.batch_size]
        ids, mask = _left_padded([prompts[i] for i in taken], int(config.pad_token_id or 0))
        if limit is not None:
            config.max_new_tokens = min(sampling.max_new_tokens, limit - ids.shape[1])
        with torch.no_grad():
            out = model.generate(  # type: ignore[operator]
                input_ids=ids.to(model.device),
                attention_mask=mask.to(model.device),
                generation_config=config,
            )
        for index, answer in zip(taken, out[:, ids.shape[1] :].tolist(), strict=True):
            texts[index] = str(tokenizer.decode(answer, skip_special_tokens=True))
    return texts


def _positions(model: "PreTrainedModel") -> int | None:
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return limit if isinstance(limit, int) and limit > 0 else None


def _require_room(model: "PreTrainedModel", prompts: Sequence[Sequence[int]]) -> None:
    limit = _positions(model)
    for prompt in prompts:
        if not prompt:
            raise ModelError("an empty prompt: a model without a chat template needs text")
        if limit is not None and len(prompt) >= limit:
            raise ModelError(
                f"a prompt has {len(prompt)} tokens, but the model has {limit} positions; shorten"
                " it"
            )


def stop_ids(model: "PreTrainedModel", tokenizer: Tokenizer) -> list[int]:
    """Ids that end an answer: what the model's generation config names, and the tokenizer's own."""
    named = getattr(model.generation_config, "eos_token_id", None)
    ids = set(named if isinstance(named, list) else [named]) | {tokenizer.eos_token_id}
    return sorted(i for i in ids if isinstance(i, int))


def _config(model: "PreTrainedModel", tokenizer: Tokenizer, sampling: Sampling) -> GenerationConfig:
    stops = stop_ids(model, tokenizer)
    pad = tokenizer.pad_token_id
    if pad is None:
        pad = stops[0] if stops else 0
    # What is not set here comes from the model's generation_config.json, which may penalise or
    # search.
    plain = {"num_beams": 1, "repetition_penalty": 1.0, "no_repeat_ngram_size": 0}
    drawn = {"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0}
    return GenerationConfig(  # type: ignore[no-untyped-call]
        max_new_tokens=sampling.max_new_tokens,
        eos_token_id=stops or None,
        pad_token_id=pad,
        do_sample=sampling.temperature > 0,
        **plain,
        **(drawn if sampling.temperature > 0 else {}),
    )


def _left_padded(prompts: Sequence[Sequence[int]], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and attention mask, each (prompts, longest)."""
    length = max(len(prompt) for prompt in prompts)
    ids = torch.tensor([[pad] * (length - len(p)) + list(p) for p in prompts])
    mask = torch.tensor([[0] * (length - len(p)) + [1] * len(p) for p in prompts])
    return ids, mask
