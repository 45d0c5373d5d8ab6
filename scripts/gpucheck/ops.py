"""Every op of loractl/ops on the device against the same op on the CPU in float32.

The CPU gets the very numbers that the device gets: drawn, rounded to the dtype, then widened.
Attention has a file of its own; whole layers are in the training runs.
"""

import contextlib
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from gpucheck.place import Check, Place, differences
from gpucheck.report import Figure, Found
from loractl.ops import dropout, pieces, thin
from loractl.ops.cross_entropy import Head, head_loss, head_losses
from loractl.ops.dropout import Mask
from loractl.ops.gemm import Term, products
from loractl.ops.lora_linear import Linear, lora_linear
from loractl.ops.own_rows import OwnRows
from loractl.ops.packed import Nested, Packed
from loractl.quant.kinds import PACKERS
from loractl.quant.linear import moved

Tensors = dict[str, Tensor]
Op = Callable[[Tensors], Tensors]
BOUNDS = {torch.float32: 1e-5, torch.bfloat16: 8e-3, torch.float16: 1e-3}
"""Relative, in the Frobenius norm: rounding once is 1e-3 of a value in bfloat16 and 1.4e-4 in
float16, and an op rounds a few times on its way."""


def compare(place: Place, op: Op, shapes: dict[str, tuple[int, ...]]) -> Found:
    """The results of an op by name, in each dtype."""
    figures: list[Figure] = []
    for dtype, bound in BOUNDS.items():
        generator = torch.Generator().manual_seed(0)
        drawn = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
        given = {name: value.to(dtype) for name, value in drawn.items()}
        there = op({name: value.to(place.device) for name, value in given.items()})
        here = op({name: value.float() for name, value in given.items()})
        word = str(dtype).removeprefix("torch.")
        pairs = {f"{word} {name}": (there[name], here[name]) for name in here}
        figures += differences(pairs, bound)
    return Found(tuple(figures))


def size(place: Place, large: int, tiny: int) -> int:
    return tiny if place.pretend else large


@contextlib.contextmanager
def masks_of_the_cpu() -> Iterator[None]:
    """Drop on every device what the CPU's hash says: masks are then the same ones."""
    own = dropout.fallen

    def fallen(mask: Mask, n: int, d: int, *, device: torch.device) -> Tensor:
        return own(mask, n, d, device=torch.device("cpu")).to(device)

    dropout.fallen = fallen
    try:
        yield
    finally:
        dropout.fallen = own


def lora(place: Place, *, share: float) -> Found:
    """A linear layer with its update: the output, and the gradients of x, A and B."""
    n, d, out, r = size(place, 1024, 24), size(place, 2048, 40), size(place, 1536, 56), 16

    def op(t: Tensors) -> Tensors:
        x = t["x"].requires_grad_()
        A, B = (t[name].float().requires_grad_() for name in "AB")  # as a run keeps them
        torch.manual_seed(0)
        linear = Linear(t["W"] * d**-0.5, t["b"], lambda: (A, B), 0.5, share)
        y = lora_linear(x, linear)
        dx, dA, dB = torch.autograd.grad(y, [x, A, B], t["dy"])
        return {"y": y, "dx": dx, "dA": dA, "dB": dB}

    shapes = {"x": (n, d), "W": (out, d), "b": (out,), "A": (r, d), "B": (out, r), "dy": (n, out)}
    with masks_of_the_cpu():
        return compare(place, op, shapes)


