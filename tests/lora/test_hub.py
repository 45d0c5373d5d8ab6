"""The hub against the same adapters one by one: rows of one batch, switches, and what is left."""

import gc
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from loractl.artifacts.peft import adapter as adapters
from loractl.lora.dense import size_of
from loractl.lora.dora import DoraLayer
from loractl.lora.hub import Hub, MixedRowsError, own_tensors
from loractl.lora.inject import FORMULAS, adaptable, inject_, kind_of, remove_
from loractl.lora.layer import LoraLayer

ARCHITECTURES = [
    "llama", "llama-tied", "mistral", "qwen3", "gemma3", "phi3", "gpt-neox", "gpt2",
]  # fmt: skip
ROWS = ["lora", None, "dora", "wide", "lora", "started", None, "ends"]
"""Which adapter answers which row of the batches below; None: the base."""


def spoke(
    model: nn.Module,
    targets: Callable[[str], bool],
    *,
    rank: int,
    scale: float,
    formula: str = "lora",
    seed: int = 0,
    started: bool = False,
) -> dict[str, LoraLayer]:
    """Random layers over the modules of a model that `targets` chooses by path."""
    torch.manual_seed(seed)
    layers = {}
    for path, kind in adaptable(model).items():
        if targets(path):
            base = model.get_submodule(path)
            matrix = size_of(base, kind)
            d_in, d_out = matrix.d_in, matrix.d_out
            A, B = torch.randn(rank, d_in) * 0.15, torch.randn(d_out, rank) * 0.15
            layer = FORMULAS[formula][kind](base, A, B, scale=scale)
            if started:
                layer.count_from_(A + 0.05 * torch.randn_like(A), B + 0.05 * torch.randn_like(B))
            if isinstance(layer, DoraLayer):
                layer.m.data.mul_(torch.rand_like(layer.m) + 0.5)
            layers[path] = layer
    assert layers
    return layers


def spokes(model: Any) -> dict[str, dict[str, LoraLayer]]:
    """Adapters that differ in formula, rank, scale and targets."""
    table, head = model.get_input_embeddings(), model.get_output_embeddings()
    ends = {path for path, module in model.named_modules() if module is table or module is head}
    linear = {path for path, kind in adaptable(model).items() if kind != "embedding"} - ends
    assert len(ends) == 2 and linear
    return {
        "lora": spoke(model, linear.__contains__, rank=4, scale=1.5, seed=1),
        "dora": spoke(model, linear.__contains__, rank=3, scale=2.0, formula="dora", seed=2),
        "wide": spoke(model, lambda path: path in linear and ".1." in path, rank=16, scale=0.5),
        "started": spoke(model, linear.__contains__, rank=2, scale=3.0, seed=4, started=True),
        "ends": spoke(model, ends.__contains__, rank=5, scale=1.0, formula="dora", seed=5),
    }


@pytest.fixture
def plain(base: Callable[..., Path]) -> Callable[..., Any]:
    def load(architecture: str = "llama", dtype: torch.dtype = torch.float32) -> Any:
        return AutoModelForCausalLM.from_pretrained(base(architecture), dtype=dtype).eval()

    return load


def filled(model: Any) -> Hub:
    hub = Hub(model)
    for name, layers in spokes(model).items():
        hub.add_(name, layers)
    return hub


def run(model: Any, rows: int = len(ROWS)) -> Tensor:
    """Logits of some fixed tokens (rows, seq, vocabulary)."""
    ids = torch.randint(0, 300, (rows, 11), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        logits: Tensor = model(input_ids=ids, use_cache=False).logits
    return logits


def digest(model: nn.Module) -> dict[str, str]:
    return {
        name: hashlib.sha256(
            tensor.detach().flatten().view(torch.uint8).numpy().tobytes()
        ).hexdigest()
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]
    }


