"""Intruder dimensions: PEFT finds the same ones, in every module of a model."""

import re
from collections.abc import Callable
from pathlib import Path

import peft
import pytest
import torch
from peft.tuners.lora.intruders import reduce_intruder_dimension
from transformers import AutoModelForCausalLM

from loractl.artifacts.peft import adapter as adapters
from loractl.artifacts.peft.attach import load_
from loractl.lora.intruders import intruders, left_vectors
from loractl.models import load

pytestmark = pytest.mark.filterwarnings(
    "ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"
)


def test_peft_finds_as_many_in_every_module(
    base: Callable[..., Path], adapter_dir: Callable[..., Path]
) -> None:
    where = adapter_dir(base("llama"), size=0.5)
    model = load.load_model(
        load.locate(str(base("llama"))), dtype=torch.float32, device=torch.device("cpu")
    )
    layers = load_(model, adapters.read(where))
    found = {
        name: intruders(layer.dense_weight(), layer.merged_weight())
        for name, layer in layers.items()
    }
    plain = AutoModelForCausalLM.from_pretrained(base("llama"))
    said: list[str] = []
    reduce_intruder_dimension(
        peft.PeftModel.from_pretrained(plain, where), logging_sink=said.append
    )
    theirs = {}
    for line in said:
        if match := re.fullmatch(
            r"base_model\.model\.(.*): (?:No intruders|Intruders: (\d+))", line
        ):
            theirs[match[1]] = int(match[2] or 0)
    assert found == theirs
    assert len(set(found.values())) > 1, "the adapter tells nothing"


def test_the_vectors_are_those_of_an_svd_for_wide_and_for_tall_weights() -> None:
    generator = torch.Generator().manual_seed(0)
    for shape in ((12, 12), (8, 20), (20, 8)):
        W = torch.randn(*shape, generator=generator, dtype=torch.float64)
        mine, theirs = left_vectors(W), torch.linalg.svd(W, full_matrices=False)[0]
        assert mine.shape == theirs.shape
        assert torch.allclose((mine * theirs).sum(0).abs(), torch.ones(min(shape)).double())


def test_a_new_strong_direction_is_one_intruder_and_no_update_none() -> None:
    W = torch.diag(torch.arange(20.0, 0, -1))
    tuned = torch.zeros(21, 21)
    tuned[:20, :20] = W
    wider = torch.nn.functional.pad(W, (0, 1, 0, 1))
    assert intruders(wider, wider) == 0
    mixed = torch.ones(21) / 21**0.5  # a cosine of 0.22 with every direction of W
    assert intruders(wider, wider + 100 * torch.outer(mixed, mixed)) == 1
