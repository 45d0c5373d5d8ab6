"""Wrong values and unknown keys: each error in our words, with what was expected and the fix."""

import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loractl.config import synonyms
from loractl.config.settings import RunConfig
from loractl.config.strict_yaml import parse
from loractl.config.validation import advice, check, keys


def problems(text: str) -> dict[str, str]:
    """The problems of a config whose required keys are set unless it says otherwise."""
    data = parse(text).value
    for section, name in (("model", "name_or_path"), ("data", "train")):
        if isinstance(data.setdefault(section, {}), dict):
            data[section].setdefault(name, "there")
    return dict(check(data).problems)


@pytest.mark.parametrize(
    ("text", "key", "message"),
    [
        ("lora: {rank: eight}", "lora.rank", "found the string 'eight', expected an integer"),
        ("lora: {rank: '8'}", "lora.rank", "found the string '8', .*; remove the quotes"),
        ("lora: {rank: 8.5}", "lora.rank", "found 8.5, expected an integer"),
        ("lora: {rank: 1e1}", "lora.rank", "found 10.0, .*; write 10"),
        ("lora: {rank: [8]}", "lora.rank", r"found the list \[8\], expected an integer"),
        ("lora: {rank: {a: 8}}", "lora.rank", "found a mapping, expected an integer"),
        ("lora: {rank: true}", "lora.rank", "found true, expected an integer"),
        ("lora: {rank: null}", "lora.rank", "found null, .*remove the line .* default, 8"),
        ("lora: {rank: 0}", "lora.rank", "found 0, expected an integer of at least 1 and at most"),
        ("lora: {alpha: -8}", "lora.alpha", "found -8, expected a number greater than 0, or null"),
        (
            "lora: {alpha: x}",
            "lora.alpha",
            "found the string 'x', expected a number greater than 0",
        ),
        ("lora: {dropout: 1.5}", "lora.dropout", "a number of at least 0 and less than 1"),
        ("lora: {dropout: false}", "lora.dropout", "found false, expected a number"),
        ("lora: 8", "lora", "found 8, expected a mapping"),
        ("lora:", "lora", "found null, expected a mapping; remove the line to use the default"),
        ("lora: [rank]", "lora", r"found the list \['rank'\], expected a mapping"),
        (
            "lora: {target_modules: 7}",
            "lora.target_modules",
            "a non-empty list of names or a string",
        ),
        (
            "lora: {target_modules: []}",
            "lora.target_modules",
            "a non-empty list of names or a string",
        ),
        ("lora: {target_modules: [q, 7]}", "lora.target_modules[1]", "found 7, expected a string"),
        (
            "lora: {layers: [1, -1]}",
            "lora.layers[1]",
            "found -1, expected an integer of at least 0",
        ),
        ("lora: {rank_pattern: {q: 0}}", "lora.rank_pattern.q", "found 0, expected an integer"),
        (
            "lora: {rank_pattern: {7: 4}}",
            "lora.rank_pattern.7",
            "found 7 as a key, expected a string",
        ),
        ("lora: {alpha_pattern: [q]}", "lora.alpha_pattern", "a mapping of names to numbers"),
        ("model: {dtype: bf32}", "model.dtype", "one of auto, float32, bfloat16 or float16"),
        ("model: {dtype: bf16}", "model.dtype", "; did you mean bfloat16?"),
        ("train: {schedule: cosin}", "train.schedule", "; did you mean cosine?"),
        ("train: {schedule: [cosine]}", "train.schedule", "one of constant, linear or cosine"),
        ("train: {learning_rate: .inf}", "train.learning_rate", "found inf, expected a finite num"),
        ("train: {learning_rate: -1}", "train.learning_rate", "a number of at least 0"),
        ("train: {epochs: 0}", "train.epochs", "a number greater than 0, or null"),
        ("train: {save_every: -1}", "train.save_every", "an integer of at least 1"),
        (
            "train: {gradient_checkpointing: 1}",
            "train.gradient_checkpointing",
            "auto, true or false",
        ),
        ("train: {report_to: wandb}", "train.report_to", r"; write \[wandb\]"),
        ("train: {report_to: wandbb}", "train.report_to", r"; write \[wandb\]"),
        ("lora: {modules_to_save: lm_head}", "lora.modules_to_save", r"; write \[lm_head\]"),
        ("train: {report_to: [wand]}", "train.report_to[0]", "; did you mean wandb?"),
        ("data: {packing: yes}", "data.packing", "found the string 'yes', .*; did you mean true?"),
        (
            "data: {eval: 1.5}",
            "data.eval",
            "a number greater than 0 and less than 1 or a non-empty list of mappings, or null",
        ),
        ("data: {eval: ''}", "data.eval", "found an empty string, expected a non-empty string"),
        ("data: {train: 5}", "data.train", "found 5, expected a non-empty string .* in quotes"),
        ("data: {train: null}", "data.train", "found null, .*; it is required"),
        (
            "data: {train: [{path: 5}]}",
            "data.train[0].path",
            "found 5, expected a non-empty string",
        ),
        ("data: {train: [{weight: 1}]}", "data.train[0].path", "not set, but required"),
        ("data: train.jsonl", "data", "expected a mapping; write data.train"),
        ("model: there", "model", "expected a mapping; write model.name_or_path"),
        ("seed: -1", "seed", "an integer of at least 0"),
        ("out: 5", "out", "found 5, expected a non-empty string, or null; .*quotes"),
        ("method: qlora", "method", "one of lora, dora, adalora or full; did you mean lora?"),
    ],
)
def test_a_wrong_value_is_found_once_with_what_was_expected(
    text: str, key: str, message: str
) -> None:
    found = problems(text)
    assert list(found) == [key]
    assert re.search(message.replace("?", r"\?"), found[key]), found[key]


