"""Strict YAML: what each word means, what is refused, and that writing and reading agree."""

import math
import time

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from loractl.config.strict_yaml import YamlProblem, dump, parse, scalar


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("1e-4", 1e-4),
        ("2E-4", 2e-4),
        ("1e5", 1e5),
        ("+.5e3", 500.0),
        ("5.", 5.0),
        ("1_000", 1000),
        ("010", 10),
        ("-7", -7),
        (".inf", math.inf),
        ("-.INF", -math.inf),
        ("true", True),
        ("False", False),
        ("TRUE", True),
        ("off", "off"),
        ("on", "on"),
        ("yes", "yes"),
        ("n", "n"),
        ("1:30", "1:30"),
        ("2026-01-01", "2026-01-01"),
        ("0x1F", "0x1F"),
        ("inf", "inf"),
        ("'8'", "8"),
        ("~", None),
        ("null", None),
        ("", None),
    ],
)
def test_a_word_means_what_it_looks_like(word: str, value: object) -> None:
    found = parse(f"key: {word}\n").value["key"]
    assert found == value and type(found) is type(value)


def test_every_key_and_item_knows_its_line() -> None:
    document = parse("a: 1\nb:\n  c: 2\n  d:\n    - x\n    - {e: 1}\n")
    assert document.lines == {"a": 1, "b": 2, "b.c": 3, "b.d": 4, "b.d[0]": 5, "b.d[1]": 6} | {
        "b.d[1].e": 6
    }


def test_a_repeated_key_is_named_and_the_first_kept() -> None:
    document = parse("a: {b: 1}\nc: 1\na: {b: 2}\n")
    assert document.repeated == [("a", 3)]
    assert document.value == {"a": {"b": 1}, "c": 1}


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("a: 1\nb: !!python/object/apply:os.system [id]", 2, "tag !!python/object/apply:os.system"),
        ("a: !!python/name:os.system", 1, "tag"),
        ("a: !include x.yaml", 1, "tag !include"),
        ("a: !!str 1", 1, "tag !!str"),
        ("a: &x 1\nb: *x", 2, r"alias \*x"),
        ("a: &x [*x]", 1, "alias"),
        ("<<: {a: 1}", 1, "merge key <<"),
        ("? [a]\n: 1", 1, "as a key"),
        ('a: "\\ud800"', 1, "not allowed in text"),
        ('a: "\\0"', 1, "not allowed in text"),
        ("a: 1\nb\0: 2", 2, "unprintable character 0x0"),
        ("a:\n\tb: 1", 2, "spaces, not tabs"),
        ("a: 1\n   b: 2", 2, "indentation"),
        ("a: [1, 2\n", 2, "begins on line 1|expected ',' or ']'"),
        ("a: @x", 1, "put the value in quotes"),
        ("a: 1\n---\nb: 2", 2, "second document"),
        ("a: " + "9" * 500, 1, "digits"),
        ("[" * 1000, 1, "nested deeper than 20"),
        ("- " * 1000, 1, "nested deeper than 20"),
        ("a: [" + "1," * 30_000, 1, "more than 20000 values"),
    ],
)
def test_what_is_not_plain_yaml_is_refused_with_its_line(text: str, line: int, words: str) -> None:
    with pytest.raises(YamlProblem, match=words) as caught:
        parse(text)
    assert caught.value.line == line


def test_a_billion_laughs_are_answered_at_once() -> None:
    text = "a: &a [x, x, x, x, x, x, x, x, x]\n"
    for old, new in zip("abcdefgh", "bcdefghi", strict=True):
        text += f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n"
    begin = time.process_time()
    with pytest.raises(YamlProblem, match="alias"):
        parse(text)
    assert time.process_time() - begin < 0.3


texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=30)
words = st.sampled_from(
    ["1e-4", "off", "yes", "1:30", "0o7", "null", "~", "=", "<<", "- a", "a: b"]
)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | texts | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts | words, inner, max_size=3),
    max_leaves=10,
)


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(texts.filter(lambda name: name != "<<"), values, max_size=4))
def test_what_is_written_reads_the_same_here(value: dict[str, object]) -> None:
    if "<<" not in dump(value):
        assert parse(dump(value)).value == value


@settings(max_examples=100, deadline=None)
@given(texts | words)
def test_one_text_stays_one_line_and_reads_the_same_everywhere(text: str) -> None:
    written = scalar(text)
    assert "\n" not in written
    assert parse(f"key: {written}  # comment").value == {"key": text}
    assert yaml.safe_load(f"key: {written}  # comment") == {"key": text}
