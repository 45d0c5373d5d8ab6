"""Tiny random models of several architectures, a tokenizer with a chat template, and small data."""

import atexit
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported: no test may reach a network
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["NO_COLOR"] = "1"
os.environ["LORACTL_CACHE"] = tempfile.mkdtemp(prefix="loractl-cache-")
# A second thread gains nothing on models this small, and on a busy machine the two wait for each
# other:
# the tests of models/ took 88 s with two threads and 11 s with one.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

from loractl.ops import held_memory

transformers_logging.set_verbosity_error()
transformers_logging.disable_progress_bar()
atexit.register(shutil.rmtree, os.environ["LORACTL_CACHE"], ignore_errors=True)

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


@pytest.fixture
def nothing_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Logits and what layers keep come from torch each time, so that it can say how much it is; and
    no product makes a copy of its result, which planning does not count (fast_layer_bytes.py)."""
    kept = held_memory.scratch  # what is there for one call is: torch would free it before the call

    def anew(name: str, values: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        is_logits = name == "logits"
        return torch.empty(values, dtype=dtype) if is_logits else kept(name, values, dtype)

    monkeypatch.setattr(held_memory, "scratch", anew)
    monkeypatch.setattr(held_memory, "take", torch.empty)
    monkeypatch.setattr(held_memory, "give", lambda block: None)
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", False)


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return make_tokenizer()


@pytest.fixture(scope="session")
def base(
    tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast
) -> Callable[..., Path]:
    """base("llama") -> a model directory with tokenizer, made once; never write into it."""
    made: dict[tuple[str, str], Path] = {}

    def make(architecture: str = "llama", dtype: str = "float32", seed: int = 0) -> Path:
        key = (architecture, f"{dtype}-{seed}")
        if key not in made:
            made[key] = tmp_path_factory.mktemp(f"{architecture}-{dtype}")
            save_tiny(made[key], tokenizer, architecture, dtype=dtype, seed=seed)
        return made[key]

    return make


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


@pytest.fixture
def train_file(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "train.jsonl", chat_rows())


@pytest.fixture
def config_file(tmp_path: Path, train_file: Path, base: Callable[..., Path]) -> Callable[..., Path]:
    """config_file("lora: {rank: 2}", ...) -> a config.yaml of a short run in its own directory.

    Each argument is a YAML mapping of one top-level section that replaces or extends the default's.
    """
    import yaml

    def write(*sections: str, model: Path | None = None) -> Path:
        config: dict[str, object] = {
            "model": {"name_or_path": str(model or base("llama")), "dtype": "float32"},
            "lora": {"rank": 4, "target_modules": "all-linear"},
            "data": {"train": str(train_file), "max_length": 256},
            "train": {"steps": 4, "batch_size": 4, "learning_rate": 1e-2, "save_every": 2},
            "out": str(tmp_path / "run"),
        }
        for section in sections:
            for key, value in yaml.safe_load(section).items():
                old = config.get(key)
                merged = {**old, **value} if isinstance(old, dict) else value
                config[key] = merged
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump(config, sort_keys=False), "utf-8")
        return path

    return write


@pytest.fixture
def adapter_dir(tmp_path: Path) -> Callable[..., Path]:
    """adapter_dir(base) -> a directory with an adapter for it, A and B random, as ours are written.

    `target_modules` and so on are RankSpec's; `size` is the standard deviation of A and of B;
    `embedding` as a target means the input embedding, by whatever name the model has it, and
    `head` the output head.
    """
    from loractl.artifacts.peft import adapter
    from loractl.artifacts.peft import config as peft_config
    from loractl.artifacts.peft import names as peft_names
    from loractl.lora.inject import adaptable, inject_
    from loractl.lora.ranks import RankSpec, resolve
    from loractl.models import load

    def make(base: Path, name: str = "adapter", *, size: float = 0.15, **settings: object) -> Path:
        source = load.locate(str(base))
        model = load.load_model(source, dtype=torch.float32, device=torch.device("cpu"))
        table, head = model.get_input_embeddings(), load.head_name(model)
        own = {
            "embedding": next(n for n, module in model.named_modules() if module is table),
            "head": head,
        }
        targets = settings.get("target_modules", "all-linear")
        if isinstance(targets, list):
            targets = [own.get(target, target) for target in targets]
        spec = RankSpec(**{"rank": 4, "alpha": 6, **settings, "target_modules": targets})
        kinds = adaptable(model)
        ranks = resolve(spec, kinds, head=head)
        everything = [n for n, _ in model.named_modules()]
        content = peft_config.content(
            ranks, everything, spec=spec, kinds=kinds, dropout=0.0, base=str(base)
        )
        layers = inject_(model, ranks)
        torch.manual_seed(7)
        with torch.no_grad():
            for parameter in peft_names.parameters(layers).values():
                parameter.normal_(std=size)
        directory = tmp_path / name
        directory.mkdir()
        adapter.write(
            directory,
            peft_names.parameters(layers),
            config=content,
            about={"base": {"fingerprint": load.fingerprint(source), "name_or_path": str(base)}},
            chat_template=CHATML,
        )
        return directory

    return make


@pytest.fixture
def peft_model() -> Callable[..., object]:
    """peft_model(base, adapter) -> the two as PEFT loads them, in float32."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    def make(base: Path, directory: Path) -> object:
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        return PeftModel.from_pretrained(model, directory).eval()

    return make


@pytest.fixture
def logits() -> Callable[..., torch.Tensor]:
    """logits(model) -> its logits on some fixed tokens; a path is loaded in float32 first."""
    from transformers import AutoModelForCausalLM

    def compute(model: object) -> torch.Tensor:
        if isinstance(model, Path):
            model = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
        generator = torch.Generator().manual_seed(11)
        ids = torch.randint(0, 300, (2, 16), generator=generator)
        with torch.no_grad():
            return model(input_ids=ids, use_cache=False).logits  # type: ignore[operator, no-any-return]

    return compute


@pytest.fixture(scope="session")
def gguf_base(
    base: Callable[..., Path],
    tokenizer: PreTrainedTokenizerFast,
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[..., Path]:
    """gguf_base("llama") -> the base of that name as a float32 .gguf file in the llama layout."""

    def make(architecture: str = "llama", splitting: str = "default") -> Path:
        path = tmp_path_factory.mktemp("gguf") / f"{architecture}.gguf"
        save_gguf(base(architecture), tokenizer, path, splitting=splitting)
        return path

    return make


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


@pytest.fixture(scope="session")
def wide(
    tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """wide("llama") -> one of tests/ggufbases.py, made once; never write into it."""
    from tests.ggufbases import save

    made: dict[str, Path] = {}

    def make(name: str = "llama") -> Path:
        if name not in made:
            made[name] = save(tmp_path_factory.mktemp(name), name, tokenizer)
        return made[name]

    return make
