"""How much memory a run takes: every part in bytes, for each phase of a step.

One memory model gives two numbers: the peak that CUDA's allocator reports (`allocated`), and the
peak resident size of a process on the CPU (`rss`), which includes Python and its libraries.
"""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace

from loractl.config.optimizers import OPTIMIZERS, Shape
from loractl.lora.ranks import ModuleRank
from loractl.models.shape.types import ModelShape
from loractl.planning import counts, layer_bytes, logits, trained_tensors
from loractl.planning.frameworks import LORACTL, Framework
from loractl.planning.kept_bytes import kept
from loractl.planning.work import Kept, Work

BITS = {"nf4": 4 + 32 / 64, "nf4-double": 4 + 8 / 64 + 32 / (64 * 256), "int8": 8.0}
"""Bits per quantized value, scales included (QLoRA, arXiv 2305.14314, section 3: blocks of 64 with
a float32 scale each, or with an 8-bit scale each and a float32 one per 256 of those)."""
CUDA_CONTEXT = 1343 * 1024**2
"""Bytes that a CUDA process holds outside its allocator: transformers' "anatomy of model training
memory" reports 1,343 MiB with the kernels loaded (V100); Unsloth's estimator assumes 1.4 GB."""
CPU_PROCESS = 400 * 1024**2
"""Resident bytes of Python with torch, transformers, a tokenizer and data, without the model:
362 MiB after the imports and one step of a 0.02 MB model, the rest for reading data (Linux, torch
2.13)."""
STRIP = 1 << 22
"""Values that loractl unpacks at a time on a CPU; in C, even fewer (`ops.packed`)."""
IMPORTANCE = 12
"""Bytes per value for AdaLoRA's importance: the score and two averages, in float32."""


@dataclass(frozen=True)
class Plan:
    """What is trained and how, as far as it affects memory."""

    ranks: Mapping[str, ModuleRank]  # empty for full fine-tuning
    work: Work
    quantization: str = "none"
    optimizer: str = "adamw"
    accumulation: int = 1
    has_starts: bool = False  # PiSSA, OLoRA: the initial A and B are kept
    modules_to_save: tuple[str, ...] = ()
    new_tokens: int = 0
    streamed: bool = False  # layers pass through two buffers
    framework: Framework = LORACTL


@dataclass(frozen=True)
class Memory:
    """Bytes by phase and part. The peak is the largest phase, not the sum of all parts."""

    phases: dict[str, dict[str, int]]
    after_step: int  # still allocated once the optimizer has stepped, gradients included

    @property
    def peak_phase(self) -> str:
        return max(self.phases, key=lambda phase: sum(self.phases[phase].values()))

    @property
    def parts(self) -> dict[str, int]:
        """The parts at the peak, which add up to `allocated`."""
        return self.phases[self.peak_phase]

    @property
    def largest(self) -> dict[str, int]:
        """The maximum of each part over the phases; they need not occur together."""
        names = dict.fromkeys(name for phase in self.phases.values() for name in phase)
        return {n: max(phase.get(n, 0) for phase in self.phases.values()) for n in names}

    @property
    def allocated(self) -> int:
        return sum(self.parts.values())

    @property
    def on_gpu(self) -> int:
        """What a GPU must have: the allocated bytes and the CUDA context."""
        return self.allocated + CUDA_CONTEXT

    @property
    def rss(self) -> int:
        return self.allocated + CPU_PROCESS


