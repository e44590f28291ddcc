"""Mining hard negatives side by side with sentence-transformers' mine_hard_negatives, in one process, by turns.

A B C D, B C D A, …: every round runs each system once, from an empty store or cache folder, and then twice more with
other settings and what the runs before kept; the next round begins with the next system. Model and texts are loaded
anew before each run, so that nothing is kept but what lies on the disk. What is reported is the median of the rounds'
ratios and their range. 2,000 training questions of MedQuAD, chosen by the sha256 of their ids, all 15,809 answers,
texts cut at 64 tokens, MiniLM-L6.

A run has the same settings in every system; what each one chose is compared, text by text.

    first    ranks 11 to 60, no margin, the first 5
    second   ranks 1 to 100, a relative margin of 0.05 to the lowest positive, the first 7: ours kept a search that deep
    third    ranks 1 to 300, a relative margin of 0.1, the first 10: ours kept embeddings alone, and must search again

About 45 minutes on two cores with bf16; run it while nothing else runs.
"""

from __future__ import annotations

import io
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import data, tables
from benchmarks.cells import Cell, Experiment, Options, Plan, Results, Settings, Values, installed
from benchmarks.quality import ENCODING, MODEL
from benchmarks.side_by_side import DEFAULT, OURS, OURS_FP32
from retrieval.collection import Collection
from retrieval.embedding_store import EmbeddingStore
from retrieval.encoder import Encoder
from retrieval.mining import mine
from retrieval.negatives import NegativeRules
from retrieval.rows import rows_from_qrels

NAME = "mining_speed"
DATA = "medquad"
FAISS = f"{DEFAULT}, use_faiss"
SOURCES = (
    *ENCODING,
    "benchmarks/mining_speed.py",
    "indexes/faiss_index.py",
    "indexes/neighbors.py",
    "retrieval/batches.py",
    "retrieval/embedding_store.py",
    "retrieval/mining.py",
    "retrieval/negative_candidates.py",
    "retrieval/negatives.py",
    "retrieval/rows.py",
    "retrieval/stored_neighbors.py",
)
SETTINGS: dict[str, Any] = {"queries": 2_000, "length": 64, "batch": 32, "rounds": 3}
TINY: dict[str, Any] = {"queries": 6, "length": 16, "batch": 4, "rounds": 2}
RUNS = {
    "first": NegativeRules(first_rank=11, last_rank=60, num_negatives=5),
    "second": NegativeRules(last_rank=100, num_negatives=7, relative_margin=0.05),
    "third": NegativeRules(last_rank=300, num_negatives=10, relative_margin=0.1),
}
AIMS = {"first": 3.0, "second": 2.0, "third": 2.0}
SECONDS = 2_700
NOTES = (
    "Same model (MiniLM-L6), texts, lengths and settings. A ratio is theirs / ours of one round; the median and the "
    "range over the rounds are shown. Every system has each run once in every round, another one first each time.",
    "Model and texts are loaded anew before each run, which is not timed: nothing of an earlier run is in memory. What "
    "is timed ends with the rows (ours) or the data set (theirs) in memory.",
    "The later runs have other settings and what the earlier ones kept: our store knows each text by its content and "
    "the search by both sides' texts; theirs is its cache_folder, which keeps whole matrices under the model's name.",
    "The second run's window lies within what our first search kept (at least the best 160), so ours searches nothing; "
    "the third run's does not, so ours searches all documents again.",
    "Ours in fp32 computes what theirs computes; bf16, our default where the processor has it, is the rest.",
    "Both drop the query's own positives and copies of their texts; ours drops copies of the query's text as well, and "
    "documents that are a positive to the model: equal in the tokens that it reads.",
)

WARM_UP = ["what is done for the first time takes longer"] * 32
Chosen = Mapping[str, frozenset[str]]  # query → texts of its negatives
Ready = Callable[[NegativeRules], Callable[[], Chosen]]  # what is timed; what it returns looks the texts up


def prepare(options: Options) -> str:
    """Write the collection with the chosen training queries, and return the hash of what is read."""
    source = data.collection(DATA, options)
    settings = TINY if options.tiny else SETTINGS
    chosen = data.first_queries(source.qrels("train"), settings["queries"])
    return data.data_hash(source, data.split_folder(source, {"train": chosen}, _folder(options)))


def plan(options: Options, results: Results) -> Plan:
    """Name the one cell."""
    settings = {"data": DATA, "method": "mine", **(TINY if options.tiny else SETTINGS)}
    return Plan([Cell(settings=settings, seconds=SECONDS, sources=SOURCES)])


def work(settings: Settings, options: Options, folder: Path) -> Values:
    """Run every system by turns; return the seconds of every run, and how far the choices agree."""
    data_folder, kept = _folder(options), folder / "kept"
    systems: dict[str, Callable[[], Ready]] = {
        OURS: lambda: _ours(data_folder, settings, "auto", kept),
        DEFAULT: lambda: _theirs(data_folder, settings, kept, use_faiss=False),
        FAISS: lambda: _theirs(data_folder, settings, kept, use_faiss=True),
        OURS_FP32: lambda: _ours(data_folder, settings, "fp32", kept),
    }
    seconds: dict[str, dict[str, list[float]]] = {run: {name: [] for name in systems} for run in RUNS}
    chosen: dict[str, dict[str, Chosen]] = {run: {} for run in RUNS}
    for number in range(settings["rounds"]):
        for name in turn(list(systems), number):
            shutil.rmtree(kept, ignore_errors=True)
            for run, rules in RUNS.items():
                system = systems[name]()  # anew: nothing of an earlier run is in memory
                started = time.perf_counter()
                found = system(rules)
                seconds[run][name].append(round(time.perf_counter() - started, 4))
                chosen[run].setdefault(name, found())
    agreement = {
        run: {name: agree(found[OURS_FP32], found[name]) for name in (OURS, DEFAULT, FAISS)}
        for run, found in chosen.items()
    }
    return {"seconds": seconds, "agreement": agreement, "versions": installed(("datasets",))}


