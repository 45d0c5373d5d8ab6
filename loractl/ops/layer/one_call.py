"""A layer of a Llama-like decoder as one C call each way, without Python between its steps.

layer.c computes the same as block.py, with the same functions in the same order, on the processors
that gemm.py is for. In a step of 4 x 256 tokens of SmolLM2-135M, Python and torch's small calls
between some 40 functions per layer took 6 % of the time, while all threads but one waited
(scripts/LOG.md).
"""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from loractl.ops import gemm, held_memory, native
from loractl.ops.attention import tasks
from loractl.ops.attention.blocks import Form
from loractl.ops.layer.description import GROUPS, Layer, Norm, Place
from loractl.ops.lora_linear import Linear, Pair
from loractl.ops.native import INT, POINTER, REAL, SIZE
from loractl.ops.packed import Description, Packed, description
from loractl.ops.pieces import ACTIVATIONS
from loractl.ops.thin import MOST_OF_BOTH


class _Linear(ctypes.Structure):
    """`Linear` of layer.c."""

    _fields_ = (
        *(("w", POINTER), ("w_row", SIZE), ("bias", POINTER), ("A", POINTER), ("B", POINTER)),
        *(("dA", POINTER), ("dB", POINTER), ("d_in", SIZE), ("d_out", SIZE), ("rank", SIZE)),
        *(("scale", REAL), ("turned", INT), ("packed", POINTER)),
    )


class _Norm(ctypes.Structure):
    _fields_ = (("weight", POINTER), ("eps", REAL), ("offset", REAL))


class _Layer(ctypes.Structure):
    _fields_ = (
        ("linears", _Linear * 7),
        *((name, _Norm) for name in ("before_attention", "before_mlp", "q_norm", "k_norm")),
        *((name, SIZE) for name in ("heads", "kv_heads", "head_dim")),
        *(("scaling", REAL), ("activation", INT)),
    )


class _Place(ctypes.Structure):
    _fields_ = (
        *(("cos", POINTER), ("sin", POINTER), ("cos_row", SIZE), ("sin_row", SIZE)),
        *(("half", SIZE), ("spans", POINTER), ("count", SIZE), ("longest", SIZE)),
        *(("shared", SIZE), ("tokens", SIZE)),
    )


@dataclass(frozen=True)
class Whole:
    """A layer for one batch, computed by layer.c."""

    given: _Layer
    where: _Place
    pairs: Sequence[Pair]
    held: tuple[object, ...]  # what `given` and `where` point into

    @classmethod
    def of(cls, x: Tensor, layer: Layer, place: Place, pairs: Sequence[Pair]) -> "Whole | None":
        """None if layer.c cannot be used."""
        if not _layer_fits(x, layer, place, pairs):
            return None
        given, packed = _describe_layer(layer, pairs)
        return cls(given, _describe_place(layer, place), pairs, (layer, place, packed))

    def forward(self, x: Tensor, *, keep: bool) -> tuple[Tensor, Tensor | None]:
        """x (N, hidden) -> the layer's output (N, hidden), and what `backward` needs."""
        library, at = _library_for(x), self._own_addresses
        y, kept = torch.empty_like(x), held_memory.take(library.layer_kept(*at))
        library.layer_forward(
            *(*at, x.data_ptr(), y.data_ptr(), kept.data_ptr(), *_take_spaces(library, at))
        )
        if keep:
            return y, kept
        held_memory.give(kept)
        return y, None

    def backward(
        self, dy: Tensor, x: Tensor, kept: Tensor, *, to_input: bool
    ) -> tuple[Tensor | None, list[Pair]]:
        """From the gradient of the output, that of the input if wanted and those of all factors in
        the order of the linears. Once per `forward`, since it overwrites `kept`."""
        library, at = _library_for(x), self._own_addresses
        dy, dx, gradients = dy.contiguous(), torch.empty_like(x), _gradient_places(self.pairs)
        for to, (dA, dB) in zip(self.given.linears, gradients, strict=True):
            if dA is not None and dB is not None:
                to.dA, to.dB = dA.data_ptr(), dB.data_ptr()
        library.layer_backward(
            *(*at, x.data_ptr(), dy.data_ptr(), dx.data_ptr(), to_input),
            *(kept.data_ptr(), *_take_spaces(library, at)),
        )
        held_memory.give(kept)
        return dx if to_input else None, gradients

    @property
    def _own_addresses(self) -> tuple[int, int]:
        return ctypes.addressof(self.given), ctypes.addressof(self.where)


