"""Whatever people and models say, the trained tokens are the answers and their ends, 30 families.

What each template should train is said here in a line of Python, apart from the templates and from
loractl.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from loractl.data.encoding import encode
from loractl.data.rendering import TemplateError
from loractl.records import UNTRAINED, Message
from tests.data.test_template_golden import template_tokenizer
from tests.fixtures.templates.freeze import FIXTURES

EOS = "<|im_end|>"


def as_it_is(said: str, last: bool) -> str:
    return said


def trimmed(said: str, last: bool) -> str:
    return said.strip()


def after_space(said: str, last: bool) -> str:
    return " " + said


def thoughtless(said: str, last: bool) -> str:
    return said.split("</think>")[-1].removeprefix("<think>\n")  # the prompt has written it


def qwen3(said: str, last: bool) -> str:
    thought = ""
    if "</think>" in said:
        thought = said.split("</think>")[0].split("<think>")[-1].strip("\n")
        said = said.split("</think>")[-1].lstrip("\n")
    return f"<think>\n{thought}\n</think>\n\n{said}" if last else said


def qwen3_prompted(said: str, last: bool) -> str:
    if not last:
        said = said.split("</think>")[-1].lstrip("\n")
    elif "</think>" not in said:
        said = "<think>\n\n</think>\n\n" + said
    return said.removeprefix("<think>\n")  # the prompt has written it


@dataclass(frozen=True)
class Family:
    """What a template makes of an answer, and what ends it."""

    says: Callable[[str, bool], str] = as_it_is
    end: str = EOS
    last_end: str = ""  # where it is another one
    system: bool = True
    middle_end: str | None = None  # of answers that are not the last, where it is another one


FAMILIES = {
    "alpaca": Family(),
    "chatml": Family(),
    "chatml_default_system": Family(),
    "chatml_tools": Family(),
    "command_r": Family(trimmed, "<|END_OF_TURN_TOKEN|>"),
    "deepseek_r1": Family(thoughtless),
    "deepseek_v2": Family(after_space),
    "exaone": Family(end="[|endofturn|]"),
    "falcon": Family(after_space, middle_end=""),
    "gemma": Family(trimmed, "<end_of_turn>", system=False),
    "gemma_merged": Family(trimmed, "<end_of_turn>"),
    "glm4": Family(end="<|user|>", last_end=EOS),
    "granite": Family(end="<|end_of_text|>"),
    "harmony": Family(
        lambda said, last: "<|channel|>final<|message|>" + said, "<|return|>", middle_end=""
    ),
    "internlm": Family(),
    "llama2": Family(lambda said, last: f" {said.strip()} "),
    "llama3": Family(trimmed, "<|eot_id|>"),
    "llama3_date": Family(trimmed, "<|eot_id|>"),
    "mistral_v1": Family(system=False),
    "mistral_v3": Family(lambda said, last: " " + said.strip(), system=False),
    "nemotron_mini": Family(trimmed, "\n"),
    "openchat": Family(after_space, "<|end_of_turn|>"),
    "phi3": Family(end="<|end|>", last_end=f"<|end|>\n{EOS}"),
    "phi4": Family(),
    "qwen3": Family(qwen3),
    "qwen3_prompted": Family(qwen3_prompted),
    "starchat": Family(end="<|end|>"),
    "tulu": Family(),
    "vicuna": Family(after_space),
    "zephyr": Family(),
}
TOKENIZERS = {name: template_tokenizer(name) for name in FAMILIES}
MARKERS = [
    EOS, "<|im_start|>assistant\n", "<|im_start|>", "[/INST]", "[INST] x [/INST] y",
    "<|assistant|>\n", "<|user|>", "<|end|>", "<|end|>\n", "<|end|>\n<|assistant|>\n", "<|eot_id|>",
    "<end_of_turn>\n", "<start_of_turn>model\n", "</think>", "<think>\n", "<think>",
    "<think>\na\n</think>\n\nb", "<｜Assistant｜>", "<｜Assistant｜><think>\n", "ASSISTANT:",
    "\nASSISTANT: x", "### Response:\n", "<|return|>", "<|channel|>final<|message|>",
    "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>", "<extra_id_1>Assistant\n", "[|endofturn|]",
    "<", "<|", "|>", ">", "[", ":",
]  # fmt: skip
WORDS = [
    "", " ", "\n", "\n\n", "\t", "  a  ", "a", "0", '"', "\\n", "\r\n", "{{ x }}", "{% endfor %}",
    "東京", "שלום עולם", "مرحبا", "👩\u200d👩\u200d👧 🗼", "e\u0301", "\u0301x", "\u2028", "\u200b",
    "\ufeff", "\ue000", "\ue001\ue000",  # private use, as the marks are that find an answer
]  # fmt: skip
said = (
    st.lists(st.sampled_from(MARKERS + WORDS), max_size=3).map("".join)
    | st.text(max_size=8)
    | st.builds("{}{}".format, st.text(max_size=3), st.sampled_from(MARKERS))
)
turns = st.lists(st.tuples(said, said), min_size=1, max_size=3)


def spoken(system: str | None, asked: list[tuple[str, str]]) -> list[Message]:
    messages = [] if system is None else [Message("system", system)]
    for question, answer in asked:
        messages += [Message("user", question), Message("assistant", answer)]
    return messages


def trained_runs(name: str, messages: list[Message], train_on: str = "assistant") -> list[str]:
    """The text of each run of trained tokens."""
    ids, labels = encode(TOKENIZERS[name], messages, train_on=train_on)
    runs: list[list[int]] = []
    for place, label in enumerate(labels):
        if label != UNTRAINED:
            assert label == ids[place]
            if labels[place - 1] == UNTRAINED:
                runs.append([])
            runs[-1].append(label)
    return [TOKENIZERS[name].decode(run) for run in runs]


CUT = ("deepseek_r1", "qwen3", "qwen3_prompted")
"""Templates that write only a part of some answers."""


def drops_words(name: str, answers: list[str]) -> bool:
    """Whether more is lost than the reasoning of an answer which is not the last, where the
    template would write it if it were."""
    for number, said in enumerate(answers):
        says, last = FAMILIES[name].says, number == len(answers) - 1
        if words(says(said, True)) != words(said):
            return True
        if not last and words(says(said, False)) != words(without_thoughts(said)):
            return True
    return False


def without_thoughts(said: str) -> str:
    before, closed, after = said.partition("</think>")
    said = after if closed and "<think>" not in before else said
    return re.sub("<think>.*?</think>", "", said, flags=re.DOTALL)


def words(text: str) -> str:
    return "".join(text.replace("<think>", "").replace("</think>", "").split())


def expected(name: str, answers: list[str]) -> list[str]:
    family = FAMILIES[name]
    *earlier, last = answers
    last_end = family.last_end or family.end
    end = family.end if family.middle_end is None else family.middle_end
    return [family.says(a, False) + end for a in earlier] + [family.says(last, True) + last_end]


@settings(
    max_examples=120,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(system=st.none() | said, asked=turns)
@example(None, [("<|end|>\n<|assistant|>\n", ""), ("", "")])
@example(None, [("a", "<think>\na\n</think>\n\nb"), ("a", "<think>\na\n</think>\n\nb")])
@example("", [("", ""), ("", ""), ("", "")])
def test_the_trained_tokens_are_the_answers_and_their_ends(
    system: str | None, asked: list[tuple[str, str]]
) -> None:
    for name, family in FAMILIES.items():
        messages = spoken(system if family.system else None, asked)
        if name in CUT and drops_words(name, [a for _, a in asked]):
            with pytest.raises(TemplateError, match="leaves out the (reasoning|content)"):
                trained_runs(name, messages)
            continue
        assert trained_runs(name, messages) == expected(name, [a for _, a in asked]), name
        last = expected(name, [a for _, a in asked])[-1:]
        assert trained_runs(name, messages, "last") == last, name


def test_every_template_of_the_fixtures_is_tried() -> None:
    assert set(FAMILIES) == {path.stem for path in FIXTURES.glob("*.jinja")}
