"""Settings of a training run of a dual encoder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from retrieval.errors import InputError
from retrieval.loop_config import LoopConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig(LoopConfig):
    """Settings of one dual-encoder run, beside those that every training has."""

    NEEDED: ClassVar[tuple[str, ...]] = ("model", "data", "out")
    LEAST: ClassVar[Mapping[str, float]] = {
        "num_positives": 1,
        "num_negatives": 0,
        "eval_pool_size": 1,
        "batch_tokens": 1,
        "chunk_size": 1,
        "sam_rho": 0,
    }
    CHOICES: ClassVar[Mapping[str, tuple[str, ...]]] = {"precision": ("auto", "fp32", "bf16")}

    # what is trained on what
    model: str  # folder, training --out, hub id, or package:MODULE/SUBPATH
    data: str  # BEIR folder, irds:ID, or pydocs
    rows: tuple[str, ...] = ()  # JSONL files of training rows; none: rows are made from the training split's qrels
    train_split: str = "train"
    dev_split: str = "dev"  # absent from the collection: carved from the training queries by hash
    # the batch, whose queries share their documents as in-batch negatives
    matryoshka_dims: tuple[int, ...] = ()  # first dimensions that must serve alone; the losses of all are added
    chunk_size: int | None = None  # texts embedded with their graph at once: any batch size; None: a whole batch
    num_positives: int = 1  # relevant documents per query and epoch, drawn by the seed
    num_negatives: int = 7  # given (mined) negatives per query and epoch, drawn by the seed; fewer where fewer exist
    sam_rho: float = 0.0  # > 0: sharpness-aware steps, of this radius; two gradients a step
    # validation
    eval_pool_size: int = 3_000  # documents that dev queries are validated on during training
    eval_full: bool = True  # best and last model are also measured on the full corpus at the end
    # texts
    query_max_length: int | None = None  # tokens, special ones included; None: the model's own
    document_max_length: int | None = None
    query_prompt: str | None = None  # None: the model's own
    document_prompt: str | None = None
    pooling: str | None = None  # for a plain HF encoder: mean, cls, max or lasttoken
    batch_tokens: int | None = None  # tokens of one forward pass, padding included; None: what suits the device
    precision: str = "auto"  # auto | fp32 | bf16

    def __post_init__(self) -> None:
        LoopConfig.__post_init__(self)  # super() does not know a dataclass with slots
        if any(dim < 1 for dim in self.matryoshka_dims) or len(set(self.matryoshka_dims)) < len(self.matryoshka_dims):
            raise InputError(f"matryoshka_dims must be different numbers > 0, got {list(self.matryoshka_dims)}")
        if self.per_device_train_batch_size == 1 and self.num_negatives == 0:
            raise InputError("per_device_train_batch_size=1 with num_negatives=0 leaves no negatives; raise either")

    @property
    def reads(self) -> tuple[str, ...]:
        """The start model."""
        return (self.model,)
