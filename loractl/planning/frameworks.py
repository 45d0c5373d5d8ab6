"""What a training framework keeps in memory besides what the arithmetic needs.

Published figures were measured in other frameworks. Each entry here was read off the code that it
names; none is fitted to a figure.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Framework:
    """How a framework trains. Bytes per vocabulary entry are per token that has a loss."""

    adapter_width: int | None  # bytes of A and B, their gradients and moments; None: the base's
    full_width: int | None  # bytes of a weight in full fine-tuning; None: the base's
    casts_input: bool  # every adapter makes a float32 copy of its input
    dropout: float  # on adapters, unless the config says otherwise
    fused_qkv: bool  # one adapter; q, k and v are slices of one product, which v keeps alive whole
    scatters: bool  # the update is copied into place, and the copy is kept
    repeats_kv: bool  # k and v are repeated for every head before attention
    trained_only: bool  # logits only for the tokens that have a loss
    in_chunks: bool  # a plain head never makes all logits at once; logits_* then mean other heads
    logits_kept: float  # bytes per vocabulary entry alive during the blocks' backward pass
    logits_peak: float  # at most, in the loss and its backward pass
    logits_strip: float  # in addition, for the tokens of each row that go backward together
    strip: int  # the number of those tokens
    logits_after: float  # still alive after the step
    graph_lives: bool  # along with the graph behind them, until the next batch's forward pass ends
    quantizes: str  # linear: the blocks' layers; head: also the head; adapted: those with adapters
    dequantized: int  # copies of a matrix alive while it is multiplied
    unties: bool  # a tied head gets its own weight
    own_ops: bool  # ops/layer for layers, attention by segments, ops/lora_linear.py for adapters
    source: str


LORACTL = Framework(
    adapter_width=4, full_width=4, casts_input=False, dropout=0.0, fused_qkv=False, scatters=False,
    repeats_kv=False, trained_only=True, in_chunks=True,
    # log-probabilities, their gradient and the gradient of the logits, each in float32
    logits_kept=0, logits_peak=12, logits_strip=0, strip=0, logits_after=0,
    graph_lives=False, quantizes="linear", dequantized=1, unties=False, own_ops=True,
    source="loractl: ops/layer, ops/cross_entropy.py, ops/attention, ops/lora_linear.py",
)  # fmt: skip
FRAMEWORKS: dict[str, Framework] = {
    "loractl": LORACTL,
    "peft": Framework(
        adapter_width=4, full_width=None, casts_input=True, dropout=0.0, fused_qkv=False,
        scatters=False, repeats_kv=False, trained_only=False, in_chunks=False,
        # the 16-bit logits stay alive in the model's output until after the step
        logits_kept=2, logits_peak=14, logits_strip=0, strip=0, logits_after=2,
        graph_lives=False, quantizes="linear", dequantized=1, unties=False, own_ops=False,
        source="PEFT lora/layer.py (_cast_input_dtype, autocast_adapter_dtype),"
        " transformers loss/loss_utils.py",
    ),
    "litgpt": Framework(
        adapter_width=None, full_width=None, casts_input=False, dropout=0.05, fused_qkv=True,
        scatters=True, repeats_kv=True, trained_only=False, in_chunks=False,
        # Fabric casts the model's output to float32, here a list of chunks of 128 tokens. These
        # logits stay alive; their log-probabilities do until the chunk's backward pass, which
        # takes the gradients of both
        logits_kept=4, logits_peak=8, logits_strip=8, strip=128, logits_after=4,
        graph_lives=True,  # finetune/lora.py: `logits = model(...)`, over and over
        quantizes="head",
        dequantized=2,  # quantized from float16, so dequantized to float16, then cast
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
