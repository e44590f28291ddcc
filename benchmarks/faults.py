"""Trainings with one fault each, and sound ones: what the doctor's findings are tested on.

Every fault starts from a sound training on a collection (`BASE`: InfoNCE on MiniLM-L6, batch 16, 64 tokens, 30 steps)
and changes one thing: a setting, the training rows, or the start model. Some have variants; the first of each is the
one that is tested, the others serve to find thresholds.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from benchmarks.quality import MODEL
from indexes.storage import write_lines
from retrieval.bm25 import BM25Searcher
from retrieval.collection import Collection
from retrieval.encoder import Encoder
from retrieval.rows import TrainingRow, rows_from_qrels

Settings = dict[str, Any]

BASE: Mapping[str, Any] = MappingProxyType(
    {
        "model": MODEL,
        "loss": "infonce",
        "loss.temperature": 0.05,
        "learning_rate": 2e-5,
        "max_steps": 30,
        "per_device_train_batch_size": 16,
        "query_max_length": 64,
        "document_max_length": 64,
        "logging_steps": 5,
        "eval_strategy": "steps",
        "eval_steps": 15,
        "eval_pool_size": 500,
        "eval_full": False,
        "save_steps": 1_000_000,
    }
)
_MINED_ROWS = 600  # that BM25 is asked for; 30 steps of 16 read 480
_FIRST_RANK, _MINED = 10, 7


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong with a training.

    Attributes:
        finding: the name of the doctor's finding that says so; "" where nothing is wrong.
        made: (collection, folder for files) → settings that differ from `BASE`.

    """

    finding: str
    made: Callable[[Collection, Path], Settings]


def settings_of(name: str, collection: Collection, folder: Path) -> Settings:
    """Return all settings of a training with this fault but `out`, and write its rows and its model into `folder`."""
    return {**BASE, "data": str(collection.path), **SETUPS[name].made(collection, folder)}


def _set(**changes: Any) -> Callable[[Collection, Path], Settings]:
    """Change settings alone; `loss.` keys with two underscores."""
    return lambda collection, folder: {name.replace("__", "."): value for name, value in changes.items()}


def _rows(change: Callable[[Collection], list[TrainingRow]], **changes: Any) -> Callable[[Collection, Path], Settings]:
    """Train on rows of a file."""

    def made(collection: Collection, folder: Path) -> Settings:
        path = folder / "rows.jsonl"
        write_lines(path, (json.dumps(row.to_dict(), ensure_ascii=False) for row in change(collection)))
        return {"rows": [str(path)], **_set(**changes)(collection, folder)}

    return made


# --- rows -------------------------------------------------------------------------------------------------------------


def _with_test(collection: Collection) -> list[TrainingRow]:
    """Train on the test queries too."""
    return [*rows_from_qrels(collection), *rows_from_qrels(collection, "test")]


def _with_test_reworded(collection: Collection) -> list[TrainingRow]:
    """Train on every second test query, with other ids and a word more."""
    rows = rows_from_qrels(collection, "test")[::2]
    changed = [replace(row, query_id=f"x{row.query_id}", query=f"{row.query.upper()} please") for row in rows]
    return [*rows_from_qrels(collection), *changed]


def _shuffled(collection: Collection) -> list[TrainingRow]:
    """Give every query the positives of another one."""
    rows = rows_from_qrels(collection)
    order = np.random.default_rng(0).permutation(len(rows))
    others = {int(one): rows[other] for one, other in zip(order, np.roll(order, 1), strict=True)}
    return [
        TrainingRow(query_id=f"s{i}", query=row.query, positive_ids=others[i].positive_ids)
        for i, row in enumerate(rows)
    ]


def _repeated(collection: Collection) -> list[TrainingRow]:
    """Have every query four times, each under an id of its own."""
    return [replace(row, query_id=f"{row.query_id}-{copy}") for row in rows_from_qrels(collection) for copy in range(4)]


def _repeated_rows(collection: Collection) -> list[TrainingRow]:
    """Have every row twice as it is."""
    return [row for row in rows_from_qrels(collection) for _ in range(2)]


def _one_document(collection: Collection) -> list[TrainingRow]:
    """Give every query the same positive, as where a class is read as a document."""
    rows = rows_from_qrels(collection)
    return [
        TrainingRow(query_id=f"o{i}", query=r.query, positive_ids=rows[0].positive_ids[:1]) for i, r in enumerate(rows)
    ]


def _two_documents(collection: Collection) -> list[TrainingRow]:
    """Give nine queries of ten the same positive."""
    rows, same = rows_from_qrels(collection), _one_document(collection)
    return [row if i % 10 == 0 else one for i, (row, one) in enumerate(zip(rows, same, strict=True))]


def _swapped(collection: Collection) -> list[TrainingRow]:
    """Have the document as the query and the query as its positive."""
    return [
        TrainingRow(query_id=f"w{i}", query=row.positive_texts(collection.corpus)[0], positives=(row.query,))
        for i, row in enumerate(rows_from_qrels(collection))
    ]


