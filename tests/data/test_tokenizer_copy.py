"""A tokenizer made of the values of another is the same, and what cannot be copied is not."""

import json
import subprocess
import sys
from typing import Any

from transformers import PreTrainedTokenizerFast

from loractl.data import tokenizer_copy
from loractl.data.encoding import encode
from loractl.records import Message

TALK = [Message("user", "What is 12 plus 7? Straße"), Message("assistant", "19, naïve")]


def test_a_copy_renders_and_tokenizes_as_the_tokenizer_does(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    values = tokenizer_copy.values_of(tokenizer)
    assert values is not None
    copied: Any = tokenizer_copy.made_of(json.loads(json.dumps(values)))
    again = tokenizer_copy.values_of(copied)
    assert again == values and tokenizer_copy.digest(again) == tokenizer_copy.digest(values)
    assert copied.added_tokens_encoder == tokenizer.added_tokens_encoder
    assert (copied.bos_token_id, copied.eos_token) == (tokenizer.bos_token_id, tokenizer.eos_token)
    for train_on in ("assistant", "all"):
        assert encode(copied, TALK, train_on=train_on) == encode(tokenizer, TALK, train_on=train_on)
    text = [Message("", "The quick <|im_end|> fox")]
    assert encode(copied, text, train_on="all") == encode(tokenizer, text, train_on="all")


def test_a_tokenizer_that_renders_in_its_own_way_is_not_copied(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    class Own(PreTrainedTokenizerFast):
        def apply_chat_template(self, *arguments: Any, **options: Any) -> Any:
            return "own"

    own = Own(tokenizer_object=tokenizer.backend_tokenizer)
    assert tokenizer_copy.values_of(own) is None


def test_another_template_has_another_digest(tokenizer: PreTrainedTokenizerFast) -> None:
    values = tokenizer_copy.values_of(tokenizer)
    assert values is not None
    other = {**values, "template": values["template"] + " "}
    assert tokenizer_copy.digest(other) != tokenizer_copy.digest(values)


def test_the_process_that_tokenizes_imports_no_torch(tokenizer: PreTrainedTokenizerFast) -> None:
    code = (
        "import json, sys; from loractl.data import tokenizer_copy, worker;"
        "made = tokenizer_copy.made_of(json.load(sys.stdin));"
        "made.apply_chat_template([{'role': 'user', 'content': 'a'}], tokenize=False);"
        "print('torch' in sys.modules)"
    )
    values = json.dumps(tokenizer_copy.values_of(tokenizer))
    done = subprocess.run(
        [sys.executable, "-c", code], input=values, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"
