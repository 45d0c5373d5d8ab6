"""Which base model a command uses, where it is, whether the adapters were trained on it, and in
which dtype it is loaded: one answer for all commands. Torch is imported only to load something.
"""

import os
import threading
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loractl import console
from loractl.dtypes import WIDTHS
from loractl.engine import packed_base
from loractl.errors import ArtifactError, ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from loractl.artifacts.peft.adapter import Adapter
    from loractl.config.loader import Loaded
    from loractl.models.load import Source


def model_path(name: str) -> str:
    """What a name refers to as a model: a run of method: full refers to the model in it."""
    inside = Path(name).expanduser() / "model"
    return str(inside) if name and (inside / "config.json").is_file() else name


def recorded(name: str) -> dict[str, Any]:
    """What a fully trained model records about itself; empty for anything else."""
    from loractl.artifacts import files
    from loractl.artifacts.peft.adapter import ABOUT

    about = Path(model_path(name)).expanduser() / ABOUT
    return files.read_json(about) if about.is_file() else {}


def recorded_base(path: Path) -> str | None:
    """The base that a fully trained model records."""
    from loractl.artifacts.peft.adapter import find_base

    base = recorded(str(path)).get("base")
    name = base.get("name_or_path") if isinstance(base, dict) else None
    return find_base(path, name) if isinstance(name, str) else None


def recorded_dtype(name: str) -> str | None:
    """The dtype that a fully trained model records."""
    found = recorded(name).get("dtype")
    return found if found in WIDTHS else None


def find_model(name: str) -> "Source":
    """Find a model by hub id, directory or run. Raises ModelError."""
    from loractl.models import load

    return load.locate(model_path(name))


def find_shared_base(named: str | None, recorded: Mapping[str, str | None]) -> "Source":
    """The named base, or the one that all adapters and models record. Raises ModelError."""
    if named is not None:
        return find_model(named)
    known = {name: base for name, base in recorded.items() if base}
    if not known:
        raise ModelError("no base model: no adapter names one; give --model")
    places = {_real_place(base) for base in known.values()}
    if len(places) > 1:
        listed = ", ".join(f"{base} for {name}" for name, base in known.items())
        raise ModelError(f"the adapters name different bases: {listed}; give --model")
    return _locate_recorded(next(iter(known.values())), "--model")


def _real_place(base: str) -> str:
    """What two paths of one directory have in common; a hub id as it is."""
    path = Path(model_path(base)).expanduser()
    return os.path.realpath(path) if path.exists() else base


def find_trained_base(adapter: "Adapter", named: str | None) -> "Source":
    """The named base, or the one that the adapter was trained on; bytes are compared.

    Raises ArtifactError or ModelError; if a named base differs in its bytes, that is a note.
    """
    from loractl.models.fingerprints import fingerprint

    if not named and not adapter.base:
        raise ArtifactError(
            f"{adapter.directory}/adapter_config.json: base_model_name_or_path is missing; name the"
            " base with --base"
        )
    source = find_model(named) if named else _locate_recorded(adapter.base or "", "--base")
    source = packed_base.as_trained(source, [adapter])
    if adapter.trained_on:
        require_same_bytes(source, fingerprint(source), [adapter], named=named, option="--base")
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


def choose_trained_dtype(named: str | None, recorded: Iterable[str | None]) -> str:
    """The named dtype, or the one that the adapters and models were trained in; auto if none tells.

    Several: one that holds the values of each.
    """
    if named is not None:
        return named
    found = sorted({dtype for dtype in recorded if dtype})
    if len(found) < 2:
        return found[0] if found else "auto"
    console.note(
        f"note: the adapters were trained in {' and '.join(found)}; float32, which holds both, is"
        " used; --dtype names another"
    )
    return "float32"  # the only one of the three that is wider than another


def load_base(
    source: "Source", dtype: str, adapters: Iterable["Adapter"] = (), *, named: str | None = None
) -> "PreTrainedModel":
    """Load a whole base, in a dtype or auto, on the best device, while its bytes are compared with
    the base that the adapters were trained on. Raises ModelError."""
    from loractl.models import load
    from loractl.models.device import choose_device, choose_dtype
    from loractl.models.fingerprints import remembered_fingerprint

    adapters = list(adapters)
    source = packed_base.as_trained(source, adapters)
    trained = [adapter for adapter in adapters if adapter.trained_on]
    fingerprint = compute_beside(lambda: remembered_fingerprint(source)) if trained else None
    device = choose_device()
    model = load.load_model(
        source,
        dtype=choose_dtype(dtype, device),
        device=device,
        fingerprint=fingerprint.result if fingerprint else None,
    )
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


def locate_base(loaded: "Loaded") -> "Source":
    """The base that a config names. Raises ConfigError."""
    from loractl.models import base_directory, load

    model = loaded.config.model
    try:
        source = load.locate(model.name_or_path, trust_remote_code=model.trust_remote_code)
    except ModelError as error:
        raise loaded.error("model.name_or_path", str(error)) from None
    if not model.trust_remote_code and base_directory.brings_code(source.directory):
        console.note(
            "note: the base model has Python code of its own (auto_map), which is not run; only"
            " model.trust_remote_code: true would run it"
        )
    return source