def memory(shape: ModelShape, plan: Plan) -> Memory:
    """Bytes of every part in each phase of a step that may be the peak.

    loss: every activation is kept, and the logits and their gradients are alive. blocks: the
    backward pass of a block, after its recomputation if checkpointing is on. update: the
    activations are gone, all gradients exist, and the optimizer makes temporaries. forward: both
    batches, in frameworks that hold a batch's graph until the next forward pass has finished.
    """
    work, framework = plan.work, plan.framework
    n_trained = trained_parameters(shape, plan)
    width = _trained_width(plan)
    held = {
        "weights": weights_bytes(shape, plan),
        "adapters": _adapter_bytes(shape, plan),
        "optimizer": _state_bytes(shape, plan, n_trained, width),
        "quantization": _dequantized_bytes(shape, plan),
    }
    gradients = width * n_trained
    accumulated = gradients if plan.accumulation > 1 else 0
    activations = kept(shape, plan.ranks, work, framework)
    recomputed = activations.block if work.checkpointing else 0
    loss = {
        **held,
        "gradients": accumulated,
        "activations": activations.activations,
        "logits": activations.logits,
    }
    blocks = {
        **held,
        "gradients": accumulated,
        "activations": activations.below + recomputed + activations.temporaries,
        "logits": activations.logits_kept,
    }
    update = {
        **held,
        "gradients": gradients,
        "update": _update_bytes(shape, plan, n_trained, width),
    }
    phases = {"loss": loss, "blocks": blocks, "update": update}
    if framework.graph_lives:
        phases["forward"] = {**loss, **_after_another(shape, plan, activations)}
    if work.on_cpu:
        # Files are mapped. If their values are copied to another dtype, their pages count as
        # resident too; otherwise they are the weights.
        width_now = _trained_width(plan) if work.full else work.width
        stored = shape.stored_width or width_now
        packs = plan.quantization != "none" and framework.own_ops  # a file's pages go as it is read
        mapped = stored != width_now and not (packs or plan.streamed)
        files = stored * shape.parameters if mapped else 0
        phases["load"] = {"weights": held["weights"], "files": files}
    static = held["weights"] + held["adapters"] + held["optimizer"] + gradients
    losses = logits.losses(work, framework)
    after = round(framework.logits_after * shape.vocabulary * losses)
    return Memory(phases, static + after)


def _after_another(shape: ModelShape, plan: Plan, now: Kept) -> dict[str, int]:
    """Activations and logits when the model returns, with those left over from the previous batch:
    the head's product has just been computed, or its logits cast."""
    work, framework = plan.work, plan.framework
    tokens = work.tokens_before
    left = round(framework.logits_kept * shape.vocabulary * tokens)
    inputs = 0
    if plan.quantization != "none":
        of_head = work.width * shape.hidden if framework.quantizes == "head" else 0
        inputs = (shape.layers * layer_bytes.inputs_left(shape, work) + of_head) * tokens
    given = work.width * shape.vocabulary * round(logits.losses(work, framework))
    unpacked = _dequantized_bytes(shape, plan)
    quantization, made = max((unpacked, given), (0, given + now.logits_kept), key=sum)
    return {
        "quantization": quantization,
        "activations": now.activations + inputs,
        "logits": made + left,
    }


def trained_parameters(shape: ModelShape, plan: Plan) -> int:
    rows = counts.new_rows(shape, plan.new_tokens)
    if plan.work.full:
        return shape.parameters + rows
    of_adapters = counts.trained(shape, plan.ranks, plan.work.formula)
    return of_adapters + counts.saved_whole(shape, plan.modules_to_save) + rows


def weights_bytes(shape: ModelShape, plan: Plan) -> int:
    """Bytes of the base: trained, or frozen and packed where it is quantized."""
    quantization = plan.quantization
    if plan.work.full:
        return (plan.framework.full_width or plan.work.width) * shape.parameters
    packed = quantized_parameters(shape, plan) if quantization != "none" else 0
    bits = BITS.get(quantization, 0)
    head = shape.by_path[shape.head] if shape.head and plan.framework.unties else None
    parameters = shape.parameters + (head.d_in * head.d_out if head and shape.tied else 0)
    every = round(packed * bits / 8) + plan.work.width * (parameters - packed)
    if not plan.streamed or shape.layers <= 2:
        return every
    outside = plan.work.width * sum(
        module.d_in * module.d_out
        for module in shape.modules
        if module.role == "embedding" or (module.role == "head" and not shape.tied)
    )
    return outside + (every - outside) * 2 // shape.layers  # both buffers


