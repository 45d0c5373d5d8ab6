"""A base with a hub of adapters, and the chat template that each was trained with."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedTokenizerBase as Tokenizer

from loractl.data.template import prompt_ids
from loractl.generation.sample import PerRow, Sampling, generate
from loractl.lora.hub import Hub
from loractl.records import Message

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class HubModel:
    """What answers prompts: a model, its tokenizer, and adapters by name; None names the base."""

    model: "PreTrainedModel"
    tokenizer: Tokenizer
    hub: Hub
    templates: Mapping[str | None, str | None]  # of the base and of every adapter

    def prompt_ids(
        self,
        name: str | None,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> list[int]:
        """Token ids of a conversation as this adapter was trained to see it, up to its answer.

        Raises TemplateError.
        """
        self.tokenizer.chat_template = self.templates[name]
        return prompt_ids(self.tokenizer, messages, tools)

    def answers(
        self, prompts: Sequence[Sequence[int]], names: Sequence[str | None], sampling: Sampling
    ) -> list[str]:
        """The text with which each prompt's own adapter continues it, all in shared batches.

        Raises ModelError.
        """
        return generate(
            self.model, self.tokenizer, prompts, sampling, per_row=PerRow(self.hub, names)
        )
