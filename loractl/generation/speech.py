"""How the ids of an answer become text, and which ids end it."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from transformers import PreTrainedTokenizerBase as Tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Speech:
    """How ids become text, and which of them end an answer."""

    tokenizer: Tokenizer
    stops: tuple[int, ...]

    @cached_property
    def _left_out(self) -> frozenset[int | None]:
        tokenizer = self.tokenizer
        markers = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
        return frozenset({*(set(self.stops) & markers), tokenizer.pad_token_id})

    def text(self, ids: Sequence[int]) -> str:
        """The text of an answer, without padding and the marker that ended it.

        Other special tokens stay: they may be what the model was trained to write (tool calls).
        """
        kept = [token for token in ids if token not in self._left_out]
        return str(self.tokenizer.decode(kept))


def stop_ids(
    model: "PreTrainedModel", tokenizer: Tokenizer, trained: Sequence[int] = ()
) -> list[int]:
    """Ids that end an answer: those of the model's generation config, the tokenizer's own, and
    those trained as the end."""
    named = getattr(model.generation_config, "eos_token_id", None)
    ids = {*(named if isinstance(named, list) else [named]), tokenizer.eos_token_id, *trained}
    return sorted(i for i in ids if isinstance(i, int))
