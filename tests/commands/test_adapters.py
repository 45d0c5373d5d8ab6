"""`loractl adapters`: what it makes answers as it should, here and in PEFT, and what it refuses."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft.tuners.lora.model import LoraModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from loractl.artifacts.peft.adapter import ABOUT, CONFIG, WEIGHTS, read
from loractl.artifacts.peft.attach import load_
from loractl.artifacts.peft.updates import updates
from loractl.cli.main import main
from loractl.lora.inject import adapters

Make = Callable[..., Path]
Logits = Callable[..., Tensor]
Captured = pytest.CaptureFixture[str]

pytestmark = [
    # PEFT asks transformers for a name that is going away; nothing to do with adapters.
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"),
    # What PEFT says whenever one of two tied layers is adapted.
    pytest.mark.filterwarnings("ignore:Model has .tie_word_embeddings=True.:UserWarning"),
]
TARGETS: dict[str, tuple[str, dict[str, Any]]] = {
    "linear": ("llama", {}),
    "conv1d": ("gpt2", {}),
    "embedding": ("llama", {"target_modules": ["embedding", "q_proj"]}),
}


def resize(directory: Path, out: Path, *flags: str) -> int:
    return main(["adapters", "resize", str(directory), "--out", str(out), *flags])


def combine(out: Path, *flags: str, **named: Path) -> int:
    given = [word for name, path in named.items() for word in ("--adapter", f"{name}={path}")]
    return main(["adapters", "combine", *given, "--out", str(out), *flags])


def extract(base: Path, tuned: Path, out: Path, *flags: str) -> int:
    command = ["adapters", "extract", "--base", str(base), "--tuned", str(tuned)]
    return main([*command, "--out", str(out), *flags])


def products(directory: Path) -> dict[str, Tensor]:
    return {name: update.factors.product() for name, update in updates(read(directory)).items()}


def assert_equal_products(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Relative, Frobenius, to 1e-4, module by module."""
    assert found.keys() == expected.keys()
    for name, product in expected.items():
        assert float((found[name] - product).norm() / product.norm()) < 1e-4, name


def ours(base: Path, directory: Path) -> torch.nn.Module:
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    load_(model, read(directory))
    return model


def assert_close(found: Tensor, expected: Tensor) -> None:
    assert float((found - expected).abs().max()) <= 1e-5 * max(1.0, float(expected.abs().max()))


