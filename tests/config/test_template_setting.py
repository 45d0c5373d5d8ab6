"""data.chat_template and data.template_variables as far as a config alone can be judged."""

from pathlib import Path

import pytest

from loractl.config.jinja_text import syntax_error, variables_read
from loractl.config.loader import dump, load
from loractl.config.template_setting import BUILT_IN, LARGEST
from loractl.errors import ConfigError

TEXT = "{% for m in messages %}\n{{ m.content }}\n{% endfor %}\n"


def write(folder: Path, *lines: str) -> Path:
    (folder / "rows.jsonl").write_text("{}\n")
    path = folder / "config.yaml"
    start = [
        "model: {name_or_path: org/model}",
        "data:",
        f"  train: {folder / 'rows.jsonl'}",
    ]
    path.write_text("\n".join([*start, *(f"  {line}" for line in lines)]) + "\n")
    return path


def refused(config: Path) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        load(config)
    return caught.value.messages


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_built_in_template_stays_a_name(name: str, tmp_path: Path) -> None:
    assert load(write(tmp_path, f"chat_template: {name}")).config.data.chat_template == name


def test_a_file_becomes_its_text_which_the_written_config_reads_back_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("own.jinja").write_bytes(b"\xef\xbb\xbf" + TEXT.replace("\n", "\r\n").encode())
    loaded = load(write(tmp_path, "chat_template: own.jinja"))
    assert loaded.config.data.chat_template == TEXT
    written = tmp_path / "written.yaml"
    written.write_text(dump(loaded.config))
    Path("own.jinja").unlink()
    monkeypatch.chdir("/")
    assert load(written).config.data == loaded.config.data


def test_a_home_directory_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "own.jinja").write_text(TEXT)
    config = write(tmp_path, "chat_template: ~/own.jinja")
    assert load(config).config.data.chat_template == TEXT


def test_the_text_of_a_template_is_taken_as_it_is(tmp_path: Path) -> None:
    config = write(tmp_path, "chat_template: |", *(f"  {line}" for line in TEXT.splitlines()))
    assert load(config).config.data.chat_template == TEXT


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("chatlm", ["found the string 'chatlm'", "expected a built-in", "did you mean chatml?"]),
        ("llama-3", ["did you mean llama3?"]),
        ("Gemma2", ["did you mean gemma?"]),
        ("none.jinja", ["none.jinja does not exist (resolved to /", "expected a Jinja file or"]),
        ("own.jinj", ["did you mean own.jinja?"]),
        ("folder/own.jinja", ["does not exist"]),
        (".", ["cannot be read"]),
        ("plain.txt", ["has neither {{ nor {%"]),
        ("latin.jinja", ["latin.jinja:2: not UTF-8"]),
        ("long.jinja", ["more than 64 KiB"]),
        ("broken.jinja", ["broken.jinja:3: ", "correct the template"]),
        ("filter.jinja", ["filter.jinja:2: No filter named 'nosuch'"]),
        ('"{{ a }}\\n{% if %}"', ["line 2 of the text: "]),
    ],
)
def test_what_is_no_template_is_refused_with_the_line_and_the_nearest(
    setting: str, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("own.jinja").write_text(TEXT)
    Path("plain.txt").write_text("Hello")
    Path("latin.jinja").write_bytes("{{ a }}\nü".encode("latin-1"))
    Path("long.jinja").write_text("{{ a }}" + " " * LARGEST)
    Path("broken.jinja").write_text("{% if a %}\n\n{% endfor %}")
    Path("filter.jinja").write_text("{{ a }}\n{{ a | nosuch }}")
    (message,) = refused(write(tmp_path, f"chat_template: {setting}"))
    assert message.startswith(f"{tmp_path / 'config.yaml'}:4: data.chat_template: ")
    assert all(word in message for word in words), message
    assert "\n" not in message


def test_a_file_beside_the_config_is_pointed_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own.jinja").write_text(TEXT)
    monkeypatch.chdir("/")
    (message,) = refused(write(tmp_path, "chat_template: own.jinja"))
    assert f"but {tmp_path / 'own.jinja'} does, next to the config" in message


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ("{my-date: 1}", "data.template_variables.my-date: the string 'my-date' is not a name"),
        ("{tools: []}", "data.template_variables.tools: tools is handed to every template"),
        ("{eos_token: x}", "eos_token is handed to every template"),
        ("{a: .inf}", "data.template_variables.a: found inf, expected a finite number"),
        ("{a: [{1: 2}]}", "data.template_variables.a: found 1 as a key, expected text"),
        ("{1: 2}", "data.template_variables.1: found 1 as a key, expected a string"),
        ("[a]", "data.template_variables: found the list ['a'], expected a mapping of"),
    ],
)
def test_variables_that_no_template_could_read_are_refused(
    variables: str, words: str, tmp_path: Path
) -> None:
    (message,) = refused(write(tmp_path, f"template_variables: {variables}"))
    assert message.startswith(f"{tmp_path / 'config.yaml'}:4: ") and words in message


def test_every_problem_is_told_at_once(tmp_path: Path) -> None:
    config = write(tmp_path, "chat_template: chatlm", "template_variables: {a-b: 1, tools: 2}")
    assert len(refused(config)) == 3


def test_the_tags_of_transformers_are_no_errors() -> None:
    text = (
        "{% for m in messages %}{% generation %}{{ m }}{% endgeneration %}{% break %}{% endfor %}"
    )
    assert syntax_error(text) is None
    assert variables_read(text) == {"messages"}


def test_variables_are_those_that_a_template_takes_from_outside() -> None:
    text = (
        "{% set ns = namespace(a=1) %}{% set own = 2 %}"
        "{% if think is defined and think %}{% endif %}"
        "{% set day = day if day is defined else 1 %}{% macro f(x) %}{{ x + inner }}{% endmacro %}"
        "{{ own }}{% for m in messages %}{{ loop.index }}{% endfor %}{{ range(3) }}"
    )
    assert variables_read(text) == {"think", "day", "inner", "messages"}
