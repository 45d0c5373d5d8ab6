"""A YAML file and `--set` options -> RunConfig, or every error that needs no model, with its line.

Also the reverse: a resolved RunConfig as a file that reads the same.
"""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from loractl.config import strict_yaml, template_setting
from loractl.config.conflicts import conflicts
from loractl.config.not_yet import not_yet
from loractl.config.optimizers import missing_package
from loractl.config.settings import RunConfig, resolve
from loractl.config.strict_yaml import YamlProblem
from loractl.config.validation import Checked, check
from loractl.errors import ConfigError
from loractl.paths import is_hub_data
from loractl.text import closest, found, is_secret, printable

LARGEST = 1 << 18  # bytes; pure-Python YAML reads a hostile file of this size in about a second

_PATHS = (
    "model.name_or_path", "lora.start_from", "data.train", "data.eval", "data.retain", "out",
)  # fmt: skip
_HUB_ID = re.compile(r"\w[\w.-]*(?:/\w[\w.-]*)?")
_KEY = re.compile(r"[^\W\d][\w-]*(?:\.[^.\s]+)*")


@dataclass(frozen=True)
class Loaded:
    """A config with its defaults filled in, and where each setting was written."""

    config: RunConfig
    path: Path
    lines: Mapping[str, int]  # of the keys in the file
    overrides: Mapping[str, str]  # of the keys set by --set: the option as typed

    @property
    def explicit(self) -> frozenset[str]:
        """The keys that are set, in the file or by --set."""
        return frozenset((*self.lines, *self.overrides))

    def error(self, key: str, message: str) -> ConfigError:
        """An error about a setting, with the file and line of the setting or of its section."""
        return ConfigError(_word_problem(self.path, self.lines, self.overrides, key, message))


def load(path: Path, overrides: Sequence[str] = (), *, paths_exist: bool = True) -> Loaded:
    """Read and check a config; raise one ConfigError with a message for each problem.

    Without `paths_exist`, the files that it names need not exist, nor the packages that training
    by it needs; a run's config.yaml is read so.
    """
    document = _read_document(path)
    data, lines = document.value, document.lines
    messages: list[str] = []
    for key, line in document.repeated:
        what = f"already set on line {lines[key]}, expected once; remove one of the two"
        messages.append(printable(f"{path}:{line}: {key}: {what}"))
    options: dict[str, str] = {}
    for text in overrides:
        try:
            _override_value_(data, lines, options, text)
        except ConfigError as error:
            messages += error.messages
    checked = check(data)
    missing = _missing_paths(checked, path.parent) if paths_exist else ()
    template = _check_template(checked, path.parent, paths_exist)
    packages = _missing_packages(checked) if paths_exist else ()
    problems = [*checked.problems, *_check_combinations(checked), *missing, *template, *packages]
    messages += [_word_problem(path, lines, options, key, message) for key, message in problems]
    if messages or checked.config is None:
        raise ConfigError(*sorted(dict.fromkeys(messages), key=_line_in(path)))
    config = _with_home(checked.config)
    if paths_exist:
        config = _with_template_text(config)
    config = resolve(config, name=path.stem)
    return Loaded(config, path, MappingProxyType(lines), MappingProxyType(options))


def dump(config: RunConfig) -> str:
    """Write every setting as YAML, in the order of `settings`; `load` reads it back unchanged."""
    return strict_yaml.dump(config.model_dump())


def read_mapping(path: Path) -> dict[Any, Any]:
    """The plain values of a YAML file, whatever its keys mean. Raises ConfigError."""
    value: dict[Any, Any] = _read_document(path).value
    return value


def _read_document(path: Path) -> strict_yaml.Document:
    text = _read_text(path)
    try:
        document = strict_yaml.parse(text)
    except YamlProblem as problem:
        column = f":{problem.column}" if problem.column else ""
        where = f"{path}:{problem.line}{column}"
        raise ConfigError(printable(f"{where}: {problem.message}")) from None
    if not isinstance(document.value, dict):
        what = "an empty file" if document.value is None else found(document.value)
        raise ConfigError(printable(f"{path}: found {what}, expected a mapping of settings"))
    return document


def _read_text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST + 1)
    except FileNotFoundError:
        raise ConfigError(printable(f"{path}: does not exist{_resolved_hint(path)}")) from None
    except IsADirectoryError:
        raise ConfigError(printable(f"{path}: is a directory, expected a YAML file")) from None
    except OSError as error:
        raise ConfigError(printable(f"{path}: cannot be read: {error.strerror}")) from None
    if len(content) > LARGEST:
        raise ConfigError(printable(f"{path}: found more than 256 KiB, expected a config file"))
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise ConfigError(printable(f"{path}: found UTF-16, expected UTF-8; save it as UTF-8"))
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        what = f"found the byte {content[error.start]:#04x}, which is not UTF-8"
        raise ConfigError(printable(f"{path}:{line}: {what}; save the file as UTF-8")) from None