def edited(directory: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_file(directory / WEIGHTS)
    change(tensors)
    save_file(tensors, directory / WEIGHTS)


def redraw(tensors: dict[str, Tensor]) -> None:
    """Other numbers of the same size."""
    generator = torch.Generator().manual_seed(99)
    for name, tensor in sorted(tensors.items()):
        tensors[name] = torch.randn(tensor.shape, generator=generator) * tensor.std()


def said(capsys: Captured) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def assert_refused(capsys: Captured, *words: str) -> None:
    err = capsys.readouterr().err
    block = err[err.index("error:") :]
    assert all(word in block for word in words), err
    assert "Traceback" not in err and len(block.splitlines()) <= 3


@pytest.mark.parametrize("target", TARGETS)
def test_resizing_to_more_than_the_rank_changes_no_answer_here_and_in_peft(
    target: str,
    base: Make,
    adapter_dir: Make,
    peft_model: Callable[..., Any],
    logits: Logits,
    capsys: Captured,
    tmp_path: Path,
) -> None:
    architecture, settings = TARGETS[target]
    directory = adapter_dir(base(architecture), scaling="rslora", **settings)
    assert resize(directory, tmp_path / "out", "--rank", "9") == 0
    assert "nothing was cut" in capsys.readouterr().err
    expected = logits(ours(base(architecture), directory))
    assert_close(logits(ours(base(architecture), tmp_path / "out")), expected)
    assert_close(logits(peft_model(base(architecture), tmp_path / "out")), expected)
    about = json.loads((tmp_path / "out" / ABOUT).read_text())
    assert about["made"]["by"] == "adapters resize" and about["base"]["fingerprint"]


def test_an_energy_gives_each_module_its_own_rank_and_tells_the_error(
    base: Make,
    adapter_dir: Make,
    peft_model: Callable[..., Any],
    logits: Logits,
    capsys: Captured,
    tmp_path: Path,
) -> None:
    directory, out = adapter_dir(base("llama")), tmp_path / "out"
    assert resize(directory, out, "--energy", "0.9", "--json") == 0
    report = said(capsys)
    ranks = {name: module["rank"] for name, module in report["modules"].items()}
    assert set(ranks.values()) == {3, 4}
    config = json.loads((out / CONFIG).read_text())
    assert config["r"] == config["lora_alpha"] == 4 and set(config["rank_pattern"].values()) == {3}
    assert_close(logits(peft_model(base("llama"), out)), logits(ours(base("llama"), out)))
    before, after = products(directory), products(out)
    lost = sum(float((before[name] - after[name]).norm() ** 2) for name in before)
    total = sum(float(one.norm() ** 2) for one in before.values())
    assert report["error"] == pytest.approx((lost / total) ** 0.5, rel=1e-4)
    for name, module in report["modules"].items():
        S = torch.linalg.svdvals(before[name])
        best = float(S[module["rank"] :].norm() / S.norm())
        assert module["error"] == pytest.approx(best, abs=1e-6) and module["kept_energy"] >= 0.9


def peft_combined(
    base: Path, parts: dict[str, Path], weights: list[float], how: str, **options: Any
) -> Any:
    from peft import PeftModel

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    (first, path), *rest = parts.items()
    peft = PeftModel.from_pretrained(model, path, adapter_name=first)
    for name, path in rest:
        peft.load_adapter(path, adapter_name=name)
    peft.add_weighted_adapter(list(parts), weights, "both", combination_type=how, **options)
    peft.set_adapter("both")
    return peft.eval()


HOWS: dict[str, tuple[str, list[str], dict[str, Any]]] = {
    "linear": ("linear", [], {}),
    "cat": ("cat", [], {}),
    "svd": ("svd", ["--rank", "3"], {"svd_rank": 3}),
    "ties": ("ties", ["--density", "0.6"], {"density": 0.6}),
    "dare": ("dare_linear", ["--density", "0.7", "--seed", "3"], {"density": 0.7}),
    "dare-ties": ("dare_ties", ["--density", "0.7", "--seed", "3"], {"density": 0.7}),
}


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("target", TARGETS)
def test_a_combination_answers_as_the_one_that_peft_makes(
    target: str,
    how: str,
    base: Make,
    adapter_dir: Make,
    logits: Logits,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    architecture, settings = TARGETS[target]
    where = base(architecture)
    a = adapter_dir(where, "a", **settings)
    b = adapter_dir(where, "b", **{**settings, "alpha": 2.5, "scaling": "rslora", "size": 0.25})
    edited(b, redraw)  # the fixture draws the same numbers for both: no sign would ever differ
    peft_name, flags, options = HOWS[how]
    flags = [*flags, "--how", how, "--weight", "a=0.8", "--weight", "b=-0.5"]
    assert combine(tmp_path / "both", *flags, a=a, b=b) == 0

    mix = LoraModel._generalized_task_arithmetic_weighted_adapter

    def drawn_by_name(
        self: Any, how: str, names: Any, weights: Any, target: Any, *rest: Any
    ) -> Any:
        name = next(name for name, module in self.model.named_modules() if module is target)
        digest = hashlib.sha256(f"3:{name}".encode()).digest()
        torch.manual_seed(int.from_bytes(digest[:7], "big"))
        return mix(self, how, names, weights, target, *rest)

    monkeypatch.setattr(LoraModel, "_generalized_task_arithmetic_weighted_adapter", drawn_by_name)
    judge = peft_combined(where, {"a": a, "b": b}, [0.8, -0.5], peft_name, **options)
    expected = logits(judge)
    assert float((expected - logits(where)).abs().max()) > 0.01
    assert_close(logits(ours(where, tmp_path / "both")), expected)


def test_cat_is_the_exact_sum_also_of_adapters_of_different_modules(
    base: Make, adapter_dir: Make, peft_model: Callable[..., Any], logits: Logits, capsys: Captured,
    tmp_path: Path,
) -> None:  # fmt: skip
    a = adapter_dir(base("llama"), "a", rank=2, target_modules="minimal")
    b = adapter_dir(base("llama"), "b", rank=3, layers=[1])
    edited(b, redraw)
    out = tmp_path / "both"
    assert combine(out, "--how", "cat", "--weight", "b=0.5", "--json", a=a, b=b) == 0
    report = said(capsys)
    assert report["weights"] == {"a": 1.0, "b": 0.5} and report["difference_from_sum"] < 1e-6
    summed = products(a)
    for name, product in products(b).items():
        summed[name] = summed.get(name, torch.zeros_like(product)) + 0.5 * product
    assert_equal_products(products(out), summed)
    mine = logits(ours(base("llama"), out))
    assert_close(logits(peft_model(base("llama"), out)), mine)
    names = [f"model.layers.{i}.self_attn.{part}_proj" for i in (0, 1) for part in "qv"]
    assert [report["modules"][name]["rank"] for name in names] == [2, 2, 5, 5]
    assert combine(tmp_path / "best", "--how", "svd", "--rank", "5", a=a, b=b) == 0
    assert combine(tmp_path / "sum", "--how", "cat", a=a, b=b) == 0
    assert_equal_products(products(tmp_path / "best"), products(tmp_path / "sum"))


def test_what_dare_drops_is_a_matter_of_the_seed_alone(
    base: Make, adapter_dir: Make, tmp_path: Path
) -> None:
    a, b = (adapter_dir(base("llama"), name, size=0.1) for name in "ab")
    for out, seed in (("one", "1"), ("again", "1"), ("other", "2")):
        flags = ["--how", "dare", "--density", "0.5", "--seed", seed]
        assert combine(tmp_path / out, *flags, a=a, b=b) == 0
    files = [(tmp_path / out / WEIGHTS).read_bytes() for out in ("one", "again", "other")]
    assert files[0] == files[1] != files[2]


WRONG_RECIPES: dict[str, tuple[list[str], list[str]]] = {
    "another word": (["--how", "cta"], ["--how: found 'cta'", "did you mean cat"]),
    "rank of a sum": (["--how", "cat", "--rank", "4"], ["--rank", "only --how svd"]),
    "no density": (["--how", "ties"], ["--density: missing"]),
    "density of a sum": (["--how", "cat", "--density", "0.5"], ["--density", "not cat"]),
    "density": (["--how", "dare", "--density", "1.5"], ["--density: 1.5"]),
    "no number": (["--how", "ties", "--density", "nan"], ["--density: nan"]),
    "seed": (["--how", "svd", "--seed", "1"], ["--seed: nothing is drawn by svd"]),
    "weight of none": (["--how", "cat", "--weight", "c=1"], ["--weight: 'c=1'", "a, b"]),
    "no weight": (["--how", "cat", "--weight", "a=x"], ["--weight: 'a=x'", "a=0.5"]),
    "infinite": (["--how", "cat", "--weight", "a=inf"], ["a=inf", "finite"]),
    "twice": (["--how", "cat", "--weight", "a=1", "--weight", "a=2"], ["a has two weights"]),
    "nothing": (["--how", "cat", "--weight", "a=0", "--weight", "b=0"], ["changes nothing"]),
    "ranks": (["--how", "linear"], ["ranks 2, 4", "adapters resize first"]),
}


@pytest.mark.parametrize("case", WRONG_RECIPES)
def test_a_recipe_that_makes_no_sense_is_refused_and_nothing_is_left(
    case: str, base: Make, adapter_dir: Make, capsys: Captured, tmp_path: Path
) -> None:
    a = adapter_dir(base("llama"), "a", rank=2)
    b = adapter_dir(base("llama"), "b", rank=4)
    flags, words = WRONG_RECIPES[case]
    assert combine(tmp_path / "out", *flags, a=a, b=b) == 2
    assert_refused(capsys, *words)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_adapters_of_different_bases_are_not_combined(
    base: Make, adapter_dir: Make, capsys: Captured, tmp_path: Path
) -> None:
    a, b = adapter_dir(base("llama"), "a"), adapter_dir(base("llama", seed=1), "b")
    assert combine(tmp_path / "out", "--how", "cat", a=a, b=b) == 2
    assert_refused(capsys, "b was trained on a different base than a", "their bytes differ")
    (b / ABOUT).unlink()
    assert combine(tmp_path / "out", "--how", "cat", a=a, b=b) == 0
    assert "note: a names the base" in capsys.readouterr().err
    c = adapter_dir(base("qwen3"), "c")
    (c / ABOUT).unlink()
    assert combine(tmp_path / "qwen", "--how", "cat", a=a, c=c) == 2
    assert_refused(capsys, "self_attn.", "made for different models", "32 -> ")


def test_what_stands_at_the_place_of_the_result_is_kept_unless_it_may_go(
    base: Make, adapter_dir: Make, capsys: Captured, tmp_path: Path
) -> None:
    directory, out = adapter_dir(base("llama")), tmp_path / "out"
    assert resize(directory, out, "--rank", "2") == 0
    assert resize(directory, out, "--rank", "3") == 2
    assert_refused(capsys, f"--out: {out} exists", "--overwrite")
    assert resize(directory, out, "--rank", "3", "--overwrite") == 0
    assert json.loads((out / CONFIG).read_text())["r"] == 3
    assert resize(directory, directory, "--rank", "2", "--overwrite") == 2
    assert_refused(capsys, "would replace", str(directory))
    (tmp_path / "file").touch()
    assert resize(directory, tmp_path / "file", "--rank", "2", "--overwrite") == 2
    assert_refused(capsys, f"--out: {tmp_path / 'file'} is a file")
    assert resize(directory, tmp_path / "file" / "new", "--rank", "2") == 2
    assert_refused(capsys, f"{tmp_path / 'file'} is a file")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    capsys.readouterr()
    assert resize(directory, tmp_path / "mine", "--rank", "2", "--overwrite") == 2
    assert_refused(capsys, "holds no adapter; --overwrite replaces nothing else")
    assert (tmp_path / "mine" / "thesis.tex").exists()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ([], ["neither given"]),
        (["--rank", "2", "--energy", "0.5"], ["both given"]),
        (["--energy", "0"], ["--energy: 0.0"]),
        (["--energy", "95"], ["--energy: 95.0", "0.95"]),
        (["--energy", "nan"], ["--energy: nan"]),
        (["--rank", "0"], ["--rank", "loractl adapters resize --help"]),
        (["--rank", "2.5"], ["--rank", "integer"]),
    ],
)
def test_the_size_is_one_rank_or_one_share(
    flags: list[str], words: list[str], capsys: Captured, tmp_path: Path
) -> None:
    assert resize(tmp_path / "absent", tmp_path / "out", *flags) == 2
    assert_refused(capsys, *words)


