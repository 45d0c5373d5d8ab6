"""Where a command may put the adapter it makes."""

from pathlib import Path

from loractl.errors import ConfigError


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
