"""Strict YAML: text to plain values with line numbers, and plain values back to text.

Only strings, numbers, true/false, null, lists and mappings exist here. No constructor is inherited,
so there is nothing that a tag could call. Interpreting the values is left to `loader`.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml
from yaml.composer import Composer
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from yaml.parser import Parser
from yaml.reader import Reader, ReaderError
from yaml.resolver import BaseResolver
from yaml.scanner import Scanner

DEEPEST = 20
MOST_VALUES = 20_000  # PyYAML composes about 20,000 values per second; a config has fewer than 200

_TOO_DEEP = f"found values nested deeper than {DEEPEST} levels"
_TAG = "tag:yaml.org,2002:"
_DIGITS = r"[0-9]+(?:_[0-9]+)*"
_PLAIN = {  # what an unquoted word means; YAML 1.1 also knows yes, on, 1:30, 010 and dates
    "bool": re.compile(r"(?i:true|false)$"),
    "null": re.compile(r"(?:~|null|Null|NULL|)$"),
    "int": re.compile(rf"[-+]?{_DIGITS}$"),
    "float": re.compile(
        rf"[-+]?(?:\.{_DIGITS}|{_DIGITS}(?:\.(?:{_DIGITS})?)?)(?:[eE][-+]?[0-9]+)?$"
        r"|[-+]?\.(?:inf|Inf|INF)$|\.(?:nan|NaN|NAN)$"
    ),
}
_HINTS = {
    "'\\t'": "indent with spaces, not tabs",
    "mapping values are not allowed": "check the indentation, or put the value in quotes",
    "cannot start any token": "put the value in quotes",
    "could not find expected ':'": "write `key: value`, and check the indentation",
    "but found '<block mapping start>'": "check the indentation",
}


class YamlProblem(Exception):
    """A problem with the text and its position (counted from 1; column 0: the whole line)."""

    def __init__(self, message: str, line: int, column: int = 0) -> None:
        super().__init__(message)
        self.message, self.line, self.column = message, line, column


@dataclass(frozen=True)
class Document:
    """The value of a document and the line of each key: `lora.rank`, `data.train[0].path`."""

    value: Any
    lines: dict[str, int] = field(default_factory=dict)
    repeated: list[tuple[str, int]] = field(default_factory=list)


def parse(text: str) -> Document:
    """Read one YAML document; raise YamlProblem if it is invalid or uses tags or aliases."""
    try:
        composer = _Composer(text)
        root = composer.compose_only_document()
    except yaml.MarkedYAMLError as error:
        raise _from_marked(error) from None
    except ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise YamlProblem(f"found the unprintable character {error.character:#x}", line) from None
    document = Document(None)
    return document if root is None else _with_value(document, root)


def dump(value: Mapping[str, Any]) -> str:
    """Write plain values as text that `parse`, and any YAML 1.1 reader, reads back unchanged."""
    text = yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=float("inf"))
    return str(text)


def scalar(text: str) -> str:
    """A string as YAML on one line, quoted if necessary."""
    return dump({"k": text}).partition(": ")[2].strip()


class _Composer(Reader, Scanner, Parser, Composer, BaseResolver):
    """Text to nodes; refuses tags and aliases, and bounds the depth and the number of values."""

    def __init__(self, text: str) -> None:
        Reader.__init__(self, text)
        Scanner.__init__(self)
        Parser.__init__(self)
        Composer.__init__(self)
        BaseResolver.__init__(self)
        self.depth = 0
        self.n_values = 0

    def compose_only_document(self) -> Node | None:
        events: Any = self
        events.get_event()
        if self.check_event(yaml.StreamEndEvent):
            return None
        root: Node | None = self.compose_document()
        if not self.check_event(yaml.StreamEndEvent):
            raise _problem_at("found a second document (---), expected one", events.peek_event())
        return root

    def compose_node(self, parent: Node | None, index: Any) -> Node | None:
        events: Any = self
        event = events.peek_event()
        if isinstance(event, yaml.AliasEvent):
            raise _problem_at(f"found the alias *{event.anchor}; write the value out", event)
        if event.tag is not None:
            tag = event.tag.replace(_TAG, "!!")
            raise _problem_at(f"found the tag {tag}, expected a plain value; remove it", event)
        self.n_values += 1
        if self.n_values > MOST_VALUES:
            raise _problem_at(f"found more than {MOST_VALUES} values", event)
        if self.depth >= DEEPEST:
            raise _problem_at(_TOO_DEEP, event)
        self.depth += 1
        node: Node | None = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def fetch_flow_collection_start(self, kind: Any) -> None:
        # The scanner reads ahead of compose_node, in time quadratic in the depth.
        scanner: Any = super()
        if self.flow_level > DEEPEST:
            raise YamlProblem(_TOO_DEEP, self.line + 1, self.column + 1)
        scanner.fetch_flow_collection_start(kind)


class _Dumper(yaml.SafeDumper):
    """Quotes every string that YAML 1.1 or `parse` would read as something else."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_text(self, text: str) -> ScalarNode:
        # PyYAML's single quotes lose a NEL (U+0085): they fold it into a space
        style = None if text.isprintable() else '"'
        return self.represent_scalar(_TAG + "str", text, style=style)


