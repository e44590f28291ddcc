"""Ranking by pairs: quality against calls of a noisy comparator, for every strategy of `rankers.tournaments`.

Real lists with graded judgements (Cystic Fibrosis, the sum of four judges, 1 to 8), a comparator of known accuracy: of
two documents with different grades it names the better one with probability p, of two with equal grades either one, by
a new draw each time it is asked. A duel is right with p whatever the documents are: a clear difference is not told more
surely than a small one, and Bradley-Terry's model does not hold.

    python -m benchmarks.tournaments --picture tournaments.png

runs the cells that are not finished, prints the tables and draws the picture. One cell checks knockout's error over
1,000 tournaments against the binomial prediction. About 2 minutes on two cores.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import data, tables
from benchmarks.cells import Cell, Experiment, Options, Plan, Results, Settings, Values
from rankers.knockout import duels_to_win
from rankers.metrics import ndcg
from rankers.tournaments import Ranking, rank
from retrieval.errors import require
from retrieval.statistics import bootstrap

NAME = "tournaments"
DATA, SPLIT = "cystic_fibrosis", "test_sum8"
SOURCES = (
    "benchmarks/tournaments.py",
    "benchmarks/data.py",
    "rankers/bradley_terry.py",
    "rankers/comparisons.py",
    "rankers/knockout.py",
    "rankers/metrics.py",
    "rankers/sorting.py",
    "rankers/tournaments.py",
    "retrieval/collection.py",
    "retrieval/statistics.py",
    "retrieval/trec.py",
)
ACCURACIES = (0.6, 0.75, 0.9)
TOP = 10  # what `heap` and `sort` are asked for, and where nDCG is cut
# Name of the line → the points on it: the strategy, and what makes it cheaper or dearer.
LINES: Mapping[str, Sequence[Mapping[str, Any]]] = {
    "all pairs, wins": [{"strategy": "max_wins", "budget": b} for b in (16, 32, 64, 128, 256, 496)],
    "all pairs, Bradley-Terry": [{"strategy": "bradley_terry", "budget": b} for b in (16, 32, 64, 128, 256, 496)],
    "knockout": [{"strategy": "knockout", "repeats": r} for r in (1, 3, 5, 15)],
    "bubble": [{"strategy": "bubble", "repeats": r} for r in (1, 3, 5, 15)],
    "heap, top 10": [{"strategy": "heap", "budget": 48}, *({"strategy": "heap", "repeats": r} for r in (1, 3, 5))],
    "sort, top 10": [{"strategy": "sort", "budget": 64}, *({"strategy": "sort", "repeats": r} for r in (1, 3))],
}
BINOMIAL = ((32, False), (32, True), (30, False))  # candidates, both orders
NOTES = (
    "32 judged documents of each query that has so many, drawn and shuffled by the seed; 5 seeds, averaged per query "
    "first; intervals are bootstrap over queries (10,000 resamples). nDCG@10 by linear gains of the grades 1 to 8; "
    '"best first": how often a document of the highest grade stands first; τ: Kendall\'s τ-b with the grades.',
    "The comparator is simulated: no model took part. `max_logits` is left out, since with answers of 0 and 1 it is "
    "`max_wins`. A duel asked r times costs r calls, and the majority decides.",
    "Confidence at rank 1: what `Ranking.confidence` says, and the true expected share of answers for that document "
    "against those behind it.",
)


def prepare(options: Options) -> str:
    """Return the hash of the judgements that are read."""
    return data.data_hash(data.collection(DATA, options))


def plan(options: Options, results: Results) -> Plan:
    """Name a cell for each accuracy, and the one about knockout's error."""
    size = 8 if options.tiny else 32
    shared = {"data": DATA, "split": SPLIT, "size": size, "seeds": 1 if options.tiny else 5}
    cells = [
        Cell(settings={"method": f"accuracy {p}", "accuracy": p, **shared}, seconds=22, sources=SOURCES)
        for p in ACCURACIES
    ]
    binomial = {"method": "binomial", "tournaments": 50 if options.tiny else 1_000, "accuracies": list(ACCURACIES)}
    return Plan([*cells, Cell(settings=binomial, seconds=5, sources=SOURCES)])


def work(settings: Settings, options: Options, folder: Path) -> Values:
    """Run one cell."""
    if settings["method"] == "binomial":
        return {"rows": [row for p in settings["accuracies"] for row in binomial(p, settings["tournaments"])]}
    qrels = data.collection(settings["data"], options).qrels(settings["split"])
    lists = {q: sorted(grades.items()) for q, grades in qrels.items() if len(grades) >= settings["size"]}
    lists = {q: graded for q, graded in lists.items() if len({grade for _, grade in graded}) > 1}
    points = []
    for line, arms in {"no calls": [{"strategy": "knockout", "budget": 0}], **LINES}.items():
        for number, arm in enumerate(arms):
            per_query = [
                np.mean([_once(arm, graded, seed, [q, line, number], settings) for seed in range(settings["seeds"])], 0)
                for q, graded in lists.items()
            ]
            points.append({"line": line, "arm": dict(arm), **summary(np.array(per_query))})
    return {"points": points, "queries": len(lists)}


