"""Settings of a training run of a dual encoder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import ClassVar, cast

from retrieval.errors import InputError
from retrieval.hardness_schedule import parse_hardness
from retrieval.loop_config import LoopConfig
from retrieval.negatives import MarginFrom, NegativeRules, Sampling, parse_range


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
        "clusters": 1,
        "proxy_dim": 1,
        "proxy_weight": 0,
        "refresh_every": 0,
        "refresh_depth": 0,
    }
    CHOICES: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "precision": ("auto", "fp32", "bf16"),
        "batching": ("random", "cluster", "proxy"),
    }

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
    # which rows share a batch
    batching: str = "random"  # random | cluster (k-means over the start model) | proxy (global proxies, learned)
    hardness: str = "1"  # share of a batch drawn by likeness, or a schedule of it: 0:1, 0:1:cosine, 0.2@0,0.8@0.5
    clusters: int | None = None  # batching=cluster; None: one for every four batches of rows
    proxy_dim: int = 128  # batching=proxy: dimensions of a proxy
    proxy_weight: float = 1.0  # of the loss over proxies beside the main loss
    # hard negatives that are mined again while the model learns
    refresh_every: int = 0  # steps; 0: off
    refresh_depth: int = 100  # candidates of each query that a refresh encodes; 0: the whole corpus
    refresh_range: str = "1:100"  # ranks that negatives are taken from
    refresh_sampling: str = "random"  # top | random | gumbel
    refresh_relative_margin: float | None = 0.05  # a negative stays so far below the positive, as a share of its score
    refresh_margin_from: str = "lowest"  # of several positives: lowest | mean | highest
    find_bad_pairs: bool = False  # list the rows whose losses stand out in bad_pairs.tsv: duplicates, wrong pairs
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
        self._refuse_settings_without_effect()
        self._refuse_empty_refreshes()

    def _refuse_settings_without_effect(self) -> None:
        names = {"hardness": ("cluster", "proxy"), "clusters": ("cluster",)}
        names |= dict.fromkeys(("proxy_dim", "proxy_weight"), ("proxy",))
        defaults = {f.name: f.default for f in fields(self)}
        parse_hardness(self.hardness)
        for name, wanted in names.items():
            value = getattr(self, name)
            is_default = value == defaults[name] or (
                name == "hardness" and parse_hardness(value) == parse_hardness("1")
            )
            if not is_default and self.batching not in wanted:
                message = f"{name}={value} has no meaning for batching={self.batching}"
                raise InputError(f"{message}; take {' or '.join(wanted)}")

    def _refuse_empty_refreshes(self) -> None:
        rules = self.refresh_rules()
        if not self.refresh_every:
            return
        if not self.num_negatives:
            raise InputError("refresh_every with num_negatives=0 mines negatives that no step takes; raise either")
        if 0 < self.refresh_depth < rules.first_rank:
            message = f"refresh_range {self.refresh_range} begins below the {self.refresh_depth} candidates of a query"
            raise InputError(f"{message}; raise refresh_depth, or take earlier ranks")

    def refresh_rules(self) -> NegativeRules:
        """Return how negatives are chosen when they are mined again."""
        try:
            first, last = parse_range(self.refresh_range, "refresh_range")
            return NegativeRules(
                first_rank=first,
                last_rank=last,
                num_negatives=max(1, self.num_negatives),
                relative_margin=self.refresh_relative_margin,
                margin_from=cast(MarginFrom, self.refresh_margin_from),
                sampling=cast(Sampling, self.refresh_sampling),
                seed=self.seed,
            )
        except InputError as error:
            raise InputError(f"refresh: {error.reason}") from None

    @property
    def reads(self) -> tuple[str, ...]:
        """The start model."""
        return (self.model,)
