"""Runs cases of cases.py, on the CPU by torch's formulas or on the pretend device:

python -m tests.device.program cpu|device DIRECTORY NAME ...

Writes DIRECTORY/NAME.json for each: exit codes, what was said, metrics, tensors' hashes, and on the
device the lines of loractl that made the host wait.
"""

import os
import sys

ON_DEVICE = sys.argv[1] == "device"
os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", NO_COLOR="1")
if ON_DEVICE:
    from tests.device import pretend
else:
    os.environ["LORACTL_NATIVE"] = "0"

import contextlib  # noqa: E402
import io  # noqa: E402
import json  # noqa: E402
import shutil  # noqa: E402
import traceback  # noqa: E402
import warnings  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

import torch  # noqa: E402
import yaml  # noqa: E402
from torch import Tensor  # noqa: E402

from loractl.cli.main import main  # noqa: E402
from loractl.ops import dropout  # noqa: E402
from tests.device.cases import CASES, LONGER, RESUMED, Case  # noqa: E402
from tests.runs import timeless  # noqa: E402
from tests.tiny import chat_rows, make_tokenizer, save_tiny, write_jsonl  # noqa: E402


def base_of(case: Case, place: Path) -> Path:
    """A model of the architecture, the same for both sides."""
    directory = place / f"base-{case.architecture}"
    if not directory.is_dir():
        save_tiny(directory, make_tokenizer(), case.architecture)
    return directory


def config_of(case: Case, place: Path, out: Path) -> dict[str, Any]:
    config: dict[str, Any] = {
        "model": {"name_or_path": str(base_of(case, place)), "dtype": case.dtype},
        "lora": {"rank": 4, "target_modules": "all-linear"},
        "data": {"train": str(place / "rows.jsonl"), "max_length": 128, "packing": False},
        "train": {"steps": 4, "batch_size": 4, "learning_rate": 1e-2, "save_every": 2},
        "out": str(out),
    }
    sections = {"data": {}, **case.sections}
    if sections["data"].get("retain"):
        sections["data"] = {**sections["data"], "retain": config["data"]["train"]}
    for key, value in sections.items():
        config[key] = {**config[key], **value} if isinstance(config.get(key), dict) else value
    return config


def run_case(name: str, place: Path) -> dict[str, Any]:
    case = (CASES | LONGER)[name]
    mine = place / ("device" if ON_DEVICE else "cpu") / name
    shutil.rmtree(mine, ignore_errors=True)
    mine.mkdir(parents=True)
    run, config = mine / "run", mine / "config.yaml"
    config.write_text(yaml.safe_dump(config_of(case, place, run)), encoding="utf-8")
    words = {"CONFIG": config, "DATA": place / "rows.jsonl", "OUT": mine / "out"}
    found: dict[str, Any] = {"said": []}

    def loractl(*argv: str) -> int:
        out, err = io.StringIO(), io.StringIO()
        sys.stdin = io.StringIO("What is 2 plus 2?\n")
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main(list(argv))
        found["said"].append({"code": code, "out": out.getvalue(), "err": err.getvalue()})
        return code

    if loractl("train", str(config)) == 0:
        found["rows"] = timeless(run)
        if ON_DEVICE:
            found["waits"] = dict(pretend.COUNTS.waits)
        if name in RESUMED:
            shutil.rmtree(run / "checkpoints" / "step-000004")
            for path in (run / "adapter", run / "model"):
                shutil.rmtree(path, ignore_errors=True)
            loractl("train", str(config), "--resume")
            found["resumed"] = timeless(run)
        for line in case.then:
            loractl(*(str(words.get(word, word)).replace("RUN", str(run)) for word in line))
    return found


def run_all(place: Path, names: list[str]) -> None:
    place.mkdir(parents=True, exist_ok=True)
    if not (place / "rows.jsonl").is_file():
        write_jsonl(place / "rows.jsonl", chat_rows())
    for name in names:
        if ON_DEVICE:
            pretend.COUNTS.clear()
        try:
            found = run_case(name, place)
        except Exception:
            found = {"failed": traceback.format_exc()}
        side = "device" if ON_DEVICE else "cpu"
        (place / side / f"{name}.json").write_text(json.dumps(found), encoding="utf-8")


def draw_as_a_device_does() -> None:
    """Have the CPU's dropout drop what torch's generator says, as it does elsewhere."""

    def fallen(mask: dropout.Mask, n: int, d: int, *, device: object) -> Tensor:
        generator = torch.Generator().manual_seed(mask.seed)
        return torch.empty(n, d, dtype=torch.bool).bernoulli_(mask.share, generator=generator)

    dropout.fallen = fallen


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    if not ON_DEVICE:
        draw_as_a_device_does()
    with pretend.device() if ON_DEVICE else contextlib.nullcontext():
        run_all(Path(sys.argv[2]), sys.argv[3:])
    os._exit(0)  # autograd's thread for the device has nothing that would end it
