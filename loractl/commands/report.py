"""`loractl report`: the page of a run, or of several beside each other; or a page that is served
while the run goes on."""

from pathlib import Path
from typing import TYPE_CHECKING

from loractl import console
from loractl.artifacts.run.directory import RunDir, Status
from loractl.commands.arguments import require_writable_file
from loractl.errors import ConfigError
from loractl.text import printable

if TYPE_CHECKING:
    from loractl.engine.report.watch import MakePage

OF_SEVERAL = "report.html"
"""The page of several runs, in the working directory, unless --out names another."""


def run(runs: list[Path], out: Path | None, *, watch: bool) -> int:
    """Write a page and print its path; with `watch`, serve it until Ctrl-C.

    Raises ConfigError if a directory is not a run.
    """
    if watch and (out is not None or len(runs) > 1):
        raise ConfigError("--watch: shows one run, and writes no file; leave out the rest")
    if out is not None and out.suffix.lower() != ".html":
        raise ConfigError(printable(f"--out: found {out}, expected a name that ends in .html"))
    directories = [RunDir(path) for path in runs]
    for directory in directories:
        if directory.status() is Status.ABSENT:
            raise ConfigError(printable(f"{directory.path}: no run here (no config.yaml)"))
    place = out or (directories[0].report if len(runs) == 1 else Path(OF_SEVERAL))
    if not watch:
        require_writable_file("--out", place)

    from loractl.artifacts import files
    from loractl.engine.report.gather import gather
    from loractl.reports.run_page.comparison import page_of_runs
    from loractl.reports.run_page.page import page_of_run

    if watch:
        return _serve(lambda: _live_page(directories[0]))
    found = [gather(directory) for directory in directories]
    page = page_of_run(found[0]) if len(found) == 1 else page_of_runs(found)
    files.replace_text(place, page)
    console.result(str(place))
    return 0


def _live_page(directory: RunDir) -> tuple[str, bool]:
    from loractl.engine.report.gather import gather
    from loractl.reports.run_page.page import page_of_run

    found = gather(directory)
    return page_of_run(found), found.is_live


def _serve(make: "MakePage") -> int:
    from loractl.engine.report.watch import PageServer

    with PageServer(make) as server:
        console.result(server.url)
        console.note("open this address in a browser; Ctrl-C ends it")
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            console.note("")
    return 0