def test_adapters_that_are_no_plain_low_rank_update_are_refused_by_name(
    base: Make, adapter_dir: Make, capsys: Captured, tmp_path: Path
) -> None:
    first = "base_model.model.model.layers.0.self_attn.q_proj"
    cases: dict[str, tuple[Callable[[dict[str, Tensor]], object], list[str]]] = {
        "half": (lambda t: t.pop(f"{first}.lora_B.weight"), [f"missing: {first}.lora_B.weight"]),
        "shape": (
            lambda t: t.update({f"{first}.lora_A.weight": torch.ones(3, 32)}),
            [first, "[3, 32]", "expected [4, d_in]"],
        ),
        "magnitude": (
            lambda t: t.update({f"{first}.lora_magnitude_vector": torch.ones(32)}),
            [f"{first}.lora_magnitude_vector", "plain low-rank update"],
        ),
        "zero": (
            lambda t: t.update({n: torch.zeros_like(v) for n, v in t.items() if "lora_B" in n}),
            ["changes nothing"],
        ),
    }
    for name, (change, words) in cases.items():
        directory = adapter_dir(base("llama"), name)
        edited(directory, change)
        assert resize(directory, tmp_path / "out", "--rank", "2") == 2, name
        assert_refused(capsys, *words)
        assert not (tmp_path / "out").exists()
    assert resize(tmp_path / "absent", tmp_path / "out", "--rank", "2") == 2
    assert_refused(capsys, f"{tmp_path / 'absent'}: no such directory")


