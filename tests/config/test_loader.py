"""Reading a config file: lines, options, paths, all errors at once, and writing it back."""

import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from loractl.config.conflicts import conflicts
from loractl.config.loader import Loaded, dump, load
from loractl.config.not_yet import not_yet
from loractl.config.settings import RunConfig, resolve
from loractl.errors import ConfigError

GOOD = """\
model:
  name_or_path: org/model
lora:
  rank: 4
data:
  train: train.jsonl
train:
  steps: 4
  learning_rate: 1e-4
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with training rows in it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.jsonl").write_text("{}\n")
    return tmp_path


def read(text: str | bytes, overrides: Sequence[str] = ()) -> Loaded:
    path = Path("config.yaml")
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return load(path, overrides)


def refused(text: str | bytes, overrides: Sequence[str] = ()) -> list[str]:
    """The messages of a config that must not load."""
    with pytest.raises(ConfigError) as caught:
        read(text, overrides)
    assert caught.value.exit_code == 2
    assert all(message.count("\n") == 0 for message in caught.value.messages)
    return list(caught.value.messages)


def test_a_good_file_is_read_resolved_and_knows_its_lines() -> None:
    loaded = read(GOOD)
    assert loaded.config.train.learning_rate == 1e-4
    assert loaded.config.lora.alpha == 8
    assert (loaded.config.out, loaded.config.train.epochs) == ("runs/config", None)
    assert loaded.lines["lora.rank"] == 4 and "lora.alpha" not in loaded.lines


def test_an_error_of_another_room_finds_its_line() -> None:
    loaded = read(GOOD, ["train.steps=9"])
    assert str(loaded.error("lora.rank", "no")) == "config.yaml:4: lora.rank: no"
    assert str(loaded.error("lora.alpha", "no")) == "config.yaml:3: lora.alpha: no"
    assert str(loaded.error("lora.rank_pattern.a.b[3]", "no")).startswith("config.yaml:3: ")
    assert str(loaded.error("seed", "no")) == "config.yaml: seed: no"
    assert str(loaded.error("train.steps", "no")) == "--set train.steps=9: train.steps: no"


def test_set_replaces_what_the_file_says() -> None:
    overrides = ["lora.rank=16", "lora.target_modules=[q_proj, v_proj]", "train.learning_rate=2E-4"]
    overrides += ["out=here", "data.eval=null", "lora.rank=32", "data.packing=false", "seed = 3"]
    config = read(GOOD, overrides).config
    assert (config.lora.rank, config.lora.alpha, config.train.learning_rate) == (32, 64, 2e-4)
    assert config.lora.target_modules == ["q_proj", "v_proj"]
    assert (config.out, config.seed, config.data.packing) == ("here", 3, False)
    assert read(GOOD, ["lora={alpha: 3}"]).config.lora.rank == 8


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("lora.rnak=4", "--set lora.rnak=4: lora.rnak: unknown key; did you mean rank?"),
        ("lora.x.y=4", "--set lora.x.y=4: lora.x: unknown key; expected rank, alpha, "),
        ("lora.rank=x", "--set lora.rank=x: lora.rank: found the string 'x', expected an integer"),
        ("lora.rank.x=4", "--set lora.rank.x=4: lora.rank is 4, expected a mapping"),
        ("lora_r=4", "--set lora_r=4: lora_r: unknown key; it is called lora.rank here"),
        ("lora.rank", "--set lora.rank: expected KEY=VALUE, as in --set lora.rank=16"),
        ("=4", "--set =4: expected KEY=VALUE"),
        ("lora.target_modules=[a", "--set lora.target_modules=[a: not valid YAML: "),
        ("seed=!!python/name:os.system", "--set seed=!!python/name:os.system: found the tag "),
        ("data.train=no.jsonl", "--set data.train=no.jsonl: data.train: no.jsonl does not exist"),
        ("hub_token=hf_abcdefghijklmnop", "--set hub_token=***: hub_token: unknown key; set HF_TO"),
    ],
)
def test_a_wrong_option_is_named_as_typed(override: str, message: str) -> None:
    [found] = refused(GOOD, [override])
    assert found.startswith(message)


def test_all_errors_are_reported_at_once_in_the_order_of_the_file() -> None:
    text = """\
model:
  name_or_path: /no/such/model
  dtype: bf32
  quantization: nf5
