"""InfoNCE's blind spot: a random offset on each query's scores changes it by nothing, and ruins one threshold for all.

Every ranking measure and InfoNCE look at one query at a time, so that s(q, d) + g(q) is as good to them as s(q, d).
The MW loss compares relevant pairs with the irrelevant ones of all queries, as the pooled ROC-AUC does, and sees it.

    python -m benchmarks.blind_spot --picture blind_spot.png

runs the cell, unless it is finished, prints the table and draws the picture. Scores: cosines of the untrained MiniLM-L6
between pydocs' dev queries and all documents. Each query keeps its relevant documents and its 500 best others (the MW
paper's protocol); then g(q) is drawn from U(−a, a), the same draw stretched to every a.

About 2 minutes on two cores with bf16, most of them to encode the documents.

Source: arXiv:2510.00137, the lemma on the contrastive loss.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import data, tables
from benchmarks.cells import Cell, Experiment, Options, Plan, Results, Settings, Values
from benchmarks.quality import ENCODING, MODEL
from retrieval.encoder import Encoder
from retrieval.errors import require
from retrieval.pooled import pooled_auc

NAME = "blind_spot"
SOURCES = (
    *(set(ENCODING) - {"benchmarks/quality.py"}),
    "benchmarks/blind_spot.py",
    "rankers/lists.py",
    "rankers/losses/*.py",
    "retrieval/pooled.py",
    "retrieval/statistics.py",
)
WIDTHS = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 100.0)
NOTES = (
    "Cosines of the untrained MiniLM-L6 at 64/128 tokens on pydocs' dev queries; per query, its relevant documents and "
    "its 500 best others. Both losses at temperature 0.05, InfoNCE in float64; MW over all pairs of the pool.",
    "The pooled ROC-AUC and its bootstrap interval over queries (10,000 resamples) are of the first draw of offsets; "
    "the range is over all draws. One draw is used for every a, stretched.",
    "This is a demonstration and no result about trained models: it says what a loss can see, not what it learns.",
)

Lists = Sequence[NDArray[np.float64]]


def prepare(options: Options) -> str:
    """Return the hash of the collection that was built from the installed packages."""
    return data.data_hash(data.collection("pydocs", options))


def plan(options: Options, results: Results) -> Plan:
    """Name the one cell."""
    settings = {
        "data": "pydocs",
        "split": "dev",
        "method": "untrained",
        "search": {"query_max_length": 64, "document_max_length": 16 if options.tiny else 128},
        "negatives": 10 if options.tiny else 500,
        "temperature": 0.05,
        "widths": list(WIDTHS),
        "draws": 2 if options.tiny else 5,
    }
    return Plan([Cell(settings=settings, seconds=110, sources=SOURCES)])


def work(settings: Settings, options: Options, folder: Path) -> Values:
    """Score the pool and measure it at every width of offsets."""
    collection = data.collection(settings["data"], options)
    encoder = Encoder.load(MODEL, **settings["search"])
    qrels, texts = collection.qrels(settings["split"]), collection.queries(settings["split"])
    documents = encoder.encode_document(collection.corpus.texts(range(len(collection.corpus))))
    scores = (encoder.encode_query([texts[q] for q in qrels]) @ documents.T).astype(np.float64)
    relevant = [[collection.corpus.row(d) for d, grade in judged.items() if grade >= 1] for judged in qrels.values()]
    positives, negatives = pools(scores, relevant, settings["negatives"])
    points = [
        measured(positives, negatives, width, draws=settings["draws"], temperature=settings["temperature"])
        for width in settings["widths"]
    ]
    return {"points": points, "queries": len(qrels), "pairs": [sum(map(len, positives)), sum(map(len, negatives))]}


def pools(
    scores: NDArray[np.float64], relevant: Sequence[Sequence[int]], size: int
) -> tuple[list[NDArray[np.float64]], list[NDArray[np.float64]]]:
    """Return for each query the scores of its relevant documents, and of its `size` best others."""
    positives, negatives = [], []
    for row, columns in zip(scores, relevant, strict=True):
        positives.append(row[columns])
        others = np.delete(row, columns)
        negatives.append(np.sort(others)[::-1][:size])
    return positives, negatives


def measured(
    positives: Lists, negatives: Lists, width: float, *, draws: int, temperature: float = 0.05
) -> dict[str, Any]:
    """Return both losses and the pooled ROC-AUC with an offset from U(−width, width) on each query's scores."""
    found: dict[str, list[float]] = {"infonce": [], "mw": [], "auc": []}
    interval: dict[str, float] = {}
    for seed in range(draws):
        offsets = width * np.random.default_rng(seed).uniform(-1, 1, len(positives))
        good, bad = ([p + g for p, g in zip(part, offsets, strict=True)] for part in (positives, negatives))
        for name, value in losses(good, bad, temperature).items():
            found[name].append(value)
        auc = pooled_auc(good, bad, resamples=10_000 if seed == 0 else 1)
        found["auc"].append(float(auc))
        interval = interval or {"low": auc.low, "high": auc.high}
    return {"width": width, **interval, **found}


