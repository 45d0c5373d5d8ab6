"""`lora.start_from`: training that continues from an adapter, on other rows.

The adapter's own ranks, scales and modules become the settings of the run: so everything that reads
the config counts and writes what is really trained.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedTokenizerBase as Tokenizer

from loractl.artifacts.peft import adapter as adapters
from loractl.artifacts.peft import attach, vocabulary_size
from loractl.config.loader import Loaded
from loractl.config.settings import FROM_ADAPTER
from loractl.data.beyond import count_ids
from loractl.digests import file_sha256
from loractl.engine.new_tokens import NewTokens
from loractl.errors import ArtifactError, ModelError
from loractl.lora.inject import adaptable
from loractl.lora.ranks import RankSpec, resolve
from loractl.lora.token_rows import only_whole
from loractl.models import load

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from loractl.engine.adapters import Adapted

KEY = "lora.start_from"


@dataclass(frozen=True)
class Start:
    """An adapter to train further."""

    adapter: adapters.Adapter
    sha256: str  # of its weights

    def about(self) -> dict[str, str]:
        """What loractl.json records of it."""
        return {"path": os.path.abspath(self.adapter.directory), "sha256": self.sha256}


def read_start(loaded: Loaded) -> Start | None:
    """The adapter that the config starts from, if it names one. Raises ConfigError."""
    named = loaded.config.lora.start_from
    if named is None:
        return None
    try:
        adapter = adapters.read(Path(named))
    except ArtifactError as error:
        raise loaded.error(KEY, str(error)) from None
    if adapter.has_starts:
        raise loaded.error(
            KEY,
            f"{adapter.directory}: a checkpoint of a run with lora.init: pissa or olora; start from"
            " the final adapter of that run",
        )
    return Start(adapter, file_sha256(adapter.directory / adapters.WEIGHTS))


def tokens_of(
    start: Start, loaded: Loaded, tokenizer: Tokenizer, n_rows: int | None
) -> tuple[Tokenizer, NewTokens]:
    """The tokenizer of an adapter that has rows of single tokens, with the base's chat template,
    and these rows, which are trained further. Raises ConfigError for tokens that it lacks."""
    adapter, own = start.adapter, tokenizer
    if adapter.brings_tokenizer:
        own = load.load_tokenizer(load.Source(str(adapter.directory), adapter.directory))
        own.chat_template = tokenizer.chat_template or own.chat_template
    known = own.get_vocab()
    if lacking := [one for one in loaded.config.model.add_tokens if one not in known]:
        raise loaded.error(
            "model.add_tokens",
            f"{adapter.directory} has no {lacking[0]!r}, and an adapter with rows of its own tokens"
            " keeps to these; remove it, or merge the adapter and add it to the merged model",
        )
    ids = sorted(adapter.own_tokens)
    here = n_rows or 0
    rows = max(here, ids[-1] + 1, count_ids(own))
    return own, NewTokens(rows, here, tuple(ids), grown=rows - here, given=dict(adapter.rows))


def require_base(start: Start, fingerprint: str, name: str) -> None:
    """Raise ModelError if the adapter was trained on a base with other weights than this one."""
    trained_on = start.adapter.trained_on
    if trained_on is not None and trained_on != fingerprint:
        raise ModelError(
            f"{KEY}: {start.adapter.directory} was trained on a base with other weights than"
            f" {name}; name that base in model.name_or_path"
        )


def adopt(loaded: Loaded, start: Start, model: "PreTrainedModel") -> Loaded:
    """The config with the adapter's settings in place of those that it does not set itself.

    Raises ArtifactError if adapter and model do not fit, and ConfigError for a key that is set to
    something else than the adapter has.
    """
    adapter, lora = start.adapter, loaded.config.lora
    copied = vocabulary_size.copied_tables(adapter, model).values()
    untrained = max([0, *map(len, copied)]) > load.n_rows(model) + len(adapter.own_tokens)
    if adapter.rows and not untrained:
        vocabulary_size.fit_(model, adapter)
    if (needed := vocabulary_size.rows_needed(adapter, model)) > load.n_rows(model):
        raise loaded.error(
            KEY,
            f"{adapter.directory}: was trained with an embedding of {needed} rows, and the base has"
            f" {load.n_rows(model)}; merge it, and name the merged model in model.name_or_path",
        )
    ranks = attach.ranks_of(adapter, model)
    own: dict[str, Any] = {
        "rank": adapter.spec.rank,
        "alpha": adapter.spec.alpha,
        "scaling": adapter.spec.scaling,
        "rank_pattern": dict(adapter.spec.rank_pattern or {}),
        "alpha_pattern": dict(adapter.spec.alpha_pattern or {}),
        "modules_to_save": list(adapter.whole),
        "target_modules": _short_names(ranks, adaptable(model)),
        "layers": None,
        "init": "default",
    }
    assert own.keys() == FROM_ADAPTER, own.keys()
    for name, value in own.items():
        if f"lora.{name}" in loaded.explicit and getattr(lora, name) != value:
            asked = getattr(lora, name)
            if name in ("target_modules", "layers") and _selects(loaded, model) == ranks.keys():
                continue
            raise loaded.error(f"lora.{name}", _differs(asked, value, start))
    if "method" in loaded.explicit and loaded.config.method != adapter.formula:
        raise loaded.error("method", _differs(loaded.config.method, adapter.formula, start))
    new = lora.model_copy(update=own)
    config = loaded.config.model_copy(update={"lora": new, "method": adapter.formula})
    return replace(loaded, config=config)


def _differs(asked: object, value: object, start: Start) -> str:
    shown = ", ".join(map(str, value)) if isinstance(value, list) else value
    return (
        f"found {asked}, but {start.adapter.directory} has {shown or 'none'}, and an adapter that"
        " is trained further keeps its own; remove the key"
    )


def _selects(loaded: Loaded, model: "PreTrainedModel") -> "set[str]":
    """The modules that the config's own target_modules and layers select."""
    lora = loaded.config.lora
    spec = RankSpec(1, 1.0, target_modules=lora.target_modules, layers=lora.layers)
    return set(resolve(spec, adaptable(model), head=load.head_name(model)))


def _short_names(ranks: Mapping[str, Any], kinds: Mapping[str, str]) -> list[str]:
    """The modules of an adapter as lora.target_modules: by their last names if these select the
    same, else by their paths."""
    short = list(dict.fromkeys(name.rpartition(".")[2] for name in ranks))
    same = set(resolve(RankSpec(1, 1.0, target_modules=short), kinds)) == set(ranks)
    return short if same else list(ranks)


def fill_(adapted: "Adapted", start: Start) -> None:
    """Give the layers the values of the adapter, and release its tensors."""
    whole = adapted.whole if start.adapter.rows else only_whole(adapted.whole)  # or they are new
    attach.restore_(adapted.layers, start.adapter.tensors, whole)
    start.adapter.tensors.clear()
