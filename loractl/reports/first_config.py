"""The config that `init` writes, for rows that were opened or could not be."""

from loractl.data.row_errors import names
from loractl.data.survey import BYTES_A_TOKEN, Survey
from loractl.planning import first_run
from loractl.planning.first_model import FirstModel
from loractl.planning.first_run import Setting
from loractl.reports.commented_config import commented
from loractl.text import counted

NAMES = {
    "lora": "LoRA",
    "qlora": "QLoRA",
    "dora": "DoRA",
    "adalora": "AdaLoRA",
    "full": "Full fine-tuning",
}
LOOKS = {
    "classification": "{answers} different answers: a classification",
    "chat": "conversations",
    "json-extraction": "every answer is JSON",
    "tool-calls": "conversations with tools",
    "continued-pretraining": "plain text",
}
PACKED = Setting(
    "model.quantization",
    "nf4-double",
    "the frozen base in 4.1 bits per number, an eighth of float32; none: as it is stored",
)
REST = "Every other setting has a default: `loractl schema` lists them all."


def summary(data: Survey) -> list[str]:
    """What was found in the rows and chosen of them, in a line or two."""
    fields = ", ".join(f"{ours} from {theirs}" for ours, theirs in data.columns.items())
    lines = [f"found {counted(data.rows, 'row')} of {data.format} in {data.path}"]
    lines[0] += f": {fields}" if fields else ""
    lines[0] += f"; not used: {names(dict.fromkeys(data.unused))}" if data.unused else ""
    lines += [f"note: {key} is set to {value}: {why}" for key, value, why in data.choices]
    return [*lines, f"note: {data.note}"] if data.note else lines


def opened(model: FirstModel, data: Survey, method: str, shape: str | None) -> str:
    """The config for rows that were read; `shape` replaces what they look like."""
    looks = LOOKS[data.shape].format(answers=data.answers)
    title = [f"{NAMES[method]}, for {data.rows:,} rows of {data.format} ({looks})."]
    if shape is not None and shape != data.shape:
        title.append(f"The settings are those for {shape}, as asked for.")
    if data.estimated:
        title.append(
            f"Lengths are estimated at {BYTES_A_TOKEN} bytes per token: the model has no tokenizer"
            " on this machine."
        )
    settings = first_run.settings(model, data, _trained(method), shape or data.shape)
    return _as_text([*title, REST], model, method, settings)


def unopened(model: FirstModel, path: str, method: str, shape: str | None, why: str) -> str:
    """The config for rows that could not be read, which says why."""
    title = [f"{NAMES[method]}. The data was not opened, so these settings are general:", why, REST]
    settings = first_run.general_settings(model, path, _trained(method), shape or "chat")
    return _as_text(title, model, method, settings)


def _trained(method: str) -> str:
    """The method of a run: QLoRA is LoRA on a quantized base."""
    return "lora" if method == "qlora" else method


def _as_text(title: list[str], model: FirstModel, method: str, settings: list[Setting]) -> str:
    of_base = [Setting("model.name_or_path", model.name, f"the base model: {model.why}")]
    of_base += [PACKED] if method == "qlora" else []
    every = [*of_base, *settings]
    return commented(title, [(one.key, one.value, one.why) for one in every])
