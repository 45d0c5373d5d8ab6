"""A base with a hub of adapters, and the chat template that each was trained with."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedTokenizerBase as Tokenizer

from loractl.data.template import prompt_ids
from loractl.generation.sample import Answer, PerRow, Sampling, generate
from loractl.lora.hub import Hub
from loractl.records import Message

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class HubModel:
    """A model that answers prompts, with its adapters by name; None names the base."""

    model: "PreTrainedModel"
    hub: Hub
    tokenizers: Mapping[str | None, Tokenizer]  # one tokenizer, each with its own chat template

    @property
    def tokenizer(self) -> Tokenizer:
        """The base's tokenizer; decoding does not depend on the template."""
        return self.tokenizers[None]

    def prompt_ids(
        self,
        name: str | None,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> list[int]:
        """Token ids of a conversation as this adapter was trained to see it, up to its answer.

        Raises TemplateError.
        """
        return prompt_ids(self.tokenizers[name], messages, tools)

    def answers(
        self, prompts: Sequence[Sequence[int]], names: Sequence[str | None], sampling: Sampling
    ) -> list[Answer]:
        """The continuation of each prompt by its own adapter, all in shared batches.

        Raises ModelError.
        """
        return generate(
            self.model, self.tokenizer, prompts, sampling, per_row=PerRow(self.hub, names)
        )
