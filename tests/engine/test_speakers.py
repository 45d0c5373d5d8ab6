"""Through which template a base is asked when it is compared with what was trained on it."""

from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from loractl.engine.speakers import base_speaker
from tests.tiny import CHATML

SET = {"chat_template": {"is_set": True, "variables": {}}}
OWN: dict[str, Any] = {}


@pytest.mark.parametrize(
    ("tuned", "expected"),
    [
        ([(SET, "{{ 1 }}")], "{{ 1 }}"),
        ([(SET, "{{ 1 }}"), (SET, "{{ 1 }}")], "{{ 1 }}"),
        ([(SET, "{{ 1 }}"), (SET, "{{ 2 }}")], CHATML),
        ([(SET, "{{ 1 }}"), (OWN, "{{ 1 }}")], CHATML),
        ([(OWN, "{{ 1 }}")], CHATML),
        ([], CHATML),
    ],
)
def test_it_is_theirs_where_a_config_chose_one_for_all(
    tuned: list[tuple[Any, str]], expected: str, tokenizer: PreTrainedTokenizerFast
) -> None:
    assert base_speaker(tokenizer, tuned).chat_template == expected
    assert tokenizer.chat_template == CHATML
