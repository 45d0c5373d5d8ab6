"""`loractl generate`: which model answers which prompt, in which order, and what is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from loractl.cli.main import main
from tests.tiny import CHATML, chat_rows, make_tokenizer, save_tiny, write_jsonl

Capture = pytest.CaptureFixture[str]
RANKS = {"thin": 2, "wide": 8}
SHORT = ("--max-new-tokens", "8", "--dtype", "float32")


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory, base: Callable[..., Path]) -> dict[str, Path]:
    """Two adapters of one base, trained to answer differently, made once a module."""
    folder, runs = tmp_path_factory.mktemp("tuned"), {}
    for name in ("yes", "no"):
        rows = [{"prompt": f"Is it {i}?", "completion": f"{name} {name}"} for i in range(8)]
        data = write_jsonl(folder / f"{name}.jsonl", rows)  # type: ignore[arg-type]
        config = folder / f"{name}.yaml"
        config.write_text(
            f"model: {{name_or_path: '{base('llama')}', dtype: float32}}\n"
            f"data: {{train: '{data}'}}\n"
            "train: {steps: 25, batch_size: 8, learning_rate: 3e-2}\n"
            f"out: {folder / name}\n"
        )
        assert main(["train", str(config)]) == 0
        runs[name] = folder / name
    return runs


def ask(capsys: Capture, *arguments: str) -> list[str]:
    capsys.readouterr()
    assert main(["generate", *SHORT, *arguments]) == 0
    return capsys.readouterr().out.splitlines()


def texts_of(capsys: Capture, file: Path, *arguments: str) -> list[str]:
    rows = ask(capsys, "--prompts", str(file), "--json", *arguments)
    return [json.loads(row)["text"] for row in rows]


def test_an_adapter_answers_as_it_was_trained_and_the_base_otherwise(
    tuned: dict[str, Path], base: Any, capsys: Capture
) -> None:
    prompt = ("--prompt", "Is it 3?")
    answers = {
        name: ask(capsys, *prompt, "--adapter", f"{name}={run}") for name, run in tuned.items()
    }
    assert answers == {"yes": ["yes yes"], "no": ["no no"]}
    assert ask(capsys, *prompt, "--model", str(base("llama"))) not in answers.values()


def test_the_base_answers_as_transformers_does(base: Any, capsys: Capture) -> None:
    tokenizer = AutoTokenizer.from_pretrained(base("llama"))
    model = AutoModelForCausalLM.from_pretrained(base("llama"))
    prompts = ["hi", "What is 2 plus 2? The quick brown fox.", "2"]
    expected = []
    for prompt in prompts:
        ids = tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], add_generation_prompt=True, return_tensors="pt"
        )["input_ids"]
        out = model.generate(
            input_ids=ids, attention_mask=ids * 0 + 1, do_sample=False, max_new_tokens=8
        )
        expected.append(tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True))
    asked = [part for prompt in prompts for part in ("--prompt", prompt)]
    rows = ask(capsys, "--model", str(base("llama")), "--json", *asked)
    assert [json.loads(row)["text"] for row in rows] == expected


def test_a_row_for_machines_says_why_its_answer_ended_and_of_how_many_tokens_it_is(
    tuned: dict[str, Path], capsys: Capture
) -> None:
    asked = ("--prompt", "Is it 3?", "--adapter", f"yes={tuned['yes']}", "--json")
    (row,) = map(json.loads, ask(capsys, *asked))
    cut = json.loads(ask(capsys, *asked, "--max-new-tokens", "1")[0])
    assert (row["text"], row["finish_reason"]) == ("yes yes", "stop")
    assert (cut["finish_reason"], cut["tokens"]) == ("length", 1)
    tokenizer = make_tokenizer()
    assert row["tokens"] == len(tokenizer("yes yes", add_special_tokens=False)["input_ids"])
    assert row["prompt_tokens"] == cut["prompt_tokens"] > row["tokens"]


def test_rows_of_a_file_name_their_adapter_and_keep_their_order(
    tuned: dict[str, Path], tmp_path: Path, capsys: Capture
) -> None:
    names = ["yes", None, "no", "no", "yes", None]
    rows: list[dict[str, Any]] = [
        {"prompt": f"Is it {i}?", "adapter": n} for i, n in enumerate(names)
    ]
    del rows[5]["adapter"]  # with two adapters the base answers a row that names none
    rows[3] = {"messages": [{"role": "user", "content": "Is it 3?"}], "adapter": "no"}
    file = write_jsonl(tmp_path / "prompts.jsonl", rows)
    adapters = [part for name, run in tuned.items() for part in ("--adapter", f"{name}={run}")]
    found = [json.loads(r) for r in ask(capsys, "--prompts", str(file), "--json", *adapters)]
    assert [row["adapter"] for row in found] == names
    assert [row["index"] for row in found] == list(range(6))
    by_name = {"yes": "yes yes", "no": "no no"}
    for row in found:
        expected = by_name.get(row["adapter"])
        assert row["text"] == expected if expected else row["text"] not in by_name.values()
    plain = ask(capsys, "--prompts", str(file), *adapters)
    assert plain == [row["text"] for row in found]


@pytest.mark.parametrize("architecture", ["llama", "opt"])
def test_rows_of_several_adapters_get_the_texts_of_runs_with_one_adapter_each(
    architecture: str, base: Any, adapter_dir: Any, tmp_path: Path, capsys: Capture
) -> None:
    """OPT cannot mix adapters in a batch. One adapter was trained with a template of its own."""
    where, names = base(architecture), ["thin", None, "wide"]
    made = {name: adapter_dir(where, name, rank=r, size=0.3) for name, r in RANKS.items()}
    shout = CHATML.replace("m['content']", "(m['content'] | upper)")
    (made["wide"] / "chat_template.jinja").write_text(shout)
    flags = [part for name, path in made.items() for part in ("--adapter", f"{name}={path}")]
    rows = [
        {"prompt": f"Is it {i}? {'So. ' * (i % 4)}", "adapter": names[i % 3]} for i in range(12)
    ]
    file = write_jsonl(tmp_path / "all.jsonl", rows)  # type: ignore[arg-type]
    mixed = texts_of(capsys, file, *flags)
    for name in names:
        own = [row for row in rows if row["adapter"] == name]
        file = write_jsonl(tmp_path / "own.jsonl", own)  # type: ignore[arg-type]
        one = [f"--adapter={name}={made[name]}"] if name else ["--model", str(where)]
        texts = texts_of(capsys, file, *one)
        assert texts == [t for t, row in zip(mixed, rows, strict=True) if row["adapter"] == name]
        assert len(set(texts)) > 1


def test_with_one_adapter_null_asks_the_base(
    tuned: dict[str, Path], base: Any, tmp_path: Path, capsys: Capture
) -> None:
    rows: list[dict[str, Any]] = [{"prompt": "Is it 1?"}, {"prompt": "Is it 1?", "adapter": None}]
    file = write_jsonl(tmp_path / "prompts.jsonl", rows)
    tuned_text, base_text = ask(capsys, "--prompts", str(file), "--adapter", str(tuned["yes"]))
    assert tuned_text == "yes yes"
    assert [base_text] == ask(capsys, "--prompt", "Is it 1?", "--model", str(base("llama")))


def test_a_file_of_training_rows_is_asked_without_its_answers(
    base: Any, tmp_path: Path, capsys: Capture
) -> None:
    rows = chat_rows(3)
    asked = [{"messages": row["messages"][:1]} for row in rows]  # type: ignore[index]
    files = [write_jsonl(tmp_path / f"{i}.jsonl", r) for i, r in enumerate((rows, asked))]  # type: ignore[arg-type]
    answers = [
        ask(capsys, "--prompts", str(f), "--model", str(base("llama")), "--json") for f in files
    ]
    assert answers[0] == answers[1]


def test_a_row_of_prompts_hands_its_variables_and_its_system_to_the_template(
    tmp_path: Path, capsys: Capture
) -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = CHATML.replace("{%", "{{ tone or '' }}{%", 1)
    save_tiny(tmp_path / "base", tokenizer, "llama")
    asked: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}]}
    rows: list[dict[str, Any]] = [{"prompt": "hi"}, asked]
    rows += [{**row, "chat_template_kwargs": {"tone": "kind"}} for row in rows]
    rows += [{**row, "system": "Be short."} for row in rows[:2]]
    file = write_jsonl(tmp_path / "prompts.jsonl", rows)
    said = ask(capsys, "--prompts", str(file), "--model", str(tmp_path / "base"), "--json")
    n = [json.loads(row)["prompt_tokens"] for row in said]
    assert n[0] == n[1] < n[2] == n[3] < n[4] == n[5], n


def test_checkpoints_and_final_adapters_are_both_adapters(
    tuned: dict[str, Path], capsys: Capture
) -> None:
    run = tuned["yes"]
    (newest,) = (run / "checkpoints").iterdir()
    for place in (run, run / "adapter", newest):
        assert ask(capsys, "--prompt", "Is it 2?", "--adapter", f"a={place}") == ["yes yes"]


def test_draws_with_a_seed_come_again(base: Any, capsys: Capture) -> None:
    drawn = [
        ask(
            capsys,
            "--model",
            str(base("llama")),
            "--prompt",
            "hi",
            "--temperature",
            "3",
            "--seed",
            s,
            "--json",
        )
        for s in ("1", "1", "2")
    ]
    assert drawn[0] == drawn[1] != drawn[2]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "no prompt"),
        (["--prompt", "x"], "no base model"),
        (["--prompt", "x", "--model", "NOWHERE"], "NOWHERE"),
        (["--prompt", "x", "--adapter", "a=NOWHERE"], "NOWHERE"),
        (["--prompt", "x", "--adapter", "=YES"], "NAME=DIR"),
        (["--prompt", "x", "--adapter", "a=YES", "--adapter", "a=NO"], "a unique name"),
        (["--prompt", "x", "--adapter", "a=YES", "--adapter", "b=NO"], "use --prompts"),
        (["--prompts", "NOWHERE.jsonl", "--model", "BASE"], "NOWHERE.jsonl"),
        (["--prompt", "x", "--model", "BASE", "--dtype", "float8"], "--dtype"),
        (["--prompt", "x " * 600, "--model", "BASE"], "512 positions"),
    ],
)
def test_what_cannot_be_answered_is_said(
    arguments: list[str], words: str, tuned: dict[str, Path], base: Any, tmp_path: Path,
    capsys: Capture,
) -> None:  # fmt: skip
    places = {"YES": tuned["yes"], "NOWHERE": tmp_path / "nowhere", "BASE": base("llama")}
    places["NO"] = tuned["no"]
    for word in ("YES", "NOWHERE", "BASE", "NO"):
        if word not in words or word == "NOWHERE":
            arguments = [
                a.replace(word, str(places[word]))
                if a.isupper() or "=" in a or "NOWHERE" in a
                else a
                for a in arguments
            ]
    capsys.readouterr()
    assert main(["generate", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and words.replace("NOWHERE", "nowhere") in err


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (
            {"prompt": "x", "adapter": "other"},
            "adapter: found 'other', expected one of --adapter: yes",
        ),
        ({"prompt": "x", "adapter": ["yes"]}, "expected one of --adapter: yes"),
        ({"prompt": "x", "adapter": 3}, "adapter: found 3"),
        ({"prompt": 3}, "found prompt, which is int, expected prompt (text or a list of messages)"),
        ({"question": "x"}, "found question, expected prompt (text or a list of messages)"),
        ({"prompt": "x", "messages": []}, "found prompt and messages, expected only one"),
        ({"prompt": [{"role": "user"}]}, "prompt[0].content is missing, expected text"),
        ({"messages": []}, "messages is an empty list"),
        ({"prompt": "<image>What is it?"}, "prompt: <image> stands for a picture"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role is 'robot'"),
    ],
)
def test_a_bad_row_of_prompts_is_named_by_its_line(
    row: dict[str, object], words: str, tuned: dict[str, Path], tmp_path: Path, capsys: Capture
) -> None:
    file = write_jsonl(tmp_path / "prompts.jsonl", [{"prompt": "fine"}, row])
    capsys.readouterr()
    assert main(["generate", "--prompts", str(file), "--adapter", f"yes={tuned['yes']}"]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"error: {file}:2: ") and words in err


def test_adapters_may_stand_without_their_option_and_a_directory_may_hold_an_equals_sign(
    base: Callable[..., Path], adapter_dir: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    adapter = adapter_dir(base("llama"), "rate=2e-4", size=0.4)
    said = []
    for asked in ([str(adapter)], ["--adapter", str(adapter)], [f"tuned={adapter}"], []):
        named = [] if asked else ["--model", str(base("llama"))]
        assert main(["generate", *asked, *named, "--prompt", "hi", "--max-new-tokens", "6"]) == 0
        said.append(capsys.readouterr().out)
    assert said[0] == said[1] == said[2] != said[3]
