"""What comes of a stretch of rows depends on nothing but its rows."""

import copy

from transformers import PreTrainedTokenizerFast

from loractl.data.reading import Reading
from loractl.data.row_files import Row
from loractl.data.stretch import Source, tokenise

READS_SOME = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] }}"
    "{% if m['content'] == 'named' %}{{ m.get('name', '') }}{% endif %}{{ '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""Reads the names of some messages only: what it leaves out depends on what is said."""


def row(line: int, said: str) -> Row:
    asked = {"role": "user", "content": said, "name": "Ada"}
    fields = {"messages": [asked, {"role": "assistant", "content": "yes"}]}
    return Row(line, fields, "rows.jsonl")


def test_the_rows_before_a_stretch_do_not_change_what_comes_of_it(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    other = copy.deepcopy(tokenizer)
    other.chat_template = READS_SOME
    source = Source("rows.jsonl", Reading("auto", 64, "assistant", "drop"), several=False)
    named, unnamed = [row(1, "named")], [row(2, "alone")]
    alone = tokenise(unnamed, source, other, "messages")[0].account
    tokenise(named, source, other, "messages")
    after = tokenise(unnamed, source, other, "messages")[0].account
    assert alone == after and alone.unread == {"messages[].name": 1}


def test_the_format_that_the_first_row_has_decided_is_that_of_the_next_stretch(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    source = Source("rows.jsonl", Reading("auto", 64, "assistant", "drop"), several=False)
    broken = Row(1, {}, "rows.jsonl", "not valid JSON")
    part, format = tokenise([broken], source, tokenizer, "auto")
    assert (part.bad.count, format) == (1, "auto")
    assert tokenise([row(2, "a")], source, tokenizer, format)[1] == "messages"
    both = Row(3, {"text": "a"}, "rows.jsonl")
    (message,) = tokenise([both], source, tokenizer, "messages")[0].bad.messages
    assert "looks like text" in message
