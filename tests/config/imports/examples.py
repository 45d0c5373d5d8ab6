"""Configs of other tools, with the keys of their public examples: (tool, name) -> text."""

import re
from pathlib import Path

TOOLS = {
    "llamafactory": "LLaMA-Factory",
    "axolotl": "axolotl",
    "trl": "TRL",
    "unsloth": "unsloth",
    "peft": "PEFT",
    "torchtune": "torchtune",
}


def examples() -> dict[tuple[str, str], str]:
    found = {}
    for file, tool in TOOLS.items():
        text = Path(__file__).with_name(f"{file}.yaml").read_text("utf-8")
        parts = re.split(r"^--- (.+)\n", text, flags=re.M)[1:]
        found |= {(tool, name): body for name, body in zip(parts[::2], parts[1::2], strict=True)}
    return found


EXAMPLES = examples()
