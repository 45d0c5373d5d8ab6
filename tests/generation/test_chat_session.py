"""A conversation: what is kept of it, who sees it how, and what an interruption leaves."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from loractl.artifacts.peft import adapter as adapters
from loractl.artifacts.peft import attach
from loractl.data.chat_templates import with_template
from loractl.data.rendering import TemplateError
from loractl.errors import ModelError
from loractl.generation.chat_session import ChatSession
from loractl.generation.hub_model import HubModel
from loractl.generation.sample import Sampling, generate
from loractl.lora.hub import Hub
from loractl.records import Message
from tests.tiny import CHATML, make_tokenizer

SHOUT = CHATML.replace("m['content']", "(m['content'] | upper)")


@pytest.fixture
def speakers(base: Callable[..., Path], adapter_dir: Callable[..., Path]) -> HubModel:
    """A base and two random adapters, of which one was trained with another template."""
    model: Any = AutoModelForCausalLM.from_pretrained(base("llama")).eval()
    hub = Hub(model)
    for name, rank in (("thin", 2), ("wide", 8)):
        directory = adapter_dir(base("llama"), name, rank=rank, size=0.3)
        attach.add_to_hub_(hub, model, name, adapters.read(directory))
    tokenizer: Any = with_template(make_tokenizer(), CHATML)
    shouting = with_template(tokenizer, SHOUT)
    return HubModel(model, hub, {None: tokenizer, "thin": tokenizer, "wide": shouting})


def alone(speakers: HubModel, name: str | None, messages: list[Message], sampling: Sampling) -> str:
    """The answer by plain generation with one adapter for all rows."""
    ids = speakers.prompt_ids(name, messages)
    speakers.hub.use(name)
    (answer,) = generate(speakers.model, speakers.tokenizer, [ids], sampling)
    speakers.hub.use(None)
    return answer.text


GREEDY = Sampling(max_new_tokens=8)


def test_each_has_a_conversation_of_its_own_that_goes_on_where_it_was(
    speakers: HubModel,
) -> None:
    talk = ChatSession(speakers, GREEDY)
    expected: dict[str | None, list[Message]] = {"thin": [], None: [], "wide": []}
    for turn, name in enumerate(("thin", "thin", None, "wide", "thin")):
        talk.active = name
        pieces: list[str] = []
        expected[name].append(Message("user", f"Is it {turn}?"))
        answer = alone(speakers, name, expected[name], GREEDY)
        talk.ask(f"Is it {turn}?", pieces.append)
        expected[name].append(Message("assistant", answer))
        assert "".join(pieces) == answer and talk.messages == expected[name]
    talk.reset()
    assert talk.messages == []
    for name in (None, "wide"):
        talk.active = name
        assert talk.messages == expected[name], "only the active one was forgotten"


def test_every_adapter_sees_the_history_in_its_own_template(speakers: HubModel) -> None:
    said = [Message("user", "abc"), Message("assistant", "def"), Message("user", "ghi")]
    texts = {
        name: speakers.tokenizer.decode(speakers.prompt_ids(name, said))
        for name in (None, "thin", "wide")
    }
    assert "abc" in texts[None] and texts[None] == texts["thin"]
    assert "abc" not in texts["wide"] and "ABC" in texts["wide"] and "DEF" in texts["wide"]


def test_a_comparison_is_each_ones_own_answer_and_no_part_of_the_conversation(
    speakers: HubModel,
) -> None:
    talk = ChatSession(speakers, GREEDY, active="thin")
    with pytest.raises(ValueError, match="nothing has been said"):
        talk.compare()
    question = [Message("user", "Is it 4?")]
    expected = {name: alone(speakers, name, question, GREEDY) for name in (None, "thin", "wide")}
    assert talk.compare("Is it 4?") == expected and len(set(expected.values())) == 3
    assert talk.messages == []
    talk.ask("Is it 4?", lambda piece: None)
    before = list(talk.messages)
    assert talk.compare() == expected, "the last question, without its answer"
    longer = [*before, Message("user", "And 5?")]
    assert talk.compare("And 5?") == {
        name: alone(speakers, name, longer, GREEDY) for name in (None, "thin", "wide")
    }
    assert talk.messages == before and talk.active == "thin"


def test_an_interrupted_answer_stays_as_far_as_it_came(speakers: HubModel) -> None:
    talk = ChatSession(speakers, Sampling(max_new_tokens=40), active="thin")
    whole = alone(speakers, "thin", [Message("user", "hi")], talk.sampling)
    told: list[str] = []

    def tell(piece: str) -> None:
        told.append(piece)
        if len(told) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        talk.ask("hi", tell)
    said = "".join(told)
    assert whole.startswith(said) and 0 < len(said) < len(whole)
    assert talk.messages == [Message("user", "hi"), Message("assistant", said)]
    talk.ask("go on", told.append)
    assert len(talk.messages) == 4


def test_a_turn_that_cannot_be_answered_leaves_the_conversation_as_it_was(
    speakers: HubModel,
) -> None:
    talk = ChatSession(speakers, GREEDY)
    talk.ask("hi", lambda piece: None)
    before = list(talk.messages)
    with pytest.raises(ModelError, match="512 positions"):
        talk.ask("much " * 600, lambda piece: None)
    with pytest.raises(ModelError, match="512 positions"):
        talk.compare("much " * 600)
    strict = "{{ raise_exception('no ' ~ messages[0]['content']) }}"
    broken = HubModel(
        speakers.model, speakers.hub, {None: with_template(speakers.tokenizer, strict)}
    )
    talk.speakers = broken
    with pytest.raises(TemplateError, match="no hi"):
        talk.ask("well", lambda piece: None)
    assert talk.messages == before


def test_drawn_answers_differ_from_turn_to_turn_and_come_again_with_the_seed(
    speakers: HubModel,
) -> None:
    def talk(seed: int) -> list[str]:
        one = ChatSession(speakers, Sampling(8, temperature=2.0, seed=seed), active="wide")
        texts = []
        for _ in range(3):
            one.ask("hi", lambda piece: None)
            texts.append(one.messages[-1].content)
            one.reset()
        return texts

    first = talk(1)
    assert len(set(first)) == 3 and talk(1) == first and talk(7) != first


def test_a_prompt_of_one_adapter_leaves_the_template_of_the_others_alone(
    speakers: HubModel,
) -> None:
    asked = [Message("user", "Is it so?")]
    first = speakers.prompt_ids(None, asked)
    loud = speakers.prompt_ids("wide", asked)
    assert speakers.tokenizer.chat_template == CHATML
    assert speakers.prompt_ids(None, asked) == first != loud
