"""Random models made from a config, and random rows: nothing is read from a file."""

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from loractl.data.batches import collate
from loractl.models.shape.sizes import SIZES
from loractl.records import UNTRAINED, Batch, Example

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SMALL = "135M"
SMOLLM2: dict[str, Any] = {
    "model_type": "llama", "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536,
    "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3,
    "max_position_embeddings": 8192, "tie_word_embeddings": True,
}  # fmt: skip
"""SmolLM2-135M-Instruct's config.json."""
TINY: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 128,
}  # fmt: skip
"""What a model of any size becomes on a pretend device."""


def shape_of(size: str, *, tiny: bool = False) -> dict[str, Any]:
    """The config.json of a size, as far as it decides the shape."""
    shape = dict(SMOLLM2 if size == SMALL else SIZES[size].config)
    return shape | (TINY | {"head_dim": 16} if tiny else {})


def made(shape: dict[str, Any], dtype: torch.dtype, device: torch.device) -> "PreTrainedModel":
    """A model of a config.json with random weights, made on the device: 16 GB are not first made in
    host memory."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(**shape)
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    model.config.use_cache = False
    return model.train()


def batch_of(rows: "list[list[int]]", vocabulary: int, seed: int) -> Batch:
    """Rows of examples of these lengths with random ids; the first quarter of each example is not
    trained, as a prompt is not."""
    generator = torch.Generator().manual_seed(seed)

    def example(length: int) -> Example:
        ids = torch.randint(3, vocabulary, (length,), generator=generator).tolist()
        prompt = length // 4
        return Example(ids, [UNTRAINED] * prompt + ids[prompt:], line=1)

    batch = collate([[example(length) for length in row] for row in rows])
    return replace(batch, lines=tuple(range(1, 1 + sum(map(len, rows)))))
