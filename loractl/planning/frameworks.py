"""What a training framework keeps in memory beside what the arithmetic needs.

Published figures were measured in other frameworks than this one; each entry is read from the code
named beside it, none is fitted to a figure.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Framework:
    """How a framework trains. Bytes a vocabulary entry are for each token whose loss is taken."""

    adapter_width: int | None  # bytes of A and B, their gradients and moments; None: the base's
    full_width: int | None  # bytes of weights that are all trained; None: the base's
    casts_input: bool  # every adapter makes a float32 copy of its input
    dropout: float  # on adapters, unless the config says else
    fused_qkv: bool  # q, k and v are cut from one product, which v keeps whole, with one adapter
    scatters: bool  # the update is copied into place, and that copy is kept
    repeats_kv: bool  # k and v are repeated for every head before attention
    trained_only: bool  # logits only where the loss is taken
    in_chunks: bool  # a plain head's never all at once; logits_* are of other heads then
    logits_kept: float  # bytes a vocabulary entry that live on while the blocks go backward
    logits_peak: float  # at most, in the loss and its backward pass
    logits_strip: float  # besides, of as many tokens of each row as go backward together
    strip: int  # those tokens
    logits_after: float  # what lives on after the step
    graph_lives: bool  # with it, until the next batch has gone forward, the graph they came from
    quantizes: str  # linear: those of the blocks; head: and the head; adapted: where adapters are
    dequantized: int  # copies of a matrix that live while it is multiplied
    unties: bool  # a tied head gets a weight of its own
    own_ops: bool  # layers by ops/layer, attention by segments, adapters by ops/lora_linear.py
    source: str


LORACTL = Framework(
    adapter_width=4, full_width=4, casts_input=False, dropout=0.0, fused_qkv=False, scatters=False,
    repeats_kv=False, trained_only=True, in_chunks=True,
    # log-probabilities, their gradient and that of the logits, each in float32
    logits_kept=0, logits_peak=12, logits_strip=0, strip=0, logits_after=0,
    graph_lives=False, quantizes="linear", dequantized=1, unties=False, own_ops=True,
    source="loractl: ops/layer, ops/cross_entropy.py, ops/attention, ops/lora_linear.py",
)  # fmt: skip
FRAMEWORKS: dict[str, Framework] = {
    "loractl": LORACTL,
    "peft": Framework(
        adapter_width=4, full_width=None, casts_input=True, dropout=0.0, fused_qkv=False,
        scatters=False, repeats_kv=False, trained_only=False, in_chunks=False,
        # the 16-bit logits live on in the model's output, until after the step
        logits_kept=2, logits_peak=14, logits_strip=0, strip=0, logits_after=2,
        graph_lives=False, quantizes="linear", dequantized=1, unties=False, own_ops=False,
        source="PEFT lora/layer.py (_cast_input_dtype, autocast_adapter_dtype),"
        " transformers loss/loss_utils.py",
    ),
    "litgpt": Framework(
        adapter_width=None, full_width=None, casts_input=False, dropout=0.05, fused_qkv=True,
        scatters=True, repeats_kv=True, trained_only=False, in_chunks=False,
        # Fabric casts what a model returns to float32, here a list of chunks of 128 tokens: these
        # logits live on, their log-probabilities until a chunk has gone backward, which takes the
        # gradients of both
        logits_kept=4, logits_peak=8, logits_strip=8, strip=128, logits_after=4,
        graph_lives=True,  # finetune/lora.py: `logits = model(...)`, over and over
        quantizes="head",
        dequantized=2,  # quantized from float16, so dequantized to it, then cast
        unties=True,
        own_ops=False,
        source="litgpt lora.py (LoRAQKVLinear), model.py (CausalSelfAttention), utils.py"
        " (chunked_cross_entropy), finetune/lora.py (train); lightning fabric/plugins/precision"
        " (convert_output); bitsandbytes autograd/_functions.py (MatMul4Bit)",
    ),
    "torchtune": Framework(
        adapter_width=None, full_width=None, casts_input=False, dropout=0.05, fused_qkv=False,
        scatters=False, repeats_kv=True, trained_only=False, in_chunks=False,
        # float32 logits, log-probabilities and two gradients
        logits_kept=4, logits_peak=16, logits_strip=0, strip=0, logits_after=4,
        graph_lives=False, quantizes="linear", dequantized=1, unties=False, own_ops=False,
        source="torchtune modules/transformer.py, modules/attention.py (2024)",
    ),
}  # fmt: skip
