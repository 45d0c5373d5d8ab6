"""Parsing and checking of flags that several commands share: NAME=DIR, --out, sizes, sampling.

No torch: an invalid flag is reported before anything heavy is loaded.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from loractl.dtypes import WIDTHS
from loractl.errors import ConfigError
from loractl.text import closest

if TYPE_CHECKING:
    from loractl.generation.sample import Sampling

UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
DTYPES = tuple(WIDTHS)
LOADED_DTYPES = ("auto", *DTYPES)
"""The dtypes a base can be loaded in; auto: the one that is fast on this machine."""


@dataclass(frozen=True)
class GenerationOptions:
    """The flags that control sampling."""

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    dtype: str | None = None  # None: the one that the adapters were trained in

    def check(self) -> None:
        """Raise ConfigError for an unknown dtype; the CLI checks the ranges of the numbers."""
        if self.dtype is not None:
            require_word("--dtype", self.dtype, LOADED_DTYPES)

    @property
    def sampling(self) -> "Sampling":
        from loractl.generation.sample import Sampling

        return Sampling(self.max_new_tokens, self.temperature, self.top_p, self.seed)


def require_word(option: str, word: str, known: Iterable[str], *, more: str = "") -> None:
    """Raise ConfigError for a word that an option does not accept; `more` extends the message."""
    words = list(known)
    if word not in words:
        near = closest(word, words)
        hint = f"; did you mean {near}?" if near else ""
        expected = f"expected one of {', '.join(words)}"
        raise ConfigError(f"{option}: found {word!r}, {expected}{more}{hint}")


def parse_adapters(adapters: Sequence[str]) -> dict[str, Path]:
    """Parse NAME=DIR, or DIR alone, named after its last component: one that exists as it is
    written may hold an = itself. Raises ConfigError."""
    found: dict[str, Path] = {}
    for text in adapters:
        name, equals, directory = text.partition("=")
        is_alone = not equals or Path(text).is_dir()
        path = Path(text if is_alone else directory)
        name = path.resolve().name if is_alone else name
        if not name or name in found:
            raise ConfigError(f"--adapter: found {text!r}, expected NAME=DIR with a unique name")
        found[name] = path
    return found


def parse_columns(pairs: Sequence[str]) -> dict[str, str]:
    """Parse FIELD=COLUMN, as in data.columns: the field that we read, and its name in the file."""
    from loractl.data.rows import FIELDS

    found = {}
    for text in pairs:
        field, equals, column = text.partition("=")
        if not equals or not column:
            raise ConfigError(
                f"--columns: found {text!r}, expected FIELD=COLUMN, such as prompt=question"
            )
        require_word("--columns", field, sorted(FIELDS))
        if field in found:
            raise ConfigError(f"--columns: {field} is given twice; remove one")
        found[field] = column
    return found


def require_size(rank: int | None, energy: float | None) -> None:
    """Raise ConfigError unless exactly one of --rank and --energy is given, and in range."""
    if (rank is None) == (energy is None):
        given = "neither" if rank is None else "both"
        raise ConfigError(f"--rank, --energy: found {given}, expected exactly one of them")
    if rank is not None and rank < 1:
        raise ConfigError(f"--rank: found {rank}, expected a whole number of at least 1")
    if energy is not None and not 0 < energy <= 1:  # NaN too
        raise ConfigError(f"--energy: found {energy}, expected a share above 0 and at most 1")


def require_free(out: Path, *, overwrite: bool, is_file: bool = False) -> None:
    """Refuse an --out of the wrong kind, or one that exists unless `overwrite` is set."""
    if out.exists() and is_file != out.is_file():
        found, wanted = ("a directory", "a file") if is_file else ("a file", "a directory")
        raise ConfigError(f"--out: {out} is {found}, expected {wanted} that does not exist yet")
    if out.exists() and not overwrite:
        another = "path" if is_file else "directory"
        raise ConfigError(f"--out: {out} exists; choose another {another}, or add --overwrite")


def require_free_or_adapter(out: Path, *, overwrite: bool) -> None:
    """Also refuse an --out that cannot be created, or a directory that is not an adapter."""
    require_free(out, overwrite=overwrite)
    above = next(parent for parent in out.absolute().parents if parent.exists())
    if not above.is_dir():
        raise ConfigError(f"--out: {out} cannot be created: {above} is a file")
    if out.exists() and any(out.iterdir()) and not (out / "adapter_config.json").is_file():
        raise ConfigError(f"--out: {out} is not an adapter, and --overwrite replaces only adapters")


def require_apart(out: Path, *sources: Path) -> None:
    """Refuse an --out that is one of the sources or contains one."""
    for source in sources:
        if out.resolve() == source.resolve() or out.resolve() in source.resolve().parents:
            raise ConfigError(f"--out: {out} would replace {source}; choose another directory")


def require_writable_file(option: str, path: Path) -> None:
    """Refuse, before any work, a file name that cannot be written."""
    if path.is_dir() or not path.resolve().parent.is_dir():
        found = "is a directory" if path.is_dir() else "is not in an existing directory"
        raise ConfigError(f"{option}: {path} {found}")


def bytes_of(text: str, option: str) -> int:
    """Parse a memory size: 24GB, 24GiB, 24G or 24. GB means GiB, as in the names of GPUs."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)i?b?\s*", text.lower())
    if match is None or float(match[1]) <= 0:
        raise ConfigError(f"{option}: found {text!r}, expected a size such as 24GB")
    power: int = "kmgt".index(match[2] or "g") + 1
    return int(float(match[1]) * 1024**power)


def count_of(text: str, option: str) -> int:
    """Parse a count such as 5000, 5k or 1.5M."""
    match = re.fullmatch(r"\s*(\d+(?:[._]?\d+)*)\s*([kmgt]?)\s*", text.lower())
    if match is None:
        raise ConfigError(f"{option}: found {text!r}, expected a number such as 5000 or 5k")
    value = round(float(match[1].replace("_", "")) * UNITS[match[2]])
    if value <= 0:
        raise ConfigError(f"{option}: found {text!r}, expected a number above 0")
    return value