def losses(positives: Lists, negatives: Lists, temperature: float) -> dict[str, float]:
    """Return InfoNCE and MW of the pool, in nats."""
    import torch

    from rankers.lists import pad_lists
    from rankers.losses import build

    rows = [torch.from_numpy(np.concatenate(pair)) for pair in zip(positives, negatives, strict=True)]
    labels = [torch.arange(len(row)) < len(good) for row, good in zip(rows, positives, strict=True)]
    scores, truth, where = pad_lists(rows, labels)
    infonce = build("infonce", temperature=temperature)(scores, truth, where)  # float64, so that it may stay the same
    # Every pair: offsets of 100 spread the scores over more than a table holds.
    mw = build("mw", temperature=temperature, method="exact")(scores.float(), truth, where)
    return {"infonce": float(infonce), "mw": float(mw)}


def table(options: Options, results: Results) -> str:
    """Return the losses and the pooled ROC-AUC by width."""
    cells = plan(options, results).cells
    values = results.values(NAME, cells[0])
    shown = []
    if values is not None:
        heads = ["offsets from U(−a, a): a, cosines", "InfoNCE, nats", "change of InfoNCE, at most", "MW, nats"]
        heads += ["pooled ROC-AUC [95 %]", "draws' range"]
        before = values["points"][0]["infonce"][0]
        body = [
            [
                f"{p['width']:g}",
                f"{np.mean(p['infonce']):.6f}",
                f"{max(abs(value - before) for value in p['infonce']):.0e}",
                f"{np.mean(p['mw']):.4g}",
                f"{p['auc'][0]:.3f} [{p['low']:.3f}, {p['high']:.3f}]",
                f"{min(p['auc']):.3f}–{max(p['auc']):.3f}",
            ]
            for p in values["points"]
        ]
        pairs = "{:,} relevant and {:,} other pairs".format(*values["pairs"])
        shown = [f"{values['queries']} queries, {pairs}.", tables.markdown(heads, body)]
    return tables.report(
        title="InfoNCE's blind spot: one offset for each query",
        command="python -m benchmarks blind_spot",
        tables=shown,
        notes=NOTES,
        missing=int(values is None),
    )


def draw(points: Sequence[dict[str, Any]]) -> Any:
    """Return a figure of the losses and the pooled ROC-AUC over the width of the offsets.

    Raises:
        InputError: matplotlib is not installed.

    """
    require("matplotlib", "bench")
    from matplotlib.figure import Figure

    without, points = points[0], points[1:]  # no offset has no place on a logarithmic axis: the thin lines
    widths = [point["width"] for point in points]
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2, sharex=True)
    for name, shown, colour in (("infonce", "InfoNCE", "tab:blue"), ("mw", "MW", "tab:orange")):
        left.axhline(np.mean(without[name]), color=colour, linewidth=0.8, linestyle=":")
        left.plot(widths, [np.mean(p[name]) for p in points], "o-", color=colour, label=shown)
    left.set(xscale="log", yscale="log", ylabel="loss, nats (temperature 0.05)")
    left.set_title("the losses (dotted: without offsets)")
    right.axhline(without["auc"][0], color="tab:green", linewidth=0.8, linestyle=":")
    right.axhline(0.5, color="grey", linewidth=0.8, linestyle="--", label="a coin")
    right.plot(widths, [p["auc"][0] for p in points], "o-", color="tab:green", label="pooled ROC-AUC")
    low, high = ([p[end] for p in points] for end in ("low", "high"))
    right.fill_between(widths, low, high, color="tab:green", alpha=0.2, label="95 % over queries")
    right.set(ylim=(0.4, 1.0), ylabel="pooled ROC-AUC")
    right.set_title("one threshold for all queries")
    for axes in (left, right):
        axes.set_xlabel("offset of each query, drawn from U(−a, a): a, units of cosine")
        axes.grid(alpha=0.3)
        axes.legend()
    figure.suptitle("A random offset on each query's scores: InfoNCE cannot see it")
    return figure


def main(arguments: list[str] | None = None) -> int:
    """Run the cell unless it is finished, print the table and draw the picture."""
    from benchmarks.__main__ import main as run_benchmarks
    from benchmarks.cells import ROOT

    parser = argparse.ArgumentParser(prog="python -m benchmarks.blind_spot", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--picture", type=Path, default=Path("blind_spot.png"), metavar="FILE.png")
    parser.add_argument("--tiny", action="store_true", help="a dry run on scraps of the data")
    args = parser.parse_args(arguments)
    if (status := run_benchmarks([NAME, *(["--tiny"] if args.tiny else [])])) != 0:
        return status
    build = ROOT / "build" / "tiny" if args.tiny else ROOT / "build"
    folder = build / "results" if args.tiny else ROOT / "benchmarks" / "results"
    options = Options(shared=ROOT, results=folder, build=build, tiny=args.tiny)
    results = Results(folder, keep=True)
    values = results.values(NAME, plan(options, results).cells[0])
    assert values is not None
    args.picture.parent.mkdir(parents=True, exist_ok=True)
    draw(values["points"]).savefig(args.picture, dpi=120)
    print(f"picture: {args.picture}")
    return 0


EXPERIMENT = Experiment(name=NAME, module="benchmarks.blind_spot", prepare=prepare, plan=plan, work=work, table=table)

if __name__ == "__main__":
    sys.exit(main())
