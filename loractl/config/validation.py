"""Plain values -> RunConfig, or what is wrong with them: all keys at once, in our own words.

pydantic decides what is wrong; its own messages, which mention Python types, are never shown.
Lines and files are left to `loader`.
"""

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, get_args

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from loractl.config.describe import branches, choices, describe, origin
from loractl.config.not_yet import ABSENT, NOT_YET
from loractl.config.settings import RunConfig, Section
from loractl.config.synonyms import KEYS, NO_SETTING, VALUES
from loractl.text import LONGEST_VALUE, closest, found, listed

Problem = tuple[str, str]
"""A dotted key, and what is wrong with it."""


@dataclass
class Checked:
    """The valid settings, with defaults for the others, and the problems."""

    config: RunConfig | None = None
    problems: list[Problem] = field(default_factory=list)
    doubtful: set[str] = field(default_factory=set)

    def is_doubtful(self, key: str) -> bool:
        """Whether the value of this key in `config` may differ from what the user meant."""
        return any(key == other or key.startswith(f"{other}.") for other in self.doubtful)


def check(data: dict[Any, Any]) -> Checked:
    """Validate the values of a config file; report the wrong ones and still read the others."""
    checked = Checked()
    known = copy.deepcopy(data)
    for section, above, name, value in _take_unknown_(RunConfig, known, ""):
        message, meant = advice(above, name, section, value=value)
        if meant is not None:
            checked.doubtful.add(meant)
            if _is_set(data, meant):
                message += "; that key is set as well, so remove this one"
        checked.problems.append((_join_key(above, name), f"unknown key; {message}"))
    try:
        checked.config = RunConfig.model_validate(known)
    except ValidationError as error:
        places = _error_places(error, known)
        for place in places:
            _add_problems_(checked, place)
        checked.config = _without_wrong(known, places)
    return checked


def advice(
    above: str, name: str, section: type[Section] = RunConfig, *, value: Any = None
) -> tuple[str, str | None]:
    """Advice about an unknown key of a section, and the key that was probably meant. A flag that
    is off does not mean what it means when it is on, so only the key is named for it."""
    word = name.lower().replace("-", "_")[:100]
    if word in section.model_fields:
        return f"did you mean {word}?", _join_key(above, word)
    if theirs := KEYS.get(_join_key(above, word)) or KEYS.get(word):
        ours = theirs.split(" ")[0].strip(":")
        theirs = ours if value is False else theirs
        return f"it is called {theirs} here{_unless_served(theirs)}", ours
    if word in NO_SETTING:
        return NO_SETTING[word], None
    homes = {key.rpartition(".")[2]: key for key in reversed(keys())}
    if key := homes.get(word):
        home = key.rpartition(".")[0]
        return f"{name} belongs {f'under {home}' if home else 'at the top level'}: {key}", key
    if near := closest(word, section.model_fields):
        return f"did you mean {near}?", _join_key(above, near)
    if near := closest(word, KEYS, 0.85):
        return advice(above, near, section, value=value)
    if near := closest(word, homes, 0.75):
        return f"did you mean {homes[near]}?", homes[near]
    return f"expected {listed(list(section.model_fields))}", None


def keys(section: type[Section] = RunConfig, above: str = "") -> list[str]:
    """Every dotted key of a section and its subsections, in the order of `settings`."""
    names: list[str] = []
    for name, info in section.model_fields.items():
        names.append(_join_key(above, name))
        if inner := _as_section(info.annotation):
            names += keys(inner, names[-1])
    return names


def _take_unknown_(
    section: type[Section], values: dict[Any, Any], above: str
) -> Iterator[tuple[type[Section], str, str, Any]]:
    """Remove unknown keys; yield each with its section, the path of that section, and its value."""
    for name in list(values):
        if name not in section.model_fields:
            yield section, above, str(name), values.pop(name)
            continue
        here, value = _join_key(above, name), values[name]
        for kind, _ in branches(section.model_fields[name].annotation):
            inner = _as_section(kind)
            item = _as_section(get_args(kind)[0]) if origin(kind) is list else None
            if inner and isinstance(value, dict):
                yield from _take_unknown_(inner, value, here)
            elif item and isinstance(value, list):
                for index, entry in enumerate(value):
                    if isinstance(entry, dict):
                        yield from _take_unknown_(item, entry, f"{here}[{index}]")


@dataclass(frozen=True)
class _Place:
    """The place of a pydantic error: a key, the setting it is in, and what is expected there."""

    key: str
    setting: tuple[str, ...]
    value: Any
    kind: Any
    bounds: tuple[Any, ...]
    info: FieldInfo | None = None  # at the setting itself, not inside its value
    is_missing: bool = False
    is_key: bool = False


def _error_places(error: ValidationError, data: dict[Any, Any]) -> list[_Place]:
    """One place per key. For a list with some wrong items, only those items are kept."""
    places: dict[str, _Place] = {}
    for item in error.errors(include_url=False, include_context=False, include_input=False):
        place = _locate_error(item["loc"], data, is_missing=item["type"] == "missing")
        places.setdefault(place.key, place)
    return [
        place
        for key, place in places.items()
        if not any(other.startswith((f"{key}.", f"{key}[")) for other in places)
    ]