def head(place: Place, *, softcap: float | None, trained: bool) -> Found:
    """The loss over a vocabulary, in several chunks on a GPU, and what it gives back."""
    n, d, vocabulary = size(place, 5000, 30), size(place, 256, 24), size(place, 49152, 120)
    generator = torch.Generator().manual_seed(1)
    targets = torch.randint(vocabulary, (n,), generator=generator)
    places = torch.randperm(vocabulary, generator=generator)[:5]

    def op(t: Tensors) -> Tensors:
        device = t["h"].device
        h, W = t["h"].requires_grad_(), (t["W"] * d**-0.5).detach().requires_grad_(trained)
        rows = (t["own"].float() * d**-0.5).detach().requires_grad_()
        own = None if trained else OwnRows(rows, places.to(device))
        one, ids = Head(W, None, 2.0, softcap, own), targets.to(device)
        weights = t["w"].float().square()
        loss = head_loss(h, one, ids, weights)
        dh, of = torch.autograd.grad(loss, [h, W if trained else rows], torch.tensor(0.5))
        each = head_losses(h.detach(), one, ids)
        return {"loss": loss, "each": each, "dh": dh, "dW" if trained else "drows": of}

    return compare(place, op, {"h": (n, d), "W": (vocabulary, d), "own": (5, d), "w": (n,)})


def norms(place: Place) -> Found:
    n, h = size(place, 1000, 20), size(place, 4096, 48)

    def op(t: Tensors) -> Tensors:
        found: Tensors = {}
        for offset in (0.0, 1.0):
            y, rstd = pieces.rms_norm(t["x"], t["w"], 1e-5, offset=offset)
            dx = t["start"].clone()
            pieces.rms_norm_backward_(dx, t["dy"], t["x"], rstd, t["w"], offset=offset)
            found |= {f"y {offset:g}": y, f"rstd {offset:g}": rstd, f"dx {offset:g}": dx}
        heads = t["x"].view(n, -1, 8)
        found["heads"], _ = pieces.rms_norm(heads, t["w"][:8], 1e-5)
        return found

    return compare(place, op, {"x": (n, h), "w": (h,), "dy": (n, h), "start": (n, h)})


