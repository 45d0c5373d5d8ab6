"""How the adapters of a base are spoken with: the tokenizer, chat template and ends that each was
trained with, and the base loaded once with all of them."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loractl import console
from loractl.config.loader import Loaded
from loractl.config.settings import DataSection
from loractl.engine.base import (
    choose_trained_dtype,
    find_shared_base,
    load_base,
    recorded,
    recorded_dtype,
)
from loractl.engine.run_rows import taken_by
from loractl.errors import ArtifactError
from loractl.startup import libraries

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers import PreTrainedTokenizerBase as Tokenizer

    from loractl.artifacts.peft.adapter import Adapter
    from loractl.generation.hub_model import HubModel
    from loractl.models.load import Source


def tokenizer_of_run(loaded: Loaded, source: "Source") -> "Tokenizer":
    """The base's tokenizer, with the chat template that a config chooses.

    Raises ConfigError for settings that do not fit the template, ModelError.
    """
    from loractl.data.chat_templates import SettingError, apply_settings
    from loractl.models import load

    data, remote = loaded.config.data, loaded.config.model.trust_remote_code
    tokenizer = load.load_tokenizer(source, trust_remote_code=remote)
    try:
        return apply_settings(tokenizer, data.chat_template, data.template_variables)
    except SettingError as error:
        raise loaded.error(error.key, str(error)) from None


def about_template(data: DataSection) -> dict[str, Any]:
    """What loractl.json says of a template that is not the base's own; empty if it is."""
    if data.chat_template is None and not data.template_variables:
        return {}
    return {"chat_template": {"is_set": True, "variables": data.template_variables}}


def base_speaker(
    tokenizer: "Tokenizer", tuned: Iterable[tuple[Mapping[str, Any], Any]]
) -> "Tokenizer":
    """The base's tokenizer, to be compared with what was trained on it: (loractl.json, template).

    Where all were trained with one template that a config chose, the base is asked through it too:
    its own may not exist, and would make other tokens of the rows.
    """
    from loractl.data.chat_templates import with_template

    found = list(tuned)
    templates = [template for about, template in found if "chat_template" in about]
    if not found or len(templates) < len(found) or any(one != templates[0] for one in templates):
        return tokenizer
    return with_template(tokenizer, templates[0])


def open_hub(named: str | None, directories: Mapping[str, Path], dtype: str | None) -> "HubModel":
    """Load a base once and attach every adapter to it. `dtype` None: the one they were trained in.

    Raises ArtifactError or ModelError.
    """
    from loractl.artifacts.peft import adapter as adapters
    from loractl.artifacts.peft import attach

    read = {name: adapters.read(path) for name, path in directories.items()}
    libraries.import_()  # after the adapters, so that an unreadable one is reported first
    from loractl.data.ends import ends_of_template
    from loractl.generation.hub_model import HubModel
    from loractl.lora.hub import Hub
    from loractl.models import load

    source = find_shared_base(named, {name: adapter.base for name, adapter in read.items()})
    dtypes = [adapter.dtype for adapter in read.values()] or [recorded_dtype(named or "")]
    dtype = choose_trained_dtype(dtype, dtypes)
    tokenizer = load.load_tokenizer(source)
    model = load_base(source, dtype, read.values(), named=named)
    widths = _widths(model, read)
    hub = Hub(model)
    if len(set(widths.values())) > 1:
        hub.narrow_(widths)
    tokenizers: dict[str | None, Tokenizer] = {None: tokenizer}
    ends: dict[str | None, list[int]] = {None: ends_of_template(tokenizer)}
    thoughts: dict[str | None, str] = {}
    about: Mapping[str, Any]
    if named and (about := recorded(named)) and (taken := taken_by(Path(named), about)):
        thoughts[None] = taken.thoughts  # a model that was trained whole
    for name, directory in directories.items():
        adapter = read.pop(name)  # freed as soon as it is in the hub
        if taken := taken_by(directory, adapter.about):
            thoughts[name] = taken.thoughts
        attach.add_to_hub_(hub, model, name, adapter)
        tokenizers[name] = tokenizer_of(adapter, tokenizer, widths[name])
        ends[name] = ends_of(adapter, tokenizers[name])
    return HubModel(model, hub, tokenizers, ends, thoughts)


def _widths(model: "PreTrainedModel", read: Mapping[str, "Adapter"]) -> dict[str | None, int]:
    """How many tokens the base (None) and each adapter know. The base grows to the most of them.

    Raises ArtifactError for an adapter that was made for another size of embedding or head.
    """
    from loractl.artifacts.peft import vocabulary_size
    from loractl.models import load

    here = load.n_rows(model)
    needed = {
        name: max(here, vocabulary_size.rows_needed(one, model)) for name, one in read.items()
    }
    if len(read) > 1 and (most := max(needed.values())) > here:
        widest = next(name for name, rows in needed.items() if rows == most)
        several = sum(rows > here for rows in needed.values()) > 1
        for name, adapter in read.items():
            # A resized base that PEFT saved with one of them has rows that another may name too.
            copied = vocabulary_size.copied_tables(adapter, model) if several else {}
            if copied or vocabulary_size.sizes_of_ends(adapter, model) - {most}:
                raise ArtifactError(
                    f"{adapter.directory}: {name} changes the embedding or the head of {here} rows"
                    f" otherwise than {read[widest].directory}, which needs {most} rows; use them"
                    " one at a time"
                )
    for adapter in sorted(read.values(), key=lambda one: -vocabulary_size.rows_needed(one, model)):
        vocabulary_size.fit_(model, adapter)
    widths: dict[str | None, int] = {None: here}
    return widths | dict(needed)


def tokenizer_of(adapter: "Adapter", tokenizer: "Tokenizer", n_rows: int) -> "Tokenizer":
    """The tokenizer that an adapter was trained with, with its chat template: the base's, or the
    one in its directory. `n_rows` is the size of the base's embedding.

    Raises ArtifactError for tokens that the base has no row for.
    """
    from loractl.data.chat_templates import with_template
    from loractl.models import load

    own = tokenizer
    if adapter.brings_tokenizer:
        own = load.load_tokenizer(load.Source(str(adapter.directory), adapter.directory))
        _tell_difference(adapter, own, tokenizer, n_rows)
    return with_template(own, adapter.chat_template)


def _tell_difference(
    adapter: "Adapter", own: "Tokenizer", tokenizer: "Tokenizer", n_rows: int
) -> None:
    """Say what an adapter's tokenizer changes, or refuse it."""
    where = adapter.directory / "tokenizer.json"
    found, known = own.get_vocab(), tokenizer.get_vocab()
    beyond = sorted((index, token) for token, index in found.items() if index >= n_rows)
    if beyond:
        raise ArtifactError(
            f"{where}: {len(beyond)} tokens, the first {beyond[0][1]!r}, are beyond the base's"
            f" {n_rows} rows; the adapter belongs to a base with a larger embedding; name that one"
        )
    new = sorted((index, token) for token, index in found.items() if known.get(token) != index)
    if new:
        console.note(
            f"note: {where} is used; {len(new)} of its tokens are not the base's, the first:"
            f" {new[0][1]!r}"
        )
    elif own.eos_token_id != tokenizer.eos_token_id:
        console.note(f"note: {where} is used; it ends texts with {own.eos_token!r}")


def ends_of(adapter: "Adapter", tokenizer: "Tokenizer") -> list[int]:
    """The tokens trained as the end of an answer: as recorded, or as the chat template says."""
    from loractl.data.ends import ends_of_template, ids_of

    if adapter.ends is None:
        return ends_of_template(tokenizer)
    return ids_of(tokenizer, adapter.ends)
