"""`loractl init`: writes a config with a line of explanation for every key that it sets."""

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
  train: {data}  # the rows to learn from: JSON lines or a JSON array
  # eval: 0.05  # share of the rows, or a file, that is only measured
  max_length: 1024  # tokens of the longest row; longer ones are an error unless too_long says else

"""
TEMPLATES = {
    "lora": (
        "LoRA: a small update is trained beside the frozen model.",
        """\
method: lora  # full would train every weight

lora:
  rank: 16  # r: more learns more, and costs more memory
  alpha: 32  # the update is scaled by alpha / rank
  target_modules: all-linear  # every linear layer but the output head; or a list of names

""",
        """\
train:
  epochs: 3  # passes over the rows; or steps: N in its place
  batch_size: 8  # rows a micro-batch; halve it when memory is short ...
  gradient_accumulation: 1  # ... and double this: the step stays the same
  learning_rate: 2e-4  # the peak; LoRA takes about ten times that of full fine-tuning
  save_every: 100  # steps between checkpoints, from which --resume goes on

seed: 0  # fixes order, dropout and initial values
""",
    ),
    "dora": (
        "DoRA: LoRA with a trained length for each output, near full fine-tuning at a low rank.",
        """\
method: dora  # lora would leave the lengths out, and be faster

lora:
  rank: 16  # r: more learns more, and costs more memory
  alpha: 32  # the update is scaled by alpha / rank
  target_modules: all-linear  # every linear layer but the output head; or a list of names

""",
        """\
train:
  epochs: 3  # passes over the rows; or steps: N in its place
  batch_size: 8  # rows a micro-batch; halve it when memory is short ...
  gradient_accumulation: 1  # ... and double this: the step stays the same
  learning_rate: 1e-4  # the peak; DoRA takes somewhat less than LoRA
  save_every: 100  # steps between checkpoints, from which --resume goes on

seed: 0  # fixes order, dropout and initial values
""",
    ),
    "adalora": (
        "AdaLoRA: the ranks that all modules share go where they matter most.",
        """\
method: adalora  # lora would give every module the same rank

lora:
  alpha: 24  # the update is scaled by alpha / initial_rank
  target_modules: all-linear  # every linear layer but the output head; or a list of names
  adalora:
    initial_rank: 12  # of each module at the start
    target_rank: 8  # the average at the end; some modules get more, some none
    warmup_steps: 50  # with all ranks
    final_steps: 100  # at the end, with the ranks that were chosen; those between let ranks fall
    every: 10  # steps between two choices

""",
        """\
train:
  steps: 500  # more than warmup_steps and final_steps together
  batch_size: 8  # rows a micro-batch; halve it when memory is short ...
  gradient_accumulation: 1  # ... and double this: the step stays the same
  learning_rate: 1e-3  # the peak; AdaLoRA starts slower than LoRA, and takes more
  save_every: 100  # steps between checkpoints, from which --resume goes on

seed: 0  # fixes order, dropout and initial values
""",
    ),
    "full": (
        "Full fine-tuning: every weight is trained; takes about 16 bytes a weight.",
        """\
method: full  # lora would train a small update beside the frozen model

""",
        """\
train:
  epochs: 1  # passes over the rows; or steps: N in its place
  batch_size: 4  # rows a micro-batch; halve it when memory is short ...
  gradient_accumulation: 2  # ... and double this: the step stays the same
  learning_rate: 2e-5  # the peak; about a tenth of what LoRA takes
  save_every: 200  # steps between checkpoints, each as large as the model and its optimizer state

seed: 0  # fixes the order of the rows
""",
    ),
}
NOT_YET = ("qlora",)


def run(template: str, model: str | None, data: str | None, out: Path) -> int:
    """Write a config to a new file, or to stdout where `out` is `-`."""
    text = template_text(template, model or DEFAULT_MODEL, data or DEFAULT_DATA)
    if str(out) == "-":
        console.result(text.rstrip("\n"))
        return 0
    write_new(out, text)
    console.note(printable(f"wrote {out}; next: loractl train {out}"))
    return 0


def template_text(template: str, model: str, data: str) -> str:
    """The commented config of a template for this model and these rows."""
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
    """Write a file that does not exist yet, as `option` names it; a failed write leaves none."""
    try:
        file = path.open("x", encoding="utf-8")
    except FileExistsError:
        raise ConfigError(printable(f"{path}: exists already; choose another {option}")) from None
    except (FileNotFoundError, NotADirectoryError):
        what = f"{path.parent} is no directory"
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
