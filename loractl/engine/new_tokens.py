"""`model.add_tokens`: tokens that a run adds to the tokenizer, and rows of their own for them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from transformers import PreTrainedTokenizerBase as Tokenizer

from loractl import console
from loractl.artifacts.peft import token_indices
from loractl.config.loader import Loaded
from loractl.data.beyond import count_ids, used_ids
from loractl.engine.data import Data
from loractl.errors import ModelError
from loractl.models import growth, load

if TYPE_CHECKING:
    from transformers import PreTrainedModel

KEY = "model.add_tokens"


@dataclass(frozen=True)
class NewTokens:
    """The tokens that a run adds."""

    n_rows: int | None  # of the embedding, once it has grown; None: the config does not say
    n_tokens: int  # of the base's tokenizer
    ids: tuple[int, ...] = ()  # of the rows that are new, in order
    texts: tuple[str, ...] = ()  # of the tokens that model.add_tokens names, without known ones
    grown: int = 0  # rows that the base lacks; the others were spare
    given: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """The rows of an adapter that is trained further, by PEFT's names; these are all."""


def add_tokens_(tokenizer: Tokenizer, loaded: Loaded, n_rows: int | None) -> NewTokens:
    """Add the tokens of a config to the tokenizer of a base whose embedding has `n_rows` rows.

    A token that the tokenizer has, and the embedding a row for, is left as it is. Raises
    ConfigError.
    """
    asked, n_tokens = loaded.config.model.add_tokens, count_ids(tokenizer)
    if not asked:
        return NewTokens(n_rows, n_tokens)
    if n_rows is None:
        raise loaded.error(KEY, "the base's config does not say how many tokens it has; remove it")
    before = tokenizer.get_vocab()
    known = [token for token in asked if before.get(token, n_rows) < n_rows]
    if known:
        listed, them = ", ".join(map(repr, known)), "them" if len(known) > 1 else "it"
        console.note(f"note: {KEY}: the base has {listed} already; nothing is added for {them}")
    texts = [token for token in asked if token not in known]
    if not texts:
        return NewTokens(n_rows, n_tokens)
    tokenizer.add_tokens([token for token in texts if token not in before], special_tokens=True)
    after, rows = tokenizer.get_vocab(), max(n_rows, count_ids(tokenizer))
    ids = sorted({*(after[token] for token in texts), *range(n_rows, rows)})
    return NewTokens(rows, min(n_tokens, n_rows), tuple(ids), tuple(texts), rows - n_rows)


def grow_to_(model: "PreTrainedModel", new: NewTokens) -> None:
    """Give a base the rows of the new tokens, at the mean of its own. Raises ModelError."""
    if not new.ids or new.n_rows is None or new.given:
        return  # `adopt` lets the base grow to an adapter that is trained further
    if getattr(model.config, "quantization_config", None) is not None:
        raise ModelError(
            f"{KEY}: the base is quantized, and its embedding cannot grow; name the base it was"
            " quantized from"
        )
    growth.grow_(model, new.n_rows, n_tokens=new.n_tokens)
    assert load.n_rows(model) == new.n_rows, (load.n_rows(model), new.n_rows)
    growth.start_at_mean_(model, new.ids, n_tokens=new.n_tokens)


def places_of(
    model: "PreTrainedModel",
    loaded: Loaded,
    new: NewTokens,
    adapted: Mapping[str, object],
    whole: Sequence[str],
) -> token_indices.RowPlaces:
    """Where the rows of new tokens are trained by themselves: in the embedding and the head, except
    in one that is trained whole. Raises ConfigError for one with an adapter."""
    table, head = token_indices.ends(model)
    if new.given:
        return token_indices.places(Path(str(loaded.config.lora.start_from)), new.given, model)
    if not new.ids:
        return token_indices.RowPlaces({}, {})
    modules = dict(model.named_modules())
    free = [path for path in (table, head) if path is not None and path not in whole]
    for path in free:
        if path in adapted:
            raise loaded.error(
                "lora.target_modules",
                f"{path} gets an adapter, but the rows of new tokens ({KEY}) are trained by"
                " themselves; leave it out, or train it whole in lora.modules_to_save",
            )
        if getattr(modules[path], "bias", None) is not None:
            raise loaded.error(
                KEY,
                f"{path} has a bias, which PEFT leaves out where rows of a head are trained; name"
                f" {path.rpartition('.')[2]} in lora.modules_to_save, which trains it whole",
            )
    is_tied = head is not None and modules[head].weight is modules[table].weight
    if is_tied and free == [table]:
        raise loaded.error(
            "lora.modules_to_save",
            f"{head} shares its weight with {table}, whose new rows ({KEY}) PEFT puts into both;"
            f" name {table.rpartition('.')[2]} too",
        )
    if is_tied and free == [table, head]:
        return token_indices.RowPlaces({table: new.ids}, {str(head): table})
    return token_indices.RowPlaces(dict.fromkeys(free, new.ids), {})


def unused(new: NewTokens, tokenizer: Tokenizer, data: Data) -> list[str]:
    """The added tokens that no training row has, so that their rows stay as they start."""
    known = tokenizer.get_vocab()
    used = used_ids(data.train, [known[text] for text in new.texts]) if new.texts else set()
    return [text for text in new.texts if known[text] not in used]
