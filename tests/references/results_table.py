"""The table of what was compared, RESULTS.md: `pytest tests/references --write-references` writes it."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

TOLERANCE = 1e-5  # relative to their value, and of a gradient to their largest entry
RESULTS = Path(__file__).with_name("RESULTS.md")
HEAD = """# Our losses beside public implementations

Written by `pytest tests/references --write-references`; `make test-all` makes the same comparisons and checks that
this table names them. In each row both have the same scores, labels and masks; ours compute in float64 and in float32.
The figures are the largest relative difference of the value, and of the gradient over the scores relative to its
largest entry, over all shapes (queries × documents); the limit is {limit:.0e}. Where a library divides by another
number, has another unit or other defaults, the test says so explicitly, and so does the last column. "Masked" are
entries at any place that are not valid.
"""


@dataclass(frozen=True)
class Result:
    """A row of the table: the largest relative differences over all cases and both of our precisions."""

    loss: str
    library: str
    function: str
    shapes: str
    value: float | None
    gradient: float
    note: str
    differs: str

    @property
    def agrees(self) -> bool:
        """Whether both are within the tolerance."""
        return max(self.value or 0.0, self.gradient) <= TOLERANCE


def table(results: Iterable[Result]) -> str:
    """Return the Markdown text."""
    rows = sorted(results, key=lambda result: (result.loss, result.library, result.function))
    agreed = [row for row in rows if not row.differs]
    names = sorted({row.loss.partition("(")[0] for row in agreed})
    parts = [
        HEAD.format(limit=TOLERANCE),
        f"**{len(names)} losses agree**: {', '.join(names)}.\n",
        _lines(agreed, "What theirs needs to be ours", lambda row: row.note or "–"),
        "## Not the same function\n\nNot counted above; the tests check that these still differ.\n",
        _lines([row for row in rows if row.differs], "Why", lambda row: row.differs),
    ]
    return "\n".join(parts)


def _lines(rows: Sequence[Result], last: str, text: Callable[[Result], str]) -> str:
    lines = [
        f"| Loss | Library | Their function | Shapes | Value | Gradient | {last} |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        value = "–" if row.value is None else f"{row.value:.1e}"
        library = f"{row.library} {version(row.library).partition('+')[0]}"
        cells = (f"`{row.loss}`", library, f"`{row.function}`", row.shapes, value, f"{row.gradient:.1e}", text(row))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"
