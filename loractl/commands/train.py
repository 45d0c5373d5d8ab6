"""`loractl train`: a run from its config to an adapter."""

import gc
import os
import shlex
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from loractl import console
from loractl.artifacts.run.directory import RunDir, Status
from loractl.artifacts.run.lock import RunLock
from loractl.config import loader, template_setting
from loractl.config.changes import flatten
from loractl.config.loader import Loaded
from loractl.config.settings import FROM_ADAPTER, UNSET_MEANT, RunConfig
from loractl.errors import ConfigError, StateError, Stopped, StorageError
from loractl.signals import StopRequest
from loractl.startup import libraries
from loractl.world import ALONE

if TYPE_CHECKING:
    from loractl.engine.session import Session

FREE_TO_CHANGE = {
    "out", "device", "train.log_every", "train.save_every", "train.keep_checkpoints", "train.report"
}  # fmt: skip
"""Settings that may change on resume, since they do not affect what is computed."""
EXTENSIBLE = {"train.steps", "train.epochs"}


def run(
    config: Path,
    overrides: list[str],
    *,
    out: str | None = None,
    resume: bool = False,
    extend: bool = False,
    overwrite: bool = False,
) -> int:
    """Train from a config. Errors in the config or the run are reported before torch is loaded.

    Raises Stopped after a signal.
    """
    _require_run_to_extend(extend, resume)
    given = {"--resume": resume, "--extend": extend, "--overwrite": overwrite}
    same = _command_line(config, overrides, out, *[flag for flag, is_on in given.items() if is_on])
    again = _command_line(config, overrides, out, "--resume")
    loaded = loader.load(config, overrides)
    if out is not None:
        loaded = replace(loaded, config=loaded.config.model_copy(update={"out": out}))
    assert loaded.config.out is not None, "resolve() fills out in"
    directory = RunDir(Path(loaded.config.out))
    status = directory.require(resume=resume, overwrite=overwrite)
    _require_writable(directory.path)
    if resume and status is not Status.ABSENT:
        loaded = replace(loaded, config=_as_begun(directory, loaded))
        changed = _changed_settings(directory, loaded.config)
        refused = {
            key: values
            for key, values in changed.items()
            if not (extend and key in EXTENSIBLE and _is_longer(*values))
        }
        if refused:
            raise StateError(*_explain_refusals(directory, refused))
        if status is Status.FINISHED and not changed:
            return _tell_complete(directory)

    with StopRequest() as stop, RunLock(directory.path) as held:
        if directory.status() is not status:
            raise StateError(f"{directory.path}: another process has just changed this run")
        try:
            with stop.at_once(), libraries.quickly():
                # Here, not above: errors in a config are reported before torch is loaded.
                libraries.import_transformers()
                from loractl.engine.train import prepare, train

                prepared = prepare(loaded, directory, ALONE, resume=resume)
                gc.freeze()  # these objects stay, and one scan of them takes 0.2 s
        except Stopped:
            console.note(f"stopped before the first step; start again with: {same}")
            raise
        try:
            held.keep()
            code = train(prepared, stop, again=again)
            _report_(prepared.session, directory, stop)
            return code
        finally:
            gc.unfreeze()


def _tell_complete(directory: RunDir) -> int:
    if directory.was_killed():  # after everything was written
        with RunLock(directory.path) as held:
            held.keep()
            directory.sweep_()
    console.note(f"{directory.path}: already complete")
    return 0


def _require_run_to_extend(extend: bool, resume: bool) -> None:
    if extend and not resume:
        raise ConfigError("--extend: allows more steps to a run that exists; add --resume")


def _command_line(config: Path, overrides: list[str], out: str | None, *flags: str) -> str:
    options = [part for override in overrides for part in ("--set", override)]
    place = ["--out", out] if out is not None else []
    return shlex.join(["loractl", "train", str(config), *options, *place, *flags])


def _is_longer(old: object, new: object) -> bool:
    """Whether `new` steps or epochs exceed `old`; if one is not set, the data decides."""
    return old is None or new is None or (isinstance(old, int | float) and new > old)  # type: ignore[operator]


def _report_(session: "Session", directory: RunDir, stop: StopRequest) -> None:
    if session.config.train.report:
        from loractl.engine.report.at_end import write_report_

        write_report_(session, directory, stop)


def _require_writable(path: Path) -> None:
    there = next(p for p in (path, *path.absolute().parents) if p.exists())
    if not os.access(there, os.W_OK | os.X_OK):
        raise StorageError(
            f"{path}: cannot be written: {there} is not writable; choose another --out"
        )


def _changed_settings(directory: RunDir, config: RunConfig) -> dict[str, tuple[object, object]]:
    """Settings that differ from those at the start of the run: key -> (old, new)."""
    began = loader.load(directory.config, paths_exist=False)
    old = flatten(began.config.model_dump())
    old |= {key: meant for key, meant in UNSET_MEANT.items() if key not in began.lines}
    new = flatten(config.model_dump())
    return {
        key: (old.get(key), new.get(key))
        for key in [*new, *(old.keys() - new.keys())]
        if key not in FREE_TO_CHANGE and old.get(key) != new.get(key)
    }


def _as_begun(directory: RunDir, loaded: Loaded) -> RunConfig:
    """The config as the run began, in keys that it leaves open: those that mean something else
    since, and those that come from the adapter of lora.start_from."""
    began = loader.load(directory.config, paths_exist=False)
    plain, old = loaded.config.model_dump(), began.config.model_dump()
    for key, meant in UNSET_MEANT.items():
        section, _, name = key.rpartition(".")
        if key not in began.lines and key not in loaded.explicit:
            plain[section][name] = meant
    if loaded.config.lora.start_from is not None:
        open_keys = [name for name in FROM_ADAPTER if f"lora.{name}" not in loaded.explicit]
        plain["lora"] |= {name: old["lora"][name] for name in open_keys}
        if "method" not in loaded.explicit:
            plain["method"] = old["method"]
    return RunConfig.model_validate(plain)


def _explain_refusals(directory: RunDir, changed: dict[str, tuple[object, object]]) -> list[str]:
    hint = "resume with the original settings, or start over with --overwrite"
    if changed.keys() <= EXTENSIBLE and all(_is_longer(*values) for values in changed.values()):
        hint = "add --extend to train longer than the run was planned for"
    return [
        f"{directory.config}: {key}: {_word_change(key, old, new)} since the run started; {hint}"
        for key, (old, new) in changed.items()
    ]


def _word_change(key: str, old: object, new: object) -> str:
    if key == template_setting.KEY and any(template_setting.is_text(str(v)) for v in (old, new)):
        return "the text of the template changed"
    return f"changed from {old} to {new}"
