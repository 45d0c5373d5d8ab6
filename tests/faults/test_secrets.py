"""What a run may not tell: secrets are in no file and no message, and local paths ask nobody."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from loractl.cli.main import main
from tests.tiny import chat_rows, write_jsonl

Config = Callable[..., Path]
SECRETS = {
    "HF_TOKEN": "hf_abcdefghijklmnopqrstuvwx",
    "HUGGING_FACE_HUB_TOKEN": "hf_zyxwvutsrqponmlkjihgfedc",
    "WANDB_API_KEY": "0123456789abcdef0123456789abcdef01234567",
}
WATCHED = """
import json, sys
seen = []
def hook(event, arguments):
    if event in ("socket.getaddrinfo", "socket.gethostbyname") or (
        event == "socket.connect" and isinstance(arguments[1], tuple)
    ):
        seen.append(f"{event} {arguments[1:]}")
sys.addaudithook(hook)
from loractl.cli.main import main
codes = [main(argv) for argv in json.loads(sys.argv[1])]
print(json.dumps([codes, seen]))
"""


@pytest.mark.slow
def test_a_run_a_merge_and_an_answer_tell_no_secret_and_open_no_connection(
    config_file: Config, tmp_path: Path
) -> None:
    held_out = write_jsonl(tmp_path / "held.jsonl", chat_rows(3))
    config = config_file("train: {steps: 2, save_every: 1}", f"data: {{eval: {held_out}}}")
    run, merged = str(tmp_path / "run"), str(tmp_path / "merged")
    argvs = [
        ["check", str(config)],
        ["train", str(config)],
        ["merge", run, "--out", merged],
        ["generate", "--adapter", f"a={run}", "--prompt", "hi", "--max-new-tokens", "2"],
        ["inspect", run],
        ["doctor"],
    ]
    env = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    done = subprocess.run(
        [sys.executable, "-c", WATCHED, json.dumps(argvs)],
        env={**env, **SECRETS},
        capture_output=True,
        text=True,
        timeout=300,
    )
    codes, connections = json.loads(done.stdout.splitlines()[-1])
    assert codes == [0] * len(argvs), done.stderr
    assert connections == []
    written = [p.read_bytes() for p in (*Path(run).rglob("*"), *Path(merged).rglob("*"))
               if p.is_file()]  # fmt: skip
    assert len(written) > 20
    for secret in SECRETS.values():
        assert secret not in done.stdout + done.stderr
        assert not any(secret.encode() in content for content in written)


@pytest.mark.parametrize(
    ("section", "option"),
    [
        ("hub_token: {secret}", None),
        ("train: {{hub_token: {secret}}}", None),
        ("model: {{token: {secret}}}", None),
        ("train: {{wandb_api_key: {secret}}}", None),
        ("data: {{train: 'https://user:{secret}@example.org/rows.jsonl'}}", None),
        ("model: {{name_or_path: 'https://user:{secret}@example.org/model'}}", None),
        ("out: 'https://user:{secret}@example.org/run'", None),
        ("seed: 1", "hub_token={secret}"),
        ("seed: 1", "data.train=https://user:{secret}@example.org/rows.jsonl"),
        ("seed: 1", "out=s3://user:{secret}@example.org/run"),
    ],
)
def test_a_secret_in_a_config_is_refused_and_not_repeated(
    section: str,
    option: str | None,
    config_file: Config,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    secret = "hf_QwErTyUiOpAsDfGhJkLz"
    config = config_file(section.format(secret=secret))
    options = ["--set", option.format(secret=secret)] if option else []
    assert main(["train", str(config), *options]) == 2
    said = capsys.readouterr()
    assert said.err.startswith("error: ") and secret not in said.err + said.out
    assert not (tmp_path / "run").exists()
