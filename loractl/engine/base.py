"""Which base a command works on, where it lies, and a hub over it: one answer for all commands."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from transformers import PreTrainedTokenizerBase as Tokenizer

from loractl import console
from loractl.artifacts.peft import adapter as adapters
from loractl.artifacts.peft import attach
from loractl.artifacts.peft.adapter import Adapter
from loractl.data.template import with_template
from loractl.errors import ArtifactError, ModelError
from loractl.generation.hub_model import HubModel
from loractl.lora.hub import Hub
from loractl.models import load
from loractl.models.device import choose_device, choose_dtype
from loractl.startup import libraries


def model_path(name: str) -> str:
    """What a name means as a model: a run of method: full means the model in it."""
    inside = Path(name) / "model"
    return str(inside) if (inside / "config.json").is_file() else name


def find_model(name: str) -> load.Source:
    """The model of a name, a directory or a run. Raises ModelError."""
    return load.locate(model_path(name))


def find_shared_base(named: str | None, recorded: Iterable[str | None]) -> load.Source:
    """The base as named, or the one that all adapters and models record. Raises ModelError."""
    if named is not None:
        return find_model(named)
    names = sorted({name for name in recorded if name})
    if len(names) != 1:
        found = f"the adapters name {', '.join(names)}" if names else "no adapter names one"
        raise ModelError(f"no base model: {found}; give --model")
    return load.locate(names[0])


def find_trained_base(adapter: Adapter, named: str | None) -> load.Source:
    """The base as named, or the one that the adapter was trained on, bytes compared.

    Raises ArtifactError or ModelError; other bytes of a base that is named are a note.
    """
    name = model_path(named) if named else adapter.base
    if not name:
        raise ArtifactError(
            f"{adapter.directory}/adapter_config.json: base_model_name_or_path is missing; name the"
            " base with --base"
        )
    try:
        source = load.locate(name)
    except ModelError as error:
        hint = "" if named else "; if the base lies elsewhere now, name it with --base"
        raise ModelError(f"{error}{hint}") from None
    if adapter.trained_on and adapter.trained_on != load.fingerprint(source):
        message = f"{name}: not the bytes of the base that the adapter was trained on"
        if not named:
            raise ModelError(f"{message}; name the base with --base if this is meant")
        console.note(f"note: {message}")
    return source


def open_hub(named: str | None, directories: Mapping[str, Path], dtype: str) -> HubModel:
    """Load a base once and put every adapter beside it. Raises ArtifactError or ModelError."""
    read = {name: adapters.read(path) for name, path in directories.items()}
    libraries.import_()  # an adapter that cannot be read is told before
    source = find_shared_base(named, [adapter.base for adapter in read.values()])
    tokenizer = load.load_tokenizer(source)
    device = choose_device()
    model = load.load_model(source, dtype=choose_dtype(dtype, device), device=device)
    hub = Hub(model)
    tokenizers: dict[str | None, Tokenizer] = {None: tokenizer}
    for name in directories:
        adapter = read.pop(name)  # what was read goes as soon as it is in the hub
        attach.add_to_hub_(hub, model, name, adapter)
        tokenizers[name] = with_template(tokenizer, adapter.chat_template)
    return HubModel(model, hub, tokenizers)