class NoisyComparator:
    """Names the better of two with probability p, either of two equal ones; every question is a new draw."""

    def __init__(self, grades: NDArray[np.int64], accuracy: float, generator: np.random.Generator) -> None:
        self.grades, self.accuracy, self.generator = grades, accuracy, generator

    def chances(self, first: NDArray[Any], second: NDArray[Any]) -> NDArray[np.float64]:
        """Return P(first is named)."""
        return 0.5 + (self.accuracy - 0.5) * np.sign(self.grades[first] - self.grades[second])

    def __call__(self, first: NDArray[Any], second: NDArray[Any]) -> NDArray[np.float64]:
        """Return 1 where first is named, else 0."""
        return (self.generator.random(len(first)) < self.chances(first, second)).astype(np.float64)


MEASURES = ("calls", "ndcg", "first", "tau", "told", "true")


def _once(
    arm: Mapping[str, Any], graded: Sequence[tuple[str, int]], seed: int, name: Sequence[Any], settings: Settings
) -> list[float]:
    """Rank one list once and return its MEASURES."""
    # The list is the same for every arm and accuracy; the noise is not.
    drawn = _generator(seed, name[0]).permutation(len(graded))[: settings["size"]]
    grades = np.array([graded[place][1] for place in drawn])
    comparator = NoisyComparator(grades, settings["accuracy"], _generator(seed, *name, settings["accuracy"]))
    ranking = rank(len(grades), comparator, top=TOP, seed=seed, **arm)
    return measured(ranking, grades, comparator)


def _generator(*names: Any) -> np.random.Generator:
    """Return random numbers of their own for these names."""
    return np.random.default_rng(list(hashlib.sha256(repr(names).encode()).digest()))


def measured(ranking: Ranking, grades: NDArray[np.int64], comparator: NoisyComparator) -> list[float]:
    """Return the MEASURES of one ranking."""
    from scipy.stats import kendalltau

    ranked, best = grades[ranking.order], ranking.order[0]
    tau = kendalltau(-np.arange(len(ranked)), ranked).statistic if len(set(ranked.tolist())) > 1 else 0.0
    truth = comparator.chances(np.full(len(ranked) - 1, best), ranking.order[1:]).mean()
    value = float(ndcg(ranked[None, :], k=TOP)[0])
    return [ranking.calls, value, float(ranked[0] == grades.max()), tau, float(ranking.confidence[0]), float(truth)]


def summary(per_query: NDArray[np.float64]) -> dict[str, Any]:
    """Return the means over queries, with intervals of nDCG and of how often the best stands first."""
    means = dict(zip(MEASURES, per_query.mean(axis=0).tolist(), strict=True))
    intervals = {f"{name}_interval": list(bootstrap(per_query[:, MEASURES.index(name)])) for name in ("ndcg", "first")}
    return {**means, **intervals}


def binomial(accuracy: float, tournaments: int) -> list[dict[str, Any]]:
    """Return how often the best of a list wins a knockout, and how often it should."""
    rows = []
    for n, both_orders in BINOMIAL:
        generator = _generator(n, both_orders, accuracy)
        comparator = NoisyComparator(-np.arange(n), accuracy, generator)
        settings: dict[str, Any] = {"strategy": "knockout", "both_orders": both_orders}
        won = sum(rank(n, comparator, seed=seed, **settings).order[0] == 0 for seed in range(tournaments))
        predicted = float(np.mean(accuracy ** duels_to_win(n)))
        rows.append({"n": n, "both_orders": both_orders, "accuracy": accuracy, "predicted": predicted, "won": int(won)})
    return rows


def table(options: Options, results: Results) -> str:
    """Return quality by calls for each accuracy, and knockout's error."""
    *accuracies, last = plan(options, results).cells
    shown = []
    for cell in accuracies:
        if (values := results.values(NAME, cell)) is not None:
            head = f"A comparator right with probability {cell.settings['accuracy']}, {values['queries']} queries:"
            shown += [head, _quality(values["points"])]
    if (values := results.values(NAME, last)) is not None:
        n = last.settings["tournaments"]
        shown += [f"How often the best candidate wins {n:,} knockout tournaments:", _agreement(values["rows"], n)]
    return tables.report(
        title="Ranking by pairs: quality against calls",
        command="python -m benchmarks tournaments",
        tables=shown,
        notes=NOTES,
        missing=sum(results.values(NAME, cell) is None for cell in (*accuracies, last)),
    )