def test_a_checkpoint_that_counts_from_a_start_is_resized_as_the_update_that_it_is(
    base: Make, adapter_dir: Make, logits: Logits, tmp_path: Path
) -> None:
    directory = adapter_dir(base("llama"), target_modules="minimal")
    starts: dict[str, Tensor] = {}

    def start(tensors: dict[str, Tensor]) -> None:
        for name, tensor in tensors.items():
            started = name.replace("lora_A", "lora_A0").replace("lora_B", "lora_B0")
            starts[started] = tensor + 0.05 * torch.ones_like(tensor)
        tensors.update(starts)

    edited(directory, start)
    config = json.loads((directory / CONFIG).read_text())
    (directory / CONFIG).write_text(json.dumps({**config, "init_lora_weights": "pissa"}))
    out = tmp_path / "out"
    assert resize(directory, out, "--rank", "8") == 0
    assert_close(logits(ours(base("llama"), out)), logits(ours(base("llama"), directory)))
    layers = adapters(ours(base("llama"), directory))
    expected = {name: layer.delta().double() for name, layer in layers.items()}
    assert_equal_products(products(out), expected)
    assert json.loads((out / CONFIG).read_text())["init_lora_weights"] is True
    edited(directory, lambda tensors: tensors.pop(sorted(starts)[0]))
    assert resize(directory, out, "--rank", "8", "--overwrite") == 2


