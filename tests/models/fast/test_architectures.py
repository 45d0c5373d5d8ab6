"""The table of architectures with fast layers, against what transformers builds and the readers
take."""

import subprocess
import sys

import pytest
from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

from loractl.models.fast.architectures import ARCHITECTURES, LAYERS, MODEL_TYPES, Architecture
from loractl.models.fast.read_layer import read_layer
from loractl.models.fast.trunk import Trunk
from tests.models.fast.conftest import MODELS, model_of


@pytest.mark.parametrize("one", ARCHITECTURES, ids=lambda one: one.model_type)
def test_its_names_are_those_of_transformers_and_the_readers_take_it(one: Architecture) -> None:
    assert MODEL_MAPPING_NAMES[one.model_type] == one.trunk
    name = next(name for name in MODELS if one.layer == f"{name}DecoderLayer")
    model = model_of(name).requires_grad_(False)
    trunk = model.base_model
    assert (model.config.model_type, type(trunk).__name__) == (one.model_type, one.trunk)
    assert {type(layer).__name__ for layer in trunk.layers} == {one.layer}
    norms = [path for path, _ in trunk.layers[0].named_children() if "layernorm" in path]
    assert len(norms) == (4 if one.is_sandwiched else 2)
    read = read_layer(trunk.layers[0], "layers.0")
    assert (read.after_attention is not None) == (read.after_mlp is not None) == one.is_sandwiched
    assert Trunk(model).fallback_reason == ""


def test_no_name_stands_twice() -> None:
    assert len(MODEL_TYPES) == len(LAYERS) == len({one.trunk for one in ARCHITECTURES})
    assert len(LAYERS) == len(ARCHITECTURES)


def test_the_table_is_read_without_torch() -> None:
    code = (
        "import sys, loractl.models.fast.architectures, loractl.planning.fast_layer_bytes;"
        " sys.exit(bool({'torch', 'transformers'} & sys.modules.keys()))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
