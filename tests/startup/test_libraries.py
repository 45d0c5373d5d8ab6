"""The libraries come in whole, once, and as they would by themselves."""

import gc
import inspect
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers.utils import import_utils

from loractl.startup import class_lists, libraries

OURS = "from loractl.startup import libraries; libraries.import_transformers(); libraries.import_()"
READS = """
import sys
reads = []
sys.addaudithook(lambda event, args: event == "open" and reads.append(str(args[0])))
{}
import transformers.models
import transformers.processing_utils
print(sum(path.endswith("modeling_zamba.py") for path in reads))
"""


def reads_of_a_file_that_nothing_needs(before: str) -> int:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", READS.format(before)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return int(done.stdout)


@pytest.mark.slow
def test_the_sources_of_all_models_are_read_at_the_first_start_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LORACTL_CACHE", str(tmp_path))
    assert [reads_of_a_file_that_nothing_needs(OURS) for _ in range(2)] == [1, 0]


@pytest.mark.slow
def test_without_a_list_that_can_be_read_and_written_they_are_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LORACTL_CACHE", str(tmp_path))
    assert reads_of_a_file_that_nothing_needs("") == 2
    assert reads_of_a_file_that_nothing_needs(OURS) == 1
    (made,) = (tmp_path / "transformers").iterdir()
    made.write_text("damaged")
    assert [reads_of_a_file_that_nothing_needs(OURS) for _ in range(2)] == [1, 0]
    monkeypatch.setenv("LORACTL_CACHE", str(made / "cannot be written"))
    assert reads_of_a_file_that_nothing_needs(OURS) == 1


SAME = """
from transformers.utils import import_utils
assert import_utils.define_import_structure.__module__ == import_utils.__name__
import sys, transformers
assert not any("loractl" in type(finder).__module__ for finder in sys.meta_path)
assert transformers.LlamaForCausalLM.__name__ == "LlamaForCausalLM"
"""


@pytest.mark.slow
def test_transformers_is_as_it_was() -> None:
    subprocess.run([sys.executable, "-W", "error", "-c", f"{OURS}\n{SAME}"], check=True)


@pytest.mark.slow
def test_the_lists_are_those_that_transformers_makes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LORACTL_CACHE", str(tmp_path))
    models = class_lists.models_beside(import_utils)
    own = import_utils.define_import_structure.__wrapped__  # transformers adds to what it has got
    for _ in range(2):  # made, and read
        ours = class_lists.from_cache(own, models)
        assert ours(models, prefix="models") == own(models, prefix="models")
        found = ours(str(models / "__init__.py"))
        assert found == own(str(models / "__init__.py"))
        assert {"llama.modeling_llama", "gpt2.modeling_gpt2"} <= set(found[frozenset({"torch"})])
    assert ours(models / "llama") == own(models / "llama")


def made_of(tmp_path: Path) -> tuple[Path, list[Path]]:
    models = tmp_path / "library" / "models"
    files = [models.parent / "utils" / "import_utils.py", models / "a" / "modeling_a.py"]
    for file in files:
        file.parent.mkdir(parents=True)
        file.write_text("")
    return models, files


def test_a_source_that_changed_makes_a_new_list(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LORACTL_CACHE", str(tmp_path / "cache"))
    models, files = made_of(tmp_path)
    asked: list[Any] = []

    def own(*given: Any, **options: Any) -> Any:
        asked.append(given)
        return {frozenset({"torch"}): {"a.modeling_a": {f"A{len(asked)}"}}}

    def listed() -> Any:
        return class_lists.from_cache(own, models)(models / "__init__.py")

    assert listed() == listed() == {frozenset({"torch"}): {"a.modeling_a": {"A1"}}}
    for count, file in enumerate(files, start=2):
        os.utime(file, ns=(count, count))
        assert listed() == listed() == {frozenset({"torch"}): {"a.modeling_a": {f"A{count}"}}}
    (models / "a" / "new.py").write_text("")
    listed()
    assert len(asked) == 4
    (made,) = (tmp_path / "cache" / "transformers").iterdir()
    made.write_text(
        json.dumps({"state": class_lists.sources_state(models), "listed": [["torch", 5]]})
    )
    listed()
    assert len(asked) == 5, "it holds something else"


def test_another_way_of_listing_is_left_to_transformers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its list holds something else, takes other arguments, or lies elsewhere."""
    monkeypatch.setenv("LORACTL_CACHE", str(tmp_path / "cache"))
    models, _ = made_of(tmp_path)
    ours = class_lists.from_cache(lambda path, *more: ["llama", str(path), *more], models)
    path = str(models / "__init__.py")
    assert ours(path) == ["llama", path]
    assert ours(path, "more") == ["llama", path, "more"]
    assert ours(models / "a") == ["llama", str(models / "a")]
    elsewhere = class_lists.from_cache(lambda path: ["llama"], tmp_path / "nowhere")
    assert elsewhere(tmp_path / "nowhere" / "__init__.py") == ["llama"]


def test_a_version_without_such_a_list_is_imported_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "import_utils_without_it"
    (tmp_path / f"{name}.py").write_text("found = 5")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(class_lists, "MODULE", name)
    with class_lists.keep_list():
        assert __import__(name).found == 5
    with class_lists.keep_list():
        assert __import__(name).found == 5


def test_one_within_another_changes_nothing() -> None:
    own = import_utils.define_import_structure
    with class_lists.keep_list():
        given = import_utils.define_import_structure
        with class_lists.keep_list():
            assert import_utils.define_import_structure is given is not own
        assert import_utils.define_import_structure is given
    assert import_utils.define_import_structure is own


def test_the_search_for_garbage_is_as_it_was() -> None:
    libraries.import_()
    assert gc.isenabled()
    gc.disable()
    try:
        libraries.import_()
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_lines_of_sources_are_found_as_ever() -> None:
    def read() -> tuple[Any, ...]:
        return (
            inspect.getframeinfo(sys._getframe(), context=3).code_context,
            inspect.getsource(libraries),
            inspect.getsource(libraries.import_),
            inspect.getmodule(libraries.import_),
        )

    with_search, searches = read(), inspect.getmodule
    assert "code_context" in "".join(with_search[0])
    with libraries.quickly():
        assert inspect.getmodule is not searches
        assert read() == with_search
    assert inspect.getmodule is searches
