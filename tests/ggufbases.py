"""Tiny models that fill whole blocks of q8_0, of every kind that can be written as GGUF."""

from collections.abc import Iterable
from itertools import cycle
from pathlib import Path

import torch
import transformers
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from loractl.ops.ggml_blocks import TYPES, BlockType
from loractl.ops.packed import Packed

SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
}
ROPE = {"rope_theta": 10000.0, "original_max_position_embeddings": 256}
LLAMA3 = {**ROPE, "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
          "high_freq_factor": 4.0}  # fmt: skip
LONG = {**ROPE, "rope_type": "longrope", "short_factor": [1 + i / 8 for i in range(8)],
        "long_factor": [2.0 + i for i in range(8)]}  # fmt: skip
GEMMA3 = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
}
BASES: dict[str, tuple[str, dict[str, object]]] = {
    "llama": ("Llama", SHAPE),
    "llama-tied": ("Llama", {**SHAPE, "tie_word_embeddings": True}),
    "llama-biased": ("Llama", {**SHAPE, "attention_bias": True, "mlp_bias": True}),
    "llama-3.1": ("Llama", {**SHAPE, "rope_parameters": LLAMA3}),
    "mistral": ("Mistral", {**SHAPE, "head_dim": 32, "sliding_window": 40}),
    "qwen2": ("Qwen2", {**SHAPE, "rope_parameters": {**ROPE, "rope_type": "yarn", "factor": 4.0}}),
    "qwen3": ("Qwen3", {**SHAPE, "head_dim": 32}),
    "gemma2": ("Gemma2", {**SHAPE, "head_dim": 32, "query_pre_attn_scalar": 32,
                          "sliding_window": 8}),
    "gemma3": ("Gemma3Text", {**SHAPE, "head_dim": 32, "query_pre_attn_scalar": 32,
                              "num_hidden_layers": 7, "sliding_window": 8,
                              "rope_parameters": GEMMA3}),
    "phi3": ("Phi3", {**SHAPE, "pad_token_id": 0, "sliding_window": 48}),
    "phi3-long": ("Phi3", {**SHAPE, "pad_token_id": 0, "rope_parameters": LONG,
                           "original_max_position_embeddings": 256}),
}  # fmt: skip
UNUSED_ROWS = 4
HALVES = {"q2_k": (80, 82), "q3_k": (108,), "q6_k": (208,)} | dict.fromkeys(
    ("q4_1", "q5_1", "q4_k", "q5_k"), (0, 2)
)
"""Where the float16 numbers of a block are, if it is not one at its beginning."""
LOWS = {"q4_1": -7.5, "q5_1": -15.5, "q2_k": 1.5, "q4_k": 7.5, "q5_k": 15.5}
"""The second of them in scales, for numbers that are 0 in the mean: a layer of others adds much the
same to all, in which rounding drowns."""
WIDE = {"hidden_size": 256, "intermediate_size": 512}
"""Rows of whole blocks of 256."""
PLAIN_ROPE = {
    kind: {"rope_type": "default", "rope_theta": theta}
    for kind, theta in (("full_attention", 1e6), ("sliding_attention", 1e4))
}
SET: dict[str, dict[str, object]] = {
    "llama": {},
    "llama-tied": {},
    "llama-3.1": {},
    "qwen2": {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}},
    "qwen3": {"head_dim": 128},
    "gemma2": {"head_dim": 256, "query_pre_attn_scalar": 256},
    "gemma3": {"head_dim": 256, "query_pre_attn_scalar": 256, "rope_parameters": PLAIN_ROPE},
    "phi3": {"sliding_window": None},
}
"""What transformers 5.23 does not read from a GGUF file but takes from the largest models."""


def save(directory: Path, name: str, tokenizer: PreTrainedTokenizerFast, **changes: object) -> Path:
    """Write a random model whose norms and biases are random too, and the tokenizer."""
    kind, shape = BASES[name]
    config = getattr(transformers, f"{kind}Config")(
        **{
            "vocab_size": len(tokenizer) + UNUSED_ROWS,
            "eos_token_id": tokenizer.eos_token_id,
            "bos_token_id": tokenizer.bos_token_id,
            **shape,
            **changes,
        }
    )
    torch.manual_seed(0)
    model_class = {"Gemma3Text": "Gemma3ForCausalLM"}.get(kind, f"{kind}ForCausalLM")
    model = getattr(transformers, model_class)(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4)
            else:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def blocks_of(kind: BlockType, d_out: int, d_in: int, seed: int = 0) -> Packed:
    """Random codes, with numbers about as large as those of a real weight."""
    source = torch.Generator().manual_seed(seed)
    shape = (d_out, d_in // kind.values, kind.size)
    blocks = torch.randint(0, 256, shape, dtype=torch.uint8, generator=source)

    def scaled(by: float) -> Packed:
        for at, times in zip(HALVES.get(kind.name, (0,)), (1.0, LOWS.get(kind.name)), strict=False):
            blocks[:, :, at : at + 2] = torch.tensor([by * (times or 1.0)]).half().view(torch.uint8)
        return Packed.of_blocks(blocks.flatten(1), kind, torch.float32)

    return scaled(0.03 / float(scaled(1.0).dense().std()))


def save_blocks(
    directory: Path, path: Path, tokenizer: PreTrainedTokenizerFast, kinds: Iterable[str]
) -> Path:
    """Write the model of a directory as GGUF, its matrices as random blocks of these types in turn
    (q8_0 where rows are no whole blocks), or as the model's own numbers in f32, f16 and bf16."""
    import gguf
    import numpy as np

    from loractl.artifacts.gguf import layout, vocabulary
    from loractl.artifacts.gguf.write import _add_field

    config = AutoConfig.from_pretrained(directory)
    form = layout.layout(str(directory), config)
    writer = gguf.GGUFWriter(path, form.family.architecture)
    fields = vocabulary.fields(
        "tiny", tokenizer, config.vocab_size, stops=[tokenizer.eos_token_id], rendered=None
    )
    for key, value in (form.fields | fields).items():
        _add_field(writer, key, value)
    named = {one.name: one for one in TYPES.values()}
    turn = cycle(kinds)
    tensors: dict[str, Tensor] = AutoModelForCausalLM.from_pretrained(directory).state_dict()
    for number, (name, tensor) in enumerate(tensors.items()):
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        order = form.row_order(name, len(tensor))
        tensor = (tensor if order is None else tensor[order]) + form.shift(name)
        kind = next(turn) if tensor.dim() > 1 else "f32"
        if kind in named and tensor.shape[1] % named[kind].values:
            kind = "q8_0"
        raw = gguf.GGMLQuantizationType[kind.upper()]
        if kind in named:
            data = blocks_of(named[kind], *tensor.shape, seed=number).codes.numpy()
        else:
            data = gguf.quantize(tensor.numpy(), raw)
        writer.add_tensor(form.name_of(name), np.ascontiguousarray(data), raw_dtype=raw)
    for name, tensor in form.extra.items():
        writer.add_tensor(name, tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