def _mined(collection: Collection) -> list[TrainingRow]:
    """Give queries BM25's documents of ranks 10 to 16 that are not judged relevant."""
    rows = rows_from_qrels(collection)
    rows = rows[:: max(1, len(rows) // _MINED_ROWS)][:_MINED_ROWS]
    found = BM25Searcher.build(collection.corpus).run({row.query_id: row.query for row in rows}, 3 * _FIRST_RANK)
    return [
        replace(row, negative_ids=tuple(negatives), negative_labels=())
        for row in rows
        if (
            negatives := [d for d in list(found[row.query_id])[_FIRST_RANK - 1 :] if d not in row.positive_ids][:_MINED]
        )
    ]


def _same_labels(collection: Collection) -> list[TrainingRow]:
    """Label what was mined as relevant, as where a column of labels holds one value."""
    return [
        replace(row, positive_labels=(1.0,) * len(row.positive_ids), negative_labels=(1.0,) * len(row.negative_ids))
        for row in _mined(collection)
    ]


# --- start models -----------------------------------------------------------------------------------------------------


def _prompted(collection: Collection, folder: Path) -> Path:
    """Make a model whose configuration names E5's prompts."""
    path = folder / "prompted"
    Encoder.load(MODEL, query_prompt="query: ", document_prompt="passage: ").save(path, card="")
    return path


def _swapped_prompts(collection: Collection, folder: Path) -> Settings:
    model = str(_prompted(collection, folder))
    return {"model": model, "query_prompt": "passage: ", "document_prompt": "query: "}


def _no_prompts(collection: Collection, folder: Path) -> Settings:
    return {"model": str(_prompted(collection, folder)), "query_prompt": "", "document_prompt": ""}


def _named_e5(collection: Collection, folder: Path) -> Settings:
    """Take a model that is known by its name to need prompts, and whose configuration has none."""
    path = folder / "e5-small-v2"
    Encoder.load(MODEL).save(path, card="")
    return {"model": str(path)}


def _weights(change: Callable[[str, Any], Any]) -> Callable[[Collection, Path], Settings]:
    """Train from MiniLM-L6 with other weights."""

    def made(collection: Collection, folder: Path) -> Settings:
        import torch

        encoder = Encoder.load(MODEL)
        with torch.no_grad():
            for name, weight in encoder.model.named_parameters():
                weight.copy_(change(name, weight))
        encoder.save(folder / "broken", card="")
        return {"model": str(folder / "broken")}

    return made


def _collapsed(name: str, weight: Any) -> Any:
    """Let the last layer's normalisation drown its input in its bias."""
    if name.endswith("encoder.layer.5.output.LayerNorm.weight"):
        return weight * 0.02
    return weight + 1 if name.endswith("encoder.layer.5.output.LayerNorm.bias") else weight


def _overflowing(name: str, weight: Any) -> Any:
    """Make words so large that their squares are no numbers."""
    return weight * 1e30 if name.endswith("word_embeddings.weight") else weight


_INSTRUCTION = "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery: "

SETUPS: Mapping[str, Fault] = MappingProxyType(
    {
        "leak": Fault("leak", _rows(_with_test)),
        "leak, reworded": Fault("leak", _rows(_with_test_reworded)),
        "wrong prompt": Fault("wrong_prompt", _swapped_prompts),
        "wrong prompt, none": Fault("wrong_prompt", _no_prompts),
        "wrong prompt, E5 without": Fault("wrong_prompt", _named_e5),
        "wrong prompt, instruction": Fault(
            "wrong_prompt", _set(query_prompt=_INSTRUCTION, document_prompt=_INSTRUCTION)
        ),
        "temperature 5": Fault("temperature", _set(loss__temperature=5.0)),
        "temperature 1": Fault("temperature", _set(loss__temperature=1.0)),
        "temperature 0.0005": Fault("temperature", _set(loss__temperature=5e-4)),
        "scale 0.2": Fault("temperature", lambda c, f: {"loss": "bixse", "loss.scale": 0.2, "loss.temperature": None}),
        "learning rate 1": Fault("learning_rate", _set(learning_rate=1.0)),
        "learning rate 0.01": Fault("learning_rate", _set(learning_rate=0.01)),
        "learning rate 1e-9": Fault("learning_rate", _set(learning_rate=1e-9)),
        "all-same labels": Fault("same_labels", _rows(_same_labels)),
        "all-same labels, graded": Fault("same_labels", _rows(_same_labels, loss="softmax_ce", num_positives=4)),
        "shuffled labels": Fault("shuffled_labels", _rows(_shuffled)),
        "truncated texts": Fault("truncation", _set(query_max_length=8, document_max_length=8)),
        "truncated documents": Fault("truncation", _set(document_max_length=8)),
        "truncated queries": Fault("truncation", _set(query_max_length=5)),
        "duplicate queries": Fault("duplicate_queries", _rows(_repeated)),
        "duplicate rows": Fault("duplicate_queries", _rows(_repeated_rows)),
        "collapsed model": Fault("collapsed_model", _weights(_collapsed)),
        "overflow": Fault("overflow", _set(loss__temperature=1e-40)),
        "overflow, weights": Fault("overflow", _weights(_overflowing)),
        "one class": Fault("one_class", _rows(_one_document)),
        "one class, nearly": Fault("one_class", _rows(_two_documents)),
        "swapped query and document": Fault("swapped_sides", _rows(_swapped)),
        "sound": Fault("", _set()),
        "sound, graded": Fault("", _set(loss="softmax_ce", num_positives=4)),
        "sound, mined negatives": Fault("", _rows(_mined, per_device_train_batch_size=8)),
        "sound, bixse": Fault("", lambda c, f: {"loss": "bixse", "loss.temperature": None, "loss.scale": "learned"}),
        "sound, fast": Fault("", _set(learning_rate=2e-4, loss__temperature=0.02)),
    }
)
TESTED = (
    "leak",
    "wrong prompt",
    "temperature 5",
    "learning rate 1",
    "all-same labels",
    "shuffled labels",
    "truncated texts",
    "duplicate queries",
    "collapsed model",
    "overflow",
    "one class",
    "swapped query and document",
)


def sound_setups() -> Iterator[tuple[str, str]]:
    """Yield (collection, set-up) of the sound trainings that are tested."""
    yield "scifact", "sound"
    yield "medquad", "sound"
    yield "scifact", "sound, graded"
    yield "medquad", "sound, mined negatives"
    yield "cystic_fibrosis", "sound, graded"
