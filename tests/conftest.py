"""Fixtures of every room: tiny models and data (tiny.py) in directories, adapters, their logits."""

import atexit
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
from transformers import PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

from loractl.ops import held_memory, native
from tests.tiny import CHATML, chat_rows, make_tokenizer, save_gguf, save_tiny, write_jsonl

transformers_logging.set_verbosity_error()
transformers_logging.disable_progress_bar()
atexit.register(shutil.rmtree, os.environ["LORACTL_CACHE"], ignore_errors=True)


NATIVE_FIXTURES = {"by_c", "built"}
"""Whoever asks for one of them needs the C files compiled: see the marker `native`."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if NATIVE_FIXTURES & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.native)


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("native") and native.compiled(torch.float32) is None:
        pytest.skip(native.why_missing(torch.float32))


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


@pytest.fixture(scope="session")
def in_blocks(
    tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast
) -> Callable[..., Path]:
    """in_blocks("llama", "q4_0", "q6_k") -> a file whose matrices are in these types, in turn."""
    from tests.ggufbases import SET, WIDE, save, save_blocks

    made: dict[tuple[str, ...], Path] = {}

    def make(architecture: str, *kinds: str) -> Path:
        key = (architecture, *kinds)
        if key not in made:
            place = tmp_path_factory.mktemp(architecture)
            directory = save(place / "model", architecture, tokenizer, **WIDE, **SET[architecture])
            made[key] = save_blocks(directory, place / "model.gguf", tokenizer, kinds)
        return made[key]

    return make


@pytest.fixture
def train_file(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "train.jsonl", chat_rows())


SHORT = {"steps": 4, "batch_size": 4, "learning_rate": 1e-2, "save_every": 2}


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
            "train": {**SHORT, "report": False},
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
    from loractl.models.fingerprints import fingerprint

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
            about={"base": {"fingerprint": fingerprint(source), "name_or_path": str(base)}},
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
