"""Whether the frozen layers of a run stay on disk: `model.offload`."""

import torch

from loractl import console, text
from loractl.config.loader import Loaded
from loractl.errors import ModelError
from loractl.models.device import free_memory
from loractl.models.load import Source
from loractl.models.shape import read as shapes
from loractl.models.torch_dtypes import dtype_word
from loractl.planning.request import chosen, memory_of, of_settings

SHARE = 0.9
"""Of the free memory, up to which `auto` keeps the layers in it."""


def streams(loaded: Loaded, source: Source, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the layers are read from disk when they compute.

    Raises ConfigError where they cannot be.
    """
    wanted = loaded.config.model.offload
    if wanted == "none":
        return False
    if device.type != "cpu":
        raise loaded.error(
            "model.offload", f"found {wanted}, which this version has for CPUs alone; remove it"
        )
    if source.gguf:
        raise loaded.error("model.offload", "a .gguf file cannot be streamed; set it to none")
    if wanted == "cpu":
        console.note("note: model.offload: cpu changes nothing here: the model computes on the CPU")
    if wanted != "auto":
        return wanted == "disk"
    config = loaded.config
    request = of_settings(
        config.model, config.method, config.lora, config.data, config.train, dtype=dtype_word(dtype)
    )
    try:
        shape = shapes.read(source.directory)
    except ModelError:
        return False
    needed = memory_of(shape, request, chosen(request), on_cpu=True, checkpointing=True).rss
    free = free_memory(device)
    if needed <= SHARE * free:
        return False
    console.note(
        f"note: the layers are read from disk when they compute: in memory the run would take"
        f" {text.size(needed)}, and {text.size(free)} is free"
    )
    return True
