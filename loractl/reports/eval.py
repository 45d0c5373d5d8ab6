"""The measurements of `loractl eval`, as a table."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from loractl import text

if TYPE_CHECKING:
    from loractl.evaluation.bootstrap import Figure


def counts_as_text(rows: int, rows_of_general_text: int) -> str:
    said = f"{rows} {'row' if rows == 1 else 'rows'}"
    return said + (f" and {rows_of_general_text} of general text" if rows_of_general_text else "")


def figures_as_text(measured: "Sequence[tuple[str, Mapping[str, Figure]]]") -> str:
    """One line per model, one column per metric; the first model determines the columns."""
    names = list(measured[0][1])
    lines = [
        [model, *(_figure_cell(name, figures.get(name)) for name in names)]
        for model, figures in measured
    ]
    return text.table(["model", *(name.replace("_", " ") for name in names)], lines)


def _figure_cell(name: str, figure: "Figure | None") -> str:
    if figure is None:
        return "-"
    form: Callable[[float], str] = (
        (lambda x: f"{x:+.4f}") if name == "forgetting" else (lambda x: f"{x:.4g}")
    )
    return f"{form(figure.value)} [{form(figure.low)}, {form(figure.high)}]"