_Dumper.add_representer(str, _Dumper.represent_text)


for _name, _pattern in _PLAIN.items():
    _Composer.add_implicit_resolver(_TAG + _name, _pattern, None)
    _Dumper.add_implicit_resolver(_TAG + _name, _pattern, None)


def _with_value(document: Document, root: Node) -> Document:
    value = _node_value(root, "", document)
    return Document(value, document.lines, document.repeated)


def _node_value(node: Node, key: str, document: Document) -> Any:
    if isinstance(node, ScalarNode):
        return _scalar_value(node)
    if isinstance(node, SequenceNode):
        items = []
        for index, item in enumerate(node.value):
            document.lines[f"{key}[{index}]"] = _line_of(item)
            items.append(_node_value(item, f"{key}[{index}]", document))
        return items
    assert isinstance(node, MappingNode), node
    return _mapping_value(node, key, document)


def _mapping_value(node: MappingNode, key: str, document: Document) -> dict[Any, Any]:
    mapping: dict[Any, Any] = {}
    for name_node, value_node in node.value:
        if not isinstance(name_node, ScalarNode):
            raise _problem_at("found a list or mapping as a key, expected a name", name_node)
        if name_node.value == "<<":
            raise _problem_at("found the merge key <<; write the keys out", name_node)
        name = _scalar_value(name_node)
        inner = f"{key}.{name}" if key else str(name)
        if name in mapping:
            document.repeated.append((inner, _line_of(name_node)))
            continue
        document.lines[inner] = _line_of(name_node)
        mapping[name] = _node_value(value_node, inner, document)
    return mapping


def _scalar_value(node: ScalarNode) -> Any:
    text: str = node.value
    match node.tag.removeprefix(_TAG):
        case "null":
            return None
        case "bool":
            return text.lower() == "true"
        case "int" | "float" if len(text) > 400:
            raise _problem_at("found a number of more than 400 digits", node)
        case "int":
            return int(text)
        case "float":
            return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
    if "\0" in text or any(0xD800 <= ord(char) <= 0xDFFF for char in text):
        raise _problem_at("found an escaped character that is not allowed in text", node)
    return text


def _line_of(node: Node) -> int:
    return int(node.start_mark.line) + 1


def _problem_at(message: str, at: Any) -> YamlProblem:
    return YamlProblem(message, at.start_mark.line + 1, at.start_mark.column + 1)


def _from_marked(error: yaml.MarkedYAMLError) -> YamlProblem:
    mark = error.problem_mark or error.context_mark
    assert mark is not None, error
    message = f"not valid YAML: {error.problem or error.context}"
    begin = error.context_mark
    if error.context and begin is not None and begin.line != mark.line:
        message += f" ({error.context} that begins on line {begin.line + 1})"
    hint = next((hint for found, hint in _HINTS.items() if found in message), None)
    return YamlProblem(f"{message}; {hint}" if hint else message, mark.line + 1, mark.column + 1)
