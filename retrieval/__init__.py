"""Rankwright's retrieval package: train retrievers, search an index, evaluate rankings.

Everything here is imported when it is first used, so that `import retrieval` is fast and works without torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from retrieval.bm25 import BM25Searcher
    from retrieval.collection import Collection
    from retrieval.cross_encoder import CrossEncoder
    from retrieval.encoder import Encoder
    from retrieval.errors import InputError
    from retrieval.evaluation import Estimate, evaluate
    from retrieval.feature_ranker import FeatureRanker
    from retrieval.fusion import fuse
    from retrieval.labelling import label
    from retrieval.ltr_config import LtrConfig
    from retrieval.ltr_training import train_ltr
    from retrieval.mining import mine
    from retrieval.negatives import NegativeRules
    from retrieval.pairwise_reranker import PairwiseReranker
    from retrieval.pipeline import Hybrid, Pipeline
    from retrieval.reranker_config import RerankerConfig
    from retrieval.reranker_training import train_reranker
    from retrieval.reranking import load_reranker, rerank
    from retrieval.search import Hit, Searcher, build_index
    from retrieval.sentence_transformers_losses import CrossEncoderLoss, SentenceTransformerLoss
    from retrieval.train_config import TrainConfig
    from retrieval.training import train
    from retrieval.trec import read_qrels, read_run, write_run

__all__ = [
    "BM25Searcher",
    "Collection",
    "CrossEncoder",
    "CrossEncoderLoss",
    "Encoder",
    "Estimate",
    "FeatureRanker",
    "Hit",
    "Hybrid",
    "InputError",
    "LtrConfig",
    "NegativeRules",
    "PairwiseReranker",
    "Pipeline",
    "RerankerConfig",
    "Searcher",
    "SentenceTransformerLoss",
    "TrainConfig",
    "build_index",
    "evaluate",
    "fuse",
    "label",
    "load_reranker",
    "mine",
    "read_qrels",
    "read_run",
    "rerank",
    "train",
    "train_ltr",
    "train_reranker",
    "write_run",
]

_HOME = {
    "BM25Searcher": "bm25",
    "Collection": "collection",
    "CrossEncoder": "cross_encoder",
    "CrossEncoderLoss": "sentence_transformers_losses",
    "Encoder": "encoder",
    "Estimate": "evaluation",
    "FeatureRanker": "feature_ranker",
    "Hit": "search",
    "Hybrid": "pipeline",
    "InputError": "errors",
    "LtrConfig": "ltr_config",
    "NegativeRules": "negatives",
    "PairwiseReranker": "pairwise_reranker",
    "Pipeline": "pipeline",
    "RerankerConfig": "reranker_config",
    "Searcher": "search",
    "SentenceTransformerLoss": "sentence_transformers_losses",
    "TrainConfig": "train_config",
    "build_index": "search",
    "evaluate": "evaluation",
    "fuse": "fusion",
    "label": "labelling",
    "load_reranker": "reranking",
    "mine": "mining",
    "read_qrels": "trec",
    "read_run": "trec",
    "rerank": "reranking",
    "train": "training",
    "train_ltr": "ltr_training",
    "train_reranker": "reranker_training",
    "write_run": "trec",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'retrieval' has no attribute {name!r}")
    return getattr(import_module(f"retrieval.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
