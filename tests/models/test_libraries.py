"""The libraries come in whole, once, and as they would by themselves."""

import gc
import subprocess
import sys
from pathlib import Path

import pytest
import transformers
from transformers.utils import import_utils

from loractl.models import libraries

READS = """
import sys
reads = []
sys.addaudithook(lambda event, args: event == "open" and reads.append(str(args[0])))
{}
import transformers.models
print(sum(path.endswith("modeling_zamba.py") for path in reads))
"""


def reads_of_a_file_that_nothing_needs(before: str) -> int:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", READS.format(before)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return int(done.stdout)


def test_the_sources_of_all_models_are_read_once_not_twice() -> None:
    ours = "from loractl.models import libraries; libraries.import_transformers()"
    assert reads_of_a_file_that_nothing_needs("") == 2
    assert reads_of_a_file_that_nothing_needs(ours) == 1


def test_the_list_of_models_is_the_one_that_transformers_makes() -> None:
    place = Path(transformers.__file__).parent / "models"
    own = import_utils.define_import_structure
    theirs = own.__wrapped__(str(place / "__init__.py"))
    assert libraries._within("models.", own(place, prefix="models")) == theirs
    assert {"llama.modeling_llama", "gpt2.modeling_gpt2"} <= set(theirs[frozenset({"torch"})])


def test_transformers_and_the_search_for_garbage_are_as_they_were() -> None:
    before = import_utils.define_import_structure
    libraries.import_()
    assert import_utils.define_import_structure is before and gc.isenabled()
    gc.disable()
    try:
        libraries.import_()
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_another_way_of_listing_is_left_to_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its list holds something else, takes other arguments, or is made by nothing of this name."""
    asked = []

    def own(path: object) -> list[str]:
        asked.append(path)
        return ["llama"]

    monkeypatch.setattr(import_utils, "define_import_structure", own)
    path = str(Path(transformers.__file__).parent / "models" / "__init__.py")
    with libraries._listed_once(transformers):
        assert import_utils.define_import_structure(path) == ["llama"]
    assert asked == [path] and import_utils.define_import_structure is own
    monkeypatch.delattr(import_utils, "define_import_structure")
    with libraries._listed_once(transformers):
        pass
