"""`loractl check`: everything that training would run into, before it starts."""

import json
from pathlib import Path

from loractl import console
from loractl.artifacts.run.directory import RunDir
from loractl.config import loader
from loractl.startup import libraries


def run(config: Path, overrides: list[str], *, as_json: bool) -> int:
    """Check a config up to one real step. Returns 0 if `train` would start.

    Raises what `train` would raise; errors in the file are reported before torch is loaded.
    """
    loaded = loader.load(config, overrides)
    assert loaded.config.out is not None, "resolve() fills out in"
    directory = RunDir(Path(loaded.config.out))

    # Imported here, not above: errors in a config are reported before torch is loaded.
    libraries.import_()
    from loractl.engine.check.report import examine

    report = examine(loaded)
    if as_json:
        console.result(json.dumps(report.as_dict(), ensure_ascii=False, indent=2))
    else:
        for line in report.lines(colour=console.shows_colour(), width=console.width()):
            console.result(line)
    # Last, since the data is worth a look even if the run directory is taken.
    directory.require(resume=False, overwrite=False)
    return 0
