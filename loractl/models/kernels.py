"""Other ways to compute transformers' layers: compiled one by one, or with Liger's kernels.

None of this has been run on a GPU yet.
"""

import importlib.util
from typing import TYPE_CHECKING

import torch

from loractl.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BACKEND = "inductor"


def compile_layers_(model: "PreTrainedModel") -> None:
    """Let torch compile each decoder layer at its first step; layers of equal shape share the code.

    Whole models took minutes to compile on a CPU and saved about a tenth of a step.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    layers = [one for one in model.modules() if isinstance(one, GradientCheckpointingLayer)]
    if not layers:
        raise ModelError(
            f"train.kernels: compile finds no decoder layers in {type(model).__name__}; set it to"
            " plain"
        )
    for layer in layers:
        layer.compile(dynamic=True, backend=BACKEND)


def use_liger_(model: "PreTrainedModel", device: torch.device) -> None:
    """Put Liger's norms, rotary embeddings and gated activations into a model. Raises ModelError.

    The loss stays loractl's, which does not materialize the logits either.
    """
    if device.type != "cuda":
        raise ModelError(
            f"train.kernels: liger needs a GPU, but this run uses the {device.type}; set it to auto"
        )
    if importlib.util.find_spec("liger_kernel") is None:
        raise ModelError(
            "train.kernels: liger needs liger-kernel; pip install 'loractl[liger]', or set it to"
            " auto"
        )
    from liger_kernel.transformers import (  # type: ignore[import-not-found]
        _apply_liger_kernel_to_instance,
    )
    from liger_kernel.transformers.monkey_patch import (  # type: ignore[import-not-found]
        MODEL_TYPE_TO_APPLY_LIGER_FN,
    )

    kind = model.config.model_type
    if kind not in MODEL_TYPE_TO_APPLY_LIGER_FN:
        raise ModelError(f"train.kernels: liger does not support {kind} models; set it to auto")
    _apply_liger_kernel_to_instance(model, cross_entropy=False, fused_linear_cross_entropy=False)
