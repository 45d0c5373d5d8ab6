"""`loractl adapters combine`: what it makes answers as what PEFT combines; its refusals."""

import hashlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft.tuners.lora.model import LoraModel
from torch import Tensor
from transformers import AutoModelForCausalLM

from loractl.artifacts.peft.adapter import ABOUT, WEIGHTS
from loractl.cli.main import main
from tests.commands.adapter_files import (
    TARGETS,
    assert_close,
    assert_equal_products,
    edited,
    ours,
    products,
)
from tests.commands.conftest import assert_refused, said

Make = Callable[..., Path]
Logits = Callable[..., Tensor]
Captured = pytest.CaptureFixture[str]

pytestmark = [
    # PEFT asks transformers for a name that is going away; nothing to do with adapters.
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"),
    # What PEFT says whenever one of two tied layers is adapted.
    pytest.mark.filterwarnings("ignore:Model has .tie_word_embeddings=True.:UserWarning"),
]


def combine(out: Path, *flags: str, **named: Path) -> int:
    given = [word for name, path in named.items() for word in ("--adapter", f"{name}={path}")]
    return main(["adapters", "combine", *given, "--out", str(out), *flags])


def redraw(tensors: dict[str, Tensor]) -> None:
    """Other numbers of the same size."""
    generator = torch.Generator().manual_seed(99)
    for name, tensor in sorted(tensors.items()):
        tensors[name] = torch.randn(tensor.shape, generator=generator) * tensor.std()


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
    "rank of a sum": (["--how", "cat", "--rank", "4"], ["--rank", "only to --how svd"]),
    "no density": (["--how", "ties"], ["--density: not set"]),
    "density of a sum": (["--how", "cat", "--density", "0.5"], ["--density", "not cat"]),
    "density": (["--how", "dare", "--density", "1.5"], ["--density: found 1.5"]),
    "no number": (["--how", "ties", "--density", "nan"], ["--density: found nan"]),
    "seed": (["--how", "svd", "--seed", "1"], ["svd is not random"]),
    "weight of none": (["--how", "cat", "--weight", "c=1"], ["--weight: found 'c=1'", "a, b"]),
    "no weight": (["--how", "cat", "--weight", "a=x"], ["--weight: found 'a=x'", "a=0.5"]),
    "infinite": (["--how", "cat", "--weight", "a=inf"], ["a=inf", "finite"]),
    "twice": (["--how", "cat", "--weight", "a=1", "--weight", "a=2"], ["two weights for a"]),
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


def test_the_adapters_may_stand_without_their_option(
    base: Make, adapter_dir: Make, tmp_path: Path, capsys: Captured
) -> None:
    one, two = (adapter_dir(base("llama"), name) for name in ("one", "two"))
    for out, named in (("a", [one, two]), ("b", ["--adapter", one, "--adapter", two])):
        asked = [*map(str, named), "--how", "cat", "--out", str(tmp_path / out)]
        assert main(["adapters", "combine", *asked]) == 0
    weights = [(tmp_path / out / "adapter_model.safetensors").read_bytes() for out in "ab"]
    assert weights[0] == weights[1]
    assert main(["adapters", "combine", "--how", "cat", "--out", str(tmp_path / "c")]) == 2
    assert "found none, expected NAME=DIR" in capsys.readouterr().err


def test_the_result_is_told_in_words(
    base: Make, adapter_dir: Make, capsys: Captured, tmp_path: Path
) -> None:
    one = adapter_dir(base("llama"))
    assert combine(tmp_path / "scaled", "--how", "cat", one=one) == 0
    first, second, _ = capsys.readouterr().out.splitlines()
    assert first == "combined by cat: one (weight 1)"
    assert re.fullmatch(
        r"\d+ modules of rank 4; relative distance \S+ from the exact sum .*", second
    )
    flags = ("--how", "cat", "--weight", "two=0.5")
    assert combine(tmp_path / "both", *flags, one=one, two=one) == 0
    assert capsys.readouterr().out.startswith("combined by cat: one (weight 1), two (weight 0.5)\n")