def _quality(points: Sequence[Mapping[str, Any]]) -> str:
    heads = ["strategy", "calls", "nDCG@10 [95 %]", "best first [95 %]", "τ", "confidence at rank 1: told", "true"]
    body = []
    for p in points:
        (low, high), (least, most) = p["ndcg_interval"], p["first_interval"]
        asked = f", each {p['arm']['repeats']} times" if p["arm"].get("repeats", 1) > 1 else ""
        if p["line"] in ("heap, top 10", "sort, top 10") and "budget" in p["arm"]:
            asked += f", stopped at {p['arm']['budget']}"
        cells = [p["line"] + asked, f"{p['calls']:.0f}", f"{p['ndcg']:.3f} [{low:.3f}, {high:.3f}]"]
        cells += [f"{p['first']:.2f} [{least:.2f}, {most:.2f}]", f"{p['tau']:.2f}", f"{p['told']:.2f}"]
        body.append([*cells, f"{p['true']:.2f}"])
    return tables.markdown(heads, body)


def _agreement(rows: Sequence[Mapping[str, Any]], tournaments: int) -> str:
    heads = ["candidates", "orders asked", "accuracy", "predicted", "won", "deviation, standard errors"]
    body = []
    for row in rows:
        share, expected = row["won"] / tournaments, row["predicted"]
        deviation = (share - expected) / np.sqrt(expected * (1 - expected) / tournaments)
        orders = "both" if row["both_orders"] else "one"
        numbers = [f"{row['accuracy']:g}", f"{expected:.3f}", f"{share:.3f}", f"{deviation:+.1f}"]
        body.append([row["n"], orders, *numbers])
    return tables.markdown(heads, body)


def draw(found: Mapping[float, Sequence[Mapping[str, Any]]]) -> Any:
    """Return a figure of the points of each accuracy: nDCG@10 and how often the best stands first, over calls.

    Raises:
        InputError: matplotlib is not installed.

    """
    require("matplotlib", "bench")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4 * len(found) + 1, 7), layout="constrained")
    grid = figure.subplots(2, len(found), sharex=True, sharey="row", squeeze=False)
    for column, (accuracy, points) in enumerate(found.items()):
        grid[0, column].set_title(f"right with probability {accuracy:g}")
        for row, (measure, shown) in enumerate((("ndcg", "nDCG@10"), ("first", "the best stands first, share"))):
            axes = grid[row, column]
            axes.axhline(points[0][measure], color="grey", linestyle="--", linewidth=0.8, label="no calls")
            for number, line in enumerate(LINES):
                mine = sorted((p["calls"], p[measure]) for p in points if p["line"] == line)
                axes.plot(*zip(*mine, strict=True), "os^vDX"[number] + "-", markersize=4, label=line)
            axes.set_xscale("log", base=2)
            axes.grid(alpha=0.3)
            if column == 0:
                axes.set_ylabel(shown)
            if row == 1:
                axes.set_xlabel("calls of the comparator")
    grid[0, 0].legend(fontsize="small")
    figure.suptitle("Ranking 32 documents by a noisy comparator: quality against calls")
    return figure


def main(arguments: list[str] | None = None) -> int:
    """Run the cells unless they are finished, print the tables and draw the picture."""
    from benchmarks.__main__ import main as run_benchmarks
    from benchmarks.cells import ROOT

    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.tournaments", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--picture", type=Path, default=Path("tournaments.png"), metavar="FILE.png")
    parser.add_argument("--tiny", action="store_true", help="a dry run on scraps of the data")
    args = parser.parse_args(arguments)
    if (status := run_benchmarks([NAME, *(["--tiny"] if args.tiny else [])])) != 0:
        return status
    build = ROOT / "build" / "tiny" if args.tiny else ROOT / "build"
    folder = build / "results" if args.tiny else ROOT / "benchmarks" / "results"
    options = Options(shared=ROOT, results=folder, build=build, tiny=args.tiny)
    results = Results(folder, keep=True)
    found = {}
    for cell in plan(options, results).cells[:-1]:
        values = results.values(NAME, cell)
        assert values is not None
        found[cell.settings["accuracy"]] = values["points"]
    args.picture.parent.mkdir(parents=True, exist_ok=True)
    draw(found).savefig(args.picture, dpi=120)
    print(f"picture: {args.picture}")
    return 0


EXPERIMENT = Experiment(name=NAME, module="benchmarks.tournaments", prepare=prepare, plan=plan, work=work, table=table)

if __name__ == "__main__":
    sys.exit(main())
