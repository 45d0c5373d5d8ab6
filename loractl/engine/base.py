"""Which base model a command uses, where it is, whether the adapters were trained on it, and in
which dtype it is loaded: one answer for all commands. Torch is imported only to load something.
"""

import threading
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING

from loractl import console
from loractl.errors import ArtifactError, ModelError
from loractl.startup import libraries

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers import PreTrainedTokenizerBase as Tokenizer

    from loractl.artifacts.peft.adapter import Adapter
    from loractl.generation.hub_model import HubModel
    from loractl.models.load import Source


def model_path(name: str) -> str:
    """What a name refers to as a model: a run of method: full refers to the model in it."""
    inside = Path(name).expanduser() / "model"
    return str(inside) if name and (inside / "config.json").is_file() else name


def find_model(name: str) -> "Source":
    """Find a model by hub id, directory or run. Raises ModelError."""
    from loractl.models import load

    return load.locate(model_path(name))


def find_shared_base(named: str | None, recorded: Iterable[str | None]) -> "Source":
    """The named base, or the one that all adapters and models record. Raises ModelError."""
    if named is not None:
        return find_model(named)
    names = sorted({name for name in recorded if name})
    if len(names) != 1:
        found = f"the adapters name {', '.join(names)}" if names else "no adapter names one"
        raise ModelError(f"no base model: {found}; give --model")
    return _locate_recorded(names[0], "--model")


def find_trained_base(adapter: "Adapter", named: str | None) -> "Source":
    """The named base, or the one that the adapter was trained on; bytes are compared.

    Raises ArtifactError or ModelError; if a named base differs in its bytes, that is a note.
    """
    from loractl.models import load

    if not named and not adapter.base:
        raise ArtifactError(
            f"{adapter.directory}/adapter_config.json: base_model_name_or_path is missing; name the"
            " base with --base"
        )
    source = find_model(named) if named else _locate_recorded(adapter.base or "", "--base")
    if adapter.trained_on:
        require_same_bytes(
            source, load.fingerprint(source), [adapter], named=named, option="--base"
        )
    return source


def _locate_recorded(name: str, option: str) -> "Source":
    from loractl.models import load

    try:
        return load.locate(name)
    except ModelError as error:
        hint = f"if the base has moved, name it with {option}"
        raise ModelError(f"{error}; {hint}") from None


def require_same_bytes(
    source: "Source",
    fingerprint: str,
    adapters: Iterable["Adapter"],
    *,
    named: str | None,
    option: str,
) -> None:
    """Raise ModelError if an adapter was trained on a different base; if the base was named with
    its flag, print a note instead."""
    for adapter in adapters:
        if adapter.trained_on and adapter.trained_on != fingerprint:
            trained = f"the base that {adapter.directory} was trained on"
            message = f"{source.name}: differs from {trained}"
            if not named:
                raise ModelError(f"{message}; name the base with {option} if this is intended")
            console.note(f"note: {message}")


def load_base(
    source: "Source", dtype: str, adapters: Iterable["Adapter"] = (), *, named: str | None = None
) -> "PreTrainedModel":
    """Load a whole base, in a dtype or auto, on the best device, while its bytes are compared with
    the base that the adapters were trained on. Raises ModelError."""
    from loractl.models import load
    from loractl.models.device import choose_device, choose_dtype

    trained = [adapter for adapter in adapters if adapter.trained_on]
    fingerprint = compute_beside(lambda: load.fingerprint(source)) if trained else None
    device = choose_device()
    model = load.load_model(source, dtype=choose_dtype(dtype, device), device=device)
    if fingerprint is not None:
        require_same_bytes(source, fingerprint.result(), trained, named=named, option="--model")
    return model


def compute_beside(work: Callable[[], str]) -> "Future[str]":
    """Do the work while everything else is loaded, in a thread that does not delay exit."""
    found: Future[str] = Future()

    def run() -> None:
        try:
            found.set_result(work())
        except Exception as error:
            found.set_exception(error)  # raised where the result is asked for

    threading.Thread(target=run, daemon=True).start()
    return found


def open_hub(named: str | None, directories: Mapping[str, Path], dtype: str) -> "HubModel":
    """Load a base once and attach every adapter to it. Raises ArtifactError or ModelError."""
    from loractl.artifacts.peft import adapter as adapters
    from loractl.artifacts.peft import attach

    read = {name: adapters.read(path) for name, path in directories.items()}
    libraries.import_()  # after the adapters, so that an unreadable one is reported first
    from loractl.data.template import with_template
    from loractl.generation.hub_model import HubModel
    from loractl.lora.hub import Hub
    from loractl.models import load

    source = find_shared_base(named, [adapter.base for adapter in read.values()])
    tokenizer = load.load_tokenizer(source)
    model = load_base(source, dtype, read.values(), named=named)
    hub = Hub(model)
    tokenizers: dict[str | None, Tokenizer] = {None: tokenizer}
    for name in directories:
        adapter = read.pop(name)  # freed as soon as it is in the hub
        attach.add_to_hub_(hub, model, name, adapter)
        tokenizers[name] = with_template(tokenizer, adapter.chat_template)
    return HubModel(model, hub, tokenizers)
