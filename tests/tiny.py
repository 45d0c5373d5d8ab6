"""Tiny random models of several architectures, a tokenizer with a chat template, and small data."""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from loractl.data.batches import collate
from loractl.records import UNTRAINED, Batch, Example

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TEXT = [
    "The quick brown fox jumps over the lazy dog.",
    "What is 12 plus 7? 12 plus 7 is 19.",
    '{"item": "cup", "quantity": 3, "colour": "blue"}',
    "<|im_start|>system user assistant tool",
    "Straße, café, naïve, 東京, Привет",
]
SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512, "n_inner": 48}
OPT = {
    "hidden_size": 32, "ffn_dim": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "word_embed_proj_dim": 32, "max_position_embeddings": 512, "dropout": 0.0,
}  # fmt: skip
NEOX = {k: v for k, v in SHAPE.items() if k != "num_key_value_heads"}
ARCHITECTURES: dict[str, tuple[str, dict[str, object]]] = {
    "llama": ("Llama", {**SHAPE, "tie_word_embeddings": False}),
    "llama-tied": ("Llama", {**SHAPE, "tie_word_embeddings": True}),
    "mistral": ("Mistral", {**SHAPE, "sliding_window": 8}),
    "qwen3": ("Qwen3", {**SHAPE, "head_dim": 16}),
    "gemma3": ("Gemma3Text", {**SHAPE, "head_dim": 16, "sliding_window": 8}),
    "phi3": ("Phi3", {**SHAPE, "pad_token_id": 0}),
    "opt": ("OPT", OPT),
    "gpt-neox": ("GPTNeoX", NEOX),
    "mixtral": ("Mixtral", {**SHAPE, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "gpt2": ("GPT2", {**GPT2, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}),
}
CAUSAL = {"Gemma3Text": "Gemma3ForCausalLM", "GPT2": "GPT2LMHeadModel"}


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer in the manner of SmolLM2: ChatML, and pad == eos == <|im_end|>."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=340,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(TEXT, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        unk_token="<|endoftext|>",
        chat_template=CHATML,
    )


def save_tiny(
    directory: Path,
    tokenizer: PreTrainedTokenizerFast,
    architecture: str,
    *,
    dtype: str = "float32",
    seed: int = 0,
    **changes: object,
) -> None:
    """Write a tiny random model and the tokenizer into a directory."""
    name, shape = ARCHITECTURES[architecture]
    config_class = getattr(transformers, f"{name}Config")
    ids = {"eos_token_id": tokenizer.eos_token_id, "bos_token_id": tokenizer.bos_token_id}
    config = config_class(**{"vocab_size": len(tokenizer), **ids, **shape, **changes})
    torch.manual_seed(seed)
    model = getattr(transformers, CAUSAL.get(name, f"{name}ForCausalLM"))(config)
    with torch.no_grad():  # the default start is near zero, which would hide errors of some size
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4)
    model.to(getattr(torch, dtype)).save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def chat_rows(n: int = 12) -> list[dict[str, object]]:
    """Rows in the messages layout, of very different length, each answer right and its own."""
    rows = []
    for i in range(n):
        words = " ".join(TEXT[(i + k) % len(TEXT)] for k in range(i % 4))
        rows.append(
            {
                "messages": [
                    {"role": "user", "content": f"What is {i} plus {i}? {words}".strip()},
                    {"role": "assistant", "content": f"{i} plus {i} is {2 * i}."},
                ]
            }
        )
    return rows


def write_jsonl(path: Path, rows: list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    return path


def batch_of(*rows: Sequence[int], untrained: float = 0.0, vocabulary: int = 99) -> Batch:
    """Rows of examples of these lengths; the first `untrained` of each, a share, is not trained."""
    generator = torch.Generator().manual_seed(1)

    def example(size: int) -> Example:
        ids = torch.randint(3, vocabulary, (size,), generator=generator).tolist()
        first = int(size * untrained)
        return Example(ids, [UNTRAINED] * first + ids[first:], line=1)

    return collate([[example(size) for size in row] for row in rows])


def save_gguf(
    directory: Path, tokenizer: PreTrainedTokenizerFast, path: Path, *, splitting: str = "default"
) -> None:
    """Write a tiny Llama as GGUF: llama.cpp's names, and its order of the rows of q and k."""
    import gguf
    from safetensors.torch import load_file

    config = json.loads((directory / "config.json").read_text("utf-8"))
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_rope_dimension_count(config["hidden_size"] // heads)
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    core = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    tokens = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    special = set(tokenizer.all_special_ids)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(splitting)
    writer.add_token_list(tokens)
    writer.add_token_types([3 if i in special else 1 for i in range(len(tokens))])
    writer.add_token_merges([" ".join(pair) for pair in core["merges"]])
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_chat_template(CHATML)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    for name, tensor in load_file(directory / "model.safetensors").items():
        if ".q_proj." in name or ".k_proj." in name:
            n = heads if ".q_proj." in name else kv_heads
            tensor = tensor.unflatten(0, (n, 2, -1)).transpose(1, 2).flatten(0, 2)
        found = names.get_name(name, try_suffixes=(".weight",))
        assert found, name
        writer.add_tensor(found, tensor.float().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
