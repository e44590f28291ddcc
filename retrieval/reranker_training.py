"""Training of rerankers: lists of documents, scored pair by pair and compared list by list.

`retrieval.candidate_lists` draws the lists, `retrieval.list_gradients` computes a step, and the loop of
`retrieval.training_loop` does the rest.

Import this module only where torch is installed.
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from rankers.losses import LossSum, RankingLoss
from rankers.set_encoder import SetScorer
from retrieval.candidate_lists import ListBatcher, Pool
from retrieval.cross_encoder import CrossEncoder
from retrieval.cross_encoder_models import choose_attention
from retrieval.errors import InputError
from retrieval.evaluation import evaluate
from retrieval.fast_dropout import use_fast_dropout
from retrieval.list_gradients import TokenizedList, backward
from retrieval.model_card import reranker_card
from retrieval.objective import build_loss
from retrieval.pairwise_reranker import PairwiseReranker
from retrieval.reranker_config import RerankerConfig
from retrieval.reranking import Reranker, rerank
from retrieval.steps import one_ahead
from retrieval.training_data import TrainingData, load_training_data
from retrieval.training_loop import TrainResult, planned_steps, run_training
from retrieval.training_task import NothingBetweenSteps
from retrieval.trec import Run, read_run

MEASURE = "nDCG@10"
LEAST_RATE_OF_NEW_LAYER = 5e-5  # below it 188 steps reach half of what they reach at 1e-4 (docs/rerankers.md)

logger = logging.getLogger(__name__)


def train_reranker(
    config: RerankerConfig | None = None, *, resume: bool = False, overwrite: bool = False, **settings: Any
) -> TrainResult:
    """Train a reranker and leave its run folder, as :func:`retrieval.train` does for dual encoders.

    `config.out/model` is then a folder that `retrieval.load_reranker` opens, and plain
    `sentence_transformers.CrossEncoder` too, unless it is a Set-Encoder, a T5-type or a pairwise model.

    A pairwise model gets pairs of a list instead of the list: each is a list of two, whose better document has the
    label 1. So softmax_ce is the logistic loss of the difference of their scores, and 0.5*point_ce PairRanker's own
    loss, the mean of two binary cross-entropies (arXiv:2306.02561).

    Args:
        config: the settings; or give them as keywords.
        resume: go on from the last checkpoint, to the weights of an uninterrupted run, bit for bit.
        overwrite: delete an existing run folder first.

    Returns:
        The run folder, the steps, and nDCG@10 of the best model on dev: its reranking of at most `eval_queries`
        queries' candidates, measured against all judgements.

    Raises:
        InputError: at impossible settings (before data is read) and bad data.
        TrainingStoppedError: when the loss or a gradient is not finite.

    """
    if config is None or settings:
        config = RerankerConfig.from_dict((config.to_dict() if config else {}) | settings)
    loss = checked_loss(config)
    own = config
    return run_training(own, lambda: _begun(own, loss), verb="train-reranker", resume=resume, overwrite=overwrite)


def dry_run(config: RerankerConfig, *, resume: bool = False, overwrite: bool = False) -> int:
    """Check all that :func:`train_reranker` would, write nothing, return the number of steps."""
    loss = checked_loss(config)
    return planned_steps(
        config, lambda: _begun(config, loss), verb="train-reranker", resume=resume, overwrite=overwrite
    )


def checked_loss(config: RerankerConfig) -> RankingLoss | LossSum:
    """Build the loss, with temperature 1 where the settings give none, or say why it does not fit lists."""
    loss = build_loss(config, bounded=False)
    if loss.is_symmetric:
        raise InputError("loss: symmetric asks each document for its query; a reranker's lists share none")
    if config.novelty and loss.kind == "teacher":
        raise InputError(f"novelty gives repeated documents the grade 0; {loss.name} learns a teacher's scores")
    return loss


def _begun(config: RerankerConfig, loss: RankingLoss | LossSum) -> tuple[RerankerTask, dict[str, str]]:
    task = RerankerTask(config, loss)
    return task, task.fingerprints()


class RerankerTask(NothingBetweenSteps):
    """A reranker and the data that it is trained and validated on.

    Attributes:
        reranker, data, batcher: model, data, and what draws lists.
        ranker: what reranks with the model.
        dev: query id → document id → score of the first stage, what is reranked on dev; once `prepare` has made it.

    """

    def __init__(self, config: RerankerConfig, loss: RankingLoss | LossSum) -> None:
        run = None if config.run is None else read_run(config.run)
        torch.manual_seed(config.seed)
        self.config, self.loss = config, loss
        self.reranker = CrossEncoder.load(
            config.model,
            precision=config.precision,
            device=config.device,
            query_max_length=config.query_max_length,
            max_length=config.max_length,
            batch_tokens=config.batch_tokens,
            architecture=config.architecture,
            seed=config.seed,
        )
        for name, is_given in (("novelty", config.novelty), ("set_size", config.set_size is not None)):
            if is_given and not self.reranker.reads_lists:
                raise InputError(f"{name} needs a model whose documents see each other; give --architecture set")
        self.model = self.reranker.model
        self.is_pairwise = self.model.architecture == "pairwise"
        self.ranker: Reranker = PairwiseReranker(self.reranker) if self.is_pairwise else self.reranker
        self.unit = "duels" if self.is_pairwise else "lists"
        if self.is_pairwise and any(term.settings.get("positive_from", 1) > 1 for term in loss.terms):
            raise InputError("positive_from: of a pair the better document has the label 1; leave it out")
        self.data: TrainingData = load_training_data(config)
        self.pool = Pool(self.data.collection.corpus, run)
        self.batcher = ListBatcher(
            self.data.rows,
            self.pool,
            self.data.judgements,
            self.data.label_rule(loss),
            batch_size=config.per_device_train_batch_size,
            num_positives=config.num_positives,
            num_negatives=config.num_negatives,
            novelty=config.novelty,
            seed=config.seed,
        )
        self._refuse_what_changes_nothing()
        if isinstance(self.model, SetScorer):
            size = self.batcher.num_positives + self.batcher.num_negatives
            self.model.set_size = (size if config.set_size is None else config.set_size) or None
        self.pool.check(self.batcher.query_number, config.run)
        if self.batcher.dropped:
            logger.info("%d training rows have no positive of the loss's grade and are left out", self.batcher.dropped)
        if self.reranker.has_new_output:
            self._warn_of_a_new_output_layer()
        if isinstance(loss, LossSum):
            loss.max_grade = self.data.max_grade
        loss.remember(len(self.batcher.query_number))
        loss.to(self.reranker.device)
        self.steps_per_epoch = math.ceil(len(self.batcher.epoch(0)) / config.gradient_accumulation_steps)
        self.measure = f"reranked_{MEASURE}" if self.data.dev_queries else None
        self.dev: Run = {}

    def _warn_of_a_new_output_layer(self) -> None:
        if self.config.learning_rate < LEAST_RATE_OF_NEW_LAYER:
            message = "the model's output layer is new, and learns little in a short training at a learning rate of %g;"
            logger.warning(message + " try --learning-rate 1e-4", self.config.learning_rate)
        if not self.is_pairwise and any(term.name == "point_ce" for term in self.loss.terms):
            message = "point_ce: the model's new output layer starts at even odds, and most documents are not relevant;"
            logger.warning("%s a short training learns more by bixse, the same loss from the labels' prior on", message)

    def _refuse_what_changes_nothing(self) -> None:
        batcher, config = self.batcher, self.config
        if batcher.num_positives + batcher.num_negatives < 2:
            message = f"{self.loss.name} takes one relevant document in a list, and num_negatives=0 leaves no other"
            raise InputError(f"{message}; raise num_negatives")
        has_grades = any(any(row.negative_labels) for row in batcher.rows)
        if config.novelty and batcher.num_positives < 2 and not has_grades:
            raise InputError("novelty changes nothing in lists of one relevant document; raise num_positives")

    def fingerprints(self) -> dict[str, str]:
        """Return hashes of the data, of the candidates and of the start model."""
        found = {"data": self.data.fingerprint(), "start model": self.reranker.fingerprint()["weights_sha256"]}
        if self.config.run is not None:
            found["run"] = hashlib.sha256(Path(self.config.run).read_bytes()).hexdigest()
        return found

    def prepare(self) -> None:
        """Choose the dev queries, in the order of their hashes, and their candidates."""
        qrels, depth = self.data.dev_qrels, self.config.eval_depth
        for query_id in sorted(self.data.dev_queries, key=lambda name: hashlib.sha256(name.encode()).hexdigest()):
            if len(self.dev) == self.config.eval_queries:
                break
            if not any(grade > 0 for grade in qrels[query_id].values()):
                continue
            candidates = self.pool.documents(query_id, self.data.dev_queries[query_id], depth)
            self.dev[query_id] = {doc_id: -float(rank) for rank, doc_id in enumerate(candidates)}

    # --- a step ---------------------------------------------------------------------------------------------------

    def steps(self, first: int, total: int) -> Iterator[list[TokenizedList]]:
        """Yield the lists of each step, drawn and tokenised while the step before is computed."""
        return one_ahead(self._steps(first, total))

    def _steps(self, first: int, total: int) -> Iterator[list[TokenizedList]]:
        size, in_epoch = self.config.gradient_accumulation_steps, self.steps_per_epoch
        for epoch in range(first // in_epoch, math.ceil(total / in_epoch)):
            batches = self.batcher.epoch(epoch)
            for place in range(in_epoch):
                if first <= epoch * in_epoch + place < total:
                    ours = batches[place * size : (place + 1) * size]
                    yield self._made([int(number) for batch in ours for number in batch], epoch)

    def _made(self, numbers: Sequence[int], epoch: int) -> list[TokenizedList]:
        if self.is_pairwise:
            return self._duels(numbers, epoch)
        drawn = (self.batcher.make(number, epoch) for number in numbers)
        made = [one for one in drawn if one.documents]  # a teacher may have scored nothing that is drawn
        queries = [one.query for one in made for _ in one.documents]
        pairs = iter(self.reranker.tokenize(queries, [text for one in made for text in one.documents]))
        return [TokenizedList(one, [next(pairs) for _ in one.documents]) for one in made]

    def _duels(self, numbers: Sequence[int], epoch: int) -> list[TokenizedList]:
        made = [one for number in numbers for one in self.batcher.duels(number, epoch, self.config.num_pairs)]
        queries, pairs = [one.query for one in made], [one.documents for one in made]
        tokens = self.reranker.pairs.tokenize_duels(queries, [a for a, _ in pairs], [b for _, b in pairs])
        return [TokenizedList(one, [sequence]) for one, sequence in zip(made, tokens, strict=True)]

    def gradient(self, step: Sequence[TokenizedList]) -> float:
        """Add the gradient of a step's loss and return the loss."""
        return backward(self.reranker, self.loss, step)

    def names(self, step: Sequence[TokenizedList]) -> list[str]:
        """Return the ids of a step's queries."""
        return list(dict.fromkeys(one.made.query_id for one in step))

    def size(self, step: Sequence[TokenizedList]) -> int:
        """Return how many lists or duels a step has."""
        return len(step)

    def causes(self, step: Sequence[TokenizedList]) -> Mapping[str, int]:
        """Return how many documents there were, how many came from the pool, and how many were alone in their list."""
        sizes = [len(one.made.documents) for one in step]
        filled = sum(one.made.filled for one in step)
        return Counter(documents=sum(sizes), filled=filled, alone=sizes.count(1))

    # --- the model ------------------------------------------------------------------------------------------------

    @contextmanager
    def training(self) -> Iterator[None]:
        """Train with the attention and the dropout that cost least."""
        with use_fast_dropout(self.model):
            self._switch(training=True)
            yield
            self._switch(training=False)

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Have the model as it reranks."""
        training = self.model.training
        self._switch(training=False)
        self.reranker.weights_changed()
        yield
        self.reranker.weights_changed()
        self._switch(training=training)

    def _switch(self, *, training: bool) -> None:
        self.model.train(training)
        choose_attention(self.model, training=training)

    def score(self) -> float:
        """Return nDCG@10 of the reranked dev candidates."""
        corpus, qrels = self.data.collection.corpus, self.data.dev_qrels
        found = rerank(self.dev, self.ranker, self.data.dev_queries, corpus, k=self.config.eval_depth)
        return float(evaluate({q: qrels[q] for q in self.dev}, found, [MEASURE], resamples=1)[MEASURE])

    def probe(self) -> tuple[str, float, str]:
        """Return the score of a query with its own text as the document."""
        row = self.batcher.rows[0]
        text = [row.query]
        tokens = self.reranker.pairs.tokenize_duels(text, text, text) if self.is_pairwise else None
        with torch.inference_mode():
            scores = self.reranker.forward(tokens or self.reranker.tokenize(text, text))
        return "a score", float(scores.sum()), row.query_id

    def measured(self) -> dict[str, float]:
        """Nothing more is measured at the end."""
        return {}

    def publish(self, folder: Path, scores: Mapping[str, float]) -> None:
        """Publish a folder that `load_reranker` opens."""
        self.reranker.save(folder, card=reranker_card(self.config, self.reranker, self.loss.settings, scores))
