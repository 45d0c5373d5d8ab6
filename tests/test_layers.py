"""The house of the design holds: imports point down, heavy things load late, no setting is read by
nothing."""

import ast
import json
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import BaseModel

import loractl
from loractl import platforms
from loractl.commands import train as train_command
from loractl.config.not_yet import NOT_YET
from loractl.config.settings import RunConfig

ROOT = Path(loractl.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
LEVELS = {
    "cli": 8,
    "commands": 7,
    "engine": 6,
    "reports": 5,
    **dict.fromkeys(("training", "evaluation", "generation", "artifacts", "planning"), 4),
    **dict.fromkeys(("lora", "data", "models"), 3),
    **dict.fromkeys(("quant", "config"), 2),
    "ops": 1,
    **dict.fromkeys(("errors", "records", "world", "console"), 0),
    **dict.fromkeys(("text", "progress", "paths", "dtypes", "digests", "leftovers"), 0),
    **dict.fromkeys(("signals", "startup"), 0),
    "platforms": 0,
    "__main__": 9,
}


def room(path: Path) -> str:
    return path.relative_to(ROOT).with_suffix("").parts[0]


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imported(path: Path) -> Iterator[tuple[str, str]]:
    """(module, name) of every import of a file, those inside functions too."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            yield from ((node.module or "", alias.name) for alias in node.names)


def name_of(path: Path) -> str:
    return ".".join(("loractl", *path.relative_to(ROOT).with_suffix("").parts))


MODULES = {name_of(path): path for path in FILES}


def own_modules(path: Path) -> set[str]:
    """The files of loractl that a file imports, wherever in it: also inside functions, and under
    TYPE_CHECKING."""
    wanted = {one for module, name in imported(path) for one in (module, f"{module}.{name}")}
    return (wanted & MODULES.keys()) - {name_of(path)}


def own_rooms(path: Path) -> Iterator[str]:
    """The rooms of loractl that a file imports from."""
    return (room(MODULES[module]) for module in own_modules(path))


def ids(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", FILES, ids=ids)
def test_imports_point_down_and_rooms_of_one_level_do_not_know_each_other(path: Path) -> None:
    if path == ROOT / "__init__.py":
        return
    here = room(path)
    for other in own_rooms(path):
        if other == "__init__":
            continue  # the version
        lower = LEVELS[other] < LEVELS[here]
        both_at_the_bottom = LEVELS[other] == LEVELS[here] == 0
        assert other == here or lower or both_at_the_bottom, f"{here} imports {other}"


def circles(graph: dict[str, set[str]]) -> set[str]:
    """What is left of a graph once everything that leads to no circle is taken away."""
    while leaves := {name for name, targets in graph.items() if not targets}:
        graph = {name: targets - leaves for name, targets in graph.items() if name not in leaves}
    return set(graph)


def test_no_file_imports_itself_in_a_circle_by_any_import() -> None:
    left = circles({name: own_modules(path) for name, path in MODULES.items()})
    assert not left, f"these import each other: {sorted(left)}"


def test_a_circle_inside_functions_or_under_type_checking_is_seen(tmp_path: Path) -> None:
    lazy = tmp_path / "lazy.py"
    lazy.write_text("def go():\n    from loractl.lora import layer\n")
    typed = tmp_path / "typed.py"
    typed.write_text("if TYPE_CHECKING:\n    from loractl.lora.layer import LoraLayer\n")
    for path in (lazy, typed):
        found = {one for module, name in imported(path) for one in (module, f"{module}.{name}")}
        assert "loractl.lora.layer" in found
    assert circles({"a": {"b"}, "b": {"a"}, "c": {"a"}, "d": set()}) == {"a", "b", "c"}


def test_sub_rooms_do_not_import_each_other_in_a_circle() -> None:
    graph: dict[str, set[str]] = {}
    for name, path in MODULES.items():
        here = name.rpartition(".")[0]
        targets = {other.rpartition(".")[0] for other in own_modules(path)}
        graph.setdefault(here, set()).update(targets - {here, "loractl"})
    assert not circles(graph), f"these import each other: {sorted(circles(graph))}"


def test_a_file_name_stands_in_one_room_or_is_the_name_of_a_verb() -> None:
    rooms: dict[str, set[str]] = {}
    for path in FILES:
        if path.stem != "__init__":
            rooms.setdefault(path.stem, set()).add(room(path))
    verbs = {path.stem for path in (ROOT / "commands").glob("*.py")}
    several = {name: found for name, found in rooms.items() if len(found) > 1}
    assert several.keys() <= verbs, several


HEAVY = {"torch", "transformers", "safetensors", "numpy", "peft", "gguf", "bitsandbytes"}
COMMANDS_ALONE = """
import importlib, json, sys
for name in json.loads(sys.argv[1]):
    importlib.import_module(name)
print(json.dumps([m for m in json.loads(sys.argv[2]) if m in sys.modules]))
"""


def test_no_module_of_the_commands_imports_torch_when_it_is_imported() -> None:
    names = [name for name in MODULES if name.startswith("loractl.commands.")]
    argv = [json.dumps(names), json.dumps(sorted(HEAVY))]
    done = subprocess.run(
        [sys.executable, "-c", COMMANDS_ALONE, *argv], capture_output=True, check=True
    )
    assert json.loads(done.stdout) == []


def test_only_cli_imports_typer_and_lora_knows_nothing_of_transformers() -> None:
    for path in FILES:
        tops = {module.split(".")[0] for module, _ in imported(path)}
        assert room(path).startswith("cli") or "typer" not in tops, path
        if room(path) == "lora":
            assert not tops & {"transformers", "safetensors", "huggingface_hub", "peft"}, path
        if room(path) == "planning":
            assert "torch" not in tops, path


ONLY_ON_UNIX = {
    "crypt", "curses", "fcntl", "grp", "nis", "ossaudiodev", "posix", "pty", "pwd", "readline",
    "resource", "spwd", "syslog", "termios", "tty",
}  # fmt: skip


def test_the_modules_of_unix_that_we_import_are_asked_for_before_the_program_starts() -> None:
    used = {module for path in FILES for module, _ in imported(path)} & ONLY_ON_UNIX
    assert used - {"readline"} == set(platforms.UNIX_MODULES)  # readline: only where there is one


def test_every_init_file_is_empty_but_for_the_version() -> None:
    for path in ROOT.rglob("__init__.py"):
        if path.parent != ROOT:
            assert path.read_bytes() == b"", path
    names = [node.targets[0] for node in tree(ROOT / "__init__.py").body[1:]]  # type: ignore[attr-defined]
    assert [name.id for name in names] == ["__version__"]


def test_nothing_below_the_commands_and_the_engine_takes_the_whole_config() -> None:
    for path in FILES:
        if LEVELS.get(room(path), 0) < LEVELS["engine"] and room(path) != "config":
            names = {name for _, name in imported(path)}
            assert not names & {"RunConfig", "Loaded"}, path


@pytest.mark.parametrize("path", FILES, ids=ids)
def test_files_and_functions_stay_short(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 300
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.FunctionDef):
            assert (node.end_lineno or 0) - node.lineno < 60, f"{node.name} is too long"


@pytest.mark.parametrize("path", FILES, ids=ids)
def test_nothing_unpickles_evaluates_or_opens_a_shell(path: Path) -> None:
    assert not {module.split(".")[0] for module, _ in imported(path)} & {
        "pickle", "cPickle", "dill", "joblib", "marshal", "shelve"
    }  # fmt: skip
    assert not {f"{module}.{name}" for module, name in imported(path)} & {
        "torch.load", "yaml.load", "yaml.unsafe_load", "yaml.full_load", "os.system", "os.popen"
    }  # fmt: skip
    for node in ast.walk(tree(path)):
        if not isinstance(node, ast.Call):
            continue
        call = ast.unparse(node.func)
        assert call not in ("eval", "exec", "compile", "__import__", "os.system", "os.popen"), call
        assert call not in ("torch.load", "yaml.load", "yaml.unsafe_load", "yaml.full_load"), call
        shell = [k for k in node.keywords if k.arg == "shell"]
        assert not shell, f"{call}(shell=...)"


def settings() -> Iterator[tuple[str, str]]:
    """(section, field) of every setting; the section of a setting at the top is the config
    itself."""
    for name, field in RunConfig.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from ((name, inner) for inner in field.annotation.model_fields)
        else:
            yield "config", name


def read_settings() -> set[tuple[str, str]]:
    """Each `<...>.section.field` or `section.field` that code outside the config's own files
    reads."""
    found = set()
    for path in FILES:
        if LEVELS.get(room(path), 0) == 0 or room(path) == "config":
            continue
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                owner = node.value
                last = owner.attr if isinstance(owner, ast.Attribute) else getattr(owner, "id", "")
                found.add((last, node.attr))
    return found


def test_every_setting_is_read_by_code_or_refused_as_not_available_yet() -> None:
    read = read_settings()
    for section, field in settings():
        key = field if section == "config" else f"{section}.{field}"
        served = (section, field) in read
        assert served or key in NOT_YET, f"{key} is read by nothing"
        refused_whole = key in NOT_YET and NOT_YET[key] is None
        assert not (refused_whole and (section, field) in read), f"{key} is read, yet refused"


def test_the_lists_of_settings_in_code_name_settings_that_exist() -> None:
    known = {
        field if section == "config" else f"{section}.{field}" for section, field in settings()
    }
    assert train_command.FREE_TO_CHANGE | train_command.EXTENSIBLE | NOT_YET.keys() <= known


def test_half_of_the_functions_have_names_of_two_words_or_more() -> None:
    names = [
        node.name
        for path in FILES
        for node in ast.walk(tree(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    short = [name for name in names if "_" not in name.strip("_")]
    assert 2 * len(short) <= len(names), f"{len(short)} of {len(names)} have one word"


def test_files_have_a_median_of_at_most_130_lines() -> None:
    lines = [len(path.read_text(encoding="utf-8").splitlines()) for path in FILES]
    assert statistics.median(n for n in lines if n) <= 130
