"""What the diagnostics say of a sound model, of a collapsed one, of wrong pairs and of parts of the training rows.

All on the embeddings of the untrained MiniLM-L6, computed once; what is trained is a map of them. Four measurements:

    health      of documents and queries, of batches of near neighbours, and of embeddings that were made to collapse
    collapse    a small network from scratch, batch-hard triplet loss: dimensions and batch sizes, right and wrong pairs
    bad pairs   a share of the positives exchanged for other documents; how many of them the memory of losses flags
    subset      the error of the mean loss of all rows, estimated from a few; and maps trained on a few (medquad's dev)

Some minutes on two cores beside the embeddings, which are kept in the cache folder.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import data, tables
from benchmarks.cells import Cell, Experiment, Options, Plan, Results, Settings, Values
from benchmarks.maps import batches, collapse, ndcg, row_losses, train_map
from benchmarks.quality import ENCODING, MODEL
from retrieval.bad_pairs import LossMemory, judged
from retrieval.bench_data import exchange_positives
from retrieval.collection import Collection
from retrieval.embedding_health import collapsed, effective_rank, health, mean_cosine
from retrieval.encoder import Encoder
from retrieval.head_training import EmbeddedCollection
from retrieval.subset_selection import Clustered, cluster_rows, draw_subset, sampling_probabilities

NAME = "diagnostics"
SOURCES = (
    *(set(ENCODING) - {"benchmarks/quality.py"}),
    "benchmarks/diagnostics.py",
    "benchmarks/maps.py",
    "indexes/clusters.py",
    "rankers/losses/*.py",
    "retrieval/bad_pairs.py",
    "retrieval/bench_data.py",
    "retrieval/embedding_health.py",
    "retrieval/embedding_store.py",
    "retrieval/head_training.py",
    "retrieval/subset_selection.py",
)
SECONDS = {"scifact": 300, "medquad": 900}
NOTES = (
    "Untrained MiniLM-L6 at 64/128 tokens. Batches: a random document and its nearest others, 200 times.",
    "Collapse: 384 → 256 → dimensions from scratch, AdamW at 1e-2, 300 steps, triplet loss with the hardest negative "
    "and margin 0.2; at the end. A warning early in such a run may pass: a new network begins with all vectors alike.",
    "Bad pairs: 5 % of the positives exchanged by hash; a linear map on both sides, InfoNCE at 0.05, batches of 64, "
    "3 epochs. Flagged from so many standard deviations above the mean. No row was noisy (below it).",
    "Subset: one loss for each cluster of query and positive together; the error is the root mean square over 300 "
    "draws, as a share of that of uniform draws. Training: batches of 64, 300 steps, nDCG@10 on dev.",
)


def prepare(options: Options) -> str:
    """Return one hash of both collections."""
    return " ".join(data.data_hash(data.collection(name, options)) for name in SECONDS)


def plan(options: Options, results: Results) -> Plan:
    """Name a cell for each collection."""
    settings = {
        "seeds": 1 if options.tiny else 3,
        "steps": 5 if options.tiny else 300,
        "search": {"query_max_length": 64, "document_max_length": 16 if options.tiny else 128},
        "clusters": 4 if options.tiny else 100,
        "draws": 300,
        "subset": 8 if options.tiny else 300,
        "batch": 4 if options.tiny else 64,
        "noise": 0.3 if options.tiny else 0.05,
        "dimensions": [2, 8, 64],
        "collapse_batches": [4, 8] if options.tiny else [16, 128],
    }
    return Plan([Cell(settings={"data": d, **settings}, seconds=s, sources=SOURCES) for d, s in SECONDS.items()])


def work(settings: Settings, options: Options, folder: Path) -> Values:
    """Encode, then measure."""
    collection = data.collection(settings["data"], options)
    cached = EmbeddedCollection(Encoder.load(MODEL, **settings["search"]), collection)
    documents, known = cached.documents.numpy(), cached.queries.numpy()
    texts, dev = collection.queries("train"), collection.queries("dev") if settings["data"] == "medquad" else {}
    queries = known[[cached.query_row[q] for q in texts]]
    clean = collection.qrels("train")
    first = {q: doc for q in texts if (doc := _first(clean[q], collection))}
    rows = np.array([row for row, q in enumerate(texts) if q in first])
    right = np.array([collection.corpus.row(first[q]) for q in texts if q in first])
    values: Values = {
        "health": health_of(documents, queries),
        "collapse": [
            collapse(queries[rows], documents, right, settings["steps"], dim, batch, shuffled=shuffled)
            for dim in settings["dimensions"]
            for batch in settings["collapse_batches"]
            for shuffled in (False, True)
        ],
        "bad_pairs": bad_pairs(collection, texts, queries, documents, settings),
        "estimates": estimates(queries[rows], documents, right, settings),
        "rows": len(rows),
    }
    if dev:
        qrels, dev_queries = collection.qrels("dev"), known[[cached.query_row[q] for q in dev]]

        def measure(weight: NDArray[np.float32]) -> float:
            return ndcg(dev_queries @ weight.T, documents @ weight.T, list(dev), qrels, collection)

        values["trained"] = trained_on_parts(queries[rows], documents, right, settings, measure)
    return values


def _first(grades: dict[str, int], collection: Collection) -> str | None:
    return next((doc for doc, grade in grades.items() if grade > 0 and doc in collection.corpus), None)


def health_of(documents: NDArray[np.float32], queries: NDArray[np.float32]) -> dict[str, Any]:
    """Measure sound embeddings, batches of neighbours, and what was made to collapse."""
    random = np.random.default_rng(0)
    noise = random.standard_normal(documents.shape).astype(np.float32) / np.sqrt(documents.shape[1])
    centred = documents - documents.mean(axis=0)
    axes = np.linalg.svd(centred, full_matrices=False)[2]
    kinds = {"documents": documents, "queries": queries}
    kinds |= {f"one vector + {size:g} noise": documents[0] + np.float32(size) * noise for size in (0.5, 0.2, 0.03)}
    kinds |= {f"documents in {dim} dimensions": centred @ axes[:dim].T for dim in (2, 8)}
    found: dict[str, Any] = {}
    for name, vectors in kinds.items():
        one = health(vectors)
        found[name] = asdict(one) | {"collapsed": collapsed(one)}
    for size in (16, 64):
        anchors = random.choice(len(documents), min(200, len(documents)), replace=False)
        batches = [documents[np.argsort(-(documents @ documents[a]), kind="stable")[:size]] for a in anchors]
        found[f"batches of {size} neighbours"] = {
            "mean_cosine": [float(np.quantile([mean_cosine(b) for b in batches], share)) for share in (0.5, 1)],
            "effective_rank": [float(np.quantile([effective_rank(b) for b in batches], share)) for share in (0.5, 0)],
            "collapsed": sum(collapsed(health(b)) is not None for b in batches),
            "batches": len(batches),
        }
    return found


def bad_pairs(
    collection: Collection,
    texts: dict[str, str],
    queries: NDArray[np.float32],
    documents: NDArray[np.float32],
    settings: Settings,
) -> list[dict[str, Any]]:
    """Exchange positives, train three epochs, and count which of the exchanged are flagged."""
    clean = collection.qrels("train")
    noisy = exchange_positives(clean, list(collection.corpus.ids), settings["noise"])
    pairs = [(row, q, doc) for row, q in enumerate(texts) if (doc := _first(noisy[q], collection))]
    wrong = np.array([clean[q].get(doc, 0) <= 0 for _, q, doc in pairs])
    rows, positive = np.array([row for row, *_ in pairs]), np.array([collection.corpus.row(d) for *_, d in pairs])
    found = []
    for seed in range(settings["seeds"]):
        memory, random = LossMemory(len(pairs), 3), np.random.default_rng(seed)
        orders = [random.permutation(len(pairs)) for _ in range(3)]
        size = settings["batch"]
        order = [one[start : start + size] for one in orders for start in range(0, len(pairs), size)]
        train_map(queries[rows], documents, positive, order, memory=memory)
        for threshold in (2.0, 3.0):
            one = judged(memory, faulty_from=threshold)
            found.append(
                {
                    "seed": seed,
                    "threshold": threshold,
                    "rows": len(pairs),
                    "exchanged": int(wrong.sum()),
                    "flagged": int(one.faulty.sum()),
                    "hits": int((one.faulty & wrong).sum()),
                    "noisy": int(one.noisy.sum()),
                }
            )
    return found


def estimates(
    queries: NDArray[np.float32], documents: NDArray[np.float32], positive: NDArray[np.int64], settings: Settings
) -> dict[str, float]:
    """Return the error of the mean loss, estimated from a few rows, as a share of that of uniform draws."""
    losses = row_losses(queries, documents, positive)

    def error(p: NDArray[np.float64]) -> float:
        drawn = [draw_subset(p, settings["subset"], seed=seed) for seed in range(settings["draws"])]
        return float(np.sqrt(np.mean([((one.weights * losses[one.rows]).sum() - losses.mean()) ** 2 for one in drawn])))

    uniform, found = error(np.full(len(losses), 1 / len(losses))), {}
    for name, vectors in (("query", queries), ("query and positive", np.hstack([queries, documents[positive]]))):
        clustered = cluster_rows(vectors, settings["clusters"])
        own = losses[clustered.representatives]
        found[name] = error(sampling_probabilities(clustered, own)) / uniform
        found[f"{name}, distances left out"] = (
            error(sampling_probabilities(clustered, own, distance_weight=0)) / uniform
        )
    return found


def trained_on_parts(
    queries: NDArray[np.float32],
    documents: NDArray[np.float32],
    positive: NDArray[np.int64],
    settings: Settings,
    measure: Any,
) -> dict[str, list[float]]:
    """Return nDCG@10 by seed of maps trained on as many rows, chosen in four ways."""
    found: dict[str, list[float]] = {"untrained": [measure(np.eye(queries.shape[1], dtype=np.float32))]}
    both = np.hstack([queries, documents[positive]])
    losses = row_losses(queries, documents, positive)
    for seed in range(settings["seeds"]):
        clustered: Clustered = cluster_rows(both, settings["clusters"], seed=seed)
        p = sampling_probabilities(clustered, losses[clustered.representatives])
        subset = draw_subset(p, settings["subset"], seed=seed)
        size = len(subset.rows)
        uniform = np.random.default_rng(seed).choice(len(queries), size, replace=False)
        centres = cluster_rows(both, size, seed=seed).representatives
        order = batches(size, settings["batch"], settings["steps"], seed)
        parts = {"random": (uniform, None), "sensitivity": (subset.rows, None), "a cluster each": (centres, None)}
        parts["sensitivity, weighted"] = (subset.rows, subset.weights / subset.weights.mean())
        for name, (chosen, weights) in parts.items():
            fitting = [numbers[numbers < len(chosen)] for numbers in order]  # equal rows leave fewer clusters
            weight = train_map(queries[chosen], documents, positive[chosen], fitting, weights)
            found.setdefault(name, []).append(measure(weight))
    return found


def table(options: Options, results: Results) -> str:
    """Return the four measurements of every finished collection."""
    cells = plan(options, results).cells
    shown, missing = [], 0
    for cell in cells:
        values = results.values(NAME, cell)
        if values is None:
            missing += 1
            continue
        shown += [f"**{cell.settings['data']}**, {values['rows']:,} training rows.", *_tables(values, cell.settings)]
    return tables.report(
        title="Diagnostics: health, collapse, bad pairs, parts of the rows",
        command=f"python -m benchmarks {NAME}",
        tables=shown,
        notes=NOTES,
        missing=missing,
    )


def _tables(values: Values, settings: Settings) -> list[str]:
    health_rows, neighbour_rows = [], []
    for name, one in values["health"].items():
        if "batches" in one:
            cosine, rank = one["mean_cosine"], one["effective_rank"]
            neighbour_rows.append([name, *(f"{v:.2f}" for v in cosine), *(f"{v:.1f}" for v in rank), one["collapsed"]])
        else:
            uniform = f"{one['uniformity']:.2f}"
            said = "yes" if one["collapsed"] else "no"
            health_rows.append([name, f"{one['mean_cosine']:.3f}", f"{one['effective_rank']:.1f}", uniform, said])
    collapse_rows = [
        [
            one["dim"],
            one["batch"],
            "shuffled" if one["shuffled"] else "right",
            f"{one['loss']:.4f}",
            f"{one['cosine']:.3f}",
            f"{one['rank']:.1f}",
            "yes" if one["warned"] else "no",
        ]
        for one in values["collapse"]
    ]
    bad_rows = [
        [
            f"{one['threshold']:g}",
            one["seed"],
            one["exchanged"],
            one["flagged"],
            f"{one['hits'] / max(one['flagged'], 1):.3f}",
            f"{one['hits'] / max(one['exchanged'], 1):.3f}",
        ]
        for one in values["bad_pairs"]
    ]
    shown = [
        tables.markdown(["embeddings", "mean cosine", "effective rank", "uniformity", "collapsed"], health_rows),
        tables.markdown(
            ["batches", "mean cosine, median", "highest", "effective rank, median", "lowest", "collapsed"],
            neighbour_rows,
        ),
        tables.markdown(
            ["dimensions", "batch", "pairs", "loss (margin 0.2)", "mean cosine", "effective rank", "warned"],
            collapse_rows,
        ),
        tables.markdown(["from", "seed", "exchanged", "flagged", "share exchanged", "share found"], bad_rows),
        tables.markdown(
            [f"clusters of ({settings['clusters']}; {settings['subset']} draws)", "error / uniform"],
            [[name, f"{value:.2f}"] for name, value in values["estimates"].items()],
        ),
    ]
    if "trained" in values:
        rows = [[name, f"{np.mean(found):.3f}", len(found)] for name, found in values["trained"].items()]
        shown.append(tables.markdown([f"trained on about {settings['subset']} rows", "nDCG@10 on dev", "seeds"], rows))
    return shown


EXPERIMENT = Experiment(name=NAME, module="benchmarks.diagnostics", prepare=prepare, plan=plan, work=work, table=table)
