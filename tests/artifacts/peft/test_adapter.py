"""Adapter files both ways with PEFT, and what is wrong with those that are refused."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from loractl.artifacts.peft import adapter as adapters
from loractl.artifacts.peft.adapter import CONFIG, WEIGHTS, Adapter, read
from loractl.artifacts.peft.attach import load_, ranks_of
from loractl.artifacts.run import checkpoint
from loractl.errors import ArtifactError

Make = Callable[..., Path]
Logits = Callable[..., Tensor]
Change = Callable[[dict[str, Tensor]], object]

# PEFT asks transformers for a name that is going away; nothing to do with adapters.
pytestmark = pytest.mark.filterwarnings(
    "ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"
)
ARCHITECTURES = [
    "llama", "llama-tied", "mistral", "qwen3", "gemma3", "phi3", "opt", "gpt-neox", "gpt2",
]  # fmt: skip
TIED = pytest.mark.filterwarnings("ignore:Model has .tie_word_embeddings=True.:UserWarning")
"""What PEFT says whenever one of two tied layers is adapted."""


def plain(base: Path) -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    return model.eval()


def ours(base: Path, directory: Path) -> PreTrainedModel:
    model = plain(base)
    load_(model, read(directory))
    return model


def assert_same(found: Tensor, expected: Tensor, base: Tensor) -> None:
    """Equal to 1e-5 x max(1, max |logit|), and far from what the base says."""
    bound = 1e-5 * max(1.0, float(expected.abs().max()))
    assert float((found - expected).abs().max()) <= bound
    assert float((expected - base).abs().max()) > 1000 * bound


CASES: dict[str, dict[str, Any]] = {
    "all-linear": {},
    "rslora": {"scaling": "rslora", "target_modules": "attention"},
    "a-block": {"layers": [1], "target_modules": "minimal"},
    "patterns": {"rank_pattern": {r".*\.1\..*": 2}, "alpha_pattern": {r".*\.0\..*": 3.5}},
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_peft_reads_ours_and_answers_alike(
    architecture: str,
    case: str,
    base: Make,
    adapter_dir: Make,
    peft_model: Callable[..., Any],
    logits: Logits,
) -> None:
    where = base(architecture)
    directory = adapter_dir(where, **CASES[case])
    expected = logits(ours(where, directory))
    assert_same(logits(peft_model(where, directory)), expected, logits(where))


@TIED
@pytest.mark.parametrize("targets", [["embedding"], ["head"], ["embedding", "head"]])
@pytest.mark.parametrize("architecture", ["llama", "llama-tied", "gemma3", "gpt2", "opt"])
def test_peft_reads_our_embeddings_and_heads_and_answers_alike(
    architecture: str,
    targets: list[str],
    base: Make,
    adapter_dir: Make,
    peft_model: Callable[..., Any],
    logits: Logits,
) -> None:
    where = base(architecture)
    directory = adapter_dir(where, target_modules=targets)
    expected = logits(ours(where, directory))
    assert_same(logits(peft_model(where, directory)), expected, logits(where))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_our_tensors_have_the_names_shapes_and_dtype_of_pefts(
    architecture: str, base: Make, adapter_dir: Make, tmp_path: Path
) -> None:
    where = base(architecture)
    directory = adapter_dir(where, rank=3)
    config = LoraConfig(
        r=3,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
        fan_in_fan_out=architecture == "gpt2",
    )
    get_peft_model(plain(where), config).save_pretrained(tmp_path / "peft")
    found, expected = (
        {name: (tensor.shape, tensor.dtype) for name, tensor in load_file(path / WEIGHTS).items()}
        for path in (directory, tmp_path / "peft")
    )
    assert found == expected


@TIED
def test_our_embedding_tensors_have_the_names_and_shapes_of_pefts(
    base: Make, adapter_dir: Make
) -> None:
    directory = adapter_dir(base("llama"), target_modules=["embedding"], rank=3)
    model = get_peft_model(plain(base("llama")), LoraConfig(r=3, target_modules=["embed_tokens"]))
    theirs = get_peft_model_state_dict(model, save_embedding_layers=False)
    found = load_file(directory / WEIGHTS)
    assert {n: t.shape for n, t in found.items()} == {n: t.shape for n, t in theirs.items()}


def peft_saved(base: Path, directory: Path, **settings: Any) -> Tensor:
    """Save an adapter as PEFT does, A and B random; return its logits."""
    model = get_peft_model(plain(base), LoraConfig(task_type="CAUSAL_LM", **settings)).eval()
    torch.manual_seed(9)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.15)
    model.save_pretrained(directory)
    generator = torch.Generator().manual_seed(11)
    ids = torch.randint(0, 300, (2, 16), generator=generator)
    with torch.no_grad():
        scores: Tensor = model(input_ids=ids, use_cache=False).logits
    return scores


THEIRS: dict[str, tuple[str, dict[str, Any]]] = {
    "list": ("llama", {"target_modules": ["q_proj", "down_proj"]}),
    "regex": ("llama", {"target_modules": r".*\.1\.(self_attn|mlp)\.(q|up)_proj"}),
    "all-linear": ("phi3", {"target_modules": "all-linear"}),
    "rslora": ("qwen3", {"target_modules": "all-linear", "use_rslora": True}),
    "defaults": ("llama", {}),
    "conv1d": ("gpt2", {"target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True}),
    "rank-pattern": (
        "llama",
        {"target_modules": "all-linear", "rank_pattern": {"q_proj": 2, "layers.1.mlp.*": 5}},
    ),
    "alpha-pattern": (
        "llama",
        {
            "target_modules": ["q_proj", "v_proj"],
            "alpha_pattern": {"0.self_attn.q_proj": 3, "v_proj": 40},
            "use_rslora": True,
        },
    ),
    "gaussian": ("gpt-neox", {"target_modules": "all-linear", "init_lora_weights": "gaussian"}),
    "orthogonal": ("llama", {"target_modules": ["o_proj"], "init_lora_weights": "orthogonal"}),
    "some-layers": ("llama", {"target_modules": ["v_proj"], "layers_to_transform": [1]}),
    "excluding": ("llama", {"target_modules": "all-linear", "exclude_modules": ["q_proj"]}),
    "dropout": ("llama", {"target_modules": "all-linear", "lora_dropout": 0.3}),
}


@pytest.mark.parametrize("case", THEIRS)
def test_adapters_of_peft_are_read_and_answer_alike(
    case: str, base: Make, logits: Logits, tmp_path: Path
) -> None:
    architecture, settings = THEIRS[case]
    where = base(architecture)
    expected = peft_saved(where, tmp_path / "peft", **{"r": 4, "lora_alpha": 6, **settings})
    assert_same(logits(ours(where, tmp_path / "peft")), expected, logits(where))


@TIED
@pytest.mark.filterwarnings("ignore:Setting .save_embedding_layers. to .True.:UserWarning")
@pytest.mark.parametrize("targets", [["embed_tokens"], ["lm_head", "q_proj"]])
@pytest.mark.parametrize("architecture", ["llama", "llama-tied", "gemma3"])
def test_base_weights_that_peft_lays_beside_embedding_adapters_may_be_there(
    architecture: str, targets: list[str], base: Make, logits: Logits, tmp_path: Path
) -> None:
    where = base(architecture)
    expected = peft_saved(where, tmp_path / "peft", r=4, target_modules=targets)
    tensors = load_file(tmp_path / "peft" / WEIGHTS)
    (copied,) = (name for name in tensors if name.endswith(".base_layer.weight"))
    assert_same(logits(ours(where, tmp_path / "peft")), expected, logits(where))
    tensors[copied][3, 5] += 0.5
    save_file(tensors, tmp_path / "peft" / WEIGHTS)
    with pytest.raises(ArtifactError, match=f"{WEIGHTS}: {copied} differs from the base's own"):
        ours(where, tmp_path / "peft")
    rounded = {name: t.bfloat16() if name == copied else t for name, t in tensors.items()}
    rounded[copied][3, 5] = plain(where).get_input_embeddings().weight[3, 5]
    if targets == ["embed_tokens"]:  # PEFT may have held a float32 base in bfloat16
        save_file(rounded, tmp_path / "peft" / WEIGHTS)
        ours(where, tmp_path / "peft")


DORAS: dict[str, tuple[str, dict[str, Any]]] = {
    "linear": ("llama", {"target_modules": "all-linear", "lora_dropout": 0.1}),
    "biases": ("phi3", {"target_modules": "all-linear", "use_rslora": True}),
    "conv1d": ("gpt2", {"target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True}),
    "embedding": ("llama", {"target_modules": ["embed_tokens", "q_proj"]}),
    "scaled-embedding": ("gemma3", {"target_modules": ["embed_tokens", "down_proj"]}),
}


@TIED
@pytest.mark.filterwarnings("ignore:Setting .save_embedding_layers. to .True.:UserWarning")
@pytest.mark.parametrize("case", DORAS)
def test_dora_adapters_of_peft_are_read_and_answer_alike(
    case: str, base: Make, logits: Logits, tmp_path: Path
) -> None:
    architecture, settings = DORAS[case]
    where = base(architecture)
    settings = {"r": 4, "lora_alpha": 6, "use_dora": True, **settings}
    expected = peft_saved(where, tmp_path / "peft", **settings)
    assert_same(logits(ours(where, tmp_path / "peft")), expected, logits(where))


def test_a_magnitude_too_few_too_short_or_unannounced_is_refused(
    base: Make, tmp_path: Path
) -> None:
    where, directory = base("llama"), tmp_path / "peft"
    peft_saved(where, directory, target_modules=["q_proj"], use_dora=True)
    whole = load_file(directory / WEIGHTS)
    name = next(n for n in sorted(whole) if n.endswith("lora_magnitude_vector"))
    save_file({n: t for n, t in whole.items() if n != name}, directory / WEIGHTS)
    with pytest.raises(ArtifactError, match=f"1 tensors are missing: {name}"):
        ours(where, directory)
    save_file({**whole, name: whole[name][:-1].clone()}, directory / WEIGHTS)
    with pytest.raises(ArtifactError, match=rf"{name} has shape \[31\], expected \[32\]"):
        ours(where, directory)
    save_file(whole, directory / WEIGHTS)
    config = json.loads((directory / CONFIG).read_text("utf-8"))
    (directory / CONFIG).write_text(json.dumps({**config, "use_dora": False}), "utf-8")
    with pytest.raises(ArtifactError, match=f"unexpected: {name}"):
        ours(where, directory)
    (directory / CONFIG).write_text(json.dumps({**config, "use_dora": "yes"}), "utf-8")
    with pytest.raises(ArtifactError, match='use_dora is "yes"'):
        read(directory)


def test_a_pattern_that_is_no_regex_is_refused_by_its_file_and_field(
    base: Make, adapter_dir: Make
) -> None:
    directory = adapter_dir(base("llama"))
    config = json.loads((directory / CONFIG).read_text("utf-8"))
    config["rank_pattern"] = {"(": 4}
    (directory / CONFIG).write_text(json.dumps(config), "utf-8")
    with pytest.raises(ArtifactError, match=f"{CONFIG}: rank_pattern: '\\(' is not a valid regex"):
        ours(base("llama"), directory)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b'"LORA"', b"\xff\xfe", b'{"r": ' + b"9" * 5000 + b"}", b"[" * 10**5],
)
@pytest.mark.parametrize("name", [CONFIG, adapters.ABOUT])
def test_a_file_that_is_no_json_object_is_named(
    name: str, content: bytes, base: Make, adapter_dir: Make
) -> None:
    directory = adapter_dir(base("llama"))
    (directory / name).write_bytes(content)
    with pytest.raises(ArtifactError, match=f"{directory / name}: "):
        read(directory)


def test_a_chat_template_that_is_no_text_is_named(base: Make, adapter_dir: Make) -> None:
    directory = adapter_dir(base("llama"))
    (directory / adapters.TEMPLATE).write_bytes(b"\xff\xfe")
    with pytest.raises(ArtifactError, match="chat_template.jinja: not UTF-8"):
        read(directory)


@pytest.mark.parametrize("about", [{}, {"base": "x"}, {"base": {}}, {"base": {"fingerprint": 3}}])
def test_a_foreign_loractl_json_tells_no_fingerprint(
    about: dict[str, Any], base: Make, adapter_dir: Make
) -> None:
    directory = adapter_dir(base("llama"))
    (directory / adapters.ABOUT).write_text(json.dumps(about), "utf-8")
    assert read(directory).trained_on is None


def first_A(tensors: dict[str, Tensor]) -> str:
    return next(name for name in sorted(tensors) if "lora_A" in name)


def poison(tensors: dict[str, Tensor], value: float) -> None:
    tensors[first_A(tensors)][1, 2] = value


def rename(tensors: dict[str, Tensor], old: str, new: str) -> None:
    for name in list(tensors):
        tensors[name.replace(old, new)] = tensors.pop(name)


K = r"base_model\.model\.model\.layers\.0\.mlp\.down_proj\.lora_A\.weight"
BROKEN: dict[str, tuple[Change, str]] = {
    "nan": (lambda t: poison(t, float("nan")), f"{K} holds values that are not finite"),
    "inf": (lambda t: poison(t, float("inf")), f"{K} holds values that are not finite"),
    "half-missing": (lambda t: t.pop(first_A(t)), f"1 tensors are missing: {K}"),
    "other-prefix": (
        lambda t: rename(t, "base_model.model.", "module."),
        r"0 of 28 tensors match .* unexpected: module\.model\..* \(28 in all\); expected names",
    ),
    "adapter-name": (lambda t: rename(t, "lora_A.", "lora_A.default."), "14 of 28 tensors match"),
    "extra": (lambda t: t.update(extra=torch.ones(2)), "28 of 29 tensors match .* extra;"),
    "magnitude": (
        lambda t: t.update({first_A(t)[: -len("lora_A.weight")] + "lora_magnitude": torch.ones(2)}),
        "unexpected: .*lora_magnitude;",
    ),
    "empty": (lambda t: t.clear(), "0 of 0 tensors match"),
    "wrong-rank": (
        lambda t: t.update({first_A(t): t[first_A(t)][:2]}),
        rf"{K} has shape \[2, 48\], expected \[4, 48\] \(the rank r of adapter_config.json is 4,"
        r" the layer is 48 -> 32\)",
    ),
    "wrong-width": (
        lambda t: t.update({first_A(t): t[first_A(t)][:, :16].clone()}),
        rf"{K} has shape \[4, 16\], expected \[4, 48\]",
    ),
    "one-dimension": (
        lambda t: t.update({first_A(t): t[first_A(t)].flatten()}),
        rf"{K} has shape \[192\], expected \[4, 48\]",
    ),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_tensors_that_do_not_fit_are_named_with_both_sides(
    fault: str, base: Make, adapter_dir: Make
) -> None:
    directory = adapter_dir(base("llama"))
    change, message = BROKEN[fault]
    tensors = load_file(directory / WEIGHTS)
    change(tensors)
    save_file(tensors, directory / WEIGHTS)
    model = plain(base("llama"))
    with pytest.raises(ArtifactError, match=message) as caught:
        load_(model, read(directory))
    assert WEIGHTS in str(caught.value)
    assert type(model.model.layers[0].mlp.down_proj) is torch.nn.Linear, "a half-adapted model"


@pytest.mark.parametrize("keep", [0, 7, 8, 100, 0.5, -1])
def test_a_truncated_file_is_refused(keep: float, base: Make, adapter_dir: Make) -> None:
    directory = adapter_dir(base("llama"))
    content = (directory / WEIGHTS).read_bytes()
    end = int(len(content) * keep) if isinstance(keep, float) else keep
    (directory / WEIGHTS).write_bytes(content[:end])
    with pytest.raises(ArtifactError, match=f"{WEIGHTS}: truncated or corrupt"):
        read(directory)


def test_another_models_adapter_is_refused(base: Make, adapter_dir: Make) -> None:
    adapter = read(adapter_dir(base("gpt2")))
    with pytest.raises(ArtifactError, match="0 of 16 tensors match a module of the model"):
        ranks_of(adapter, plain(base("llama")))


def test_an_adapter_that_is_a_pickle_alone_is_refused(
    base: Make, adapter_dir: Make, tmp_path: Path
) -> None:
    directory = adapter_dir(base("llama"))
    torch.save(load_file(directory / WEIGHTS), directory / "adapter_model.bin")
    (directory / WEIGHTS).unlink()
    with pytest.raises(ArtifactError, match=f"{WEIGHTS}: not found; adapter_model.bin is a pickle"):
        read(directory)
    (directory / CONFIG).unlink()
    with pytest.raises(ArtifactError, match="adapter_model.bin: a pickle, which can run code"):
        read(directory)


def test_a_missing_file_is_named(base: Make, adapter_dir: Make, tmp_path: Path) -> None:
    directory = adapter_dir(base("llama"))
    shutil.copytree(directory, tmp_path / "b")
    (directory / CONFIG).unlink()
    (tmp_path / "b" / WEIGHTS).unlink()
    with pytest.raises(ArtifactError, match=f"{CONFIG}: not found"):
        read(directory)
    with pytest.raises(ArtifactError, match=f"{WEIGHTS}: not found$"):
        read(tmp_path / "b")
    with pytest.raises(ArtifactError, match="no such directory, expected an adapter"):
        read(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ArtifactError, match="this is not an adapter, run or checkpoint directory"):
        read(tmp_path / "empty")


def test_a_run_means_its_final_adapter(base: Make, adapter_dir: Make, tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    with pytest.raises(ArtifactError, match="the run has no final adapter yet; finish it"):
        adapters.find(run)
    adapter_dir(base("llama")).rename(run / "adapter")
    assert adapters.find(run) == run / "adapter"


def test_a_run_that_trained_every_weight_has_no_adapter(tmp_path: Path) -> None:
    (tmp_path / "run" / "model").mkdir(parents=True)
    with pytest.raises(ArtifactError, match="a run with method: full has no adapter; its model is"):
        adapters.find(tmp_path / "run")


def test_a_damaged_checkpoint_is_no_adapter(base: Make, adapter_dir: Make) -> None:
    directory = adapter_dir(base("llama"))
    where = directory / WEIGHTS
    for name in (checkpoint.OPTIMIZER, checkpoint.STATE):
        (directory / name).write_text("{}")
    checkpoint.seal(directory, 1)
    read(directory)
    content = bytearray(where.read_bytes())
    content[-3] ^= 1
    where.write_bytes(content)
    with pytest.raises(ArtifactError, match=f"{where}: damaged: its SHA-256 is not the one in"):
        read(directory)


def test_what_is_half_written_is_no_adapter(base: Make, adapter_dir: Make) -> None:
    directory = adapter_dir(base("llama"), name=".step-000002.tmp-77")
    with pytest.raises(ArtifactError, match="left half-written by a process that was killed"):
        read(directory)


def test_files_have_the_mode_of_new_files(base: Make, adapter_dir: Make) -> None:
    old = os.umask(0o027)
    try:
        directory = adapter_dir(base("llama"))
    finally:
        os.umask(old)
    assert {path.stat().st_mode & 0o777 for path in directory.iterdir()} == {0o640}


def test_what_is_written_is_read_back(base: Make, adapter_dir: Make) -> None:
    settings: dict[str, Any] = {"rank": 3, "alpha": 2.5, "scaling": "rslora"}
    adapter: Adapter = read(adapter_dir(base("llama"), rank_pattern={"q_proj": 2}, **settings))
    assert (adapter.spec.rank, adapter.spec.alpha, adapter.spec.scaling) == (3, 2.5, "rslora")
    assert adapter.base == str(base("llama"))
    assert adapter.chat_template and "<|im_start|>" in adapter.chat_template
    found = ranks_of(adapter, plain(base("llama")))
    assert {size.rank for name, size in found.items() if "q_proj" in name} == {2}
    assert {size.rank for name, size in found.items() if "q_proj" not in name} == {3}
