"""Settings of a training run of a reranker."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from retrieval.errors import InputError
from retrieval.loop_config import LoopConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class RerankerConfig(LoopConfig):
    """Settings of one reranker, beside those that every training has.

    Its scores are not bounded as cosines are, so every loss divides by a temperature of 1 unless the settings say
    otherwise.
    """

    NEEDED: ClassVar[tuple[str, ...]] = ("model", "data", "out")
    LEAST: ClassVar[Mapping[str, float]] = {
        "num_positives": 1,
        "num_negatives": 0,
        "num_pairs": 1,
        "set_size": 0,
        "eval_depth": 2,
        "eval_queries": 1,
        "batch_tokens": 1,
    }
    CHOICES: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "precision": ("auto", "fp32", "bf16"),
        "architecture": ("auto", "classifier", "set", "pairwise", "encoder", "encoder_decoder"),
    }

    # what is trained on what
    model: str  # a reranker or an encoder: folder, training --out, hub id, or package:MODULE/SUBPATH
    data: str  # BEIR folder, irds:ID, or pydocs
    rows: tuple[str, ...] = ()  # JSONL files of training rows; none: rows are made from the training split's qrels
    run: str | None = None  # TREC run whose documents fill the lists; None: BM25's top 100
    train_split: str = "train"
    dev_split: str = "dev"  # absent from the collection: carved from the training queries by hash
    architecture: str = "auto"  # auto | classifier | set | pairwise | encoder | encoder_decoder
    novelty: bool = False  # of near-duplicates in a list the best alone keeps its grade; for architecture=set
    # lists
    loss: str = "softmax_ce"
    per_device_train_batch_size: int = 16  # lists of an optimizer step, or of each of its accumulated parts
    num_positives: int = 1  # relevant documents of a list, drawn by the seed in each epoch
    num_negatives: int = 7  # other documents of a list, drawn likewise: given ones first, then from run or BM25
    set_size: int | None = None  # as how many a list counts in architecture=set; None: as in training; 0: as it is
    num_pairs: int = 7  # pairs of a list with different labels, drawn likewise; for architecture=pairwise
    # validation
    eval_queries: int = 100  # dev queries that are reranked, chosen by hash
    eval_depth: int = 50  # documents of each, from the run where it has the query, else from BM25
    # texts
    query_max_length: int | None = None  # tokens of the query; None: as long as the pair lets it be
    max_length: int | None = None  # tokens of a pair, special ones included; None: the model's own
    batch_tokens: int | None = None  # tokens of one forward pass, padding included; None: what suits the device
    precision: str = "auto"  # auto | fp32 | bf16

    def __post_init__(self) -> None:
        LoopConfig.__post_init__(self)  # super() does not know a dataclass with slots
        if self.num_positives + self.num_negatives < 2:
            raise InputError("num_positives=1 with num_negatives=0 makes lists of one document; raise either")
        if self.set_size == 1:
            raise InputError("set_size must be at least 2 documents, or 0 for lists as they are; got 1")
        for name, is_given in (("novelty", self.novelty), ("set_size", self.set_size is not None)):
            if is_given and self.architecture not in ("auto", "set"):
                message = f"{name} needs architecture=set, whose documents see each other; got {self.architecture}"
                raise InputError(message)

    @property
    def reads(self) -> tuple[str, ...]:
        """The start model and the candidate lists."""
        return (self.model, self.run) if self.run is not None else (self.model,)
