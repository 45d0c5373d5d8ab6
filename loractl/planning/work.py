"""One micro-batch, and how it is computed: what planning counts memory of."""

from collections.abc import Mapping
from dataclasses import dataclass

QKV = ("q", "k", "v", "qkv")
INTO_MLP = ("gate", "up", "gate_up", "fc1")
OUT_OF_MLP = ("down", "fc2")

Roles = Mapping[str, tuple[int, int, int]]
"""Role of each adapted module of a block -> (rank, d_in, d_out)."""


@dataclass(frozen=True)
class Work:
    """One micro-batch, and how it is computed."""

    batch: int
    length: int
    width: int  # bytes of a value: 2 for bfloat16 and float16, 4 for float32
    checkpointing: bool = False
    masked: bool = False  # several examples a row: attention with a mask, or by segments
    eager: bool = False  # attention scores computed whole, where it is not by segments
    dropout: float = 0.0
    trained_share: float = 1.0  # of the tokens, those that a loss is taken of
    formula: str = "lora"
    full: bool = False
    quantized: bool = False
    autocast: bool = False  # weights in float32, products in `width`
    starts: bool = False  # PiSSA, OLoRA: A and B count from where they started, at twice the rank
    whole_head: bool = False  # the head is trained whole beside adapters
    whole_embedding: bool = False  # likewise
    fast: bool = True  # through hand-written layers, where they serve
    fused: bool = True  # activations in one operation each
    on_cpu: bool = False
    real: int | None = None  # tokens apart from padding, where that is known
    longest: int | None = None  # tokens of the longest example, where that is known
    previous: int | None = None  # tokens of a row of the batch before; None: as many

    @property
    def tokens(self) -> int:
        return self.batch * self.length

    @property
    def tokens_before(self) -> int:
        return self.tokens if self.previous is None else self.batch * self.previous

    @property
    def real_tokens(self) -> int:
        return self.tokens if self.real is None else self.real

    @property
    def longest_example(self) -> int:
        return self.length if self.longest is None else self.longest


@dataclass(frozen=True)
class Kept:
    """Bytes of one micro-batch."""

    blocks: int  # what all blocks keep until the backward pass reaches them
    block: int  # of it, what one block keeps or, with checkpointing, keeps when computed again
    outside: int  # final norm, positions, casts of weights, and what enters the head
    temporaries: int  # what lives besides while a block is computed or goes backward, at most
    logits: int  # at most, while loss and final norm go forward and backward
    logits_kept: int  # of it, what lives on while the blocks go backward
    above: int = 0  # of `outside`, what is gone by then: the final norm's, and what enters the head

    @property
    def activations(self) -> int:
        return self.blocks + self.outside

    @property
    def below(self) -> int:
        """What is there still when the blocks go backward."""
        return self.activations - self.above
