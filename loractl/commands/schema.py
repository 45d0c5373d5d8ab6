"""`loractl schema`: the JSON Schema of a config, for editors; also its reference, as Markdown."""

import json
from typing import Any

from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from loractl import console
from loractl.config.describe import describe
from loractl.config.settings import NOT_YET, RunConfig, Section
from loractl.config.validation import keys

_ABSENT = "not available in this version"


def run() -> int:
    """Print the JSON Schema to stdout."""
    console.result(json.dumps(json_schema(), indent=2, ensure_ascii=False))
    return 0


def json_schema() -> dict[str, Any]:
    """The schema of a config file, draft 2020-12."""
    schema = RunConfig.model_json_schema(schema_generator=_Generator)
    return {
        "$schema": GenerateJsonSchema.schema_dialect,
        "title": "loractl config",
        "description": "Settings of a fine-tuning run with loractl.",
        **{key: value for key, value in schema.items() if key not in ("title", "description")},
    }


class _Generator(GenerateJsonSchema):
    """Leaves out the titles that only repeat the key."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False

    def model_schema(self, schema: core_schema.ModelSchema) -> JsonSchemaValue:
        model = super().model_schema(schema)
        model.pop("title", None)
        return model


def reference_table() -> str:
    """Every setting as a row of a Markdown table: key, what it takes, default, meaning."""
    lines = ["| key | takes | default | meaning |", "|---|---|---|---|"]
    for key in keys():
        info = _field_of(key)
        if isinstance(info.annotation, type) and issubclass(info.annotation, Section):
            continue
        default = "required" if info.is_required() else f"`{json.dumps(info.get_default())}`"
        takes = describe(info.annotation, info.metadata)
        cells = [f"`{key}`", takes, default, f"{info.description}{_absence_note(key)}"]
        row = " | ".join(cell.replace("|", "\\|") for cell in cells)
        lines.append(f"| {row} |")
    return "\n".join(lines)


def with_reference(text: str) -> str:
    """Replace what is between the markers of a Markdown text by the reference table."""
    begin, end = "<!-- config-reference -->", "<!-- /config-reference -->"
    before, _, rest = text.partition(begin)
    _, found, after = rest.partition(end)
    if not found:
        raise ValueError(f"no {begin} ... {end}")
    return f"{before}{begin}\n{reference_table()}\n{end}{after}"


def _field_of(key: str) -> Any:
    info: Any = None
    section: Any = RunConfig
    for name in key.split("."):
        info = section.model_fields[name]
        section = info.annotation
    return info


def _absence_note(key: str) -> str:
    """' (... not available in this version)' for what no code serves."""
    for refused_key, refused in NOT_YET.items():
        if key == refused_key or key.startswith(f"{refused_key}."):
            what = f"{', '.join(map(str, refused))}: " if refused is not None else ""
            return f" *({what}{_ABSENT})*"
    return f" *(a list: {_ABSENT})*" if key == "data.train" else ""
