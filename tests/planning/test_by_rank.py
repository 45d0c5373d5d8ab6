"""A table of modules and curves over the rank give what counts and memory give at any rank."""

from dataclasses import asdict, replace

import pytest

from loractl.config.optimizers import OPTIMIZERS
from loractl.models.shape import read as shapes
from loractl.models.shape.types import ModelShape
from loractl.planning import by_rank, counts
from loractl.planning.request import Request, memory_of, ranks_of

RANKS = (1, 3, 8, 64, 256)
MIXTURE = {
    "model_type": "qwen3_moe", "hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "intermediate_size": 96, "vocab_size": 320,
    "num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
    "decoder_sparse_step": 2,
}  # fmt: skip


def model(name: str) -> ModelShape:
    return shapes.from_config(MIXTURE, where=name) if name == "mixture" else shapes.named(name)


def at(curve: by_rank.Curve, rank: int) -> int:
    return curve[0] + rank * curve[1] if len(curve) == 2 else curve[RANKS.index(rank)]


def computed_at(name: str, request: Request) -> tuple[int, ...]:
    """The ranks that a curve is computed from, as the page does."""
    few = name != "mixture" and by_rank.is_straight(request.optimizer)
    return (1, 2) if few else RANKS


def test_an_optimizer_is_straight_unless_it_tells_small_tensors_from_large() -> None:
    straight = [name for name in OPTIMIZERS if by_rank.is_straight(name)]
    assert straight == ["adamw", "sgd", "lion"]


REQUESTS = {
    "LoRA on q and v": Request(target_modules="minimal"),
    "DoRA": Request(method="dora"),
    "AdaLoRA": Request(method="adalora", target_modules="attention"),
    "some layers": Request(layers="1-2", batch=1, length=4096, dtype="float32"),
    "ranks of its own": Request(rank_pattern={"v_proj": 5}, accumulation=4),
    "the embedding too": Request(target_modules=["q_proj", "embed_tokens", "lm_head"]),
    "optimizer in 8 bits": Request(optimizer="adamw-8bit", target_modules="minimal"),
    "paged optimizer": Request(optimizer="adamw-paged"),
    "factored optimizer": Request(optimizer="adafactor"),
    "dropout and starts": Request(dropout=0.1, has_starts=True),
    "modules trained whole": Request(modules_to_save=("lm_head",), new_tokens=3, packing=False),
}


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
@pytest.mark.parametrize("wanted", REQUESTS)
@pytest.mark.parametrize("name", ["0.5B", "mixture"])
def test_the_curves_are_the_memory_at_any_rank(
    name: str, wanted: str, method: str, checkpointing: bool
) -> None:
    shape, request = model(name), REQUESTS[wanted]
    adapters = by_rank.adapters_at(shape, request, computed_at(name, request))
    curves = by_rank.memory_curves(shape, request, method, adapters, checkpointing=checkpointing)
    for rank in RANKS:
        asked = replace(request, rank=rank)
        exact = memory_of(shape, asked, method, checkpointing=checkpointing).phases
        drawn = {
            phase: {part: at(curve, rank) for part, curve in parts.items()}
            for phase, parts in curves.items()
        }
        assert drawn == exact, rank


@pytest.mark.parametrize("name", ["3B", "mixture"])
def test_products_are_curves_too(name: str) -> None:
    shape, request = model(name), Request(target_modules="all-linear")
    curves = by_rank.flop_curves(shape, request, by_rank.adapters_at(shape, request, (1, 2)))
    for rank in RANKS:
        ranks = ranks_of(shape, replace(request, rank=rank))
        exact = asdict(counts.flops(shape, ranks, batch=request.batch, length=request.length))
        assert {key: at(curve, rank) for key, curve in curves.items()} == exact


@pytest.mark.parametrize("name", ["1B", "72B", "mixture"])
def test_the_kinds_hold_every_module_once(name: str) -> None:
    shape = model(name)
    paths = [
        kind.path if layer is None else kind.path.replace("#", str(layer))
        for kind in by_rank.kinds_of(shape)
        for layer in kind.layers
    ]
    assert sorted(paths) == sorted(shape.by_path)
    for kind in by_rank.kinds_of(shape):
        one = shape.by_path[kind.path.replace("#", str(kind.layers[0]))]
        assert (one.kind, one.d_in, one.d_out, one.stack) == (
            kind.kind, kind.d_in, kind.d_out, kind.stack,
        )  # fmt: skip


@pytest.mark.parametrize("wanted", REQUESTS)
def test_the_chosen_kinds_are_the_adapters_of_the_request(wanted: str) -> None:
    shape, request = model("0.5B"), replace(REQUESTS[wanted], rank=7)
    kinds = by_rank.kinds_of(shape)
    found = {
        kinds[one.kind].path.replace("#", str(layer)): one.rank or 7
        for one in by_rank.chosen_of(shape, by_rank.adapters_at(shape, request, RANKS))
        for layer in one.layers
    }
    assert found == {path: size.rank for path, size in ranks_of(shape, request).items()}


def test_what_is_trained_besides_the_adapters_is_counted_apart() -> None:
    shape = model("0.5B")
    assert by_rank.beside(shape, Request()) == 0
    both = by_rank.beside(shape, Request(modules_to_save=("lm_head",), new_tokens=2))
    assert both == shape.by_path["lm_head"].parameters + 2 * shape.hidden