def quantized_parameters(shape: ModelShape, plan: Plan) -> int:
    """Number of values that quantization packs: the linear layers in the blocks, like bitsandbytes
    in transformers; embeddings, norms and the head stay as they are."""
    quantizes = plan.framework.quantizes
    if quantizes == "adapted":
        modules = (shape.by_path[path] for path in plan.ranks)
        return sum(m.d_in * m.d_out for m in modules if m.role not in ("embedding", "head"))
    head = shape.by_path[shape.head] if shape.head and quantizes == "head" else None
    own = head is not None and (plan.framework.unties or not shape.tied)
    return shape.linear_parameters + (head.d_in * head.d_out if head and own else 0)


def inference_bytes(shape: ModelShape, plan: Plan, quantization: str) -> int:
    """Bytes of the frozen base alone at inference: packed or not, plus what a product needs."""
    packed = replace(plan, quantization=quantization)
    return weights_bytes(shape, packed) + _dequantized_bytes(shape, packed)


def _dequantized_bytes(shape: ModelShape, plan: Plan) -> int:
    """Bytes of the largest packed matrix while it is multiplied: whole, in the products' dtype, or
    a strip of it."""
    if plan.quantization == "none":
        return 0
    outside = ("embedding",) if plan.framework.quantizes == "head" else ("embedding", "head")
    sizes = [m.d_in * m.d_out for m in shape.modules if m.role not in outside]
    if plan.framework.quantizes == "adapted":
        sizes = [m.d_in * m.d_out for m in map(shape.by_path.__getitem__, plan.ranks)]
    largest = max(sizes, default=0)
    if plan.work.on_cpu and plan.framework.own_ops:
        return plan.work.width * min(largest, STRIP)
    return plan.framework.dequantized * plan.work.width * largest


def _trained_width(plan: Plan) -> int:
    """Bytes of a trained value; its gradient and moments are equally wide."""
    framework, work = plan.framework, plan.work
    own = framework.full_width if work.full else framework.adapter_width
    return own or work.width


def trained_tensors_of(shape: ModelShape, plan: Plan) -> Counter[Shape]:
    """How many trained tensors there are of each shape."""
    rows = trained_tensors.of_rows(shape, plan.new_tokens)
    if plan.work.full:
        return Counter([*trained_tensors.of_model(shape), *rows])
    adapters = trained_tensors.of_adapters(shape, plan.ranks, plan.work.formula).values()
    whole = trained_tensors.of_modules(shape, plan.modules_to_save)
    return Counter([*adapters, *whole, *rows])


def _state_bytes(shape: ModelShape, plan: Plan, n_trained: int, width: int) -> int:
    """Bytes of optimizer state, and of AdaLoRA's importance."""
    kind, on_cpu = OPTIMIZERS[plan.optimizer], plan.work.on_cpu
    if kind.others is None:  # only the number of values matters
        state = kind.size((n_trained,), width)
    else:
        tensors = trained_tensors_of(shape, plan)
        state = sum(n * kind.size(one, width, on_cpu=on_cpu) for one, n in tensors.items())
    state += 4 * sum(length for _, length in kind.shared)
    if plan.work.formula == "adalora" and not plan.work.full:
        state += IMPORTANCE * n_trained
    return state


def _adapter_bytes(shape: ModelShape, plan: Plan) -> int:
    """Bytes of A and B, of the modules trained in full, and of the initial A and B if kept."""
    if plan.work.full:
        return 0
    width = _trained_width(plan)
    starts = width * counts.trained(shape, plan.ranks) if plan.has_starts else 0
    return width * trained_parameters(shape, plan) + starts


def _update_bytes(shape: ModelShape, plan: Plan, n_trained: int, width: int) -> int:
    """Bytes of what an optimizer step makes: copies of one tensor at a time, except in torch's
    foreach loop on CUDA, which takes the root of all second moments at once; the fused kernel that
    is used here needs none."""
    kind = OPTIMIZERS[plan.optimizer]
    if kind.foreach and not plan.work.on_cpu and not plan.framework.own_ops:
        return width * n_trained
    copies = kind.copies_on_cpu if plan.work.on_cpu else kind.copies
    if not copies:
        return 0
    return width * copies * max(map(math.prod, trained_tensors_of(shape, plan)), default=0)
