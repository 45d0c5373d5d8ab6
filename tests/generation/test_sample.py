"""Generation in batches: each answer is the one its prompt gets alone, from the likeliest token to
the draw."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, GenerationConfig

from loractl.artifacts.peft import adapter as adapters
from loractl.artifacts.peft import attach
from loractl.errors import ModelError
from loractl.generation import sample
from loractl.generation.sample import PerRow, Sampling, stream
from loractl.generation.speech import Speech, stop_ids
from loractl.lora.hub import Hub, MixedRowsError
from tests.tiny import ARCHITECTURES, make_tokenizer

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


def generate(*given: Any, **options: Any) -> list[str]:
    """The texts of the answers."""
    return [answer.text for answer in sample.generate(*given, **options)]


def speech_of(model: Any, tokenizer: Any) -> Speech:
    return Speech(tokenizer, tuple(stop_ids(model, tokenizer)))


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


NAMES = ["thin", None, "wide", "thin", "wide"]
"""Which adapter answers which of PROMPTS."""


def hub_of(model: Any, where: Path, adapter_dir: Callable[..., Path]) -> Hub:
    hub = Hub(model)
    for name, rank in (("thin", 2), ("wide", 8)):
        directory = adapter_dir(where, name, rank=rank, size=0.3)
        attach.add_to_hub_(hub, model, name, adapters.read(directory))
    return hub


@pytest.mark.parametrize("batch_size", [2, 32])
@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2", "gpt-neox", "opt"])
def test_prompts_with_an_adapter_each_get_what_their_adapters_say_alone(
    name: str, batch_size: int, load: Any, base: Any, tokenizer: Any, adapter_dir: Any
) -> None:
    model, sampling = load(name), Sampling(max_new_tokens=12, batch_size=batch_size)
    hub = hub_of(model, base(name), adapter_dir)
    alone = {}
    for adapter in ("thin", "wide", None):
        hub.use(adapter)
        alone[adapter] = generate(model, tokenizer, PROMPTS, sampling)
    found = generate(model, tokenizer, PROMPTS, sampling, per_row=PerRow(hub, NAMES))
    assert found == [alone[adapter][row] for row, adapter in enumerate(NAMES)]
    assert not set(alone["thin"]) & set(alone[None]) and alone["wide"] != alone["thin"]
    assert generate(model, tokenizer, PROMPTS, sampling) == alone[None], "left in use"


def test_opt_which_flattens_its_rows_is_asked_one_adapter_at_a_time(
    load: Any, base: Any, tokenizer: Any, adapter_dir: Any
) -> None:
    model = load("opt")
    hub = hub_of(model, base("opt"), adapter_dir)
    hub.use_rows(["thin", "wide"])
    with pytest.raises(MixedRowsError, match="fc1"):
        model(torch.tensor([[1, 2], [3, 4]]))


def test_draws_of_a_mixed_batch_come_again_with_their_seed(
    load: Any, base: Any, tokenizer: Any, adapter_dir: Any
) -> None:
    model = load("llama")
    rows = PerRow(hub_of(model, base("llama"), adapter_dir), NAMES)
    drawn = [
        generate(model, tokenizer, PROMPTS, Sampling(8, temperature=2.0, seed=s), per_row=rows)
        for s in (0, 0, 1)
    ]
    assert drawn[0] == drawn[1] != drawn[2]


@pytest.mark.parametrize("temperature", [0.0, 2.0])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_an_answer_told_in_pieces_is_the_one_that_comes_whole(
    name: str, temperature: float, load: Any, tokenizer: Any
) -> None:
    model, sampling = load(name), Sampling(40, temperature=temperature)
    most = 0
    for prompt in PROMPTS:
        pieces: list[str] = []
        answer = stream(model, speech_of(model, tokenizer), prompt, sampling, pieces.append)
        text = answer.text
        assert [answer] == sample.generate(model, tokenizer, [prompt], sampling)
        assert "".join(pieces) == text and all(pieces)
        most = max(most, len(pieces))
    assert most > 5


def test_a_character_of_several_tokens_is_told_when_it_is_whole(tokenizer: Any) -> None:
    text = "a 東京 \n  é b"
    pieces: list[str] = []
    telling = sample.Pieces(Speech(tokenizer, ()), pieces.append)
    telling.put(torch.tensor([[5, 6]]))  # the prompt
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert len(ids) > len(text)
    for one in ids:
        telling.put(torch.tensor([one]))
    telling.end()
    assert "".join(pieces) == text and "\ufffd" not in "".join(pieces) and len(pieces) > 3


def test_an_answer_in_pieces_is_refused_where_a_whole_one_is(load: Any, tokenizer: Any) -> None:
    with pytest.raises(ModelError, match="an empty prompt"):
        stream(load("llama"), Speech(tokenizer, ()), [], Sampling(1), print)


def test_an_answer_says_why_it_ended_and_of_how_many_tokens_it_is(
    load: Any, tokenizer: Any
) -> None:
    model = load("llama")
    free = likeliest(model, PROMPTS[0], 8, [])
    (cut,) = sample.generate(model, tokenizer, PROMPTS[:1], Sampling(max_new_tokens=3))
    assert (cut.finish_reason, list(cut.ids)) == ("length", free[:3])
    assert cut.prompt_tokens == len(PROMPTS[0])
    model.generation_config.eos_token_id = [free[2]]
    (ended,) = sample.generate(model, tokenizer, PROMPTS[:1], Sampling(max_new_tokens=8))
    end = free.index(free[2])
    assert (ended.finish_reason, list(ended.ids)) == ("stop", free[:end])


def test_drawing_leaves_the_generators_of_the_process_as_they_were(
    load: Any, tokenizer: Any
) -> None:
    model = load("llama")
    torch.manual_seed(5)
    before = torch.get_rng_state()
    drawn = Sampling(4, temperature=2.0, seed=1)
    sample.generate(model, tokenizer, PROMPTS, drawn)
    stream(model, speech_of(model, tokenizer), PROMPTS[0], drawn, lambda piece: None)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_generator_of_a_device_is_seeded_and_then_as_it_was(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Apple's, whose module knows no numbers of devices, played by a generator of the CPU."""
    generator = torch.Generator().manual_seed(7)
    module = SimpleNamespace(
        get_rng_state=generator.get_state,
        set_rng_state=generator.set_state,
        manual_seed=generator.manual_seed,
    )
    monkeypatch.setattr(torch, "get_device_module", lambda device: module)
    expected = torch.rand(3, generator=torch.Generator().manual_seed(7))
    with sample.draw_from_seed(torch.device("mps"), 3):
        assert generator.initial_seed() == torch.initial_seed() == 3
        torch.rand(5, generator=generator)
    assert torch.equal(torch.rand(3, generator=generator), expected)