def _layer_fits(x: Tensor, layer: Layer, place: Place, pairs: Sequence[Pair]) -> bool:
    shape, segments, dtype = layer.shape, place.segments, x.dtype
    if not gemm.serves_here(dtype) or len(x) < gemm.FEW_ROWS or not _is_plain(x, dtype):
        return False
    if shape.residual != 1.0 or layer.after_attention or layer.after_mlp:
        return False
    if not all(_is_plain(norm.weight, dtype) for norm in _norms_of(layer) if norm is not None):
        return False
    if not all(_is_readable(linear, dtype) for linear in layer.linears):
        return False
    factors = (one for pair in pairs for one in pair if one is not None)
    if not all(_is_plain(one) for one in factors) or _most_ranks(pairs) > MOST_OF_BOTH:
        return False
    if shape.rotary and not (_is_plain(place.cos) and _is_plain(place.sin)):
        return False
    form = Form.of(
        segments.longest, scale=shape.scaling, window=shape.window, softcap=shape.softcap
    )
    return tasks.serves_well(segments, shape.kv_heads, form, dtype)


def _is_plain(one: Tensor, dtype: torch.dtype = torch.float32) -> bool:
    return one.is_cpu and one.dtype == dtype and one.is_contiguous()


def _is_readable(linear: Linear, dtype: torch.dtype) -> bool:
    weight, bias = linear.weight, linear.bias
    is_here = weight.device.type == "cpu" and weight.dtype == dtype
    if isinstance(weight, Tensor):
        is_here = is_here and 1 in weight.stride()
    return is_here and (bias is None or _is_plain(bias, dtype))


def _most_ranks(pairs: Sequence[Pair]) -> int:
    """The largest total rank of linears that share an input."""
    return max(sum(len(A) for A, _ in pairs[group] if A is not None) for group in GROUPS)


def _norms_of(layer: Layer) -> tuple[Norm | None, ...]:
    return layer.before_attention, layer.before_mlp, layer.q_norm, layer.k_norm


def _library_for(x: Tensor) -> ctypes.CDLL:
    library = native.compiled(x.dtype)
    assert library is not None
    return library


def _take_spaces(library: ctypes.CDLL, at: tuple[int, int]) -> tuple[int, int, int]:
    """Memory for the layer and for one of its steps, and the number of threads."""
    threads = torch.get_num_threads()
    of_layer = held_memory.scratch("layer", library.layer_space(*at))
    of_step = held_memory.scratch("step", library.layer_step(*at, threads))
    return of_layer.data_ptr(), of_step.data_ptr(), threads


def _describe_layer(layer: Layer, pairs: Sequence[Pair]) -> tuple[_Layer, list[Description]]:
    given, shape, packed = _Layer(), layer.shape, []
    for to, linear, (A, B) in zip(given.linears, layer.linears, pairs, strict=True):
        weight, bias = linear.weight, linear.bias
        if isinstance(weight, Packed):
            packed.append(description(weight))
            to.packed = ctypes.addressof(packed[-1])
        else:
            to.turned = weight.stride(1) != 1
            to.w, to.w_row = weight.data_ptr(), weight.stride(1 if to.turned else 0)
        to.d_out, to.d_in = weight.shape
        to.bias = bias.data_ptr() if bias is not None else None
        if A is not None and B is not None:
            assert A.shape == (len(A), to.d_in) and B.shape == (to.d_out, len(A))
            to.A, to.B, to.rank, to.scale = A.data_ptr(), B.data_ptr(), len(A), linear.scale
    norms = (given.before_attention, given.before_mlp, given.q_norm, given.k_norm)
    for to, norm in zip(norms, _norms_of(layer), strict=True):
        if norm is not None:
            to.weight, to.eps, to.offset = norm.weight.data_ptr(), norm.eps, norm.offset
    given.heads, given.kv_heads, given.head_dim = shape.heads, shape.kv_heads, shape.head_dim
    given.scaling, given.activation = shape.scaling, ACTIVATIONS.index(shape.activation)
    return given, packed


def _describe_place(layer: Layer, place: Place) -> _Place:
    segments, where = place.segments, _Place()
    if layer.shape.rotary:
        where.cos, where.sin = place.cos.data_ptr(), place.sin.data_ptr()
        where.cos_row, where.sin_row = place.cos.stride(0), place.sin.stride(0)
        where.half = place.cos.shape[1] // 2
    where.spans, where.count = tasks.spans_of(segments).data_ptr(), len(segments.spans)
    where.longest, where.shared = segments.longest, segments.shared
    where.tokens = segments.rows * segments.length
    return where


def _gradient_places(pairs: Sequence[Pair]) -> list[Pair]:
    """Memory for the gradients of all factors, contiguous: first of every A, then of every B."""
    factors = [pair[which] for which in (0, 1) for pair in pairs]
    sizes = [0 if one is None else one.numel() for one in factors]
    parts = torch.empty(sum(sizes)).split_with_sizes(sizes)
    views = [
        None if one is None else part.view(one.shape)
        for one, part in zip(factors, parts, strict=True)
    ]
    return list(zip(views[: len(pairs)], views[len(pairs) :], strict=True))
