"""A chat template is a program of others: it ends, with an error where it would not by itself."""

import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from loractl.cli.main import main
from loractl.data import limits, rendering
from loractl.data.rendering import apply
from loractl.errors import DataError
from loractl.records import Message

ENDLESS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
SAID = [Message("user", "hi"), Message("assistant", "ho")]


def test_a_body_that_takes_longer_is_stopped_and_no_alarm_is_left() -> None:
    began = time.process_time()
    with (
        pytest.raises(DataError, match=r"a loop did not finish within 0\.05 s"),
        limits.within_seconds(0.05, "a loop"),
    ):
        while True:
            pass
    assert time.process_time() - began < 1
    assert signal.getitimer(signal.ITIMER_VIRTUAL) == (0.0, 0.0)


def test_waiting_is_no_computing() -> None:
    with limits.within_seconds(0.02, "a pause"):
        time.sleep(0.1)


@pytest.mark.parametrize(
    "template",
    [
        ENDLESS,
        "{% macro f() %}{{ g() }}{% endmacro %}" + ENDLESS,
        "{% set ns = namespace(x=1) %}{% for a in range(99999) %}{% set ns.x = ns.x * 7 %}"
        "{% for b in range(99999) %}{% endfor %}{% endfor %}",
    ],
)
def test_a_template_without_end_is_stopped_whole_not_row_by_row(
    template: str, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rendering, "LONGEST_RENDERING", 0.3)
    monkeypatch.setattr(tokenizer, "chat_template", template)
    began = time.process_time()
    with pytest.raises(DataError, match="the chat template did not finish within"):
        apply(tokenizer, SAID)
    assert time.process_time() - began < 3


@pytest.mark.parametrize(
    "template",
    ["{{ 9**9**9**9 }}", "{% generation %}{{ 9 ** 9 ** 9 ** 9 }}{% endgeneration %}"],
)
def test_a_power_is_refused_before_it_is_computed(
    template: str, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenizer, "chat_template", template)
    with pytest.raises(DataError, match="uses a power"):
        apply(tokenizer, SAID)


def test_two_stars_in_the_text_of_a_template_are_no_power(
    tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        tokenizer,
        "chat_template",
        "**Rules** {% generation %}{{ messages[0].content }}{% endgeneration %}"
        "{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}"
        "{{ m.role }}{% endfor %}",
    )
    assert apply(tokenizer, SAID) == "**Rules** hiassistant"


@pytest.mark.parametrize("text", ["{{ ''.__class__.__mro__ }}", "{% include '/etc/passwd' %}"])
def test_the_sandbox_gives_no_way_out(
    text: str, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenizer, "chat_template", text)
    with pytest.raises((rendering.TemplateError, TypeError)):
        apply(tokenizer, SAID)


def test_training_and_answering_with_a_template_without_end_are_errors_within_seconds(
    config_file: Callable[..., Path],
    base: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(rendering, "LONGEST_RENDERING", 0.3)
    model = shutil.copytree(base("llama"), tmp_path / "base")
    (model / "chat_template.jinja").write_text(ENDLESS)
    assert main(["train", str(config_file(model=model))]) == 2
    assert "the chat template did not finish" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    assert main(["generate", "--model", str(model), "--prompt", "hi"]) == 2
    assert "the chat template did not finish" in capsys.readouterr().err
