"""`loractl init`: write a config with a comment on every key that it sets."""

import os
from pathlib import Path

from loractl import console
from loractl.config.strict_yaml import scalar
from loractl.errors import ConfigError, StorageError
from loractl.text import closest, found, listed, printable

DEFAULT_MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
DEFAULT_DATA = "train.jsonl"

_HEAD = """\
# {title}
# Every other setting has a default: `loractl schema` lists them all.

model:
  name_or_path: {model}  # the base model: a hub id, a directory, or a .gguf file

"""
_DATA = """\
data:
  train: {data}  # the training data: JSON lines or a JSON array
  # eval: 0.05  # held-out data: a share of the rows, or a file
  max_length: 1024  # maximum tokens per row; longer rows are an error unless too_long is set

"""
TEMPLATES = {
    "lora": (
        "LoRA: train a small update next to the frozen model.",
        """\
method: lora  # full would train every weight

lora:
  rank: 16  # r: a higher rank learns more and needs more memory
  alpha: 32  # the update is scaled by alpha / rank
  target_modules: all-linear  # all linear layers except the output head; or a list

""",
        """\
train:
  epochs: 3  # passes over the data; or use steps: N
  batch_size: 8  # rows per micro-batch; if memory is short, halve this ...
  gradient_accumulation: 1  # ... and double this: the steps stay the same
  learning_rate: 2e-4  # the peak; about ten times that of full fine-tuning
  save_every: 100  # steps between checkpoints; --resume continues from the last

seed: 0  # random seed for row order, dropout and initial values
""",
    ),
    "dora": (
        "DoRA: LoRA with one trained length per output, close to full fine-tuning at low rank.",
        """\
method: dora  # lora would leave out the lengths and be faster

lora:
  rank: 16  # r: a higher rank learns more and needs more memory
  alpha: 32  # the update is scaled by alpha / rank
  target_modules: all-linear  # all linear layers except the output head; or a list

""",
        """\
train:
  epochs: 3  # passes over the data; or use steps: N
  batch_size: 8  # rows per micro-batch; if memory is short, halve this ...
  gradient_accumulation: 1  # ... and double this: the steps stay the same
  learning_rate: 1e-4  # the peak; DoRA needs a little less than LoRA
  save_every: 100  # steps between checkpoints; --resume continues from the last

seed: 0  # random seed for row order, dropout and initial values
""",
    ),
    "adalora": (
        "AdaLoRA: a shared rank budget goes to the modules where it matters most.",
        """\
method: adalora  # lora would give every module the same rank

lora:
  alpha: 24  # the update is scaled by alpha / initial_rank
  target_modules: all-linear  # all linear layers except the output head; or a list
  adalora:
    initial_rank: 12  # rank of each module at the start
    target_rank: 8  # the average at the end; some modules get more, some none
    warmup_steps: 50  # steps with all ranks
    final_steps: 100  # steps at the end with the chosen ranks; ranks fall in between
    every: 10  # steps between rank reallocations

""",
        """\
train:
  steps: 500  # must exceed warmup_steps + final_steps
  batch_size: 8  # rows per micro-batch; if memory is short, halve this ...
  gradient_accumulation: 1  # ... and double this: the steps stay the same
  learning_rate: 1e-3  # the peak; AdaLoRA starts more slowly and needs more than LoRA
  save_every: 100  # steps between checkpoints; --resume continues from the last

seed: 0  # random seed for row order, dropout and initial values
""",
    ),
    "full": (
        "Full fine-tuning: train every weight; needs about 16 bytes per weight.",
        """\
method: full  # lora would train a small update next to the frozen model

""",
        """\
train:
  epochs: 1  # passes over the data; or use steps: N
  batch_size: 4  # rows per micro-batch; if memory is short, halve this ...
  gradient_accumulation: 2  # ... and double this: the steps stay the same
  learning_rate: 2e-5  # the peak; about a tenth of that for LoRA
  save_every: 200  # steps between checkpoints, each as large as the model and its optimizer state

seed: 0  # random seed for the order of the rows
""",
    ),
}
NOT_YET = ("qlora",)


def run(template: str, model: str | None, data: str | None, out: Path) -> int:
    """Write a config to a new file, or to stdout if `out` is `-`."""
    text = template_text(template, model or DEFAULT_MODEL, data or DEFAULT_DATA)
    if str(out) == "-":
        console.result(text.rstrip("\n"))
        return 0
    write_new(out, text)
    console.note(printable(f"wrote {out}; next: loractl train {out}"))
    return 0


def template_text(template: str, model: str, data: str) -> str:
    """The commented config from a template, for this model and data."""
    if template in NOT_YET:
        raise ConfigError(f"--template {template}: {template} is not available in this version")
    if template not in TEMPLATES:
        near = closest(template, TEMPLATES)
        hint = f"; did you mean {near}?" if near else ""
        what = f"found {found(template)}, expected {listed(list(TEMPLATES))}"
        raise ConfigError(printable(f"--template: {what}{hint}"))
    title, method, train = TEMPLATES[template]
    head = _HEAD.format(title=title, model=scalar(model))
    return head + method + _DATA.format(data=scalar(data)) + train


def write_new(path: Path, text: str, *, option: str = "--out") -> None:
    """Write a new file, named by `option`; a failed write leaves no file."""
    try:
        file = path.open("x", encoding="utf-8")
    except FileExistsError:
        raise ConfigError(printable(f"{path}: already exists; choose another {option}")) from None
    except (FileNotFoundError, NotADirectoryError):
        what = f"{path.parent} is not a directory"
        raise ConfigError(
            printable(f"{path}: {what}; create it or choose another {option}")
        ) from None
    except OSError as error:
        raise StorageError(printable(f"{path}: cannot be written: {error.strerror}")) from None
    try:
        with file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        path.unlink(missing_ok=True)
        raise StorageError(printable(f"{path}: cannot be written: {error.strerror}")) from None
