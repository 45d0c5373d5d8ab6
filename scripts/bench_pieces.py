"""Microseconds of each piece of ops/pieces.py, against the modules of transformers in eager torch.

    python scripts/bench_pieces.py [--threads 1] [--dtype float32] [--rows 1024]

The shapes are SmolLM2-135M's. The two are timed in turn, 40 times each; printed is the fastest of
each, which is what they take where nothing else runs, and the median. What a piece overwrites is
put back before each time, untimed. Backward of torch is its autograd, without building the graph.
With MALLOC_MMAP_THRESHOLD_=4000000000 MALLOC_TRIM_THRESHOLD_=8000000000 torch's new tensors come
from glibc's heap, not from pages that the system clears: up to 8 times faster for the small ones.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.models.llama.modeling_llama import LlamaRMSNorm, apply_rotary_pos_emb

from loractl.ops import native, pieces

HIDDEN, INTER, HEADS, HEAD, VOCABULARY = 576, 1536, 12, 64, 49152  # 9 heads of q and 3 of k
LOGIT_ROWS = 64
TIMES = 40

Run = Callable[[], object]


def in_turn(ours: Run, torchs: Run, restore: Run = lambda: None) -> list[list[float]]:
    """Microseconds of both, `TIMES` of each."""
    taken: list[list[float]] = [[], []]
    for turn in range(TIMES + 2):
        for run, times in zip((ours, torchs), taken, strict=True):
            restore()
            began = time.perf_counter()
            run()
            if turn > 1:  # the first ones build the library and fill the heap
                times.append((time.perf_counter() - began) * 1e6)
    return taken


def backward(outputs: Tensor, inputs: list[Tensor], gradient: Tensor) -> Run:
    return lambda: torch.autograd.grad(outputs, inputs, gradient, retain_graph=True)


def norms(n: int, dtype: torch.dtype) -> dict[str, list[list[float]]]:
    x, dy, dx = (torch.randn(n, HIDDEN).to(dtype) for _ in range(3))
    module = LlamaRMSNorm(HIDDEN).to(dtype).requires_grad_(False)
    out, leaf = torch.empty_like(x), x.clone().requires_grad_()
    y, rstd = pieces.rms_norm(x, module.weight, 1e-6)
    grad = backward(module(leaf), [leaf], dy)
    return {
        "rms_norm": in_turn(
            lambda: pieces.rms_norm(x, module.weight, 1e-6, out=out), lambda: module(x)
        ),
        "rms_norm_again": in_turn(
            lambda: pieces.rms_norm_again(x, rstd, module.weight, out=out), lambda: module(x)
        ),
        "rms_norm_backward_": in_turn(
            lambda: pieces.rms_norm_backward_(dx, dy, x, rstd, module.weight),
            lambda: dx + grad()[0],  # type: ignore[index]
            lambda: dx.zero_(),
        ),
    }


def rotary(n: int, dtype: torch.dtype) -> dict[str, list[list[float]]]:
    heads, angles = torch.randn(n, HEADS, HEAD).to(dtype), torch.rand(n, HEAD) * 6
    cos, sin = angles.cos(), angles.sin()
    rounded = cos.to(dtype), sin.to(dtype)
    q, k = heads.split((9, 3), dim=1)
    return {
        "rotary_": in_turn(
            lambda: pieces.rotary_(heads, cos, sin),
            lambda: apply_rotary_pos_emb(q, k, *rounded, unsqueeze_dim=1),
        )
    }


def gates(n: int, dtype: torch.dtype) -> dict[str, list[list[float]]]:
    kept = [torch.randn(n, INTER).to(dtype) for _ in range(3)]
    dact, gate, up = (x.clone() for x in kept)
    out, leaves = torch.empty_like(gate), [x.clone().requires_grad_() for x in kept[1:]]
    found = {}
    for name in pieces.ACTIVATIONS:
        form = "tanh" if name == "gelu_tanh" else "none"
        act = F.silu if name == "silu" else lambda g, form=form: F.gelu(g, approximate=form)
        found[f"gated, {name}"] = in_turn(
            lambda name=name: pieces.gated(gate, up, activation=name, out=out),
            lambda act=act: act(kept[1]) * kept[2],
        )
        found[f"gated_backward_, {name}"] = in_turn(
            lambda name=name: pieces.gated_backward_(dact, gate, up, activation=name),
            backward(act(leaves[0]) * leaves[1], leaves, kept[0]),
            lambda: [x.copy_(old) for x, old in zip((dact, gate, up), kept, strict=True)],
        )
    return found


def losses(dtype: torch.dtype) -> dict[str, list[list[float]]]:
    kept = torch.randn(LOGIT_ROWS, VOCABULARY).to(dtype) * 3
    logits, targets = kept.clone(), torch.randint(VOCABULARY, (LOGIT_ROWS,))
    leaf = kept.clone().requires_grad_()

    def torchs(softcap: float | None = None) -> None:
        z = leaf.float()
        z = softcap * torch.tanh(z / softcap) if softcap else z
        F.cross_entropy(z, targets).backward()
        leaf.grad = None

    def restore() -> Tensor:
        return logits.copy_(kept)

    return {
        "softmax_loss_": in_turn(lambda: pieces.softmax_loss_(logits, targets), torchs, restore),
        "softmax_loss_, softcap": in_turn(
            lambda: pieces.softmax_loss_(logits, targets, softcap=30.0),
            lambda: torchs(30.0),
            restore,
        ),
        "softmax_loss_, no gradient": in_turn(
            lambda: pieces.softmax_loss_(logits, targets, gradient=False),
            lambda: F.cross_entropy(kept.float(), targets),
        ),
    }


def adamw() -> dict[str, list[list[float]]]:
    p, g, m, v = torch.randn(4, 2_442_240).unbind()  # LoRA of rank 8 on all linears
    v.abs_()
    own = torch.nn.Parameter(p.clone())
    own.grad = g
    optimizer = torch.optim.AdamW([own], lr=1e-3, fused=True)
    hyper = {"lr": 1e-3, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.01}
    return {
        "adamw_ (torch: fused)": in_turn(
            lambda: pieces.adamw_(p, g, m, v, step=3, **hyper),  # type: ignore[arg-type]
            optimizer.step,
        )
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--rows", type=int, default=1024)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    dtype = getattr(torch, options.dtype)
    began = time.perf_counter()
    if native.library(dtype) is None:
        raise SystemExit(native.missing(dtype))
    print(f"library built or opened in {time.perf_counter() - began:.2f} s\n")
    found = norms(options.rows, dtype) | rotary(options.rows, dtype) | gates(options.rows, dtype)
    found |= losses(dtype) | adamw()
    print(f"| {options.dtype}, {options.threads} threads, us | ours | torch | times |")
    print("|---|---|---|---|")
    for name, times in found.items():
        ours, torchs = ([min(t), statistics.median(t)] for t in times)
        cells = [f"{low:,.0f} ({middle:,.0f})" for low, middle in (ours, torchs)]
        print(f"| {name} | {cells[0]} | {cells[1]} | {torchs[0] / ours[0]:.1f} |")


if __name__ == "__main__":
    main()
