"""Arguments that several commands read: NAME=DIR, --out, sizes, dtypes, how text is drawn."""

import re
from pathlib import Path

from loractl.errors import ConfigError

UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}


def check_out(out: Path, *, overwrite: bool, sources: tuple[Path, ...] = ()) -> None:
    """Refuse what exists without `overwrite`, what is no adapter, and what is read from."""
    if out.exists() and not out.is_dir():
        raise ConfigError(f"--out: {out} is a file, expected a directory that is not there yet")
    above = next(parent for parent in out.absolute().parents if parent.exists())
    if not above.is_dir():
        raise ConfigError(f"--out: {out} cannot be made: {above} is a file")
    if out.exists() and not overwrite:
        raise ConfigError(f"--out: {out} exists; choose another directory, or add --overwrite")
    if out.exists() and any(out.iterdir()) and not (out / "adapter_config.json").is_file():
        raise ConfigError(f"--out: {out} holds no adapter; --overwrite replaces nothing else")
    for source in sources:
        if out.resolve() == source.resolve() or out.resolve() in source.resolve().parents:
            raise ConfigError(f"--out: {out} would replace {source}; choose another directory")


def bytes_of(text: str, option: str) -> int:
    """Read a size of memory: 24GB, 24GiB, 24G or 24 (GB). GPUs' GB are GiB: so is 24GB here."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)i?b?\s*", text.lower())
    if match is None or float(match[1]) <= 0:
        raise ConfigError(f"{option}: found {text!r}, expected a size such as 24GB")
    power: int = "kmgt".index(match[2] or "g") + 1
    return int(float(match[1]) * 1024**power)


def count_of(text: str, option: str) -> int:
    """Read a count: 5000, 5k, 1.5M."""
    match = re.fullmatch(r"\s*(\d+(?:[._]?\d+)*)\s*([kmgt]?)\s*", text.lower())
    if match is None:
        raise ConfigError(f"{option}: found {text!r}, expected a number such as 5000 or 5k")
    value = round(float(match[1].replace("_", "")) * UNITS[match[2]])
    if value <= 0:
        raise ConfigError(f"{option}: found {text!r}, expected a number above 0")
    return value
