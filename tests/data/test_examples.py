"""A file of rows -> examples: what is too long, what has nothing to train, and the account of
it."""

from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from loractl.data import examples, sources
from loractl.data.account import Account, warnings
from loractl.data.encoding import encode
from loractl.data.reading import Reading, in_batches
from loractl.data.store_cache import Cache
from loractl.errors import DataError
from loractl.records import Conversation, Message
from tests.tiny import chat_rows, write_jsonl


@pytest.fixture
def load(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> Any:
    def load(rows: list[Any], **options: Any) -> tuple[list[Any], Account]:
        path = write_jsonl(tmp_path / "rows.jsonl", rows)
        defaults = {
            "format": "auto",
            "max_length": 512,
            "train_on": "assistant",
            "too_long": "error",
        }
        reading = Reading(**{**defaults, **options})
        store, account = examples.load(str(path), tokenizer, reading, cache=Cache(tmp_path / "c"))
        return list(store), account

    return load


LENGTHS = "the lengths of chat_rows differ, so that a limit between them leaves some on each side"


def lengths_of(load: Any) -> list[int]:
    lengths = [len(example.ids) for example in load(chat_rows())[0]]
    assert min(lengths) < 60 < max(lengths), LENGTHS
    return lengths


def test_the_account_adds_up_to_the_examples(load: Any, tmp_path: Path) -> None:
    found, account = load(chat_rows())
    assert (account.rows, account.examples) == (12, 12) and account.format == "messages"
    assert account.tokens == sum(len(example.ids) for example in found)
    assert account.trained_tokens == sum(example.n_trained for example in found)
    assert account.longest == max(len(example.ids) for example in found)
    assert account.sha256 == sources.file_hash(tmp_path / "rows.jsonl")
    assert [example.line for example in found] == list(range(1, 13))
    assert account.as_dict()["path"] == str(tmp_path / "rows.jsonl")


def test_ids_and_labels_are_those_of_the_template(load: Any, tokenizer: Any) -> None:
    row = {"prompt": "2 plus 2?", "completion": "4."}
    ((example,), account) = load([row])
    messages = [Message("user", "2 plus 2?"), Message("assistant", "4.")]
    assert (example.ids, example.labels) == encode(tokenizer, messages, train_on="assistant")
    assert account.format == "prompt-completion"


def weighed(*weights: float, answer: str = "It is so.") -> dict[str, Any]:
    turns = [
        [
            {"role": "user", "content": f"Why {n}?"},
            {"role": "assistant", "content": answer, "weight": w},
        ]
        for n, w in enumerate(weights)
    ]
    return {"messages": [turn for pair in turns for turn in pair]}


def test_weights_of_turns_are_those_of_their_tokens_and_are_cut_with_them(load: Any) -> None:
    ((plain,), _), ((found,), account) = load([weighed(1, 1)]), load([weighed(0.5, 2)])
    assert plain.weights is None and (found.ids, found.labels) == (plain.ids, plain.labels)
    assert account.trained_tokens == found.n_trained, "tokens are counted, not their weights"
    half = found.n_trained // 2
    trained = [w for w, label in zip(found.weights, found.labels, strict=True) if label >= 0]
    assert trained == [0.5] * half + [2.0] * half
    assert {w for w, label in zip(found.weights, found.labels, strict=True) if label < 0} == {0.0}
    length = found.weights.index(2.0)  # the first answer alone
    ((cut,), _) = load([weighed(1, 2)], max_length=length, too_long="truncate")
    assert cut.weights is None and cut.ids == found.ids[:length]
    ((cut,), _) = load([weighed(0.5, 2)], max_length=length + 1, too_long="truncate")
    assert cut.weights == found.weights[: length + 1]


def test_a_wrong_weight_is_named_with_its_line_and_its_place(load: Any, tmp_path: Path) -> None:
    good = weighed(0.5)
    for wrong in (-1, "0.5", True, 1e99):
        bad = {"messages": [*good["messages"], {"role": "user", "content": "x", "weight": wrong}]}
        with pytest.raises(DataError) as caught:
            load([good, bad])
        where = f"{tmp_path / 'rows.jsonl'}:2: messages[2].weight is {wrong!r}, expected "
        assert str(caught.value).startswith(where)


def test_rows_that_are_too_long_are_refused_with_their_lines_and_the_longest(load: Any) -> None:
    lengths = lengths_of(load)
    lines = [str(i) for i, length in enumerate(lengths, 1) if length > 60]
    with pytest.raises(DataError) as caught:
        load(chat_rows(), max_length=60)
    message = str(caught.value)
    assert f"lines {', '.join(lines)} are longer than data.max_length 60" in message
    assert f"the longest has {max(lengths)} tokens" in message


def test_rows_that_are_too_long_are_dropped_and_counted(load: Any) -> None:
    lengths = lengths_of(load)
    found, account = load(chat_rows(), max_length=60, too_long="drop")
    assert account.dropped.first == [i for i, length in enumerate(lengths, 1) if length > 60]
    assert [len(example.ids) for example in found] == [length for length in lengths if length <= 60]
    assert account.rows == 12 and account.examples == len(found)
    warning, _ = warnings(account, max_length=60)
    assert "left out: longer than 60 tokens" in warning


def test_truncated_rows_lose_their_end_and_are_left_out_when_no_trained_token_stays(
    load: Any,
) -> None:
    whole = {example.line: example for example in load(chat_rows())[0]}
    found, account = load(chat_rows(), max_length=60, too_long="truncate")
    long = {line for line, example in whole.items() if len(example.ids) > 60}
    assert set(account.truncated.first) == long
    for example in found:
        assert example.ids == whole[example.line].ids[:60]
        assert example.labels == whole[example.line].labels[:60] and example.n_trained
    assert set(account.untrained.first) == whole.keys() - {example.line for example in found}
    assert set(account.untrained.first) <= long and account.untrained.first
    assert len(warnings(account, max_length=60)) == 3


def test_answers_that_are_cut_off_whole_are_counted_and_the_limit_is_named(load: Any) -> None:
    long = {"messages": [
        {"role": "user", "content": "word " * 60}, {"role": "assistant", "content": "yes"}
    ]}  # fmt: skip
    silent = {"messages": [{"role": "user", "content": "Are you there?"}]}
    with pytest.raises(DataError) as error:
        load([long, silent, long], max_length=32, too_long="truncate")
    message = str(error.value)
    assert "the whole answer of 2 of 3 rows is past data.max_length 32" in message
    assert "raise it" in message
    _, account = load([*chat_rows(4), long, silent], max_length=100, too_long="truncate")
    assert (account.lost_whole, account.untrained.count) == (1, 2)
    _, said, _ = warnings(account, max_length=100)
    assert "the whole answer of 1 of them is past 100 tokens" in said


def test_at_all_positions_of_the_model_the_cure_is_not_to_raise_the_limit(load: Any) -> None:
    for too_long, words in (("error", "split the rows"), ("drop", "split the rows")):
        with pytest.raises(DataError) as error:
            load(chat_rows(4), max_length=20, too_long=too_long, positions=20)
        message = str(error.value)
        assert "longer than the 20 positions that the model has" in message
        assert words in message and "raise it" not in message and "would keep" not in message


def test_rows_without_any_text_in_a_trained_answer_are_counted(load: Any) -> None:
    rows = [
        {"prompt": "a", "completion": ""},
        {"prompt": "b", "completion": "c"},
        {"prompt": "d", "completion": " \n"},
    ]
    assert load(rows)[1].empty.first == [1, 3]
    asked, silent = {"role": "user", "content": "q"}, {"role": "assistant", "content": ""}
    other = {"messages": [asked, silent, asked, {"role": "assistant", "content": "yes"}]}
    assert load([other])[1].empty.count == 1
    assert load([other], train_on="last")[1].empty.count == 0


def test_a_row_of_exactly_the_limit_is_not_too_long(load: Any) -> None:
    lengths = lengths_of(load)
    assert load(chat_rows(), max_length=max(lengths))[1].examples == 12


def test_a_row_without_an_answer_is_left_out_with_its_line(load: Any) -> None:
    rows = chat_rows(3)
    rows[1] = {"messages": [{"role": "user", "content": "?"}]}
    found, account = load(rows)
    assert account.untrained.first == [2] and [example.line for example in found] == [1, 3]
    warning, _ = warnings(account, max_length=512)
    assert "line 2 is left out: no trained token" in warning


def test_rows_of_which_none_has_an_answer_are_refused(load: Any) -> None:
    with pytest.raises(DataError, match="no row has a trained token"):
        load([{"messages": [{"role": "user", "content": "?"}]}] * 3)


def test_rows_that_are_all_dropped_are_refused_for_their_length(load: Any) -> None:
    with pytest.raises(DataError, match="all 12 rows are longer than data.max_length 5"):
        load(chat_rows(), max_length=5, too_long="drop")


def test_a_row_of_another_format_is_refused_and_both_formats_are_named(load: Any) -> None:
    rows = [*chat_rows(2), {"prompt": "a", "completion": "b"}]
    with pytest.raises(DataError, match=r":3: no field messages.*prompt-completion.*messages"):
        load(rows)
    with pytest.raises(DataError, match=r":1: no field text.*looks like messages.*are text"):
        load(rows, format="text")


def test_a_bad_row_is_named_with_file_and_line(load: Any, tmp_path: Path) -> None:
    rows = [*chat_rows(2), {"messages": [{"role": "user", "content": 5}]}]
    with pytest.raises(DataError) as caught:
        load(rows)
    assert str(caught.value).startswith(f"{tmp_path / 'rows.jsonl'}:3: messages[0].content is int")


def test_many_lines_are_shown_as_ten_and_a_count(load: Any) -> None:
    with pytest.raises(DataError, match="10 and 2 more are longer"):
        load(chat_rows(), max_length=5)


def test_every_bad_row_is_named_up_to_ten_and_counted(load: Any, tmp_path: Path) -> None:
    bad = [{"messages": [{"role": "user", "content": 5}]}] * 13
    with pytest.raises(DataError) as caught:
        load([*chat_rows(2), *bad])
    messages = caught.value.messages
    assert len(messages) == 10
    for number, message in enumerate(messages, 3):
        assert message.startswith(f"{tmp_path / 'rows.jsonl'}:{number}: messages[0].content")
    assert messages[-1].endswith("and 3 more bad rows (13 in all)")


def test_columns_of_other_names_are_mapped(load: Any) -> None:
    row = {"question": "2 plus 2?", "answer": {"text": "4."}}
    columns = {"prompt": "question", "completion": "answer.text"}
    (found,), account = load([row], columns=columns)
    (same,), _ = load([{"prompt": "2 plus 2?", "completion": "4."}])
    assert (found.ids, found.labels) == (same.ids, same.labels)
    assert account.format == "prompt-completion"
    with pytest.raises(DataError, match=":1: .*question"):
        load([row], columns={"prompt": "qestion", "completion": "answer.text"})


def test_the_parts_of_a_split_are_the_whole_and_share_no_content(load: Any) -> None:
    rows = [*chat_rows(40), *({**row, "id": i} for i, row in enumerate(chat_rows(40)))]
    parts = {part: load(rows, held_out=0.3, part=part)[0] for part in ("train", "eval")}
    assert sorted(e.line for part in parts.values() for e in part) == list(range(1, 81))
    contents = [{tuple(e.ids) for e in part} for part in parts.values()]
    assert all(contents) and not contents[0] & contents[1]


def test_a_store_has_no_rows_of_a_source_with_a_bad_one(load: Any, tmp_path: Path) -> None:
    with pytest.raises(DataError):
        load([*chat_rows(2), {"messages": 5}])
    assert list((tmp_path / "c").iterdir()) == []


@pytest.mark.parametrize(("characters", "most"), [(10, 256), (1000, 256), (100_000, 4), (10**6, 1)])
def test_rows_are_tokenised_by_their_text_as_well_as_their_number(
    characters: int, most: int
) -> None:
    """Batches of 256 rows of 17 kB took 900 MB."""
    row = sources.Row(1, {}, "a.jsonl")
    conversation = Conversation((Message("", "x" * characters),))
    sizes = [len(batch) for batch in in_batches([(row, conversation, "text")] * 600)]
    assert sum(sizes) == 600 and max(sizes) == most


@pytest.mark.parametrize(
    ("ours", "theirs", "cure"),
    [
        ("question", "answer", "{prompt: question, completion: answer} in the config, or --columns"
         " prompt=question --columns completion=answer"),
        ("Kundenfrage", "Abteilung", "{prompt: Kundenfrage, completion: Abteilung}"),
        ("My Text", "My Label", "--columns 'prompt=My Text' --columns 'completion=My Label'"),
    ],
)  # fmt: skip
def test_columns_of_other_names_are_answered_with_what_maps_them(
    load: Any, ours: str, theirs: str, cure: str
) -> None:
    rows = [{ours: f"How do I return parcel {i}?", theirs: ("ab", "cd")[i % 2]} for i in range(20)]
    with pytest.raises(DataError, match="found the fields") as caught:
        load(rows)
    assert cure in str(caught.value)
    mapping = {"prompt": ours, "completion": theirs}
    assert len(load(rows, columns=mapping)[0]) == 20, "the advice works"
