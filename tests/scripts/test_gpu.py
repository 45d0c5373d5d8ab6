"""What scripts/gpu reports of its checks, and that all of them run on a pretend device."""

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from gpucheck import attention, models, place, report, run, speed, training, waits
from gpucheck.place import Check, Place
from gpucheck.report import Figure, Found, Report, SkippedError

from loractl.models.shape import read as shapes
from tests.device import cases, library

ROOT = Path(__file__).parents[2]
CPU = Place(torch.device("cpu"))


class Hours:
    """A clock that a check moves on."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def taking(hours: Hours, seconds: float) -> Callable[[Place], Found]:
    def go(_: Place) -> Found:
        hours.now += seconds
        return Found((Figure("off", 0.5, 1.0),))

    return go


def raising(error: BaseException) -> Callable[[Place], Found]:
    def go(_: Place) -> Found:
        raise error

    return go


def giving(*figures: Figure) -> Callable[[Place], Found]:
    return lambda _: Found(figures)


def outcome(
    path: Path, checks: Sequence[Check], *, until: float = 100, clock: Hours | None = None,
    where: Place = CPU,
) -> tuple[int, list[dict[str, Any]]]:  # fmt: skip
    made = Report(path / "found" / "gpu.json", {})
    run.run_checks(checks, where, made, until=until, clock=clock or Hours())
    status = made.finish()
    content = json.loads(made.out.read_text("utf-8"))
    assert content["finished"]
    return status, content["checks"]


def test_a_figure_above_its_bound_fails_its_check_and_so_does_nan(tmp_path: Path) -> None:
    good, high = Figure("a", 1.0, 1.0), Figure("b", 1.1, 1.0)
    status, found = outcome(tmp_path, [
        Check("x/good", giving(good), 1), Check("x/high", giving(good, high), 1),
        Check("x/nan", giving(Figure("c", math.nan, 1.0), good), 1),
        Check("x/zero", giving(Figure("d", 0, 0), good), 1),
        Check("x/one", giving(Figure("d", 1, 0)), 1),
        Check("x/measured", giving(Figure("speed", 7.0)), 1),
    ])  # fmt: skip
    assert status == 1
    statuses = [one["status"] for one in found]
    assert statuses == ["ok", "FAILED", "FAILED", "ok", "FAILED", "ok"]
    assert found[1]["text"] == "1 of 2 too high, b 1.1 (at most 1)"
    assert found[2]["text"].startswith("1 of 2 too high, c nan")
    assert [figure["holds"] for figure in found[1]["figures"]] == [True, False]


def test_checks_that_hold_end_with_0(tmp_path: Path) -> None:
    checks = [Check("x/a", giving(Figure("a", 1, 2)), 1), Check("x/b", giving(), 1)]
    assert outcome(tmp_path, checks)[0] == 0


def test_an_exception_is_the_failure_of_its_check_and_the_next_goes_on(tmp_path: Path) -> None:
    status, found = outcome(tmp_path, [
        Check("x/bad", raising(ValueError("no such\nthing")), 1), Check("x/good", giving(), 1),
        Check("x/none", raising(SkippedError("no GPU")), 1),
    ])  # fmt: skip
    assert status == 1
    assert [one["status"] for one in found] == ["FAILED", "ok", "skipped"]
    assert found[0]["text"].startswith("ValueError: no such")
    assert "test_gpu.py" in found[0]["text"] and "\n" not in found[0]["text"]
    assert found[2]["text"] == "no GPU"


def test_the_memory_of_a_failed_check_is_free_for_the_next(tmp_path: Path) -> None:
    import weakref

    held: list[weakref.ref[torch.Tensor]] = []

    def fill(_: Place) -> Found:
        large = torch.zeros(10)
        held.append(weakref.ref(large))
        raise torch.OutOfMemoryError("CUDA out of memory")

    def look(_: Place) -> Found:
        return Found((Figure("still there", held[0]() is not None, 0),))

    _, found = outcome(tmp_path, [Check("x/full", fill, 1), Check("x/next", look, 1)])
    assert [one["status"] for one in found] == ["FAILED", "ok"]


def test_a_check_that_would_not_end_in_time_is_left_out_and_a_shorter_one_is_not(
    tmp_path: Path,
) -> None:
    hours = Hours()
    _, found = outcome(tmp_path, [
        Check("x/a", taking(hours, 6), 5), Check("x/long", taking(hours, 5), 5),
        Check("x/short", taking(hours, 4), 4), Check("x/late", taking(hours, 0), 0),
    ], until=10, clock=hours)  # fmt: skip
    assert [one["status"] for one in found] == ["ok", "left out", "ok", "left out"]
    assert found[1]["text"] == "takes about 5 s, and 4 s are left"
    assert found[0]["seconds"] == 6


def test_after_a_lost_device_nothing_is_tried(tmp_path: Path) -> None:
    class Lost(Place):
        def clean_(self) -> str:
            return "the device is lost: illegal memory access"

    checks = [Check("x/a", raising(RuntimeError("illegal memory access")), 1),
              Check("x/b", giving(), 1)]  # fmt: skip
    status, found = outcome(tmp_path, checks, where=Lost(torch.device("cpu")))
    assert status == 1 and [one["status"] for one in found] == ["FAILED", "left out"]
    assert found[1]["text"].startswith("the device is lost")


def test_the_file_is_whole_after_each_check(tmp_path: Path) -> None:
    made, seen = Report(tmp_path / "gpu.json", {"device": "D"}), []

    def look(_: Place) -> Found:
        seen.append(json.loads(made.out.read_text("utf-8")))
        return Found()

    run.run_checks([Check(f"x/{n}", look, 1) for n in range(3)], CPU, made, until=9, clock=Hours())
    assert [len(one["checks"]) for one in seen] == [0, 1, 2]
    assert all(one["about"]["device"] == "D" and not one["finished"] for one in seen)


def test_only_takes_subjects_and_single_checks() -> None:
    names = ("ops/head", "ops/head-softcap", "training/lora", "training/dora")
    every = [Check(name, giving(), 1) for name in names]
    assert run.choose(every, []) == every
    assert [one.name for one in run.choose(every, ["ops/head", "training"])] == [
        "ops/head", "training/lora", "training/dora",
    ]  # fmt: skip
    assert run.choose(every, ["op"]) == []


def test_every_check_has_its_own_name() -> None:
    names = [one.name for one in run.checks()]
    assert len(set(names)) == len(names)
    assert [*dict.fromkeys(name.partition("/")[0] for name in names)] == list(run.SUBJECTS)


def test_the_differences_are_relative_and_see_a_single_nan() -> None:
    assert place.farthest([1.0, 2.2], [1.0, 2.0]) == pytest.approx(0.1)
    assert math.isnan(place.farthest([1.0, math.nan, 5.0], [1.0, 2.0, 2.0]))
    one = torch.tensor([3.0, 4.0])
    assert place.relative(one * 1.5, one) == pytest.approx(0.5)
    assert report.Found(place.differences({"x": (one, one)}, 0.0)).holds


def test_the_formula_of_attention_is_torchs() -> None:
    given = attention.Inputs.drawn((9, 4), 4, 2, 8, torch.float32, torch.device("cpu"))
    out, *of = attention.formula(given, None, None)
    for start, stop in given.segments.spans:
        q, k, v = (
            x[start:stop].transpose(0, 1)[None].double() for x in (given.q, given.k, given.v)
        )
        theirs = torch.nn.functional.scaled_dot_product_attention(
            q, k, v, is_causal=True, enable_gqa=True
        )
        torch.testing.assert_close(out[start:stop].transpose(0, 1)[None], theirs)
    windowed, *_ = attention.formula(given, 1, None)  # each token sees itself alone
    torch.testing.assert_close(windowed, given.v.repeat_interleave(2, 1).double())
    assert [one.shape for one in of[1:]] == [x.shape for x in (given.q, given.k, given.v)]


def test_a_window_off_by_one_token_is_above_the_bound() -> None:
    given = attention.Inputs.drawn((40,), 4, 2, 64, torch.float32, torch.device("cpu"))
    right, wrong = (attention.formula(given, window, None) for window in (13, 14))
    for one, other in zip(right, wrong, strict=True):
        assert place.relative(other, one) > attention.BOUNDS[torch.bfloat16]


def test_a_gpu_without_the_kernel_skips_its_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    with pytest.raises(SkippedError, match="Ampere"):
        attention.kernel(Place(torch.device("cuda", 0)), dtype=torch.float16, d=64)


def test_the_work_of_a_step_is_that_of_its_products() -> None:
    shape = models.shape_of("8B", tiny=True)
    model = models.made(shape, torch.float32, torch.device("cpu"))
    count = speed.flops_of(model, [[3, 5], [4]], trained=0)
    q, kv, mlp = 64 * 64, 64 * 32, 64 * 96
    weights = 2 * (2 * q + 2 * kv + 3 * mlp)
    thin = 2 * 16 * (2 * (64 + 64) + 2 * (64 + 32) + 3 * (64 + 96))
    assert count == 12 * (4 * weights + 6 * thin) + 7 * (9 + 25 + 16) * 64 * 2
    assert speed.flops_of(model, [[3, 5], [4]], trained=7) - count == 4 * 7 * 64 * 128


def test_the_small_model_has_the_size_in_its_name() -> None:
    found = shapes.from_config(models.shape_of(models.SMALL), where="SmolLM2")
    assert found.parameters == 134_515_008


def test_the_waits_allowed_are_those_of_the_pretend_device() -> None:
    assert (
        waits.BOUNDS.items() >= cases.WAITING.items()
        and waits.BOUNDS.keys() <= training.CASES.keys()
    )


@pytest.mark.slow
def test_every_check_has_a_result_on_a_pretend_device_without_pydantic_and_datasets(
    tmp_path: Path,
) -> None:
    try:
        library.built()
    except library.UnbuildableError as error:
        pytest.skip(f"the pretend device cannot be built: {error}")
    for name in ("pydantic", "datasets"):  # found before those that are installed
        (tmp_path / f"{name}.py").write_text("raise ImportError('not on this machine')\n", "utf-8")
    out, env = tmp_path / "gpu.json", {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "gpu", "--pretend", "--until", "3000", "--out", out],
        capture_output=True, text=True, cwd=tmp_path, env=env,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(out.read_text("utf-8"))
    results = {one["name"]: one for one in found["checks"]}
    assert list(results) == [one.name for one in run.checks()] and found["finished"]
    skipped = {name for name, one in results.items() if one["status"] != "ok"}
    assert all(results[name]["text"].startswith("a pretend device") for name in skipped)
    assert skipped == {
        "machine/matmul", "machine/copies", "speed/8B-profile",
        *(name for name in results if name.startswith("memory/")),
    }  # fmt: skip


@pytest.mark.slow
def test_without_a_gpu_it_says_so(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "gpu")], capture_output=True, text=True,
        cwd=tmp_path, env={"PATH": "/usr/bin", "CUDA_VISIBLE_DEVICES": ""},
    )  # fmt: skip
    assert done.returncode == 2 and "no CUDA device" in done.stdout
