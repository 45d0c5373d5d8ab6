"""The directory of a base model comes from others: nothing in it leads out of it or runs."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from loractl.cli.main import main
from loractl.errors import ModelError
from loractl.models import load
from loractl.models.base_directory import INDEX, is_inside

Make = Callable[..., Path]


@pytest.mark.parametrize(
    ("shard", "words"),
    [
        ("../other/model.safetensors", r"found the shard '\.\./other"),
        ("/etc/passwd", "found the shard '/etc/passwd'"),
        ("a/b.safetensors", "found the shard 'a/b"),
        ("..", "found the shard"),
    ],
)
def test_an_index_names_only_files_beside_it(
    shard: str, words: str, base: Make, tmp_path: Path
) -> None:
    model = shutil.copytree(base("llama"), tmp_path / "base")
    (model / INDEX).write_text(json.dumps({"weight_map": {"a": "model.safetensors", "b": shard}}))
    with pytest.raises(ModelError, match=words):
        load.locate(str(model))


@pytest.mark.parametrize("text", ["[]", "{}", "{", "\xff", '{"weight_map": []}', "[" * 100_000])
def test_an_index_of_another_form_is_named(text: str, base: Make, tmp_path: Path) -> None:
    model = shutil.copytree(base("llama"), tmp_path / "base")
    (model / INDEX).write_bytes(text.encode("latin-1"))
    with pytest.raises(ModelError, match=INDEX):
        load.locate(str(model))


def test_links_into_the_hubs_cache_are_of_a_model_and_others_are_not(tmp_path: Path) -> None:
    blobs = tmp_path / "models--a--b" / "blobs"
    snapshot = tmp_path / "models--a--b" / "snapshots" / "c0ffee"
    for directory in (blobs, snapshot):
        directory.mkdir(parents=True)
    (blobs / "123").write_text("{}")
    (tmp_path / "secret.txt").write_text("secret")
    (snapshot / "config.json").symlink_to(blobs / "123")
    (snapshot / "beside.json").symlink_to("config.json")
    (snapshot / "notes.txt").symlink_to(tmp_path / "secret.txt")
    found = {path.name: is_inside(path, snapshot) for path in snapshot.iterdir()}
    assert found == {"config.json": True, "beside.json": True, "notes.txt": False}


def test_a_merge_copies_nothing_that_a_link_in_the_base_leads_to(
    base: Make, adapter_dir: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = shutil.copytree(base("llama"), tmp_path / "base")
    (tmp_path / "secret").write_text("hunter2")
    (model / "notes.txt").symlink_to(tmp_path / "secret")
    out = tmp_path / "merged"
    assert main(["merge", str(adapter_dir(model)), "--out", str(out)]) == 2
    assert "notes.txt: links to" in capsys.readouterr().err and not out.exists()


def test_a_gguf_beside_an_adapter_is_refused_too(gguf_base: Make, tmp_path: Path) -> None:
    model = Path(shutil.copy(gguf_base(), tmp_path / "m.gguf"))
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match="would be applied silently"):
        load.locate(str(model))


EVIL = "import pathlib\npathlib.Path({canary!r}).write_text('ran')\n"
ASKED = """
import json, os, pty, sys
child, terminal = pty.fork()
if child == 0:
    from loractl.cli.main import main
    codes = [main(argv) for argv in json.loads(sys.argv[1])]
    os._exit(codes != json.loads(sys.argv[2]))
said = b""
while True:
    try:
        said += os.read(terminal, 4096)
    except OSError:
        break
sys.stdout.write(said.decode())
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_code_of_a_base_is_neither_run_nor_asked_about_on_a_terminal(
    base: Make, adapter_dir: Make, config_file: Make, tmp_path: Path
) -> None:
    """transformers asks on a terminal, and waits, unless it is told no."""
    canary = tmp_path / "canary"
    argvs = []
    for kind in ("llama", "stranger"):
        model = shutil.copytree(base("llama"), tmp_path / kind)
        config = json.loads((model / "config.json").read_text())
        classes = ("AutoConfig", "AutoModelForCausalLM", "AutoTokenizer")
        config |= {"model_type": kind, "auto_map": {name: "evil.Evil" for name in classes}}
        (model / "config.json").write_text(json.dumps(config))
        settings = json.loads((model / "tokenizer_config.json").read_text())
        settings["auto_map"] = {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}
        (model / "tokenizer_config.json").write_text(json.dumps(settings))
        (model / "evil.py").write_text(EVIL.format(canary=str(canary)))
        text = config_file("train: {steps: 1}", model=model).read_text()
        path = tmp_path / f"{kind}.yaml"
        path.write_text(text)
        argvs.append(["train", str(path), "--out", str(tmp_path / f"{kind}-run")])
        adapter = adapter_dir(base("llama"), name=f"{kind}-adapter")
        merge = ["merge", str(adapter), "--base", str(model), "--out", str(tmp_path / f"{kind}-m")]
        argvs.append(merge)
    done = subprocess.run(
        [sys.executable, "-c", ASKED, json.dumps(argvs), json.dumps([0, 0, 2, 2])],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ,
    )
    assert done.returncode == 0, done.stdout
    said = " ".join(done.stdout.split())  # a terminal breaks lines between words
    assert "only model.trust_remote_code: true would run it" in said
    assert "if you trust it, train with model.trust_remote_code: true" in said
    assert "[y/N]" not in done.stdout
    assert not canary.exists()
