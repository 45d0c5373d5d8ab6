"""Words, widths and torch's own dtypes say the same, in every room that has words for them."""

from pathlib import Path
from typing import get_args

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from loractl.config.settings import ModelSection
from loractl.dtypes import SHORT, WIDTHS
from loractl.models import torch_dtypes
from loractl.models.torch_dtypes import DTYPES, FILE_DTYPES, STORED_FLOATS


def test_words_and_widths_are_those_of_torch_and_of_the_setting() -> None:
    assert {word: dtype.itemsize for word, dtype in DTYPES.items()} == WIDTHS
    assert all(torch_dtypes.dtype_word(dtype) == word for word, dtype in DTYPES.items())
    assert get_args(ModelSection.model_fields["dtype"].annotation) == ("auto", *WIDTHS)
    assert {torch_dtypes.short_word(DTYPES[word]) for word in WIDTHS} == set(SHORT.values())
    assert torch_dtypes.short_word(torch.float64) is None


@pytest.mark.parametrize("word", STORED_FLOATS)
def test_the_words_of_safetensors_are_those_it_writes(word: str, tmp_path: Path) -> None:
    save_file({"x": torch.zeros(1, dtype=STORED_FLOATS[word])}, tmp_path / "x")
    with safe_open(tmp_path / "x", framework="pt") as file:
        assert file.get_slice("x").get_dtype() == word


@pytest.mark.parametrize("word", FILE_DTYPES)
def test_the_words_of_gguf_are_those_of_its_library(word: str) -> None:
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    values, size = GGML_QUANT_SIZES[GGMLQuantizationType[word.upper()]]
    assert (values, size) == (1, FILE_DTYPES[word].itemsize)
