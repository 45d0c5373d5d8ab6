"""A directory that Ollama loads: a Modelfile beside model.gguf.

Ollama renders prompts with its own Go templates, not with the chat template in the GGUF file. Those
of some families are written here; the family of a model is found by rendering conversations both
ways. A chat template that renders differently from all of them is refused.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerBase as Tokenizer

from loractl.data.rendering import TemplateError, apply
from loractl.errors import ArtifactError
from loractl.records import Message

MODEL, MODELFILE = "model.gguf", "Modelfile"


@dataclass(frozen=True)
class Family:
    """How the turns of a conversation are written: the text before and after each content."""

    name: str
    user: tuple[str, str]
    assistant: tuple[str, str]
    opening: str  # what opens the next answer
    stop: str
    system: tuple[str, str] | None = None  # None: goes in the first user turn, before its text
    joint: str = "\n\n"  # between the two in that case

    def render(self, messages: Sequence[Message]) -> str:
        """A conversation as Ollama renders it with `go`."""
        text, before = "", ""
        for message in messages:
            if message.role == "system" and self.system is None:
                before = message.content + self.joint
                continue
            start, end = {
                "system": self.system or ("", ""),
                "user": self.user,
                "assistant": self.assistant,
            }[message.role]
            text += f"{start}{before}{message.content}{end}"
            before = ""
        return text + self.opening

    def go(self) -> str:
        """The template in Go's language, with Ollama's variables."""

        def turn(pair: tuple[str, str], inside: str = "") -> str:
            return f"{pair[0]}{inside}{{{{ .Content }}}}{pair[1]}"

        first = "{{ if and (eq $i 1) $.System }}{{ $.System }}" + self.joint + "{{ end }}"
        user = turn(self.user, first if self.system is None else "")
        text = '{{ range $i, $m := .Messages }}{{ if eq .Role "user" }}' + user
        if self.system is not None:
            text += '{{ else if eq .Role "system" }}' + turn(self.system)
        text += '{{ else if eq .Role "assistant" }}' + turn(self.assistant)
        return text + "{{ end }}{{ end }}" + self.opening


def _llama3_turn(role: str) -> tuple[str, str]:
    return f"<|start_header_id|>{role}<|end_header_id|>\n\n", "<|eot_id|>"


FAMILIES = (
    Family(
        "ChatML",
        user=("<|im_start|>user\n", "<|im_end|>\n"),
        assistant=("<|im_start|>assistant\n", "<|im_end|>\n"),
        opening="<|im_start|>assistant\n",
        stop="<|im_end|>",
        system=("<|im_start|>system\n", "<|im_end|>\n"),
    ),
    Family(
        "Llama 3",
        user=_llama3_turn("user"),
        assistant=_llama3_turn("assistant"),
        opening=_llama3_turn("assistant")[0],
        stop="<|eot_id|>",
        system=_llama3_turn("system"),
    ),
    Family(
        "Gemma",
        user=("<start_of_turn>user\n", "<end_of_turn>\n"),
        assistant=("<start_of_turn>model\n", "<end_of_turn>\n"),
        opening="<start_of_turn>model\n",
        stop="<end_of_turn>",
    ),
    Family(
        "Phi-3",
        user=("<|user|>\n", "<|end|>\n"),
        assistant=("<|assistant|>\n", "<|end|>\n"),
        opening="<|assistant|>\n",
        stop="<|end|>",
        system=("<|system|>\n", "<|end|>\n"),
    ),
    Family(
        "Mistral v1",
        user=("[INST] ", " [/INST]"),
        assistant=("", "</s>"),
        opening="",
        stop="</s>",
    ),
    Family(
        "Mistral v2",
        user=("[INST] ", " [/INST]"),
        assistant=(" ", "</s>"),
        opening="",
        stop="</s>",
    ),
    Family(
        "Mistral v3",
        user=("[INST] ", "[/INST]"),
        assistant=(" ", "</s>"),
        opening="",
        stop="</s>",
    ),
)

ASKED = Message("user", "What is 7 x 8?")
TURNS = (ASKED, Message("assistant", "7 x 8 = 56."), Message("user", "And 9 x 9, please?"))
SYSTEM = Message("system", "You answer in short sentences.")


@dataclass(frozen=True)
class Found:
    """The family of a chat template, and the system message it writes when there is none."""

    family: Family
    system: str | None
    ends: tuple[str, ...] = ()  # trained as the end of an answer


def find(where: str, tokenizer: Tokenizer, *, adds_bos: bool) -> Found:
    """Find the family that renders the same texts as the chat template. Raises ArtifactError.

    `adds_bos`: llama.cpp puts the beginning-of-sequence token before every prompt.
    """
    if not tokenizer.chat_template:
        raise ArtifactError(f"{where}: no chat template to derive Ollama's from")
    bos = (tokenizer.bos_token or "") if adds_bos else ""

    def rendered(messages: Sequence[Message]) -> str | None:
        try:
            text = apply(tokenizer, messages, prompt=True)
        except TemplateError:
            return None
        if not text.startswith(bos):
            raise ArtifactError(
                f"{where}: the chat template does not start with {bos}, which Ollama would add"
            )
        return text.removeprefix(bos)

    short, turns = rendered([ASKED]), rendered(TURNS)
    given = rendered([SYSTEM, ASKED]), rendered([SYSTEM, *TURNS])
    for family in FAMILIES:
        system = _default_system(family, short or "")
        before = [Message("system", system)] if system is not None else []
        same = [
            short == family.render([*before, ASKED]),
            turns == family.render([*before, *TURNS]),
            given[0] in (None, family.render([SYSTEM, ASKED])),
            given[1] in (None, family.render([SYSTEM, *TURNS])),
        ]
        if all(same):
            return Found(family, system)
    names = ", ".join(family.name for family in FAMILIES)
    raise ArtifactError(
        f"{where}: its chat template does not match any family that can be written for Ollama:"
        f" {names}"
    )


def _default_system(family: Family, short: str) -> str | None:
    """The system message in a text that was rendered without one."""
    if family.system is None or not short.startswith(family.system[0]):
        return None
    return short.removeprefix(family.system[0]).partition(family.system[1])[0]


def write_modelfile(directory: Path, found: Found) -> None:
    lines = [f"FROM ./{MODEL}", f'TEMPLATE """{found.family.go()}"""']
    if found.system is not None:
        lines.append(f'SYSTEM """{found.system}"""')
    stops = dict.fromkeys([found.family.stop, *found.ends])
    lines += [f'PARAMETER stop "{stop}"' for stop in stops]
    (directory / MODELFILE).write_text("\n".join(lines) + "\n", encoding="utf-8")
