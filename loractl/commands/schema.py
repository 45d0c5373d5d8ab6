"""`loractl schema`: the JSON Schema of a config, for editors."""

import json
from typing import Any

from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from loractl import console
from loractl.config.settings import RunConfig


def run() -> int:
    """Print the JSON Schema to stdout."""
    console.result(json.dumps(json_schema(), indent=2, ensure_ascii=False))
    return 0


def json_schema() -> dict[str, Any]:
    """The schema of a config file, JSON Schema draft 2020-12."""
    schema = RunConfig.model_json_schema(schema_generator=_Generator)
    return {
        "$schema": GenerateJsonSchema.schema_dialect,
        "title": "loractl config",
        "description": "Settings of a fine-tuning run with loractl.",
        **{key: value for key, value in schema.items() if key not in ("title", "description")},
    }


class _Generator(GenerateJsonSchema):
    """Omits titles that only repeat the key."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False

    def model_schema(self, schema: core_schema.ModelSchema) -> JsonSchemaValue:
        model = super().model_schema(schema)
        model.pop("title", None)
        return model