def turn(names: list[str], number: int) -> list[str]:
    """Return the order of a round: each begins with the one after that of the round before."""
    first = number % len(names)
    return names[first:] + names[:first]


def agree(ours: Chosen, theirs: Chosen) -> dict[str, float]:
    """Return the share of queries with the same negatives, and of our negatives that they have too.

    A query that one of them left out has none there.
    """
    queries = ours.keys() | theirs.keys()
    none: frozenset[str] = frozenset()
    same = sum(ours.get(query, none) == theirs.get(query, none) for query in queries)
    common = sum(len(found & theirs.get(query, none)) for query, found in ours.items())
    return {"queries": same / max(1, len(queries)), "negatives": common / max(1, sum(map(len, ours.values())))}


def _ours(data_folder: Path, settings: Settings, precision: str, kept: Path) -> Ready:
    collection, length = Collection.load(data_folder), settings["length"]
    encoder = Encoder.load(MODEL, precision=precision, query_max_length=length, document_max_length=length)
    encoder.encode_document(WARM_UP)
    corpus = collection.corpus

    def run(rules: NegativeRules) -> Callable[[], Chosen]:
        rows = mine(collection, encoder, rules=rules, store=EmbeddingStore(kept)).rows
        return lambda: {row.query: frozenset(corpus.texts(map(corpus.row, row.negative_ids))) for row in rows}

    return run


def _theirs(data_folder: Path, settings: Settings, kept: Path, *, use_faiss: bool) -> Ready:
    from datasets import Dataset
    from sentence_transformers.util import mine_hard_negatives

    model = Encoder.load(MODEL, precision="fp32").model
    model.max_seq_length = settings["length"]
    model.encode(WARM_UP, show_progress_bar=False)
    collection = Collection.load(data_folder)
    corpus = collection.corpus
    texts = corpus.texts(range(len(corpus)))
    pairs = [
        {"query": row.query, "positive": text}
        for row in rows_from_qrels(collection)
        for text in corpus.texts(map(corpus.row, row.positive_ids))
    ]
    positives = Dataset.from_list(pairs)

    def run(rules: NegativeRules) -> Callable[[], Chosen]:
        with redirect_stderr(io.StringIO()):  # its progress bars cannot be turned off
            found = mine_hard_negatives(
                positives,
                model,
                corpus=texts,
                range_min=rules.first_rank - 1,
                range_max=rules.last_rank,
                relative_margin=rules.relative_margin,
                num_negatives=rules.num_negatives,
                output_scores=True,
                batch_size=settings["batch"],
                use_faiss=use_faiss,
                cache_folder=str(kept),
                verbose=False,
            )

        def chosen() -> Chosen:
            of_query: dict[str, set[str]] = {}
            for query, negative in zip(found["query"], found["negative"], strict=True):
                of_query.setdefault(query, set()).add(negative)
            return {query: frozenset(negatives) for query, negatives in of_query.items()}

        return chosen

    return run


def table(options: Options, results: Results) -> str:
    """Return ours against theirs, run by run, and what they chose."""
    (cell,) = plan(options, results).cells
    record = results.find(NAME, cell)
    shown = [] if record is None else [*(_rates(run, record["values"]) for run in RUNS), _agreement(record["values"])]
    return tables.report(
        title="Mining hard negatives: ours against sentence-transformers' mine_hard_negatives",
        command=f"python -m benchmarks {NAME}",
        tables=shown,
        notes=[*NOTES, *([] if record is None else [_machine(record)])],
        missing=int(record is None),
    )


def _rates(run: str, values: Values) -> str:
    seconds: dict[str, list[float]] = values["seconds"][run]
    rows = []
    for name, own in seconds.items():
        is_ours = name in (OURS, OURS_FP32)
        ratios = [tables.NOTHING if is_ours else tables.ratio(own, seconds[ours]) for ours in (OURS, OURS_FP32)]
        aim = tables.NOTHING if is_ours else f"≥ {AIMS[run]:g}×"
        rows.append([name, f"{np.median(own):.2f}", *ratios, aim, len(own)])
    heads = [f"{run} run", "seconds, median", f"{OURS} is faster by", f"{OURS_FP32} is faster by", "aim", "rounds"]
    return tables.markdown(heads, rows)


def _agreement(values: Values) -> str:
    rows = [
        [f"{run} run: {name}", f"{100 * found['queries']:.1f} %", f"{100 * found['negatives']:.2f} %"]
        for run, systems in values["agreement"].items()
        for name, found in systems.items()
    ]
    heads = [f"beside {OURS_FP32}", "queries with the same negatives", "negatives in common"]
    return tables.markdown(heads, rows)


def _machine(record: dict[str, Any]) -> str:
    machine, versions = record["machine"], {**record["versions"], **record["values"]["versions"]}
    names = ("torch", "transformers", "sentence-transformers", "faiss-cpu", "datasets")
    listed = ", ".join(f"{name} {versions[name]}" for name in names if name in versions)
    note = f"{machine['cpu']}, {machine['cores']} cores, {'bf16' if machine['bf16'] else 'no bf16'}; {listed}"
    return f"{note}; load when the cell began: {machine['load']:g}."


def _folder(options: Options) -> Path:
    return options.build / "splits" / NAME


EXPERIMENT = Experiment(
    name=NAME, module="benchmarks.mining_speed", prepare=prepare, plan=plan, work=work, table=table, alone=True
)
