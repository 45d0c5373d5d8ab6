"""Generation in batches: each answer is the one its prompt gets alone, from the likeliest token to
the draw."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, GenerationConfig

from loractl.errors import ModelError
from loractl.generation.sample import Sampling, generate, stop_ids
from tests.conftest import ARCHITECTURES

PROMPTS = [[5, 9, 40], [7], [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11], [300, 20], [30] * 6]


@pytest.fixture(scope="module")
def load(base: Callable[..., Path]) -> Callable[[str], Any]:
    return lambda name: AutoModelForCausalLM.from_pretrained(base(name)).eval()


def likeliest(model: Any, prompt: list[int], n: int, stops: list[int]) -> list[int]:
    """The likeliest continuation, one whole forward pass a token: no cache, no padding, no
    `generate`."""
    ids = list(prompt)
    for _ in range(n):
        with torch.no_grad():
            best = int(model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax())
        ids.append(best)
        if best in stops:
            break
    return ids[len(prompt) :]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_batch_of_prompts_gets_the_likeliest_tokens_of_each_alone(
    name: str, load: Any, tokenizer: Any
) -> None:
    model = load(name)
    found = generate(model, tokenizer, PROMPTS, Sampling(max_new_tokens=8))
    stops = stop_ids(model, tokenizer)
    expected = [
        tokenizer.decode(likeliest(model, prompt, 8, stops), skip_special_tokens=True)
        for prompt in PROMPTS
    ]
    assert found == expected and len(set(found)) > 2


def test_batches_of_one_and_of_all_give_the_same_and_so_does_transformers(
    load: Any, tokenizer: Any
) -> None:
    model = load("llama")
    one = generate(model, tokenizer, PROMPTS, Sampling(max_new_tokens=8, batch_size=1))
    two = generate(model, tokenizer, PROMPTS, Sampling(max_new_tokens=8, batch_size=2))
    theirs = []
    for prompt in PROMPTS:
        ids = torch.tensor([prompt])
        out = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=8,
            pad_token_id=tokenizer.pad_token_id,
        )  # fmt: skip
        theirs.append(tokenizer.decode(out[0, len(prompt) :], skip_special_tokens=True))
    assert one == two == theirs


def test_what_the_models_own_generation_config_prefers_does_not_bend_the_likeliest_token(
    load: Any, tokenizer: Any
) -> None:
    plain = load("llama")
    expected = generate(plain, tokenizer, PROMPTS, Sampling(max_new_tokens=12))
    model = load("llama")
    model.generation_config = GenerationConfig(
        do_sample=True, temperature=5.0, top_k=3, repetition_penalty=9.0, no_repeat_ngram_size=1,
        num_beams=3, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    assert generate(model, tokenizer, PROMPTS, Sampling(max_new_tokens=12)) == expected


def test_an_answer_ends_with_what_the_model_or_the_tokenizer_ends_it(
    load: Any, tokenizer: Any
) -> None:
    model = load("llama")
    free = likeliest(model, PROMPTS[0], 8, [])
    assert len(set(free[:4])) > 1
    ends = free[2]
    model.generation_config.eos_token_id = [ends, 0]
    assert stop_ids(model, tokenizer) == sorted({ends, 0, tokenizer.eos_token_id})
    first = free.index(ends)
    (found,) = generate(model, tokenizer, PROMPTS[:1], Sampling(max_new_tokens=8))
    assert found == tokenizer.decode(free[: first + 1], skip_special_tokens=True)


def test_draws_follow_the_seed_and_the_temperature(load: Any, tokenizer: Any) -> None:
    model = load("llama")
    hot = [
        generate(model, tokenizer, PROMPTS, Sampling(16, temperature=2.0, seed=seed))
        for seed in (0, 0, 1)
    ]
    assert hot[0] == hot[1] != hot[2]
    greedy = generate(model, tokenizer, PROMPTS, Sampling(16))
    cold = generate(model, tokenizer, PROMPTS, Sampling(16, temperature=1e-4))
    narrow = generate(model, tokenizer, PROMPTS, Sampling(16, temperature=1.0, top_p=1e-6))
    assert cold == narrow == greedy != hot[0]


def test_answers_end_where_the_models_positions_do(load: Any, tokenizer: Any) -> None:
    model = load("gpt2")
    model.generation_config.eos_token_id = None
    long = [17] * 505
    (found,) = generate(model, tokenizer, [long], Sampling(max_new_tokens=50))
    assert found == tokenizer.decode(likeliest(model, long, 7, [2]), skip_special_tokens=True)
    with pytest.raises(
        ModelError, match="a prompt has 512 tokens, but the model has 512 positions"
    ):
        generate(model, tokenizer, [[1], [17] * 512], Sampling(max_new_tokens=1))


def test_a_prompt_without_tokens_is_refused(load: Any, tokenizer: Any) -> None:
    with pytest.raises(ModelError, match="an empty prompt"):
        generate(load("llama"), tokenizer, [[1], []], Sampling(max_new_tokens=1))