def rotary(place: Place) -> Found:
    n, d = size(place, 1000, 20), 64

    def op(t: Tensors) -> Tensors:
        found: Tensors = {}
        for width in (d, d // 2):
            angles = t["angles"].float()[:, : width // 2].repeat(1, 2)
            for inverse in (False, True):
                x = t["x"].clone()
                pieces.rotary_(x, angles.cos(), angles.sin(), inverse=inverse)
                found[f"{width}{' back' if inverse else ''}"] = x
        return found

    return compare(place, op, {"x": (n, 6, d), "angles": (n, d // 2)})


def activations(place: Place) -> Found:
    n, m = size(place, 1000, 20), size(place, 4096, 48)

    def op(t: Tensors) -> Tensors:
        found: Tensors = {}
        for kind in pieces.ACTIVATIONS:
            found[f"{kind} gated"] = pieces.gated(t["gate"], t["up"], activation=kind)
            dact, gate, up = (t[name].clone() for name in ("dy", "gate", "up"))
            pieces.gated_backward_(dact, gate, up, activation=kind)
            found |= {f"{kind} dgate": gate, f"{kind} dup": up, f"{kind} again": dact}
            found[f"{kind}"] = pieces.activated(t["gate"], activation=kind)
            back = pieces.activated_backward(t["dy"], t["gate"], activation=kind)
            found[f"{kind} back"] = back
        return found

    return compare(place, op, {"gate": (n, m), "up": (n, m), "dy": (n, m)})


def softmax(place: Place) -> Found:
    n, vocabulary = size(place, 512, 20), size(place, 128256, 120)
    targets = torch.randint(vocabulary, (n,), generator=torch.Generator().manual_seed(1))

    def op(t: Tensors) -> Tensors:
        logits = t["logits"] * 4
        losses = pieces.softmax_loss_(logits, targets.to(logits.device), factor=64.0)
        return {"losses": losses, "gradient": logits}

    return compare(place, op, {"logits": (n, vocabulary)})


def thin_products(place: Place) -> Found:
    n, d, r = size(place, 4000, 30), size(place, 4096, 48), 16

    def op(t: Tensors) -> Tensors:
        u = torch.empty_like(t["t"])
        both = thin.both(t["x"], t["A"], t["t"], u=u, scale=0.5)
        across, down = thin.across(t["x"], t["A"]), thin.down(t["x"], t["t"])
        return {"across": across, "down": down, "both": both, "u": u}

    return compare(place, op, {"x": (n, d), "A": (r, d), "t": (n, r)})


def quantized(place: Place, *, kind: str) -> Found:
    """Packed on the device as on the CPU, code by code; the same numbers; products with them.

    The large matrix is above what is unpacked at once (`packed.STRIP`), the other is not.
    """
    figures: list[Figure] = []
    for rows, columns in ((size(place, 2304, 40), size(place, 2048, 192)), (192, 128)):
        drawn = torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))
        what = f"{rows} x {columns}"
        for dtype, bound in BOUNDS.items():
            W = drawn.to(dtype)
            here, there = PACKERS[kind](W), PACKERS[kind](W.to(place.device))
            word = f"{what} {str(dtype).removeprefix('torch.')}"
            off = sum(int((a != b.cpu()).sum()) for a, b in _codes(here, there))
            figures.append(Figure(f"{word} codes that differ", off, 0))
            sent = moved(here, place.device)
            wrong = int((here.dense() != sent.dense().cpu()).sum())
            figures.append(Figure(f"{word} numbers that differ", wrong, 0))
            pairs = {}
            for name, one, other in (("xW'", here.T, sent.T), ("xW", here, sent)):
                x = torch.randn(64, one.shape[0], generator=torch.Generator().manual_seed(1))
                expected = x.to(dtype).float() @ one.dense().float()
                found = products([Term(x.to(dtype).to(place.device), other)])
                pairs[f"{word} {name}"] = (found, expected)
            figures += differences(pairs, bound)
    return Found(tuple(figures))


def _codes(here: Packed, there: Packed) -> list[tuple[Tensor, Tensor]]:
    pairs = [(here.codes, there.codes)]
    if isinstance(here.scales, Nested) and isinstance(there.scales, Nested):
        return [*pairs, (here.scales.codes, there.scales.codes)]
    assert isinstance(here.scales, Tensor) and isinstance(there.scales, Tensor)
    return [*pairs, (here.scales, there.scales)]


def share_dropped(place: Place) -> Found:
    """The device's own masks: their share, that a seed gives one mask, and two seeds two."""
    n, d, share = size(place, 4096, 200), size(place, 4096, 100), 0.05
    masks = [Mask(share, seed) for seed in (7, 8)]
    one, other = (dropout.fallen(mask, n, d, device=place.device) for mask in masks)
    again = dropout.fallen(masks[0], n, d, device=place.device)
    deviation = (share * (1 - share) / (n * d)) ** 0.5
    off = abs(float(one.float().mean()) - share) / deviation
    both = float((one & other).float().mean())
    expected = share * share
    alike = abs(both - expected) / (expected * (1 - expected) / (n * d)) ** 0.5
    x = torch.ones(n, d, device=place.device)
    kept = dropout.dropped(x, masks[0])
    scaled = float((kept - (~one).float() / (1 - share)).abs().max())
    return Found((
        Figure("share, in standard deviations off", off, 5),
        Figure("two seeds together, likewise", alike, 5),
        Figure("values that differ for one seed", int((one != again).sum()), 0),
        Figure("off the mask times 1 / (1 - share)", scaled, 1e-6),
    ))  # fmt: skip


CHECKS = (
    Check("ops/lora-linear", partial(lora, share=0.0), 3),
    Check("ops/lora-linear-dropout", partial(lora, share=0.2), 3),
    Check("ops/head", partial(head, softcap=None, trained=True), 10),
    Check("ops/head-softcap-own-rows", partial(head, softcap=30.0, trained=False), 10),
    Check("ops/softmax-loss", softmax, 5),
    Check("ops/norms", norms, 3),
    Check("ops/rotary", rotary, 2),
    Check("ops/activations", activations, 3),
    Check("ops/thin", thin_products, 3),
    *(Check(f"ops/{kind}", partial(quantized, kind=kind), 5) for kind in PACKERS),
    Check("ops/dropout", share_dropped, 2),
)