def _locate_error(loc: tuple[int | str, ...], data: dict[Any, Any], *, is_missing: bool) -> _Place:
    """Follow the location through values and types, skipping the names that pydantic gives to the
    branches of a union, which are in neither."""
    place = _Place("", (), data, RunConfig, ())
    for name in loc:
        value, alternatives = place.value, branches(place.kind, place.bounds)
        section = next(filter(None, (_as_section(kind) for kind, _ in alternatives)), None)
        inner = {origin(kind): get_args(kind) for kind, _ in alternatives}
        mapping, items = inner.get(dict), inner.get(list)
        if section and isinstance(value, dict) and name in section.model_fields:
            info = section.model_fields[str(name)]
            setting = (*place.setting, str(name)) if "[" not in place.key else place.setting
            place = _Place(
                _join_key(place.key, name),
                setting,
                value.get(name),
                info.annotation,
                tuple(info.metadata),
                info,
                is_missing and name not in value,
            )
        elif mapping and isinstance(value, dict) and name in value:
            key, of_names = _join_key(place.key, name), mapping[0]
            if loc[-1] == "[key]":
                return _Place(key, place.setting, name, of_names, (), is_key=True)
            place = _Place(key, place.setting, value[name], mapping[1], ())
        elif items and isinstance(value, list) and isinstance(name, int):
            place = _Place(f"{place.key}[{name}]", place.setting, value[name], items[0], ())
    return place


def _add_problems_(checked: Checked, place: _Place) -> None:
    required = _required_settings(place)
    if not place.is_missing:
        checked.problems.append((place.key, _word_complaint(place, required)))
    for key, info in required.items() if place.is_missing else ():
        if not checked.is_doubtful(key):  # no other tool's name for it was found
            checked.problems.append((key, f"not set, but required: {info.description}"))
    checked.doubtful.add(".".join(place.setting))


def _required_settings(place: _Place) -> dict[str, FieldInfo]:
    """The settings without a default: this one, or those of this section."""
    section = _as_section(place.kind)
    if section is None:
        return {place.key: place.info} if place.info and place.info.is_required() else {}
    names = section.model_fields.items()
    return {_join_key(place.key, name): info for name, info in names if info.is_required()}


def _word_complaint(place: _Place, required: dict[str, FieldInfo]) -> str:
    value, expected = place.value, describe(place.kind, place.bounds)
    if isinstance(value, float) and not math.isfinite(value):
        expected = expected.replace("a number", "a finite number")
    what = f"{found(value)} as a key" if place.is_key else found(value)
    return f"found {what}, expected {expected}{_suggest_fix(place, required)}"


def _suggest_fix(place: _Place, required: dict[str, FieldInfo]) -> str:
    value, info = place.value, place.info
    kinds = [kind for kind, _ in branches(place.kind)]
    if value is None and info is not None:
        if required:
            return "; it is required"
        default = info.get_default(call_default_factory=True)
        is_plain = not isinstance(default, Section)
        return f"; remove the line to use the default{f', {default}' if is_plain else ''}"
    if isinstance(value, str) and _as_section(place.kind):
        return f"; write {next(iter(required), place.key)} or its other keys, one per line below it"
    if isinstance(value, str) and list in map(origin, kinds):
        words = choices(place.kind)
        one = _nearest_word(value, words) if words else value
        return f"; write [{one}]" if one and len(one) <= LONGEST_VALUE else ""
    if isinstance(value, str):
        near = _nearest_word(value, choices(place.kind))
        return f"; did you mean {near}?" if near else _quotes_hint(value, kinds)
    if isinstance(value, float) and int in kinds and value.is_integer():
        return f"; write {value:.0f}"
    if isinstance(value, bool | int | float) and str in kinds:
        return "; put a string that looks like a number in quotes"
    return ""


def _nearest_word(value: str, words: list[str]) -> str | None:
    theirs = VALUES.get(value.lower())
    return theirs if theirs in words else closest(value, words)


def _quotes_hint(value: str, kinds: list[Any]) -> str:
    if int not in kinds and float not in kinds:
        return ""
    try:
        float(value)
    except ValueError:
        return ""
    return "; remove the quotes"


def _without_wrong(data: dict[Any, Any], places: list[_Place]) -> RunConfig | None:
    """Read the settings again, with defaults for the wrong ones and `?` where there is none."""
    for place in places:
        values: Any = data
        for name in place.setting[:-1]:
            values = values[name]
        values.pop(place.setting[-1], None)
    for section, info in RunConfig.model_fields.items():
        inner = _as_section(info.annotation)
        for name in (n for n, i in inner.model_fields.items() if i.is_required()) if inner else ():
            data.setdefault(section, {}).setdefault(name, "?")
    try:
        return RunConfig.model_validate(data)
    except ValidationError:
        return None


def _as_section(kind: Any) -> type[Section] | None:
    return kind if isinstance(kind, type) and issubclass(kind, Section) else None


def _join_key(above: str, name: Any) -> str:
    return f"{above}.{name}" if above else str(name)


def _is_set(data: Any, key: str) -> bool:
    for name in key.split("."):
        if not isinstance(data, dict) or name not in data:
            return False
        data = data[name]
    return True


def _unless_served(theirs: str) -> str:
    """', but not available ...' if the key or `key: value` is not implemented, else ''."""
    key, _, value = theirs.partition(" (")[0].partition(": ")
    for refused_key, refused in NOT_YET.items():
        if f"{key}.".startswith(f"{refused_key}.") and (refused is None or value in refused):
            return f", but {ABSENT}"
    return ""