def test_each_batch_has_the_room_that_its_own_prompts_leave(
    load: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is handed to the model for one batch is not changed for the next."""
    model = load("gpt2")
    model.generation_config.eos_token_id = None
    before = model.generation_config.to_dict()
    configs, plain = [], model.generate

    def spied(**options: Any) -> Any:
        configs.append(options["generation_config"])
        return plain(**options)

    monkeypatch.setattr(model, "generate", spied)
    prompts = [[17] * 509, [5, 9, 40]]
    long, short = sample.generate(
        model, tokenizer, prompts, Sampling(max_new_tokens=9, batch_size=1)
    )
    assert [len(long.ids), len(short.ids)] == [3, 9]
    assert [config.max_new_tokens for config in configs] == [9, 3]
    assert model.generation_config.to_dict() == before


def test_what_pads_a_batch_is_no_part_of_an_answer(load: Any) -> None:
    """Where a tokenizer has no token for it, a batch is padded with one that ends answers."""
    model, tokenizer = load("llama"), make_tokenizer()
    ends = likeliest(model, PROMPTS[0], 8, [])[2]
    model.generation_config.eos_token_id = ends
    tokenizer.pad_token = tokenizer.eos_token = None
    assert tokenizer.decode([ends], skip_special_tokens=True), "it would be seen in a text"
    alone = [generate(model, tokenizer, [prompt], Sampling(8))[0] for prompt in PROMPTS]
    assert generate(model, tokenizer, PROMPTS, Sampling(8)) == alone


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_beside_a_long_prompt_a_short_ones_answer_has_its_own_room(
    name: str, load: Any, tokenizer: Any
) -> None:
    model = load(name)
    model.generation_config.eos_token_id = None
    prompts = [[5, 9, 40], [17] * 509, [7], [17, 3] + [17] * 507]
    sampling = Sampling(max_new_tokens=9)
    beside = sample.generate(model, tokenizer, prompts, sampling)
    assert [len(answer.ids) for answer in beside] == [9, 3, 9, 3]
    assert beside == [sample.generate(model, tokenizer, [p], sampling)[0] for p in prompts]


def test_special_tokens_inside_an_answer_are_part_of_its_text(tokenizer: Any) -> None:
    """As Mistral's [TOOL_CALLS]: only what ended the answer, and padding, are left out."""
    inside, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    ids = [inside, *tokenizer("a b", add_special_tokens=False)["input_ids"]]
    speech = Speech(tokenizer, (end,))
    assert speech.text([*ids, end, tokenizer.pad_token_id]) == f"{tokenizer.bos_token}a b"


def test_rows_of_one_call_end_at_the_stops_of_their_own_adapters(
    load: Any, base: Any, tokenizer: Any, adapter_dir: Any
) -> None:
    model = load("llama")
    hub = hub_of(model, base("llama"), adapter_dir)
    hub.use("wide")
    free = likeliest(model, PROMPTS[2], 8, [])
    hub.use(None)
    speeches = {"wide": Speech(tokenizer, (free[3],))}
    rows = PerRow(hub, NAMES, speeches)
    found = sample.generate(model, tokenizer, PROMPTS, Sampling(8), per_row=rows)
    plain = sample.generate(model, tokenizer, PROMPTS, Sampling(8), per_row=PerRow(hub, NAMES))
    end = free.index(free[3])
    assert (list(found[2].ids), found[2].finish_reason) == (free[:end], "stop")
    others = [i for i, name in enumerate(NAMES) if name != "wide"]
    assert [found[i] for i in others] == [plain[i] for i in others]
