"""Which architectures have hand-written layers, under all their names.

No torch: planning counts what these layers keep.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Architecture:
    """transformers' names for a family of decoders."""

    model_type: str  # of config.json
    trunk: str  # the class below the head
    layer: str  # the class of its layers
    is_sandwiched: bool = False  # norms before and after attention and MLP


ARCHITECTURES = (
    Architecture("llama", "LlamaModel", "LlamaDecoderLayer"),
    Architecture("mistral", "MistralModel", "MistralDecoderLayer"),
    Architecture("qwen2", "Qwen2Model", "Qwen2DecoderLayer"),
    Architecture("qwen3", "Qwen3Model", "Qwen3DecoderLayer"),
    Architecture("smollm3", "SmolLM3Model", "SmolLM3DecoderLayer"),
    Architecture("granite", "GraniteModel", "GraniteDecoderLayer"),
    Architecture("gemma", "GemmaModel", "GemmaDecoderLayer"),
    Architecture("gemma2", "Gemma2Model", "Gemma2DecoderLayer", is_sandwiched=True),
    Architecture("gemma3_text", "Gemma3TextModel", "Gemma3DecoderLayer", is_sandwiched=True),
)

MODEL_TYPES = frozenset(one.model_type for one in ARCHITECTURES)
TRUNKS = frozenset(one.trunk for one in ARCHITECTURES)
LAYERS = {one.layer: one for one in ARCHITECTURES}
