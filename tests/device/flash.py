"""torch's flash attention over examples of different length, by the plain formula.

It is there for what the kernel demands and gives: its dtypes, layouts and shapes.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor


def _examples(ends: Tensor) -> Iterator[slice]:
    edges = ends.tolist()
    return (slice(a, b) for a, b in zip(edges[:-1], edges[1:], strict=True))


def _heads(x: Tensor, repeats: int = 1) -> Tensor:
    """(tokens, heads, d) -> (heads * repeats, tokens, d), in float32."""
    return x.transpose(0, 1).float().repeat_interleave(repeats, 0)


def _hidden(n: int, causal: bool, left: int, right: int) -> Tensor:
    """Which keys a query must not see, (n, n)."""
    position = torch.arange(n)
    back = position[:, None] - position
    hidden = torch.zeros(n, n, dtype=torch.bool)
    if causal or right == 0:
        hidden |= back < 0
    return hidden | (back > left) if left >= 0 else hidden


def _probabilities(q: Tensor, k: Tensor, scale: float, hidden: Tensor) -> tuple[Tensor, Tensor]:
    scores = (q @ k.mT * scale).masked_fill(hidden, -torch.inf)
    logsumexp = scores.logsumexp(-1, keepdim=True)
    return (scores - logsumexp).exp(), logsumexp.squeeze(-1)


def forward(
    q: Tensor, k: Tensor, v: Tensor, q_ends: Tensor, k_ends: Tensor, q_longest: int, k_longest: int,
    dropout: float, causal: bool, debug: bool, *, scale: float, window_size_left: int,
    window_size_right: int, **_: Any,
) -> tuple[Tensor, ...]:  # fmt: skip
    assert q.dtype in (torch.float16, torch.bfloat16) and q_ends.dtype == torch.int32
    assert all(x.stride(-1) == 1 for x in (q, k, v)) and q_ends[-1] == len(q) and dropout == 0
    repeats = q.shape[1] // k.shape[1]
    outs, sums = [], []
    for at in _examples(q_ends):
        hidden = _hidden(at.stop - at.start, causal, window_size_left, window_size_right)
        P, logsumexp = _probabilities(_heads(q[at]), _heads(k[at], repeats), scale, hidden)
        outs.append((P @ _heads(v[at], repeats)).transpose(0, 1))
        sums.append(logsumexp)
    state = torch.zeros(2, dtype=torch.uint64)
    return torch.cat(outs).to(q.dtype), torch.cat(sums, 1), state, torch.empty(0), torch.empty(0)


def backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, logsumexp: Tensor, q_ends: Tensor,
    k_ends: Tensor, q_longest: int, k_longest: int, dropout: float, causal: bool, state: Tensor,
    unused: Tensor, *, scale: float, window_size_left: int, window_size_right: int,
) -> tuple[Tensor, ...]:  # fmt: skip
    assert dout.is_contiguous() and logsumexp.shape == (q.shape[1], len(q))
    repeats = q.shape[1] // k.shape[1]
    dq, dk, dv = (torch.zeros(x.shape) for x in (q, k, v))
    for at in _examples(q_ends):
        hidden = _hidden(at.stop - at.start, causal, window_size_left, window_size_right)
        Q, K, V = _heads(q[at]), _heads(k[at], repeats), _heads(v[at], repeats)
        P, _ = _probabilities(Q, K, scale, hidden)
        dO, own = _heads(dout[at]), _heads(out[at])
        dS = P * (dO @ V.mT - (dO * own).sum(-1, keepdim=True)) * scale
        dq[at] = (dS @ K).transpose(0, 1)
        for total, part in ((dk, dS.mT @ Q), (dv, P.mT @ dO)):
            total[at] = part.unflatten(0, (k.shape[1], repeats)).sum(1).transpose(0, 1)
    return dq.to(q.dtype), dk.to(q.dtype), dv.to(q.dtype)


KERNELS: dict[str, Callable[..., Any]] = {
    "_flash_attention_forward": forward,
    "_flash_attention_backward": backward,
}
