"""Training of dual encoders: what a run reads, what a step is, how it is validated, what it leaves."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from retrieval.attention import set_attention
from retrieval.batches import Batch, Batcher
from retrieval.embedding_health import collapse_warning
from retrieval.encoder import Encoder
from retrieval.errors import require
from retrieval.fast_dropout import use_fast_dropout
from retrieval.hard_examples import HardExamples, Watches
from retrieval.model_card import model_card
from retrieval.objective import Objective, build_loss
from retrieval.step_log import StepLog
from retrieval.steps import TokenizedBatch, steps_ahead, steps_per_epoch
from retrieval.train_config import TrainConfig
from retrieval.training_data import TrainingData, load_training_data
from retrieval.training_loop import TrainingStoppedError, TrainResult, planned_steps, run_training
from retrieval.validation import MEASURE, DevSet, full_score, make_dev_set

if TYPE_CHECKING:
    import torch

    from rankers.engine import Watch
    from rankers.losses import LossSum, RankingLoss

__all__ = ["DualEncoderTask", "TrainResult", "TrainingStoppedError", "dry_run", "train"]

logger = logging.getLogger(__name__)


def train(
    config: TrainConfig | None = None, *, resume: bool = False, overwrite: bool = False, **settings: Any
) -> TrainResult:
    """Train a dual encoder and leave its run folder.

    `config.out` then holds `model/` (a sentence-transformers folder: the best model on dev, or the last one where
    nothing is validated), `config.yaml`, `metrics.jsonl`, `environment.json`, `result.json` and `checkpoints/`.

    Args:
        config: the settings; or give them as keywords, `loss.` keys through a dict: `**{"loss.temperature": 0.02}`.
        resume: go on from the last checkpoint (from step 0 where there is none); the weights are then those of an
            uninterrupted run, bit for bit, on the same machine with the same versions and threads.
        overwrite: delete an existing run folder first.

    Returns:
        The run folder, the steps, and nDCG@10 of best and last model on dev: over the validation pool and, unless
        `eval_full` is off, over the full corpus.

    Raises:
        InputError: at impossible settings (before data is read) and bad data.
        TrainingStoppedError: when the loss or a gradient is not finite.

    """
    config = _config(config, settings)
    loss = build_loss(config)
    return run_training(config, lambda: _begun(config, loss), verb="train", resume=resume, overwrite=overwrite)


def dry_run(config: TrainConfig, *, resume: bool = False, overwrite: bool = False) -> int:
    """Check settings, run folder, model and data as :func:`train` would, write nothing, return the number of steps."""
    loss = build_loss(config)
    return planned_steps(config, lambda: _begun(config, loss), verb="train", resume=resume, overwrite=overwrite)


def _config(config: TrainConfig | None, settings: dict[str, Any]) -> TrainConfig:
    require("torch", "train")
    if config is None or settings:
        return TrainConfig.from_dict((config.to_dict() if config else {}) | settings)
    return config


def _begun(config: TrainConfig, loss: RankingLoss | LossSum) -> tuple[DualEncoderTask, dict[str, str]]:
    task = DualEncoderTask(config, loss)
    return task, task.fingerprints()


class DualEncoderTask:
    """A dual encoder and the data that it is trained and validated on.

    Attributes:
        encoder, data, batcher, objective: model, data, batches, and what is minimised.
        dev: the pool that it is validated on, once `prepare` has made it.

    """

    unit = "pairs"

    def __init__(self, config: TrainConfig, loss: RankingLoss | LossSum) -> None:
        import torch

        torch.manual_seed(config.seed)
        self.config, self.loss = config, loss
        self.encoder = Encoder.load(
            config.model,
            precision=config.precision,
            device=config.device,
            query_max_length=config.query_max_length,
            document_max_length=config.document_max_length,
            query_prompt=config.query_prompt,
            document_prompt=config.document_prompt,
            pooling=config.pooling,
            batch_tokens=config.batch_tokens,
        )
        self.data: TrainingData = load_training_data(config)
        self.batcher = Batcher(
            self.data.rows,
            self.data.collection.corpus,
            self.data.judgements,
            self.data.label_rule(loss),
            batch_size=config.per_device_train_batch_size,
            num_positives=config.num_positives,
            num_negatives=config.num_negatives,
            seed=config.seed,
        )
        if self.batcher.dropped:
            logger.info("%d training rows have no positive of the loss's grade and are left out", self.batcher.dropped)
        self.steps_per_epoch = steps_per_epoch(self.batcher, config.gradient_accumulation_steps)
        epochs = math.ceil(config.total_steps(self.steps_per_epoch) / self.steps_per_epoch)
        self.hard = HardExamples(config, self.encoder, self.batcher, epochs=epochs)
        self.model = self._trained()
        self.log = StepLog(self.encoder.dim)
        self._signs = 0  # of collapse, in a row
        self.objective = Objective(
            config,
            loss,
            self.encoder,
            queries=len(self.batcher.query_number),
            max_grade=self.data.max_grade,
            branch=self.hard.branch,
            watching=self._watching,
        )
        self.measure = f"pool_{MEASURE}" if self.data.dev_queries else None
        self.dev: DevSet | None = None

    def _trained(self) -> torch.nn.Module:
        """Return what the optimizer moves: the encoder, and the branch of the global proxies where there is one."""
        import torch

        branch = self.hard.branch
        return (
            self.encoder.model
            if branch is None
            else torch.nn.ModuleDict({"encoder": self.encoder.model, "proxies": branch})
        )

    def _watching(self, batch: Batch) -> Watch:
        return Watches([self.log.watch(batch), *self.hard.watches(batch)])

    def fingerprints(self) -> dict[str, str]:
        """Return hashes of the data and of the start model."""
        return {"data": self.data.fingerprint(), "start model": self.encoder.fingerprint()["weights_sha256"]}

    def prepare(self) -> None:
        """Choose the pool of documents that dev queries are validated on."""
        if self.data.dev_queries:
            self.dev = make_dev_set(
                self.data.dev_queries,
                self.data.dev_qrels,
                self.data.collection.corpus,
                pool_size=self.config.eval_pool_size,
                seed=self.config.seed,
            )

    # --- a step ---------------------------------------------------------------------------------------------------

    def steps(self, first: int, total: int) -> Iterator[list[TokenizedBatch]]:
        """Yield the batches of each step, tokenised ahead, up to where the model must decide what comes next."""
        accumulation = self.config.gradient_accumulation_steps
        for start, stop in pairwise([*self.hard.pauses(first, total, self.steps_per_epoch), total]):
            with self._as_it_is():
                self.hard.before(start, total, self.steps_per_epoch, accumulation)
            with closing(
                steps_ahead(self.batcher, self.encoder, first=start, total=stop, accumulation=accumulation)
            ) as steps:
                yield from steps

    @contextmanager
    def _as_it_is(self) -> Iterator[None]:
        """Have the model in use, and afterwards draw the random numbers that training would have drawn."""
        from rankers.random_state import RandomState

        random = RandomState.now(self.encoder.model.device)
        with self.in_use():
            yield
        random.restore()

    def gradient(self, step: Sequence[TokenizedBatch]) -> float:
        """Add the gradient of a step and return its loss."""
        return self.objective.gradient(step)

    def names(self, step: Sequence[TokenizedBatch]) -> list[str]:
        """Return the ids of a step's queries, or texts where the ids were made from them."""
        return [name for b in step for name in _names(b.batch)]

    def size(self, step: Sequence[TokenizedBatch]) -> int:
        """Return how many queries a step has."""
        return sum(len(b.batch.query_ids) for b in step)

    def causes(self, step: Sequence[TokenizedBatch]) -> Mapping[str, int]:
        """Return how many cells, columns and rows each id-aware rule has touched."""
        found: Counter[str] = Counter()
        for b in step:
            found.update(b.batch.causes)  # + would drop what is 0
        return found

    def observed(self, loss: float) -> dict[str, float]:
        """Return numbers of the step's last batch.

        A collapse that is seen twice in a row is warned of, once.
        """
        found = self.log.values()
        if {"document_cosine", "effective_rank"} <= found.keys():
            sign = collapse_warning(
                loss,
                self._margin(),
                document_cosine=found["document_cosine"],
                effective_rank=found["effective_rank"],
                score_std=found.get("score_std"),
                documents=self.log.documents,
            )
            self._signs = 0 if sign is None else self._signs + 1
            if sign is not None and self._signs == 2:
                logger.warning(sign)
        return found

    def news(self) -> dict[str, float]:
        """Return how alike the rows of the epoch's batches are, once they are drawn, and the seconds of a pause."""
        return self.hard.news()

    def _margin(self) -> float | None:
        """Return the loss of a batch whose scores are all equal, for a triplet loss alone."""
        first, *others = self.loss.terms
        if others or first.name != "triplet":
            return None
        views = self.objective.views
        times = sum(view.weight for view in views.parts) if views else 1.0
        return times * float(first.settings["margin"]) * float(getattr(self.loss, "weights", [1.0])[0])

    def arrays(self) -> Mapping[str, NDArray[Any]]:
        """Return the bank of proxies, the mined negatives, the memory of losses: whatever the settings ask for."""
        return self.hard.arrays()

    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Go on from what a checkpoint kept."""
        self.hard.restore(arrays)

    # --- the model ------------------------------------------------------------------------------------------------

    @contextmanager
    def training(self) -> Iterator[None]:
        """Train with the attention and the dropout that cost least."""
        with use_fast_dropout(self.encoder.model):
            self._switch(training=True)
            yield
            self._switch(training=False)

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Have the model as it is used for search."""
        training = self.encoder.model.training
        self._switch(training=False)
        self.encoder.weights_changed()
        yield
        self.encoder.weights_changed()
        self._switch(training=training)

    def _switch(self, *, training: bool) -> None:
        self.encoder.model.train(training)
        set_attention(self.encoder.model, training=training)

    def score(self) -> float:
        """Return nDCG@10 over the pool."""
        assert self.dev is not None
        return self.dev.score(self.encoder, self.data.collection.corpus)

    def probe(self) -> tuple[str, float, str]:
        """Return the sum of a query's embedding."""
        row = self.batcher.rows[0]
        return "an embedding", float(self.encoder.encode_query([row.query]).sum()), row.query_id

    def measured(self) -> dict[str, float]:
        """Return nDCG@10 over the full corpus, unless the settings say otherwise."""
        if not self.config.eval_full:
            return {}
        data = self.data
        score = full_score(self.encoder, data.collection.corpus, data.dev_queries, data.dev_qrels)
        return {f"full_{MEASURE}": score}

    def publish(self, folder: Path, scores: Mapping[str, float]) -> None:
        """Publish a sentence-transformers folder, and the list of bad pairs beside it."""
        self.hard.report(folder.parent, self.data.collection.corpus)
        self.encoder.save(folder, card=model_card(self.config, self.encoder, self.loss.settings, scores))


def _names(batch: Batch) -> list[str]:
    """Return how a message names the queries of a batch: by id, or by text where the id was made from that."""
    pairs = zip(batch.query_ids, batch.queries, strict=True)
    return [repr(text[:40]) if query_id.startswith("text:") else query_id for query_id, text in pairs]
