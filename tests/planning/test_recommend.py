"""The table of ranks, its rules, and what stands beside each value."""

import pytest

from loractl.models.shape import read as shapes
from loractl.planning import devices, recommend, search
from loractl.planning.recommend import Rows
from loractl.planning.request import Request

GIB = 1024**3


@pytest.mark.parametrize(
    ("task", "ranks"),
    [("simple", (4, 4, 4, 8)), ("medium", (8, 8, 8, 16)), ("complex", (16, 16, 16, 32))],
)
def test_the_rank_is_that_of_the_table_and_30b_is_like_13b(
    task: str, ranks: tuple[int, ...]
) -> None:
    sizes = ("7B", "13B", "30B", "70B")
    found = [recommend.rank_of(task, shapes.named(size), None).value for size in sizes]
    assert tuple(found) == ranks


@pytest.mark.parametrize(
    ("task", "size", "rows", "rank"),
    [
        ("complex", "7B", 999, 8), ("complex", "7B", 1_000, 16), ("complex", "7B", 10_000, 16),
        ("complex", "7B", 10_001, 32), ("simple", "7B", 10, 4), ("complex", "70B", 50_000, 64),
        ("medium", "70B", 500, 8), ("simple", "70B", 500, 4),
    ],
)  # fmt: skip
def test_few_rows_halve_the_rank_and_many_double_it(
    task: str, size: str, rows: int, rank: int
) -> None:
    found = recommend.choices(task, shapes.named(size), Rows(rows))
    assert found["rank"].value == rank and found["alpha"].value == 2 * rank
    assert rank in found["sweep"].value


def test_the_sweep_is_widened_to_hold_the_rank() -> None:
    found = recommend.choices("complex", shapes.named("7B"), Rows(500))["sweep"]
    assert found.value == [8, 16, 32, 64] and "widened to include 8" in found.reason
    assert recommend.choices("medium", shapes.named("7B"), None)["sweep"].value == [8, 16]


def test_every_value_comes_with_its_reason_and_source() -> None:
    found = recommend.choices("medium", shapes.named("13B"), Rows(5000, 10**6, 900, 700, "counted"))
    assert all(one.reason and one.source for one in found.values())
    assert found["target_modules"].value == "attention"
    assert found["max_length"].value == 960


def test_the_learning_rate_follows_the_published_rule() -> None:
    # tinker-cookbook: Llama-3.1-8B 2.86e-4, Qwen3-8B 4.73e-4, both of width 4096
    llama = shapes.named("7B")
    assert recommend.choices("simple", llama, None)["learning_rate"].value == 2.9e-4
    qwen = shapes.from_config({
        "model_type": "qwen3", "hidden_size": 4096, "num_hidden_layers": 36, "vocab_size": 151936,
        "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128,
        "intermediate_size": 12288,
    }, where="Qwen3-8B")  # fmt: skip
    assert recommend.choices("simple", qwen, None)["learning_rate"].value == 4.7e-4


def test_rows_longer_than_the_model_has_positions_for_are_left_out() -> None:
    found = recommend.choices("simple", shapes.named("7B"), Rows(2000, 10**7, 9000, 800, "counted"))
    assert found["max_length"].value == 4096 and "dropped" in found["max_length"].reason


def test_capacity_compares_tokens_with_parameters_and_names_a_rank_that_holds_them() -> None:
    found = shapes.named("7B")
    request = Request(rank=4, target_modules="minimal")  # 2,097,152 parameters, 2 bits each
    enough = recommend.capacity(found, request, Rows(100, 4_000_000))
    short = recommend.capacity(found, request, Rows(100, 8_388_608))
    assert enough is not None and enough.value < 1 and "enough room" in enough.reason
    assert short is not None and short.value == 2 and "rank 8 on these modules" in short.reason
    assert recommend.capacity(found, request, Rows(100)) is None


def test_memory_decides_between_lora_and_qlora_and_how_many_rows() -> None:
    found, request = shapes.named("7B"), Request(rank=16, length=1024, batch=16)
    chosen = {}
    for gib in (8, 12, 24, 80):
        more, table = search.of_memory(found, request, gib * GIB, 16)
        chosen[gib] = more["method"].value
        for fit in table:
            assert not fit["batch"] or devices.fits(fit["gpu_bytes"], gib * GIB)
        if "batch_size" in more:
            assert more["batch_size"].value * more["gradient_accumulation"].value == 16
    assert chosen == {8: "qlora", 12: "qlora", 24: "lora", 80: "lora"}
    nothing, _ = search.of_memory(shapes.named("70B"), request, 8 * GIB, 16)
    assert nothing["method"].value is None and "nothing fits in 8 GiB" in nothing["method"].reason
