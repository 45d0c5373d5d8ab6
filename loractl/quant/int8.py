"""int8: codes of 8 bits and one scale a row, its largest absolute value, as bitsandbytes stores it.

Only the weights are in 8 bits: activations stay in the dtype of the products.
"""

import torch
from torch import Tensor

from loractl.ops.packed import STRIP, Packed


def pack(W: Tensor) -> Packed:
    """W (d_out, d_in) in 8 bits; every byte is that of bitsandbytes 0.50."""
    codes = torch.empty(W.shape, dtype=torch.int8, device=W.device)
    scales = torch.empty(len(W), device=W.device)
    n_rows = max(1, STRIP // W.shape[1])
    for start in range(0, len(W), n_rows):
        # bitsandbytes 0.50 quantizes 8 bits from float16
        rows = W.detach()[start : start + n_rows].half()
        largest = rows.abs().amax(dim=1).float()
        scales[start : start + n_rows] = largest
        scaled = rows * (127.0 / largest[:, None])
        codes[start : start + n_rows] = scaled.round().to(torch.int8)
    return Packed(codes, scales, 8, W.shape[0], W.shape[1], W.dtype)
