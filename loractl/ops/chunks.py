"""How many rows of logits and attention scores exist at a time, for the code that computes them and
for the memory estimate."""

CHUNK = 96 * 1024**2
"""Bytes of logits that exist at a time, unless CHUNK_ROWS rows of the vocabulary take more.

512 rows of 49,152 in float32: the forward and backward products reach 258 and 243 GFLOP/s, against
240 and 231 in chunks of 341 rows, and 210 and 203 in chunks of 170 (two cores with AVX-512)."""
CHUNK_ROWS = 64
"""With fewer rows, reading the weight for each chunk would cost more than its product."""
STRIP_ROWS = 32
"""Rows whose softmax is computed at a time: 96-98 us per row of 49,152 on one AVX2 core, against
102-109 in strips of 8 or 64, and 411 for the forward pass of `F.cross_entropy` alone."""

DEVICE_CHUNK, DEVICE_ROWS = 1024**3, (1024, 4096)
"""On a device whose launches cost time, a chunk is larger, and its softmax is computed at once:
bytes of its logits in float32, and between how many rows it has whatever they take."""


def chunk_rows(n: int, vocabulary: int, width: int, *, on_cpu: bool = True) -> int:
    """Rows per chunk when n rows are split evenly; `width` is the bytes per value."""
    most = max(CHUNK_ROWS, CHUNK // (vocabulary * width))
    if not on_cpu:
        least, greatest = DEVICE_ROWS
        most = min(greatest, max(least, DEVICE_CHUNK // (4 * vocabulary)))
    chunks = max(1, -(-n // most))
    return max(1, -(-n // chunks))


def query_rows(width: int) -> int:
    """Queries of an example whose scores exist at a time; `width` is the bytes per value.

    They see keys only up to the end of their block, so long examples cost half. Forward and
    backward of 1,024 tokens in float32 on AVX2, one thread, 9 heads of 64 on 3 kv heads: 22 ms with
    examples of 128 tokens and 48 with 512; blocks of 128 took 24 and 54, blocks of 32 25 and 49.
    Products in bfloat16 are best with 128.
    """
    return 64 if width == 4 else 128


SCORES = 4 * 1024**2
"""Bytes of a group's scores that exist at a time. Forward and backward, 9 heads of 64 on 3 kv
heads, two threads, one by one / in groups of 2 / 4 / 8 MiB: 4 examples of 256 tokens 20 / 17 / 15
/ 15 ms, 30 of 64 tokens 34 / 19 / 19 / 19, chats of 170 to 280 tokens 37 / 32 / 32 / 32."""


def examples_together(scores: int, examples: int) -> int:
    """How many of `examples` of equal length are computed together; `scores` is the bytes of scores
    of one example for a block of queries."""
    return max(1, min(examples, SCORES // scores))