def _override_value_(
    data: dict[Any, Any], lines: dict[str, int], options: dict[str, str], text: str
) -> None:
    """Apply one `key=value` to the values of the file."""
    key, equals, written = (part.strip() for part in text.partition("="))
    option = f"--set {key}={'***' if is_secret(key) else written}" if equals else f"--set {text}"
    if not equals or not _KEY.fullmatch(key):
        raise ConfigError(printable(f"{option}: expected KEY=VALUE, as in --set lora.rank=16"))
    try:
        value = strict_yaml.parse(written).value
    except YamlProblem as problem:
        raise ConfigError(printable(f"{option}: {problem.message}")) from None
    *above, last = key.split(".")
    for depth, name in enumerate(above):
        where = ".".join(above[: depth + 1])
        if name not in data:
            data[name], options[where] = {}, option
        inner = data[name]
        if not isinstance(inner, dict):
            raise ConfigError(printable(f"{option}: {where} is {found(inner)}, expected a mapping"))
        data = inner
    data[last] = value
    inside = (f"{key}.", f"{key}[")
    for known in [name for name in (*lines, *options) if name == key or name.startswith(inside)]:
        lines.pop(known, None)
        options.pop(known, None)
    options[key] = option


def _word_problem(
    path: Path, lines: Mapping[str, int], options: Mapping[str, str], key: str, message: str
) -> str:
    """`FILE:LINE: KEY: message`; the line is that of the section if the key itself is not set."""
    here = key
    while here and here not in lines and here not in options:
        here = re.sub(r"(?:\[\d+\]|\.?[^.\[]*)$", "", here)
    where = options.get(here) or (f"{path}:{lines[here]}" if here in lines else str(path))
    return printable(f"{where}: {key}: {message}")


def _line_in(path: Path) -> Any:
    """A sort key: messages in file order, then those without a line, then those about --set."""
    place = re.compile(re.escape(printable(f"{path}:")) + r"(\d+): ")

    def order(message: str) -> tuple[bool, float]:
        match = place.match(message)
        return message.startswith("--set "), int(match[1]) if match else float("inf")

    return order


def _check_combinations(checked: Checked) -> Iterator[tuple[str, str]]:
    """Conflicts found by `settings`, except those about a key that is already wrong."""
    if checked.config is None:
        return
    for key, message in (*not_yet(checked.config), *conflicts(checked.config)):
        if not checked.is_doubtful(key) and not any(bad in message for bad in checked.doubtful):
            yield key, message


def _check_template(checked: Checked, folder: Path, paths_exist: bool) -> Iterator[tuple[str, str]]:
    if checked.config is None:
        return
    data = checked.config.data
    for key, message in template_setting.problems(
        data.chat_template, data.template_variables, folder, paths_exist=paths_exist
    ):
        if not checked.is_doubtful(key):
            yield key, message


def _missing_packages(checked: Checked) -> Iterator[tuple[str, str]]:
    key = "train.optimizer"
    if checked.config is None or checked.is_doubtful(key):
        return
    if wrong := missing_package(checked.config.train.optimizer):
        yield key, wrong


def _missing_paths(checked: Checked, folder: Path) -> Iterator[tuple[str, str]]:
    if checked.config is None:
        return
    data = checked.config.data
    train = data.train if isinstance(data.train, list) else []
    held_out = data.eval if isinstance(data.eval, list) else []
    listed = {
        **{f"data.train[{i}].path": one.path for i, one in enumerate(train)},
        **{f"data.eval[{i}].path": one.path for i, one in enumerate(held_out)},
    }
    for key, value in {
        **{key: _get_value(checked.config, key) for key in _PATHS},
        **listed,
    }.items():
        if not isinstance(value, str) or checked.is_doubtful(key):
            continue
        if "://" in value:
            yield key, f"found {found(value)}, expected a path; download it first"
        elif key != "out" and (complaint := _missing_path(key, value, folder)):
            yield key, complaint


def _missing_path(key: str, value: str, folder: Path) -> str | None:
    path = Path(os.path.expanduser(value))
    if key.startswith("model."):
        is_hub_id = _HUB_ID.fullmatch(value) is not None and path.suffix != ".gguf"
    else:
        is_hub_id = key.startswith("data.") and is_hub_data(value)
    try:
        if path.exists():
            return None
        beside = folder / path
        if beside.exists():
            rest = f"but {beside} does, next to the config; use that path or run from there"
            return f"{value} does not exist in the working directory{_resolved_hint(path)}, {rest}"
        near = closest(path.name, os.listdir(path.parent), 0.8) if path.parent.is_dir() else None
    except OSError as error:
        return f"{value} cannot be read: {error.strerror}"
    if is_hub_id:
        return None
    hint = f"; did you mean {path.parent / near}?" if near else ""
    return f"{value} does not exist{_resolved_hint(path)}{hint}"


def _resolved_hint(path: Path) -> str:
    return "" if path.is_absolute() else f" (resolved to {Path(os.path.abspath(path))})"


def _with_home(config: RunConfig) -> RunConfig:
    """Replace a leading ~ in the paths."""
    for key in _PATHS:
        value, (*above, name) = _get_value(config, key), key.split(".")
        if isinstance(value, str) and value.startswith("~"):
            update: dict[str, Any] = {name: os.path.expanduser(value)}
            for section in reversed(above):
                update = {section: getattr(config, section).model_copy(update=update)}
            config = config.model_copy(update=update)
    return config


def _with_template_text(config: RunConfig) -> RunConfig:
    """Replace the path of a chat template by its text, which a run keeps in its config.yaml."""
    if config.data.chat_template is None:
        return config
    text = template_setting.text_of(config.data.chat_template)
    return config.model_copy(
        update={"data": config.data.model_copy(update={"chat_template": text})}
    )


def _get_value(config: RunConfig, key: str) -> Any:
    value: Any = config
    for name in key.split("."):
        value = getattr(value, name)
    return value