def assert_close(found: Tensor, expected: Tensor) -> None:
    bound = 1e-5 * max(1.0, float(expected.abs().max()))
    assert float((found - expected).abs().max()) <= bound


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_each_row_of_a_mixed_batch_is_answered_as_by_its_adapter_alone(
    architecture: str, plain: Callable[..., Any]
) -> None:
    model = plain(architecture)
    untouched = run(model)
    before = digest(model)
    alone: dict[str | None, Tensor] = {None: untouched}
    for name, layers in spokes(model).items():  # put into the model as training has them
        for path, layer in layers.items():
            parent, _, last = path.rpartition(".")
            setattr(model.get_submodule(parent), last, layer)
        alone[name] = run(model)
        remove_(model)
        assert float((alone[name] - untouched).abs().max()) > 0.1

    hub = filled(model)
    for name, expected in alone.items():
        hub.use(name)
        assert torch.equal(run(model), expected), f"{name} alone"
    hub.use_rows(ROWS)
    mixed = run(model)
    for row, name in enumerate(ROWS):
        assert_close(mixed[row], alone[name][row])
        assert name is not None or torch.equal(mixed[row], untouched[row]), "a row of the base"
    hub.use(None)
    assert torch.equal(run(model), untouched) and digest(model) == before


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_half_precision_too_the_rows_of_the_base_are_the_bases_to_the_last_bit(
    dtype: torch.dtype, plain: Callable[..., Any]
) -> None:
    model = plain("llama", dtype)
    untouched, hub = run(model), filled(model)
    hub.use_rows(ROWS)
    mixed = run(model)
    for row, name in enumerate(ROWS):
        hub.use(name)
        expected = run(model)[row]
        spread = float(expected.abs().max())
        assert float((mixed[row] - expected).abs().max()) < 16 * torch.finfo(dtype).eps * spread
        assert name is not None or torch.equal(mixed[row], untouched[row])


def test_one_name_for_all_rows_is_that_adapter_and_no_name_the_base(
    plain: Callable[..., Any],
) -> None:
    model = plain()
    untouched, hub = run(model), filled(model)
    hub.use("dora")
    expected = run(model)
    hub.use_rows(["dora"] * 3)
    assert torch.equal(run(model), expected)
    hub.use_rows([None, None])
    assert torch.equal(run(model), untouched)


def live_bytes() -> int:
    """Bytes of every tensor that something holds."""
    gc.collect()
    storages = {
        one.untyped_storage().data_ptr(): one.untyped_storage().nbytes()
        for one in gc.get_objects()
        # Asking an object for its class may warn; what torch.compile traces with, which another
        # test may have left, is of classes of its own and has no memory.
        if type(one) in (Tensor, nn.Parameter)
    }
    return sum(storages.values())


@pytest.mark.parametrize("formula", ["lora", "dora"])
def test_an_adapter_costs_its_own_tensors_and_gives_them_back(
    formula: str, base: Callable[..., Path], plain: Callable[..., Any], adapter_dir: Any
) -> None:
    from loractl.artifacts.peft import attach

    where = base("llama")
    directory, model = adapter_dir(where, rank=8), plain("llama")
    hub = Hub(model)
    hub.add_("first", spoke(model, lambda path: "q_proj" in path, rank=2, scale=1.0))
    run(model)
    empty = live_bytes()
    if formula == "lora":
        attach.add_to_hub_(hub, model, "tuned", adapters.read(directory))
    else:
        everywhere = {path for path, kind in adaptable(model).items() if kind == "linear"}
        hub.add_("tuned", spoke(model, everywhere.__contains__, rank=8, scale=1.0, formula="dora"))
    hub.use_rows(["tuned", "first"])
    run(model, 2)
    values = sum(tensor.numel() for tensor in own_tensors(hub.layers("tuned")))
    assert hub.n_bytes("tuned") == 4 * values
    if formula == "lora":
        stored = sum(tensor.numel() for tensor in adapters.read(directory).tensors.values())
        assert values == stored
    # DoRA keeps two norms an output: of W, and of W + s B A.
    norms = sum(2 * layer.m.nbytes for layer in hub.layers("tuned").values() if hasattr(layer, "m"))
    rows = 2 * 8  # which row is whose
    assert live_bytes() - empty == 4 * values + norms + rows
    hub.remove_("tuned")
    assert hub.names == ("first",) and live_bytes() == empty


