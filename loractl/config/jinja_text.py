"""The text of a chat template as Jinja reads it: its syntax, and the variables that it asks for.

Nothing is rendered here. Imports jinja2, so only what needs a template imports this.
"""

from functools import lru_cache

import jinja2
from jinja2 import meta, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser


class Generation(Extension):
    """The block that transformers adds to jinja, just enough of it to parse its body."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.If(nodes.Const(True), body, [], [], lineno=line)


def environment() -> jinja2.Environment:
    """Jinja with the tags that transformers knows, and its way with whitespace."""
    return jinja2.Environment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", Generation]
    )


def syntax_error(text: str) -> tuple[int, str] | None:
    """(line, what is wrong) with a template, or None."""
    try:
        environment().from_string(text)  # compiled too: that finds unknown filters
    except jinja2.TemplateSyntaxError as error:
        return error.lineno, error.message or "not valid Jinja"
    except RecursionError:
        return 1, "nested too deeply"
    return None


def variables_read(text: str) -> frozenset[str]:
    """The names that a template takes from whoever renders it; empty if it cannot be parsed."""
    try:
        jinja = environment()
        found = meta.find_undeclared_variables(jinja.parse(text))
    except (jinja2.TemplateSyntaxError, RecursionError):
        return frozenset()
    return frozenset(found) - jinja.globals.keys()


@lru_cache(maxsize=64)
def words_of(text: str) -> frozenset[str]:
    """The attributes and the quoted words of a template; empty if it cannot be parsed."""
    try:
        tree = environment().parse(text)
    except (jinja2.TemplateSyntaxError, RecursionError):
        return frozenset()
    quoted = (one.value for one in tree.find_all(nodes.Const) if isinstance(one.value, str))
    return frozenset([*quoted, *(one.attr for one in tree.find_all(nodes.Getattr))])
