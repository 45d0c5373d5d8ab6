"""Launches and bytes of Llama 3.1 8B on a device, counted on tensors without values:

python -m tests.device.budget

One JSON object: for a layer's forward and backward pass, for head and loss, and for the optimizer,
how many operations are launched, and how many GB those read and write that are no matrix products
or attention. 4 rows of 2,048 tokens, each of four examples, in bfloat16; rank 16 on all linears.
"""

from tests.device import library

library.load()

import json  # noqa: E402
import os  # noqa: E402
import warnings  # noqa: E402
from collections.abc import Callable  # noqa: E402
from dataclasses import dataclass  # noqa: E402
from typing import Any  # noqa: E402

import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch._subclasses.fake_tensor import FakeTensorMode  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402
from torch.utils._pytree import tree_leaves  # noqa: E402
from transformers import LlamaConfig, LlamaForCausalLM  # noqa: E402

from loractl.lora.layer import LoraLinear  # noqa: E402
from loractl.models.fast.read_layer import read_layer  # noqa: E402
from loractl.ops import cross_entropy, lora_linear  # noqa: E402
from loractl.ops.dropout import Mask  # noqa: E402
from loractl.ops.layer.block import block  # noqa: E402
from loractl.ops.layer.description import Place  # noqa: E402
from loractl.ops.segments import Segments  # noqa: E402
from tests.device import pretend  # noqa: E402

ROWS, LENGTH, RANK = 4, 2048, 16
TOKENS = ROWS * LENGTH
CONFIG = {
    "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 1,
    "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256,
}  # fmt: skip
PRODUCTS = frozenset({"mm", "addmm", "addmm_", "bmm", "baddbmm", "linear"})


@dataclass
class Cost:
    launches: int = 0
    bytes: int = 0  # of operations that are neither products nor attention

    def as_dict(self) -> dict[str, float]:
        return {"launches": self.launches, "gigabytes": round(self.bytes / 1e9, 2)}


class _Counting(TorchDispatchMode):
    def __init__(self, cost: Cost) -> None:
        super().__init__()
        self.cost = cost

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name in pretend.FREE or name == "device":
            return made
        self.cost.launches += 1
        if name not in PRODUCTS and "flash" not in name:
            given = tree_leaves((args, kwargs or {}))
            written = [] if name == "copy_" else tree_leaves(made)
            tensors = [one for one in [*given, *written] if isinstance(one, Tensor)]
            self.cost.bytes += sum(one.numel() * one.element_size() for one in tensors)
        return made


def counted(work: Callable[[], Any]) -> tuple[Any, Cost]:
    cost = Cost()
    with _Counting(cost):
        return work(), cost


def empty(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.empty(*shape, dtype=dtype, device=pretend.DEVICE)


def adapted_layer(share: float) -> nn.Module:
    """A decoder layer on the device, with an adapter on each of its linear layers."""
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**CONFIG))
    layer: nn.Module = model.model.layers[0]
    for module in layer.modules():
        for name, one in module._parameters.items():
            if one is not None:
                module._parameters[name] = nn.Parameter(empty(*one.shape), requires_grad=False)
    for parent in list(layer.modules()):
        for name, base in list(parent.named_children()):
            if type(base) is nn.Linear:
                A = empty(RANK, base.in_features, dtype=torch.float32)
                B = empty(base.out_features, RANK, dtype=torch.float32)
                setattr(parent, name, LoraLinear(base, A, B, scale=2.0, dropout=share))
    return layer.train()


def of_layer(share: float, *, checkpoint: bool) -> dict[str, Any]:
    layer = read_layer(adapted_layer(share), "layers.0")
    step = LENGTH // 4
    spans = tuple((start, start + step) for start in range(0, TOKENS, step))
    segments = Segments(ROWS, LENGTH, spans)
    segments.kept[pretend.DEVICE] = empty(len(spans) + 1, dtype=torch.int32)
    angles = empty(TOKENS, 128, dtype=torch.float32)
    place = Place(segments, angles, angles)
    x = empty(TOKENS, CONFIG["hidden_size"]).requires_grad_()
    y, forward = counted(lambda: block(x, layer, place, checkpoint=checkpoint))
    _, backward = counted(lambda: y.backward(torch.empty_like(y)))
    return {"forward": forward.as_dict(), "backward": backward.as_dict()}


def of_head() -> dict[str, Any]:
    hidden = empty(TOKENS, CONFIG["hidden_size"]).requires_grad_()
    head = cross_entropy.Head(empty(CONFIG["vocab_size"], CONFIG["hidden_size"]))
    targets = empty(TOKENS, dtype=torch.int64)
    _, cost = counted(lambda: cross_entropy.head_loss(hidden, head, targets).backward())
    return cost.as_dict()


def main() -> None:
    warnings.simplefilter("ignore")
    # A seed is a value, which these tensors do not have.
    lora_linear.draw = lambda shares: [Mask(s, 7) if s > 0 else None for s in shares]
    with pretend.answers(), FakeTensorMode(allow_non_fake_inputs=True):
        found = {
            "layer": of_layer(0.0, checkpoint=False),
            "layer with dropout": of_layer(0.05, checkpoint=False),
            "layer with checkpointing": of_layer(0.0, checkpoint=True),
            "head and loss": of_head(),
        }
    print(json.dumps(found), flush=True)
    os._exit(0)  # autograd's thread for the device has nothing that would end it


if __name__ == "__main__":
    main()
