"""How many rows of logits and of attention scores exist at a time: for what computes them, and for
who predicts its memory."""

CHUNK = 96 * 1024**2
"""Bytes of logits that exist at a time, where the vocabulary lets CHUNK_ROWS of them be so few.

512 rows of 49,152 in float32: the products forward and backward reach 258 and 243 GFLOP/s, against
240 and 231 in chunks of 341 rows and 210 and 203 in those of 170 (two cores with AVX-512)."""
CHUNK_ROWS = 64
"""Fewer rows would read the weight more often than its product is worth."""
STRIP_ROWS = 32
"""Rows whose softmax is taken at a time: 96-98 us a row of 49,152 on one AVX2 core, against 102-109
in strips of 8 or 64, and 411 for `F.cross_entropy` forward alone."""


def chunk_rows(n: int, vocabulary: int, width: int) -> int:
    """Rows of a chunk when n rows are cut into equal ones; `width` is the bytes of a value."""
    most = max(CHUNK_ROWS, CHUNK // (vocabulary * width))
    chunks = max(1, -(-n // most))
    return max(1, -(-n // chunks))


def query_rows(width: int) -> int:
    """Queries of an example whose scores exist at a time; `width` is the bytes of a value.

    They see keys up to their own end only, so that long examples cost half. Forward and backward of
    1,024 tokens in float32 on AVX2, one thread, 9 heads of 64 on 3: 22 ms with examples of 128 and
    48 with those of 512; blocks of 128 took 24 and 54, of 32 25 and 49. Products in bfloat16 want
    128.
    """
    return 64 if width == 4 else 128


SCORES = 4 * 1024**2
"""Bytes of scores of a group that exist at a time. Forward and backward, 9 heads of 64 on 3, two
threads, one by one / in groups of 2 / 4 / 8 MiB: 4 examples of 256 tokens 20 / 17 / 15 / 15 ms, 30
of 64 tokens 34 / 19 / 19 / 19, chats of 170 to 280 tokens 37 / 32 / 32 / 32."""


def examples_together(scores: int, examples: int) -> int:
    """How many of some examples of one length are computed together; `scores` are those of one, a
    block of queries, in bytes."""
    return max(1, min(examples, SCORES // scores))
