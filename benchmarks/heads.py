"""What a loss changes when everything else is cheap: linear heads over cached embeddings, by `bench-losses`.

    ten losses   MedQuAD and SciFact, nine trials each on dev (3 learning rates × 3 temperatures), 3 seeds on test
    noise        InfoNCE, SL@K and decoupled softmax where queries have many relevant documents: Cystic Fibrosis and
                 Vaswani, with 0, 20 and 40 % of the training positives exchanged for documents that nobody judged
    detached     the same for SL@K without the gradient of its weight, which the noise stage showed to be harmful where
                 a query has more relevant documents than K; added after its test results had been seen

A cell is one comparison, `retrieval.bench_losses` with the settings below: MiniLM-L6 is frozen, and a linear map of
the query's vector, which starts as the identity, is trained. About an hour on two cores with bf16.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks import data, tables
from benchmarks.cells import Cell, Experiment, Options, Plan, Results, Settings, Values
from benchmarks.quality import MODEL, TRAINING
from retrieval.bench_config import BenchConfig
from retrieval.bench_results import NOTHING
from retrieval.loss_bench import bench_losses

NAME = "heads"
SOURCES = (
    *TRAINING,
    "benchmarks/heads.py",
    "rankers/engine.py",
    "retrieval/bench_*.py",
    "retrieval/cells.py",
    "retrieval/comparison.py",
    "retrieval/embedding_store.py",
    "retrieval/head_training.py",
    "retrieval/heads.py",
    "retrieval/loss_bench.py",
    "retrieval/objective.py",
    "retrieval/pooled.py",
    "retrieval/statistics.py",
)
TEN = (
    "infonce",
    "decoupled_softmax",
    "soft_topk",
    "sl_at_k",
    "softmax_ce",
    "bixse",
    "siglip",
    "mw",
    "ranknet",
    "multi_similarity",
)
NOISY = ("infonce", "sl_at_k", "decoupled_softmax")
SHARES = (0.0, 0.2, 0.4)
COLLECTIONS = ("medquad", "scifact", "cystic_fibrosis", "vaswani")
LENGTHS = {"medquad": (32, 128), "scifact": (64, 256), "cystic_fibrosis": (64, 128), "vaswani": (64, 128)}
# Batches and epochs, so that every collection takes some hundred steps.
STEPS: dict[str, dict[str, Any]] = {
    "medquad": {"per_device_train_batch_size": 128, "num_train_epochs": 10.0, "evaluations": 5},
    "scifact": {"per_device_train_batch_size": 128, "num_train_epochs": 40.0},
    "cystic_fibrosis": {"per_device_train_batch_size": 32, "num_train_epochs": 40.0},
    "vaswani": {"per_device_train_batch_size": 32, "num_train_epochs": 40.0},
}
SECONDS = {"medquad": 1500.0, "scifact": 500.0, "cystic_fibrosis": 150.0, "vaswani": 230.0}
NOTES = (
    "`rankwright bench-losses --heads linear`: MiniLM-L6 frozen, a linear map on the query's vector. Nine trials of "
    "each loss on dev (learning rates 1e-3, 3e-3, 1e-2; a third, one and three times the loss's own temperature), the "
    "best frozen, 3 seeds on test. A head sees one relevant document per query (noise: four) and the batch's others.",
    "Noise: of the training positives, exchanged by hash; dev and test are as judged, every loss meets the same "
    "errors. 5 folds over all queries, a fifth of each fold's training queries as dev; SL@K with k = 20. These "
    "are judgements with errors put in, not click data.",
    "p: paired randomisation over queries, after Holm over the losses of one comparison.",
)


def prepare(options: Options) -> str:
    """Return one hash of the four collections."""
    return " ".join(data.data_hash(data.collection(name, options))[:8] for name in COLLECTIONS)


def plan(options: Options, results: Results) -> Plan:
    """Name the comparisons."""
    cells = [_cell("ten losses", name, TEN, {}, options) for name in ("scifact", "medquad")]
    for name in ("cystic_fibrosis", "vaswani"):
        for share in SHARES:
            own = {
                "measures": ["nDCG@20", "P@5"],
                "folds": 5,
                "num_positives": 4,
                "label_noise": share,
                "loss_settings": {"sl_at_k.k": 20},
            }
            cells.append(_cell("noise", name, NOISY, own, options))
            settings = {"sl_at_k.k": 20, "sl_at_k.detach_weight": True}
            cells.append(_cell("detached", name, NOISY[:2], {**own, "loss_settings": settings}, options))
    return Plan(cells)


def _cell(stage: str, name: str, losses: tuple[str, ...], own: Mapping[str, Any], options: Options) -> Cell:
    query, document = LENGTHS[name]
    bench: dict[str, Any] = {
        "losses": list(losses),
        "heads": "linear",
        "query_max_length": query,
        "document_max_length": document,
        **STEPS[name],
        **own,
    }
    if options.tiny:
        bench |= {"num_train_epochs": 1.0, "document_max_length": 24, "trials": 1, "evaluations": 1}
        bench["losses"] = bench["losses"][:3]
    noise = f", noise {bench['label_noise']:.0%}" if bench.get("label_noise") else ""
    settings = {"stage": stage, "data": name, "method": f"{name}, {len(losses)} losses{noise}", "bench": bench}
    return Cell(settings=settings, seconds=SECONDS[name], sources=SOURCES)


def work(settings: Settings, options: Options, folder: Path) -> Values:
    """Run one comparison."""
    asked = {name: tuple(value) if isinstance(value, list) else value for name, value in settings["bench"].items()}
    source = data.collection(settings["data"], options)
    found = bench_losses(BenchConfig(model=MODEL, data=str(source.path), out=str(folder / "bench"), **asked))
    return {name: found[name] for name in ("methods", "queries", "baseline", "frozen")}


def table(options: Options, results: Results) -> str:
    """Return a table for each collection of the ten losses, and one of the noise."""
    cells = plan(options, results).cells
    found = [(cell.settings, values) for cell in cells if (values := results.values(NAME, cell)) is not None]
    shown = [_losses_table(settings, values) for settings, values in found if settings["stage"] == "ten losses"]
    if noise := [one for one in found if one[0]["stage"] != "ten losses"]:
        shown.append(_noise_table(noise))
    return tables.report(
        title="Heads over cached embeddings: ten losses, and three under label noise",
        command="python -m benchmarks heads",
        tables=shown,
        notes=NOTES,
        missing=len(cells) - len(found),
    )


def _losses_table(settings: Settings, values: Values) -> str:
    body = []
    for name, one in values["methods"].items():
        first, *others = one["measures"].values()
        body.append(
            [
                name,
                _interval(first),
                _range(first["seeds"]),
                *_difference(one.get("difference")),
                *(f"{other['value']:.3f}" for other in others),
                f"{one['auc']['value']:.3f}",
                NOTHING if one["ece"] is None else f"{'~' if one['fitted_on_dev'] else ''}{one['ece']['value']:.3f}",
                NOTHING if one["dev"] is None else f"{one['dev']:.3f}",
                NOTHING if one["seconds"] is None else f"{one['seconds']:.1f}",
                "; ".join(one["chosen"].values()),
            ]
        )
    measures = list(values["methods"][values["baseline"]]["measures"])
    heads = [f"{settings['data']}, test, {values['queries']:,} queries", f"{measures[0]} [95 %]", "seeds"]
    heads += [f"− {values['baseline']} [95 %]", "p (Holm)", *measures[1:]]
    heads += ["pooled AUC", "ECE", "dev", "s/trial", "chosen"]
    return tables.markdown(heads, body)


def _noise_table(found: list[tuple[Settings, Values]]) -> str:
    body = []
    for settings, values in found:
        for name, one in values["methods"].items():
            is_told = name != "sl_at_k" if settings["stage"] == "detached" else False
            if is_told or (name == "untrained" and settings["bench"]["label_noise"]):
                continue
            ndcg, precision = one["measures"].values()
            noise = "" if name == "untrained" else f"{settings['bench']['label_noise']:.0%}"
            shown = [_interval(ndcg), _range(ndcg["seeds"]), *_difference(one.get("difference")), _interval(precision)]
            label = f"{name}, weight detached" if settings["stage"] == "detached" else name
            body.append([settings["data"], noise, label, *shown])
    heads = ["5-fold", "noise", "loss", "nDCG@20 [95 %]", "seeds", "− infonce [95 %]", "p (Holm)", "P@5 [95 %]"]
    return tables.markdown(heads, body)


def _interval(found: Mapping[str, float]) -> str:
    return f"{found['value']:.3f} [{found['low']:.3f}, {found['high']:.3f}]"


def _range(means: list[float]) -> str:
    return NOTHING if len(means) < 2 else f"{min(means):.3f}–{max(means):.3f}"


def _difference(found: Mapping[str, Any] | None) -> tuple[str, str]:
    if found is None:
        return NOTHING, NOTHING
    p = NOTHING if found["p"] is None else "< 0.001" if found["p"] < 0.001 else f"{found['p']:.3f}"
    return f"{found['value']:+.3f} [{found['low']:+.3f}, {found['high']:+.3f}]", p


EXPERIMENT = Experiment(name=NAME, module="benchmarks.heads", prepare=prepare, plan=plan, work=work, table=table)
