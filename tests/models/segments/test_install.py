"""Models that attend by segments give the loss and gradients that they gave with a mask."""

from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from loractl.models.forward import check_isolation, recompute_activations_
from loractl.models.objective import loss_sum
from loractl.models.segments import interface
from loractl.models.segments.install import OVER, call_options, use_segments_
from loractl.ops.segments import segments_of
from loractl.records import Batch
from tests.tiny import ARCHITECTURES, CAUSAL, GPT2, SHAPE, batch_of

WINDOW = {"sliding_window": 8}
MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
LATENT = {
    "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1,
    "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8,
    "v_head_dim": 12, "moe_intermediate_size": 16, "first_k_dense_replace": 1,
    "num_key_value_heads": 4,
}  # fmt: skip
FURTHER: dict[str, tuple[str, dict[str, object]]] = {
    "gemma2": ("Gemma2", {**SHAPE, **WINDOW, "head_dim": 16, "attn_logit_softcapping": 2.0}),
    "phi": ("Phi", SHAPE),
    "cohere2": ("Cohere2", {**SHAPE, **WINDOW}),
    "olmo2": ("Olmo2", SHAPE),
    "qwen2-window": ("Qwen2", {**SHAPE, **WINDOW, "use_sliding_window": True,
                               "max_window_layers": 1}),
    "granite": ("Granite", {**SHAPE, "attention_multiplier": 0.2}),
    "smollm3": ("SmolLM3", SHAPE),
    "qwen3-moe": ("Qwen3Moe", {**SHAPE, **MOE, "head_dim": 16}),
    "deepseek": ("DeepseekV3", {**SHAPE, **LATENT}),  # values narrower than keys
    "bigcode": ("GPTBigCode", {**GPT2, "attn_pdrop": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0}),
}  # fmt: skip
LEFT: dict[str, tuple[str, dict[str, object]]] = {
    "opt": ARCHITECTURES["opt"],  # its masks do not know the examples
    "falcon": ("Falcon", {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}),
    "gptj": ("GPTJ", {"n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 8}),
    "stablelm": ("StableLm", SHAPE),  # keywords end above its layers
    "nemotron": ("Nemotron", SHAPE),  # likewise
    "gpt-oss": ("GptOss", {**SHAPE, **WINDOW, "head_dim": 16, "num_local_experts": 4,
                           "num_experts_per_tok": 2}),  # sinks
    "llama4": ("Llama4Text", {**SHAPE, "head_dim": 16, "attention_chunk_size": 8,
                              "num_local_experts": 2, "intermediate_size_mlp": 48}),  # chunks
}  # fmt: skip
ALL = {**ARCHITECTURES, **FURTHER, **LEFT}
TAKEN = [name for name in ALL if name not in LEFT]


def make(name: str, **changes: object) -> Any:
    architecture, shape = ALL[name]
    ids = {"vocab_size": 300, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    config = getattr(transformers, f"{architecture}Config")(**{**ids, **shape, **changes})
    torch.manual_seed(0)
    causal = {**CAUSAL, "Llama4Text": "Llama4ForCausalLM"}
    model = getattr(transformers, causal.get(architecture, f"{architecture}ForCausalLM"))(config)
    with torch.no_grad():  # the default start is near zero, which would hide errors of some size
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4)
    return model.eval()


# 45 tokens a row, the rest is padding
PACKED = batch_of([5, 30, 1, 9], [12, 7], [31], untrained=0.5)
SINGLE = batch_of([40], [13], untrained=0.5)


def loss_and_gradients(model: Any, batch: Batch) -> tuple[float, list[Tensor]]:
    model.zero_grad()
    total, _ = loss_sum(model, batch)
    total.backward()
    return float(total.detach()), [p.grad.clone() for p in model.parameters() if p.grad is not None]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Grows by one whenever a layer attends by segments."""
    found: list[Any] = []
    original = interface.segment_attention

    def counted(*given: Any, **options: Any) -> Tensor:
        found.append(options)
        return original(*given, **options)

    monkeypatch.setattr(interface, "segment_attention", counted)
    return found


def assert_same(model: Any, batch: Batch, calls: list[Any], *, layers: int = 2) -> None:
    """Loss and gradients of a plain model, then those of the same model by segments."""
    loss, gradients = loss_and_gradients(model, batch)
    assert use_segments_(model)
    calls.clear()
    found, found_gradients = loss_and_gradients(model, batch)
    assert len(calls) == layers
    assert found == pytest.approx(loss, rel=1e-5)
    scale = max(float(g.abs().max()) for g in gradients)
    for a, b in zip(found_gradients, gradients, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5 * scale, rtol=1e-4)


@pytest.mark.parametrize("name", TAKEN)
def test_packed_rows_give_the_loss_and_gradients_of_a_mask(name: str, calls: list[Any]) -> None:
    assert_same(make(name), PACKED, calls)


@pytest.mark.parametrize("name", TAKEN)
def test_rows_of_one_example_do_too(name: str, calls: list[Any]) -> None:
    assert_same(make(name), SINGLE, calls)


@pytest.mark.parametrize("name", ["llama", "gemma2", "gemma3", "gpt2", "mixtral"])
def test_and_with_recomputed_activations(name: str, calls: list[Any]) -> None:
    model = make(name, attn_pdrop=0.0) if name == "gpt2" else make(name)
    model.train()
    recompute_activations_(model)
    assert_same(model, PACKED, calls, layers=4)  # each layer once more in the backward pass


@pytest.mark.parametrize("name", TAKEN)
def test_examples_stay_apart(name: str) -> None:
    model = make(name)
    assert use_segments_(model)
    check_isolation(model)


@pytest.mark.parametrize("name", LEFT)
def test_a_model_that_cannot_stays_as_it_was(name: str) -> None:
    model = make(name)
    former, hooks = (
        model.config._attn_implementation,
        sum(len(m._forward_hooks) for m in model.modules()),
    )
    assert not use_segments_(model)
    assert model.config._attn_implementation == former
    assert sum(len(m._forward_hooks) for m in model.modules()) == hooks
    assert call_options(model, PACKED.position_ids) == {}


@pytest.mark.parametrize("name", ["llama", "mistral", "gemma2"])
def test_calls_without_segments_are_the_same_to_the_bit(name: str) -> None:
    model = make(name)
    ids, ones = PACKED.input_ids, torch.ones_like(PACKED.input_ids)
    padding = ones.clone()
    padding[1, 20:] = 0

    def everything() -> list[Tensor]:
        options = {"max_new_tokens": 5, "do_sample": False}
        with torch.no_grad():
            return [
                model(input_ids=ids, position_ids=PACKED.position_ids, use_cache=False).logits,
                model(input_ids=ids, attention_mask=padding).logits,
                model(input_ids=ids).logits,
                model.generate(ids[:2], attention_mask=ones[:2], **options),
                model.generate(ids[:2], attention_mask=ones[:2], use_cache=False, **options),
            ]

    before = everything()
    assert use_segments_(model)
    loss_sum(model, PACKED)  # leaves nothing behind
    assert all(torch.equal(a, b) for a, b in zip(everything(), before, strict=True))


@pytest.mark.parametrize("name", ["llama", "mistral", "gemma2"])
def test_dropout_of_attention_takes_the_former_way_with_the_same_mask(
    name: str, calls: list[Any]
) -> None:
    losses = []
    for by_segments in (False, True):
        model = make(name, attention_dropout=0.5)
        assert not by_segments or use_segments_(model)
        calls.clear()
        torch.manual_seed(1)
        losses.append(float(loss_sum(model.train(), PACKED)[0].detach()))
    assert not calls
    assert losses[0] == losses[1]


def test_the_decoder_alone_takes_segments_too(calls: list[Any]) -> None:
    model = make("mistral")
    given = {"input_ids": PACKED.input_ids, "position_ids": PACKED.position_ids}
    with torch.no_grad():
        expected = model.model(**given, use_cache=False).last_hidden_state
        assert use_segments_(model)
        calls.clear()
        options = call_options(model, PACKED.position_ids)
        found = model.model(**given, use_cache=False, **options).last_hidden_state
    assert len(calls) == 2
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_a_call_that_fails_leaves_no_segments_behind() -> None:
    model = make("llama")
    assert use_segments_(model)
    handle = model.model.layers[1].register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        loss_sum(model, PACKED)
    handle.remove()
    assert interface.running.get() is None


def test_segments_with_a_mask_of_padding_or_a_cache_take_the_mask(calls: list[Any]) -> None:
    model = make("llama")
    assert use_segments_(model)
    ids, options = SINGLE.input_ids, call_options(model, SINGLE.position_ids)
    mask = torch.ones_like(ids)
    mask[1, 13:] = 0
    calls.clear()
    with torch.no_grad():
        found = model(input_ids=ids, attention_mask=mask, use_cache=False, **options).logits
        plain = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        assert torch.equal(found, plain)
        cache = model(input_ids=ids[:, :20], use_cache=True).past_key_values
        step = segments_of(torch.arange(20, 40)[None].expand(2, -1))
        later = model(input_ids=ids[:, 20:], past_key_values=cache, segments=step).logits
        whole = model(input_ids=ids, use_cache=False).logits[:, 20:]
    torch.testing.assert_close(later, whole, atol=1e-4, rtol=1e-4)
    assert not calls


@pytest.mark.parametrize("chunk", [4, 5, 8])
def test_a_mask_in_chunks_is_never_taken_for_that_of_segments(chunk: int) -> None:
    from transformers.masking_utils import chunked_causal_mask_function

    segments = segments_of(torch.arange(40)[None])
    given = {
        "batch_size": 1, "q_length": 40, "kv_length": 40, "attention_mask": None,
        "use_vmap": False, "device": "cpu",
        "mask_function": chunked_causal_mask_function(chunk, torch.zeros(1, dtype=torch.int64)),
    }  # fmt: skip
    for window in (None, chunk):
        assert not interface.is_of_segments(segments, window, given)


def test_full_fine_tuning_under_autocast_agrees(calls: list[Any]) -> None:
    model = make("llama")
    with torch.no_grad():
        exact, n = loss_sum(model, SINGLE)
        masked, _ = loss_sum(model, SINGLE, autocast=torch.bfloat16)
        assert use_segments_(model)
        found, _ = loss_sum(model, SINGLE, autocast=torch.bfloat16)
    assert len(calls) == 4  # two of them when it was tried out
    assert abs(float(found - exact)) <= 3 * abs(float(masked - exact)) + 0.02 * n


def test_our_names_hold_neither_sdpa_nor_flash() -> None:
    """transformers reads requirements out of such names."""
    assert not any(word in name for name in OVER.values() for word in ("sdpa", "flash", "flex"))
