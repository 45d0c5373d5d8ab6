"""The limit: how fast the frozen base's own matrix products alone run.

    python -m bench.limit --model DIR --dtype T --tokens N --trained M [--by torch|loractl]

For a micro-batch of N tokens, each linear layer of the blocks forward and its input gradient, and
the output head the same on M tokens. No norms, no attention, no softmax, no adapter, no optimizer;
what comes out goes into memory that is there. The products are torch's, or those that loractl
computes layers with (ops/gemm.py). Prints one JSON line.
"""

import argparse
import json
import resource
import statistics
import time
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from loractl.ops.gemm import Term, products

STRIP = 512  # tokens that go through the head at a time: their logits are in memory together
TIMES = 2  # measured passes, after one that is not


class Products:
    """Products with weights (d_out, d_in) that read and write the same few matrices each time."""

    def __init__(self, tokens: int, dtype: torch.dtype, by: str) -> None:
        self.tokens, self.dtype = tokens, dtype
        self.multiply = {"torch": by_torch, "loractl": by_loractl}[by]
        self.read: dict[int, Tensor] = {}  # width -> (tokens, width)
        self.written: dict[int, Tensor] = {}

    def run(self, W: Tensor) -> None:
        """x W' and y W: forward, and the gradient of the input."""
        d_out, d_in = W.shape
        for width in (d_in, d_out):
            if width not in self.read:
                self.read[width] = torch.randn(self.tokens, width).to(self.dtype)
                self.written[width] = torch.zeros(self.tokens, width, dtype=self.dtype)
        self.multiply(self.read[d_in], W.T, self.written[d_out])  # (tokens, d_out)
        self.multiply(self.read[d_out], W, self.written[d_in])  # (tokens, d_in)


def by_torch(x: Tensor, w: Tensor, out: Tensor) -> None:
    torch.mm(x, w, out=out)


def by_loractl(x: Tensor, w: Tensor, out: Tensor) -> None:
    products([Term(x, w)], out=out)


def weights(model: nn.Module, head: nn.Module) -> Iterator[Tensor]:
    """The weights of the linear layers of the blocks as (d_out, d_in), in their order."""
    for module in model.modules():
        if isinstance(module, nn.Linear) and module is not head:
            yield module.weight.detach()
        elif type(module).__name__ == "Conv1D":  # GPT-2's, whose weight lies as (d_in, d_out)
            yield module.weight.detach().T


def measure(
    model: nn.Module, head: nn.Module, *, tokens: int, trained: int, by: str = "torch"
) -> dict[str, object]:
    """Tokens a second of these products, and what the passes took."""
    dtype = head.weight.dtype
    body, strip = Products(tokens, dtype, by), Products(min(STRIP, trained), dtype, by)
    taken = []
    with torch.no_grad():
        for _ in range(1 + TIMES):
            began = time.perf_counter()
            for W in weights(model, head):
                body.run(W)
            whole = time.perf_counter() - began
            began = time.perf_counter()
            strips = max(1, round(trained / strip.tokens))
            for _ in range(strips):
                strip.run(head.weight.detach())
            # Of a last strip that is not full, its share.
            share = trained / (strips * strip.tokens)
            taken.append((whole, (time.perf_counter() - began) * share))
    blocks, logits = (statistics.median(times) for times in zip(*taken[1:], strict=True))
    return {
        "tokens_per_s": tokens / (blocks + logits),
        "blocks_s": blocks,
        "head_s": logits,
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def main() -> None:
    from transformers import AutoModelForCausalLM

    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--dtype", required=True)
    parser.add_argument("--tokens", type=int, required=True)
    parser.add_argument("--trained", type=int, required=True)
    parser.add_argument("--by", choices=["torch", "loractl"], default="torch")
    asked = parser.parse_args()
    model = AutoModelForCausalLM.from_pretrained(asked.model, dtype=getattr(torch, asked.dtype))
    head = model.get_output_embeddings()
    size = {"tokens": asked.tokens, "trained": asked.trained}
    print(json.dumps(measure(model, head, **size, by=asked.by)))


if __name__ == "__main__":
    main()