@pytest.mark.parametrize(
    ("text", "key", "message"),
    [
        ("lora: {rakn: 4}", "lora.rakn", "did you mean rank?"),
        ("lora: {Rank: 4}", "lora.Rank", "did you mean rank?"),
        ("train: {batch-size: 4}", "train.batch-size", "did you mean batch_size?"),
        ("trian: {steps: 3}", "trian", "did you mean train?"),
        ("learning_rate: 1", "learning_rate", "belongs under train: train.learning_rate"),
        ("lora: {seed: 1}", "lora.seed", "seed belongs at the top level: seed"),
        ("train: {rank: 1}", "train.rank", "rank belongs under lora: lora.rank"),
        ("model: {rnak: 1}", "model.rnak", "did you mean lora.rank?"),
        ("lora_r: 8", "lora_r", "it is called lora.rank here"),
        ("lora: {r: 8}", "lora.r", "it is called lora.rank here"),
        ("cutoff_len: 8", "cutoff_len", "it is called data.max_length here"),
        ("cutof_len: 8", "cutof_len", "it is called data.max_length here"),
        ("num_train_epochs: 8", "num_train_epochs", "it is called train.epochs here"),
        ("train: {warmup_steps: 8}", "train.warmup_steps", "it is called train.warmup here"),
        ("lora: {use_rslora: true}", "lora.use_rslora", "called lora.scaling: rslora here"),
        ("load_in_4bit: true", "load_in_4bit", "it is called model.quantization: nf4 here"),
        ("bf16: true", "bf16", "it is called model.dtype: bfloat16 here"),
        ("resume_from_checkpoint: x", "resume_from_checkpoint", "`loractl train CONFIG --resume`"),
        ("5: x", "5", "expected model, device, method, objective, lora"),
        ("model: {zzz: 1}", "model.zzz", "expected name_or_path, dtype, quantization, off"),
        ("data: {train: [{path: a, wieght: 2}]}", "data.train[0].wieght", "did you mean weight?"),
    ],
)
def test_an_unknown_key_leads_to_the_right_one(text: str, key: str, message: str) -> None:
    found = problems(text)
    assert list(found) == [key]
    assert message in found[key]


def test_a_key_that_is_set_twice_under_two_names_says_so() -> None:
    found = problems("lora_r: 8\nlora: {rank: 4}")
    assert "lora.rank here; that key is set as well" in found["lora_r"]


