"""A base with a hub of adapters, and the chat template that each was trained with."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from transformers import PreTrainedTokenizerBase as Tokenizer

from loractl.data import beyond
from loractl.data.prompts import Asked, ask
from loractl.data.rendering import TemplateError
from loractl.generation.sample import Answer, PerRow, Sampling, generate
from loractl.generation.speech import Speech, stop_ids
from loractl.lora.hub import Hub
from loractl.models import load
from loractl.records import Conversation, Message

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class HubModel:
    """A model that answers prompts, with its adapters by name; None names the base."""

    model: "PreTrainedModel"
    hub: Hub
    tokenizers: Mapping[str | None, Tokenizer]  # each with the chat template of its adapter
    ends: Mapping[str | None, Sequence[int]] = field(default_factory=dict)  # trained as the end
    thoughts: Mapping[str | None, str] = field(default_factory=dict)  # data.thoughts of its run

    @property
    def tokenizer(self) -> Tokenizer:
        """The base's tokenizer."""
        return self.tokenizers[None]

    def speech(self, name: str | None) -> Speech:
        """How answers of this adapter become text, and where they end."""
        tokenizer = self.tokenizers[name]
        return Speech(tokenizer, tuple(stop_ids(self.model, tokenizer, self.ends.get(name, ()))))

    def prompt_ids(self, name: str | None, messages: Sequence[Message]) -> list[int]:
        """The token ids of `ask` for messages alone."""
        return self.ask(name, Conversation(tuple(messages))).ids

    def ask(self, name: str | None, row: Conversation) -> Asked:
        """A conversation as this adapter was trained to see it, up to its answer.

        Raises TemplateError, also for a token that the model has no row for.
        """
        tokenizer = self.tokenizers[name]
        n_rows = self.hub.widths.get(name, load.n_rows(self.model))
        asked = ask(tokenizer, row, self.thoughts.get(name, "auto"))
        if (index := beyond.first_beyond(asked.ids, n_rows)) is not None:
            raise TemplateError(beyond.describe_beyond(tokenizer, index, n_rows, beyond.IN_USE))
        return asked

    def answers(
        self, prompts: Sequence[Sequence[int]], names: Sequence[str | None], sampling: Sampling
    ) -> list[Answer]:
        """The continuation of each prompt by its own adapter, all in shared batches.

        Raises ModelError.
        """
        speeches = {name: self.speech(name) for name in dict.fromkeys(names)}
        rows = PerRow(self.hub, names, speeches)
        return generate(self.model, self.tokenizer, prompts, sampling, per_row=rows)
