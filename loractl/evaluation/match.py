"""Whether an answer is the expected one: one function per metric, each from 0 to 1."""

import json
import re
from collections.abc import Callable
from typing import Any


def exact_match(answer: str, expected: str) -> float:
    """Whether both texts are the same, ignoring surrounding whitespace."""
    return float(answer.strip() == expected.strip())


def contains(answer: str, expected: str) -> float:
    """Whether the expected text occurs anywhere in the answer."""
    return float(expected.strip() in answer)


def json_match(answer: str, expected: str) -> float:
    """The fraction of the fields of both JSON objects together that have the same value in both.

    An answer that is not a JSON object scores 0; extra fields lower the score.
    """
    wanted, found = _parse_object(expected), _parse_object(answer)
    if wanted is None or found is None:
        return 0.0
    same = sum(key in found and found[key] == value for key, value in wanted.items())
    return float(same / max(1, len(wanted.keys() | found.keys())))


def _parse_object(text: str) -> dict[str, Any] | None:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def matching(pattern: str) -> Callable[[str, str], float]:
    """A metric: whether a regular expression matches anywhere in the answer. Raises re.error."""
    compiled = re.compile(pattern)
    return lambda answer, expected: float(compiled.search(answer) is not None)


METRICS: dict[str, Callable[[str, str], float]] = {
    "exact_match": exact_match,
    "contains": contains,
    "json_match": json_match,
}