@pytest.fixture
def merged(tmp_path: Path, capsys: Captured) -> Callable[..., Path]:
    def make(directory: Path, *flags: str) -> Path:
        out = tmp_path / "merged"
        assert main(["merge", str(directory), "--out", str(out), "--no-verify", *flags]) == 0
        capsys.readouterr()
        return out

    return make


@pytest.mark.parametrize("architecture", ["llama", "llama-tied", "gpt2", "gemma3", "opt", "phi3"])
def test_the_adapter_of_a_merged_model_is_found_again(
    architecture: str,
    base: Make,
    adapter_dir: Make,
    merged: Callable[..., Path],
    peft_model: Callable[..., Any],
    logits: Logits,
    capsys: Captured,
    tmp_path: Path,
) -> None:
    where = base(architecture)
    directory = adapter_dir(where, rank=3)
    tuned, out = merged(directory), tmp_path / "out"
    assert extract(where, tuned, out, "--rank", "3", "--json") == 0
    report = said(capsys)
    assert_equal_products(products(out), products(directory))
    assert all(module["kept_energy"] > 1 - 1e-8 for module in report["modules"].values())
    assert report["not_expressed"] == {} and report["kept_energy"] > 1 - 1e-8
    assert_close(logits(peft_model(where, out)), logits(tuned))
    assert extract(where, tuned, tmp_path / "energy", "--energy", "0.99999") == 0
    assert {update.factors.rank for update in updates(read(tmp_path / "energy")).values()} == {3}


def test_tables_are_taken_in_when_asked_for_and_told_of_otherwise(
    base: Make,
    adapter_dir: Make,
    merged: Callable[..., Path],
    logits: Logits,
    capsys: Captured,
    tmp_path: Path,
) -> None:
    where = base("llama-tied")
    directory = adapter_dir(where, target_modules=["embedding", "q_proj"])
    tuned, out = merged(directory), tmp_path / "out"  # its head is untied, and the old table
    assert extract(where, tuned, out, "--rank", "4", "--json") == 0
    report = said(capsys)
    assert list(report["not_expressed"]) == ["model.embed_tokens.weight"]
    assert report["not_expressed"]["model.embed_tokens.weight"]["relative_change"] > 0.1
    assert 0 < report["kept_energy"] < 0.99 and report["kept_energy_of_modules"] > 1 - 1e-8
    assert extract(where, tuned, out, "--rank", "4", "--embeddings", "--overwrite") == 0
    assert_equal_products(products(out), products(directory))
    assert_close(logits(ours(where, out)), logits(tuned))


def tune(where: Path, out: Path, change: Callable[[str, Tensor], Tensor]) -> Path:
    shutil.copytree(where, out)
    path = out / "model.safetensors"
    tensors = {name: change(name, tensor) for name, tensor in load_file(path).items()}
    save_file(tensors, path, metadata={"format": "pt"})
    return out


