"""What `generate` and `chat` share: flags, and a base with its adapters in a hub."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from loractl.errors import ConfigError, ModelError
from loractl.startup import libraries

if TYPE_CHECKING:
    from loractl.artifacts.peft.adapter import Adapter
    from loractl.generation.hub_model import HubModel
    from loractl.generation.sample import Sampling

DTYPES = ("auto", "float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Options:
    """The flags that say how text is drawn."""

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    dtype: str = "auto"

    def check(self) -> None:
        """Raise ConfigError for a dtype that does not exist; the numbers are bounded by the CLI."""
        if self.dtype not in DTYPES:
            raise ConfigError(f"--dtype: {self.dtype!r}, expected one of {', '.join(DTYPES)}")

    @property
    def sampling(self) -> "Sampling":
        from loractl.generation.sample import Sampling

        return Sampling(self.max_new_tokens, self.temperature, self.top_p, self.seed)


def parse_adapters(adapters: Sequence[str]) -> dict[str, Path]:
    """Read NAME=DIR, or DIR alone, which is named by its last part. Raises ConfigError."""
    found: dict[str, Path] = {}
    for text in adapters:
        name, equals, directory = text.partition("=")
        path = Path(directory if equals else text)
        name = name if equals else path.resolve().name
        if not name or name in found:
            raise ConfigError(f"--adapter: {text!r}, expected NAME=DIR with a name of its own")
        found[name] = path
    return found


def open_hub(model_name: str | None, directories: Mapping[str, Path], dtype: str) -> "HubModel":
    """Load a base once and put every adapter beside it. Raises ArtifactError or ModelError."""
    from loractl.artifacts.peft import adapter as files

    adapters = {name: files.read(path) for name, path in directories.items()}
    libraries.import_()  # an adapter that cannot be read is told before
    from loractl.artifacts.peft import spoke
    from loractl.generation.hub_model import HubModel
    from loractl.lora.hub import Hub
    from loractl.models import load

    source = load.locate(base_name(model_name, adapters))
    tokenizer = load.load_tokenizer(source)
    device = load.choose_device()
    model = load.load_model(source, dtype=load.choose_dtype(dtype, device), device=device)
    plain = tokenizer.chat_template
    assert plain is None or isinstance(plain, str)
    hub = Hub(model)
    templates: dict[str | None, str | None] = {None: plain}
    for name in directories:
        adapter = adapters.pop(name)  # what was read goes as soon as it is in the hub
        spoke.add_(hub, model, name, adapter)
        templates[name] = adapter.chat_template or plain
    return HubModel(model, tokenizer, hub, templates)


def base_name(model: str | None, adapters: Mapping[str, "Adapter"]) -> str:
    """The base: as named (a run of method: full means its model), or the one the adapters name."""
    if model is not None:
        inside = Path(model) / "model"
        return str(inside) if (inside / "config.json").is_file() else model
    names = sorted({adapter.base for adapter in adapters.values() if adapter.base})
    if len(names) != 1:
        found = f"the adapters name {', '.join(names)}" if names else "no adapter names one"
        raise ModelError(f"no base model: {found}; give --model")
    return names[0]
