"""Finished cells as Markdown: means with intervals, paired differences, Holm over the family of a table.

Seeds are averaged per query first, and their range stands beside the mean. Intervals are bootstrap percentile
intervals over queries (95 %), differences are paired by query, p is that of the paired randomisation test after Holm
over all differences shown of the first measure. A row of one seed says so, and has no p: it supports no claim.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from benchmarks.cells import Values
from retrieval.comparison import SEEDS_FOR_A_CLAIM, PerQuery, averaged, corrected_p
from retrieval.statistics import Difference, bootstrap, mean, paired, paired_bootstrap

NOTHING = "–"


@dataclass(frozen=True, slots=True)
class Row:
    """One method of a table.

    Attributes:
        name: as it is shown.
        seeds: per seed, the values of its cells: one, or one for each fold. Empty: not finished yet.
        seeded: False where there is nothing random, as in BM25.
        note: what else is told of it, such as its settings.

    """

    name: str
    seeds: Sequence[Sequence[Values]] = field(default_factory=list)
    seeded: bool = True
    note: str = ""

    @property
    def claims(self) -> bool:
        """Whether a claim may stand on this row."""
        return not self.seeded or len(self.seeds) >= SEEDS_FOR_A_CLAIM

    def per_seed(self, measure: str) -> list[PerQuery]:
        """Return query → value for each seed, the queries of all folds pooled."""
        return [{q: v for fold in folds for q, v in fold["per_query"][measure].items()} for folds in self.seeds]

    def per_query(self, measure: str) -> PerQuery:
        """Return query → value, averaged over seeds."""
        return averaged(self.per_seed(measure))


def comparison(rows: Sequence[Row], measures: Sequence[str], baselines: Sequence[str]) -> str:
    """Return the table of `rows` that have results; the first measure is also compared with each baseline, by name."""
    rows = [row for row in rows if row.seeds]
    if not rows:
        return ""
    known = {row.name: row for row in rows}
    pairs = [
        (row.name, base)
        for row in rows
        for place, base in enumerate(baselines)
        # A baseline is compared with those before it: the other way round would be the same test again.
        if base in known and row.name != base and (row.name not in baselines or baselines.index(row.name) > place)
    ]
    values = {name: row.per_query(measures[0]) for name, row in known.items()}
    differences = {pair: paired_bootstrap(*paired(values[pair[0]], values[pair[1]])) for pair in pairs}
    adjusted = adjusted_p(pairs, known, values)
    heads = ["", "seeds", *(f"{measure} [95 %]" for measure in measures), "seeds' range"]
    for base in baselines:
        heads += [f"{measures[0]} − {base} [95 %]", "p (Holm)"]
    body = []
    for row in rows:
        cells = [row.name, _seeds(row), *(_estimate(row.per_query(measure)) for measure in measures)]
        cells.append(_range(row.per_seed(measures[0])))
        for base in baselines:
            found = differences.get((row.name, base))
            cells.append(NOTHING if found is None else difference(found))
            cells.append(_p(adjusted.get((row.name, base))))
        body.append([*cells, row.note])
    return markdown([*heads, "settings"], body)


def adjusted_p(
    pairs: Sequence[tuple[str, str]], known: Mapping[str, Row], values: Mapping[str, PerQuery]
) -> dict[tuple[str, str], float]:
    """Return Holm's p of every pair whose two rows may carry a claim."""
    return corrected_p([pair for pair in pairs if known[pair[0]].claims and known[pair[1]].claims], values)


def difference(found: Difference) -> str:
    """Return a paired difference with its interval, as tables show it."""
    return f"{found.value:+.3f} [{found.low:+.3f}, {found.high:+.3f}]"


def ratio(above: Sequence[float], below: Sequence[float]) -> str:
    """Return the median of the rounds' ratios above / below, and their range."""
    ratios = np.array(above) / np.array(below)
    return f"{np.median(ratios):.2f}× [{ratios.min():.2f}, {ratios.max():.2f}]"


def markdown(heads: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Return a Markdown table; columns without any content are left out."""
    kept = [i for i in range(len(heads)) if heads[i] == "" or any(str(row[i]) not in ("", NOTHING) for row in rows)]
    lines = ["| " + " | ".join(heads[i] for i in kept) + " |", "|" + "---|" * len(kept)]
    lines += ["| " + " | ".join(str(row[i]) for i in kept) + " |" for row in rows]
    return "\n".join(lines)


def report(
    *, title: str, command: str, tables: Sequence[str], notes: Sequence[str], missing: int, waiting: str = ""
) -> str:
    """Return a results section: title, tables, what must be known to read them, and the command.

    `missing` counts the planned cells without a result; `waiting` is what the others wait for.
    """
    if missing or waiting:
        rest = f", and those that wait for {waiting}" if waiting else ""
        notes = [*notes, f"**Not finished; cells still to be run: {missing}{rest}.**"]
    listed = "\n".join(f"- {note}" for note in notes)
    body = "\n\n".join(table for table in tables if table)
    return f"### {title}\n\n{body or 'Nothing is finished yet.'}\n\n{listed}\n\nMade with `{command}`.\n"


def _seeds(row: Row) -> str:
    if not row.seeded:
        return NOTHING
    return "1 seed" if len(row.seeds) == 1 else str(len(row.seeds))


def _estimate(values: PerQuery) -> str:
    numbers = list(values.values())
    low, high = bootstrap(numbers)
    return f"{mean(numbers):.3f} [{low:.3f}, {high:.3f}]"


def _range(runs: Sequence[PerQuery]) -> str:
    if len(runs) < 2:
        return NOTHING
    means = [mean(list(run.values())) for run in runs]
    return f"{min(means):.3f}–{max(means):.3f}"


def _p(value: float | None) -> str:
    if value is None:
        return NOTHING
    return "< 0.001" if value < 0.001 else f"{value:.3f}"