def test_what_is_required_is_named_once_and_not_when_its_other_name_is_there() -> None:
    assert list(dict(check({}).problems)) == ["model.name_or_path", "data.train"]
    assert list(dict(check({"base_model": "x", "datasets": "y"}).problems)) == [
        "base_model",
        "datasets",
    ]
    assert list(dict(check({"modle": {"name_or_path": "x"}, "data": None}).problems)) == [
        "modle",
        "data",
    ]


def test_all_problems_are_found_at_once_and_the_rest_is_read() -> None:
    data = {"model": {"dtype": 5}, "lora": {"rank": 0, "alhpa": 3, "dropout": 0.1}, "seed": "x"}
    found = check(data)
    assert {key for key, _ in found.problems} == {
        "model.dtype",
        "model.name_or_path",
        "lora.rank",
        "lora.alhpa",
        "data.train",
        "seed",
    }
    assert found.config is not None
    assert (found.config.lora.rank, found.config.lora.dropout) == (8, 0.1)
    assert found.is_doubtful("lora.rank") and not found.is_doubtful("lora.dropout")
    assert data["lora"] == {"rank": 0, "alhpa": 3, "dropout": 0.1}


def test_every_word_of_another_tool_leads_to_a_key_that_exists() -> None:
    ours = set(keys())
    for word, theirs in synonyms.KEYS.items():
        key, _, value = theirs.partition(" (")[0].partition(": ")
        assert key in ours, word
        assert word.replace("-", "_").lower() == word and word not in ours
        section, _, name = word.rpartition(".")
        kind = RunConfig.model_fields[section].annotation if section else RunConfig
        message, meant = advice(section, name, kind)
        assert meant == key and f"it is called {theirs} here" in message
        if value:
            assert not problems(f"{nested(key)}{value}{'}' * key.count('.')}"), word
    assert not set(synonyms.NO_SETTING) & (ours | set(synonyms.KEYS))


def nested(key: str) -> str:
    return ": {".join(key.split(".")) + ": "


def test_no_message_speaks_of_pydantic() -> None:
    for name in keys():
        for value in (None, "x y", -1.5, [[]], {"a": 1}, True):
            data: Any = {}
            *above, last = name.split(".")
            inner = data
            for section in above:
                inner = inner.setdefault(section, {})
            inner[last] = value
            for key, message in check(data).problems:
                assert re.match(r"found .*, expected|not set, but|unknown key; ", message), key
                assert not re.search("pydantic|Input should|type=|https?:", message)


def test_the_keys_are_those_of_the_config_in_its_order() -> None:
    assert keys()[:2] == ["model", "model.name_or_path"]
    assert keys()[-2:] == ["seed", "out"]
    assert {key.partition(".")[0] for key in keys()} == set(RunConfig.model_fields)


scalars = st.none() | st.booleans() | st.integers(-3, 3) | st.floats() | st.text(max_size=5)
anything = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(scalars | st.sampled_from(["path", "str", "[key]"]), inner, max_size=3)
    ),
    max_leaves=6,
)


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(st.sampled_from(keys()), anything, max_size=4))
def test_any_values_are_read_or_complained_about(values: dict[str, Any]) -> None:
    data: Any = {}
    for key, value in values.items():
        section, _, name = key.rpartition(".")
        inner = data.setdefault(section, {}) if section.count(".") == 0 and section else data
        if isinstance(inner, dict):
            inner[name] = value
    found = check(data)
    assert found.problems or found.config is not None
    assert all(
        re.match(r"(?s)found .*, expected|not set|unknown", text) for _, text in found.problems
    )


@pytest.mark.parametrize(
    ("key", "on"),
    [
        ("train_on_prompt", "data.train_on: all"), ("train_on_inputs", "data.train_on: all"),
        ("use_dora", "method: dora"), ("load_in_4bit", "model.quantization: nf4"),
        ("bf16", "model.dtype: bfloat16"), ("use_wandb", "train.report_to: [wandb]"),
    ],
)  # fmt: skip
def test_a_flag_of_another_tool_that_is_off_is_not_told_as_if_it_were_on(key: str, on: str) -> None:
    assert f"it is called {on} here" in problems(f"{key}: true")[key]
    said = problems(f"{key}: false")[key]
    assert on not in said and f"it is called {on.split(':')[0]} here" in said