def moved(name: str, tensor: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(len(name))
    return tensor + 0.01 * torch.randn(tensor.shape, generator=generator).to(tensor.dtype)


def test_a_table_that_is_also_the_head_gives_both_their_updates(
    base: Make, logits: Logits, capsys: Captured, tmp_path: Path
) -> None:
    where, out = base("llama-tied"), tmp_path / "out"
    tuned = tune(where, tmp_path / "tuned", lambda n, t: moved(n, t) if "embed" in n else t)
    assert extract(where, tuned, out, "--rank", "32", "--embeddings") == 0
    assert "lm_head is adapted" in capsys.readouterr().err
    assert sorted(updates(read(out))) == ["lm_head", "model.embed_tokens"]
    assert_close(logits(ours(where, out)), logits(tuned))


def test_what_training_of_all_weights_changed_is_measured_layer_by_layer(
    base: Make, logits: Logits, capsys: Captured, tmp_path: Path
) -> None:
    where, out = base("llama"), tmp_path / "out"
    tuned = tune(where, tmp_path / "tuned", moved)
    assert extract(where, tuned, out, "--rank", "4", "--json") == 0
    report = said(capsys)
    assert "lm_head" in report["modules"] and len(report["modules"]) == 15
    assert sorted(report["not_expressed"])[:2] == [
        "model.embed_tokens.weight", "model.layers.0.input_layernorm.weight",
    ]  # fmt: skip
    before, after = load_file(where / "model.safetensors"), load_file(tuned / "model.safetensors")
    for name, module in report["modules"].items():
        delta = (after[f"{name}.weight"] - before[f"{name}.weight"]).double()
        S = torch.linalg.svdvals(delta)
        shares = S.square().cumsum(0) / S.square().sum()
        assert module["kept_energy"] == pytest.approx(float(shares[3]), abs=1e-6)
        assert module["rank_90"] == int((shares < 0.9).sum()) + 1
        change = float(delta.norm() / before[f"{name}.weight"].double().norm())
        assert module["relative_change"] == pytest.approx(change, rel=1e-6)
    (tmp_path / "run").mkdir()
    tuned.rename(tmp_path / "run" / "model")  # as a run of method: full leaves it
    assert extract(where, tmp_path / "run", tmp_path / "most", "--energy", "0.9") == 0
    text = capsys.readouterr()
    assert "rank for 90%" in text.out and "not expressed" in text.out
    assert "hold no fewer values than the weight" in text.err
    assert len(adapters(ours(where, tmp_path / "most"))) == 15


def test_models_that_cannot_be_compared_are_refused_by_what_differs(
    base: Make, gguf_base: Make, capsys: Captured, tmp_path: Path
) -> None:
    where, out = base("llama"), tmp_path / "out"
    quantized = tune(where, tmp_path / "quantized", lambda n, t: t)
    config = json.loads((quantized / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes"}
    (quantized / "config.json").write_text(json.dumps(config))
    broken = tune(where, tmp_path / "broken", lambda n, t: t * torch.nan if "norm" in n else t)
    short = tune(where, tmp_path / "short", moved)
    data = (short / "model.safetensors").read_bytes()
    (short / "model.safetensors").write_bytes(data[:-100])
    cases = {
        base("gpt2"): ["model_type is gpt2, expected llama"],
        gguf_base("llama"): [".gguf", "safetensors"],
        quantized: ["quantized"],
        broken: ["norm.weight", "not finite"],
        short: ["truncated or corrupt"],
        where: ["no tensor differs"],
        tmp_path / "absent": ["absent", "no such directory"],
    }
    for tuned, words in cases.items():
        assert extract(where, tuned, out, "--rank", "2") == 2, tuned
        assert_refused(capsys, *words)
        assert not out.exists()


def test_shapes_that_differ_are_told_by_name(
    base: Make, capsys: Captured, tokenizer: Any, tmp_path: Path
) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig.from_pretrained(base("llama"))
    config.intermediate_size = 64
    LlamaForCausalLM(config).save_pretrained(tmp_path / "wide")
    assert extract(base("llama"), tmp_path / "wide", tmp_path / "out", "--rank", "2") == 2
    assert_refused(capsys, "mlp.down_proj.weight is [32, 64], expected [32, 48]")


def test_a_model_of_another_dtype_is_compared_with_a_note(
    base: Make, adapter_dir: Make, merged: Callable[..., Path], capsys: Captured, tmp_path: Path
) -> None:
    tuned = merged(adapter_dir(base("llama")), "--dtype", "bfloat16")
    assert extract(base("llama"), tuned, tmp_path / "out", "--rank", "4", "--json") == 0
    out, err = capsys.readouterr()
    assert "float32 -> bfloat16" in err and "rounding" in err
    assert 0.99 < json.loads(out)["kept_energy_of_modules"] < 1 - 1e-9
