"""Rankwright's retrieval package: train retrievers, search an index, evaluate rankings.

Everything here is imported when it is first used, so that `import retrieval` is fast and works without torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from retrieval.bm25 import BM25Searcher
    from retrieval.collection import Collection
    from retrieval.encoder import Encoder
    from retrieval.errors import InputError
    from retrieval.evaluation import Estimate, evaluate
    from retrieval.search import Hit, Searcher, build_index
    from retrieval.sentence_transformers_losses import CrossEncoderLoss, SentenceTransformerLoss
    from retrieval.train_config import TrainConfig
    from retrieval.training import train
    from retrieval.trec import read_qrels, read_run, write_run

__all__ = [
    "BM25Searcher",
    "Collection",
    "CrossEncoderLoss",
    "Encoder",
    "Estimate",
    "Hit",
    "InputError",
    "Searcher",
    "SentenceTransformerLoss",
    "TrainConfig",
    "build_index",
    "evaluate",
    "read_qrels",
    "read_run",
    "train",
    "write_run",
]

_HOME = {
    "BM25Searcher": "bm25",
    "Collection": "collection",
    "CrossEncoderLoss": "sentence_transformers_losses",
    "Encoder": "encoder",
    "Estimate": "evaluation",
    "Hit": "search",
    "InputError": "errors",
    "Searcher": "search",
    "SentenceTransformerLoss": "sentence_transformers_losses",
    "TrainConfig": "train_config",
    "build_index": "search",
    "evaluate": "evaluation",
    "read_qrels": "trec",
    "read_run": "trec",
    "train": "training",
    "write_run": "trec",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'retrieval' has no attribute {name!r}")
    return getattr(import_module(f"retrieval.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