def test_what_is_removed_leaves_no_hook_behind_and_the_others_as_they_were(
    plain: Callable[..., Any],
) -> None:
    model = plain()
    untouched, hub = run(model), filled(model)
    hub.use("wide")
    expected = run(model)
    for name in ("lora", "dora", "started", "ends"):
        hub.remove_(name)
        assert torch.equal(run(model), expected)
    hub.remove_("wide")
    assert torch.equal(run(model), untouched), "an adapter that is gone cannot answer"
    assert not any(module._forward_hooks for module in model.modules())


def test_removing_an_adapter_that_some_row_uses_lets_the_base_answer(
    plain: Callable[..., Any],
) -> None:
    model = plain()
    untouched, hub = run(model), filled(model)
    hub.use_rows(ROWS)
    hub.remove_("dora")
    assert torch.equal(run(model), untouched)


def test_names_that_are_taken_or_unknown_are_refused_and_nothing_changes(
    plain: Callable[..., Any],
) -> None:
    model = plain()
    hub = filled(model)
    hub.use("lora")
    expected = run(model)
    with pytest.raises(ValueError, match="'wide' is already loaded"):
        hub.add_("wide", spoke(model, lambda path: "q_proj" in path, rank=2, scale=1.0))
    with pytest.raises(KeyError):
        hub.use("lost")
    with pytest.raises(KeyError):
        hub.use_rows(["wide", "lost"])
    with pytest.raises(KeyError):
        hub.remove_("lost")
    assert torch.equal(run(model), expected)


def test_the_layers_of_a_model_keep_their_places_names_and_classes(
    plain: Callable[..., Any],
) -> None:
    model = plain("gpt2")
    names = [(name, type(module)) for name, module in model.named_modules()]
    weights = [name for name, _ in model.named_parameters()]
    hub = filled(model)
    assert [(name, type(module)) for name, module in model.named_modules()] == names
    assert [name for name, _ in model.named_parameters()] == weights
    assert all(kind_of(model.get_submodule(path)) for path in hub.layers("lora"))
    with pytest.raises(AssertionError, match="has another base"):
        hub.add_("strange", spoke(plain("gpt2"), lambda path: "c_attn" in path, rank=2, scale=1.0))


def test_a_batch_of_another_size_than_the_names_is_refused(plain: Callable[..., Any]) -> None:
    model = plain()
    hub = filled(model)
    hub.use_rows(ROWS)
    with pytest.raises(MixedRowsError, match=r"shape \[3, 11.*expected 8 rows as"):
        run(model, 3)


@pytest.mark.parametrize("rows", [2, 22])
def test_a_module_that_sees_tokens_and_not_rows_refuses_a_mix_and_takes_one_adapter(
    rows: int, plain: Callable[..., Any]
) -> None:
    """OPT's fc1 has (rows x seq, d_in) for input, as an expert has the tokens sent to it."""
    model = plain("opt")
    untouched, hub = run(model, 2), Hub(model)
    for name in ("one", "other"):
        hub.add_(name, spoke(model, lambda path: path.endswith(".fc1"), rank=2, scale=1.0))
    hub.use("one")
    assert float((run(model, 2) - untouched).abs().max()) > 0.01
    hub.use_rows(["one", *["other"] * (rows - 1)])
    with pytest.raises(MixedRowsError, match=r"layers.0.fc1: found an input of shape"):
        # 22 names: as many as the two rows have tokens, which are no rows for all that.
        model.model.decoder.layers[0].fc1(torch.randn(22, 32))
    hub.use("other")
    assert float((run(model, 2) - untouched).abs().max()) > 0.01


def test_a_model_that_has_an_adapter_of_its_own_gets_no_hub(plain: Callable[..., Any]) -> None:
    from loractl.lora.ranks import ModuleRank

    model = plain()
    inject_(model, {"model.layers.0.self_attn.q_proj": ModuleRank(2, 2.0, 1.0)})
    with pytest.raises(AssertionError, match="an adapter of its own"):
        Hub(model)