lora:
  rakn: 4
  rank: 8
  dropout: 2
  rank: 16
data:
  train: /no/such/rows
  max_length: long
train:
  steps: 4
  warmup: 5
  early_stopping: 3
"""
    found = refused(text, ["seed=x"])
    named = "model.name_or_path model.dtype model.quantization lora.rakn lora.dropout lora.rank"
    named += " data.train data.max_length train.warmup train.early_stopping seed"
    assert [message.split(": ")[1] for message in found] == named.split()
    lines = [int(message.split(":")[1]) for message in found[:-1]]
    assert lines == [2, 3, 4, 6, 8, 9, 11, 12, 15, 16]
    assert "already set on line 7" in found[5]


def test_a_wrong_value_brings_no_second_error_about_it() -> None:
    [found] = refused(GOOD + "  eval_every: 2\n", ["data.eval=1.5"])
    assert "data.eval" in found
    [found] = refused(GOOD.replace("model:\n  name_or_path", "base_model"))
    assert "it is called model.name_or_path here" in found


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "config.yaml: found an empty file, expected a mapping of settings"),
        (b"# nothing\n", "config.yaml: found an empty file, expected a mapping"),
        (b"- a\n- b\n", "config.yaml: found the list ['a', 'b'], expected a mapping"),
        (b"hello\n", "config.yaml: found the string 'hello', expected a mapping"),
        (GOOD.encode() + b"---\na: 1\n", "config.yaml:10:1: found a second document"),
        (GOOD.encode() + b"foo: [1\n", "config.yaml:11:1: not valid YAML: "),
        (GOOD.encode() + b"foo:\n\tbar: 1\n", "config.yaml:11:1: not valid YAML: "),
        (GOOD.encode("utf-16"), "config.yaml: found UTF-16, expected UTF-8"),
        (b"model: 1\nout: caf\xe9\n", "config.yaml:2: found the byte 0xe9, which is not UTF-8"),
        (b"model: 1\nout: a\0b\n", "config.yaml:2: found the unprintable character 0x0"),
        (b"#" * (1 << 19), "config.yaml: found more than 256 KiB"),
        (b"a: !!python/object/apply:os.system [id]", "config.yaml:1:4: found the tag !!python/"),
        (b"a: " + b"[" * 5000, "config.yaml:1:25: found values nested deeper than 20"),
        (b"a: &a [x]\nb: [*a]\n", "config.yaml:2:5: found the alias *a"),
    ],
)
def test_what_is_no_config_is_refused_at_once(content: bytes, message: str) -> None:
    begin = time.process_time()
    [found] = refused(content)
    assert found.startswith(message)
    assert time.process_time() - begin < 0.3


def test_a_byte_order_mark_and_crlf_are_read() -> None:
    assert read(b"\xef\xbb\xbf" + GOOD.replace("\n", "\r\n").encode()) == read(GOOD)


def test_a_file_that_is_not_there_or_is_a_directory_is_named(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"^absent.yaml: does not exist \(resolved to /"):
        load(Path("absent.yaml"))
    with pytest.raises(ConfigError, match=r"is a directory, expected a YAML file"):
        load(folder)
    with pytest.raises(ConfigError, match="Not a directory"):
        load(Path("train.jsonl/config.yaml"))


def test_a_missing_path_says_where_it_looked_and_what_is_near(folder: Path) -> None:
    [found] = refused(GOOD.replace("train.jsonl", "trian.jsonl"))
    assert found == (
        "config.yaml:6: data.train: trian.jsonl does not exist"
        f" (resolved to {folder}/trian.jsonl); did you mean train.jsonl?"
    )
    [found] = refused(GOOD.replace("train.jsonl", "x" * 300))
    assert "cannot be read: File name too long" in found


def test_a_path_that_exists_beside_the_config_says_so(folder: Path) -> None:
    (folder / "sub").mkdir()
    (folder / "train.jsonl").rename(folder / "sub" / "train.jsonl")
    path = folder / "sub" / "config.yaml"
    path.write_text(GOOD)
    with pytest.raises(ConfigError, match="but .*/sub/train.jsonl does, next to the config"):
        load(path)


@pytest.mark.parametrize(
    "name",
    ["/no/such/place", "./model", "~/no-such-model", "a/b/c", "weights.gguf", "org/w.gguf", "a/"],
)
def test_a_model_path_must_exist(name: str) -> None:
    [found] = refused(GOOD.replace("org/model", name))
    assert found.startswith(f"config.yaml:2: model.name_or_path: {name} does not exist")


@pytest.mark.parametrize("name", ["org/model", "gpt2", "HuggingFaceTB/SmolLM2-135M-Instruct"])
def test_a_hub_id_is_left_to_the_loader(name: str) -> None:
    assert read(GOOD.replace("org/model", name)).config.model.name_or_path == name


def test_home_is_expanded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder))
    config = read(GOOD.replace("train.jsonl", "~/train.jsonl"), ["out=~/run"]).config
    assert (config.data.train, config.out) == (f"{folder}/train.jsonl", f"{folder}/run")


@pytest.mark.parametrize("key", ["data.train", "model.name_or_path", "out", "hub_token", "seed"])
@pytest.mark.parametrize("value", ["https://user:S3cr3t@host/x", "https://S3cr3t@host", "S3cr3t"])
def test_no_message_shows_a_password(key: str, value: str) -> None:
    if "://" not in value and key != "hub_token":
        value = "https://user:hf_S3cr3tS3cr3tS3cr3t@host"
    messages = refused(GOOD, [f"{key}={value}"])
    if "." not in key:
        messages += refused(GOOD + f"{key}: {value}\n")
    assert "S3cr3t" not in "".join(messages)


def test_no_message_shows_a_token() -> None:
    [found] = refused(GOOD + "seed: hf_S3cr3tS3cr3tS3cr3t\n")
    assert "found the string '***'" in found


def test_a_message_cannot_disturb_the_terminal() -> None:
    for message in refused(GOOD + 'seed: "\\e[31m\\n\\rred"\n"k\\n\\e": 1\n'):
        assert message.isprintable()


def test_a_bad_file_is_answered_without_torch_and_in_no_time() -> None:
    read(GOOD)
    code = """
import sys, time
from pathlib import Path
from loractl.config.loader import load
from loractl.errors import ConfigError
begin = time.process_time()
try:
    load(Path("config.yaml"), ["lora.rank=x", "lora.rnak=4", "lora_r=1", "train.schedule=cosin"])
except ConfigError as error:
    assert len(error.messages) == 4, error
assert time.process_time() - begin < 0.3
for name in ("torch", "transformers", "datasets", "numpy", "typer", "rich"):
    assert name not in sys.modules, name
"""
    path = Path(__file__).parent.parent.parent
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": str(path)})


names = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1)
odd = st.sampled_from(["1e-4", "off", "yes", "null", "a: b", "- x", "#", "0o7", "2026-01-01", " "])
numbers = st.floats(1e-12, 1e12) | st.integers(1, 10**9)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    lora=st.fixed_dictionaries(
        {},
        optional={
            "rank": st.integers(1, 65536),
            "alpha": numbers,
            "dropout": st.floats(0, 0.99),
            "target_modules": st.lists(names | odd, min_size=1, max_size=3) | names | odd,
            "layers": st.lists(st.integers(0, 99), max_size=3) | st.just("8-15"),
            "rank_pattern": st.dictionaries(names | odd, st.integers(1, 64), max_size=3),
            "alpha_pattern": st.dictionaries(names | odd, numbers, max_size=3),
        },
    ),
    train=st.fixed_dictionaries(
        {"learning_rate": numbers},
        optional={
            "epochs": numbers,
            "warmup": st.floats(0, 0.99),
            "gradient_checkpointing": st.sampled_from(["auto", True, False]),
            "cache_trunk": st.sampled_from(["auto", "off"]),
        },
    ),
    out=names.map(lambda name: f"./{name}") | odd,
    seed=st.integers(0, 2**63 - 1),
)
def test_what_is_dumped_loads_as_the_same_config(**values: object) -> None:
    data = {"model": {"name_or_path": "org/m"}, "data": {"train": "train.jsonl"}, **values}
    config = resolve(RunConfig.model_validate(data), name="config")
    if list(conflicts(config)) + list(not_yet(config)) or "://" in str(config.out):
        return
    text = dump(config)
    assert read(text).config == config
    assert dump(read(text).config) == text
    assert list(read(text).lines)[:2] == ["model", "model.name_or_path"]
