"""The training loop of dual encoders: short, deterministic, resumable to the bit."""

from __future__ import annotations

import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from indexes.storage import locked
from retrieval.attention import set_attention
from retrieval.batches import Batch, Batcher
from retrieval.checkpoints import (
    Progress,
    checkpoint_folder,
    checkpoint_steps,
    load_checkpoint,
    load_weights,
    remove_old_checkpoints,
    resumable_step,
    save_checkpoint,
)
from retrieval.encoder import Encoder
from retrieval.errors import require
from retrieval.fast_dropout import use_fast_dropout
from retrieval.interrupts import finish_step_on_signal
from retrieval.objective import Objective, build_loss
from retrieval.optimizer import learning_rate, make_optimizer
from retrieval.progress import progress as progress_bar
from retrieval.run_folder import RunFolder, model_card
from retrieval.steps import TokenizedBatch, steps_ahead, steps_per_epoch
from retrieval.train_config import TrainConfig
from retrieval.training_data import TrainingData, load_training_data
from retrieval.validation import MEASURE, DevSet, full_score, make_dev_set

if TYPE_CHECKING:
    from rankers.losses import LossSum, RankingLoss

T = TypeVar("T")

logger = logging.getLogger(__name__)


class TrainingStoppedError(RuntimeError):
    """The loss or its gradient is not finite; the last good checkpoint is intact."""


@dataclass(frozen=True, slots=True)
class TrainResult:
    """What a finished run gave.

    Attributes:
        out: the run folder; `out/model` is the best model.
        steps: optimizer steps done.
        best_step: the step of the best model; `steps` where nothing was validated.
        dev: nDCG@10 of best and last model, over the validation pool and over the full corpus, as measured.

    """

    out: Path
    steps: int
    best_step: int
    dev: dict[str, float]


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

    Raises:
        InputError: at impossible settings (before data is read) and bad data.
        TrainingStoppedError: when the loss or a gradient is not finite.

    """
    config = _config(config, settings)
    loss = build_loss(config)
    folder = RunFolder(Path(config.out))
    finished = folder.check(config, resume=resume, overwrite=overwrite)
    if finished is None:
        run = TrainingRun(config, loss, folder)
        with locked(folder.path):
            # Nothing is deleted or written before settings, model and data have proved good.
            finished = folder.begin(config, run.fingerprints(), resume=resume, overwrite=overwrite)
            if finished is None:
                return run.finish()
    logger.info("%s is finished (%d steps); nothing to do", config.out, finished["steps"])
    return TrainResult(folder.path, finished["steps"], finished["best_step"], finished["dev"])


def dry_run(config: TrainConfig, *, resume: bool = False, overwrite: bool = False) -> int:
    """Check settings, run folder, model and data as :func:`train` would, write nothing, return the number of steps."""
    folder = RunFolder(Path(config.out))
    loss = build_loss(config)
    folder.check(config, resume=resume, overwrite=overwrite)
    return TrainingRun(config, loss, folder).total_steps


def _config(config: TrainConfig | None, settings: dict[str, Any]) -> TrainConfig:
    require("torch", "train")
    if config is None or settings:
        return TrainConfig.from_dict((config.to_dict() if config else {}) | settings)
    return config


class TrainingRun:
    """One run in one process: data, model, optimizer, and where it stands. Nothing is written before `finish`."""

    def __init__(self, config: TrainConfig, loss: RankingLoss | LossSum, folder: RunFolder) -> None:
        import torch

        torch.manual_seed(config.seed)
        self.config, self.loss, self.folder = config, loss, folder
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
        epochs = math.ceil(config.num_train_epochs * self.steps_per_epoch)
        self.total_steps = config.max_steps if config.max_steps > 0 else max(1, epochs)
        self.model = self.encoder.model
        self.objective = Objective(
            config, loss, self.encoder, queries=len(self.batcher.query_number), max_grade=self.data.max_grade
        )
        self.optimizer = make_optimizer(self.model, self.loss, config)
        self.progress = Progress()
        self.dev: DevSet | None = None

    def fingerprints(self) -> dict[str, str]:
        """Return hashes of the data and of the start model."""
        return {"data": self.data.fingerprint(), "start model": self.encoder.fingerprint()["weights_sha256"]}

    def finish(self) -> TrainResult:
        """Run what is left of the run, choose the model, publish it."""
        if self.data.dev_queries:
            self.dev = make_dev_set(
                self.data.dev_queries,
                self.data.dev_qrels,
                self.data.collection.corpus,
                pool_size=self.config.eval_pool_size,
                seed=self.config.seed,
            )
        step = resumable_step(self.folder.path)
        if step is not None:
            last = checkpoint_folder(self.folder.path, step)
            self.progress = load_checkpoint(last, self.model, self.loss, self.optimizer)
            logger.info("going on from step %d of %d", step, self.total_steps)
        self.folder.write_metrics(self.progress.metrics)
        if self.dev is not None and self.progress.best_step < 0:
            self._validate()
        with use_fast_dropout(self.model):
            self._train()
        return self._publish()

    # --- the loop -------------------------------------------------------------------------------------------------

    def _train(self) -> None:
        config, state = self.config, self.progress
        self.model.train()
        set_attention(self.model, training=True)
        started, pairs = time.perf_counter(), 0
        batches_of_steps = steps_ahead(
            self.batcher,
            self.encoder,
            first=state.step,
            total=self.total_steps,
            accumulation=config.gradient_accumulation_steps,
        )
        bar: Any = progress_bar(total=self.total_steps, unit="steps", label=f"training {config.loss}")
        with bar, closing(batches_of_steps), finish_step_on_signal() as stop:
            bar.update(state.step)
            for batches in batches_of_steps:
                if self._is_over():
                    break
                norm = self._step(batches)
                pairs += sum(len(b.batch.query_ids) for b in batches)
                bar.update(1)
                if state.step % config.logging_steps == 0 or state.step == self.total_steps:
                    rate, loss = pairs / (time.perf_counter() - started), float(np.mean(state.losses))
                    state.losses = []
                    bar.set_postfix(loss=f"{loss:.4f}", pairs_per_s=f"{rate:.0f}")
                    self._log(
                        loss=loss, grad_norm=norm, pairs_per_second=rate, **self.objective.learned(), **state.causes
                    )
                    started, pairs = time.perf_counter(), 0
                if self._validation_is_due():
                    self._validate()
                    started, pairs = time.perf_counter(), 0
                if stop.requested or state.step % config.save_steps == 0 or state.step == self.total_steps:
                    self._save()
                if stop.requested:
                    stop.deliver()
        set_attention(self.model, training=False)
        self.model.eval()

    def _is_over(self) -> bool:
        patience = self.config.early_stopping_patience
        return self.progress.step >= self.total_steps or bool(patience and self.progress.stale >= patience)

    def _validation_is_due(self) -> bool:
        if self.dev is None:
            return False
        step = self.progress.step
        interval = self.config.eval_steps if self.config.eval_strategy == "steps" else self.steps_per_epoch
        return step % interval == 0 or step == self.total_steps

    def _step(self, batches: Sequence[TokenizedBatch]) -> float:
        """Take one optimizer step and return the norm of its gradient before clipping."""
        state, queries = self.progress, [name for b in batches for name in _names(b.batch)]
        value = self.objective.gradient(batches)
        self._refuse_if_not_finite("the loss", value, queries)
        norm = self._clip()
        self._refuse_if_not_finite("the gradient", norm, queries)
        rate = learning_rate(state.step, self.total_steps, self.config)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["share"]
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        state.step += 1
        state.losses.append(value)
        causes = Counter(state.causes)
        for b in batches:
            causes.update(b.batch.causes)
        state.causes = dict(causes)
        return norm

    def _clip(self) -> float:
        import torch

        limit = self.config.max_grad_norm or math.inf
        return float(torch.nn.utils.clip_grad_norm_(self.objective.parameters, limit))

    def _refuse_if_not_finite(self, what: str, value: float, queries: Sequence[str], step: int | None = None) -> None:
        if math.isfinite(value):
            return
        names = ", ".join(queries[:8]) + (", …" if len(queries) > 8 else "")
        step = self.progress.step + 1 if step is None else step
        found = checkpoint_steps(self.folder.path)
        last = f"the checkpoint of step {found[-1]} is intact" if found else "no checkpoint was due yet"
        fix = f"start again with --overwrite and a lower learning_rate (now {self.config.learning_rate:g})"
        raise TrainingStoppedError(f"{what} is {value} at step {step}, queries {names}; {last}; {fix}")

    def _refuse_broken_vectors(self) -> None:
        """Stop before a model that has stopped making vectors is measured or saved: a gradient cannot tell."""
        row = self.batcher.rows[0]
        vector = self._as_in_search(lambda: self.encoder.encode_query([row.query]))
        self._refuse_if_not_finite("an embedding", float(vector.sum()), [row.query_id], self.progress.step)

    # --- what is kept ---------------------------------------------------------------------------------------------

    def _validate(self) -> None:
        """Measure the model on the pool; keep it when it is the best so far."""
        dev, state = self.dev, self.progress
        if dev is None:
            return
        self._refuse_broken_vectors()
        score = self._as_in_search(lambda: dev.score(self.encoder, self.data.collection.corpus))
        better = score > state.best_score
        if better:
            state.best_score, state.best_step, state.stale = score, state.step, 0
        else:
            state.stale += 1
        self._log(**{f"dev_pool_{MEASURE}": score})
        logger.info("step %d: dev %s %.4f%s", state.step, MEASURE, score, " (best)" if better else "")
        if better:
            self._save()

    def _as_in_search(self, measure: Callable[[], T]) -> T:
        """Return `measure()` with the model as it is used for search, and put it back into training."""
        import torch

        training, random = self.model.training, torch.get_rng_state()
        self.model.eval()
        set_attention(self.model, training=False)
        self.encoder.weights_changed()
        found = measure()
        self.encoder.weights_changed()
        set_attention(self.model, training=training)
        self.model.train(training)
        torch.set_rng_state(random)
        return found

    def _log(self, **values: float) -> None:
        state = self.progress
        rate = learning_rate(max(0, state.step - 1), self.total_steps, self.config)
        epoch = round(state.step / self.steps_per_epoch, 4)
        state.metrics.append({"step": state.step, "epoch": epoch, "learning_rate": rate, **values})
        self.folder.write_metrics(state.metrics)

    def _save(self) -> None:
        state = self.progress
        folder = checkpoint_folder(self.folder.path, state.step)
        if not folder.exists():
            self._refuse_broken_vectors()
            save_checkpoint(folder, state, self.model, self.loss, self.optimizer)
        limit = self.config.save_total_limit
        remove_old_checkpoints(self.folder.path, keep=[state.best_step], limit=limit)

    def _publish(self) -> TrainResult:
        """Measure last and best on the full corpus, publish the best as `model/`, write the result."""
        state, scores = self.progress, {}
        last_step = state.step
        best_step = state.best_step if state.best_step >= 0 else last_step
        if best_step == 0 < last_step:
            logger.warning("no validation beat the start model, which therefore is what model/ holds")
        if self.dev is not None:
            scores = {f"best_pool_{MEASURE}": state.best_score}
            scores |= self._full("last")
        if best_step != last_step:
            load_weights(checkpoint_folder(self.folder.path, best_step), self.model)
            if self.dev is not None:
                scores |= self._full("best")
        elif f"last_full_{MEASURE}" in scores:
            scores[f"best_full_{MEASURE}"] = scores[f"last_full_{MEASURE}"]
        self.folder.write_model(self.encoder, model_card(self.config, self.encoder, self.loss.settings, scores))
        self.folder.write_result(steps=last_step, best_step=best_step, dev=scores, causes=state.causes)
        logger.info("model of step %d in %s", best_step, self.folder.path / "model")
        return TrainResult(self.folder.path, last_step, best_step, scores)

    def _full(self, which: str) -> dict[str, float]:
        if not self.config.eval_full:
            return {}
        corpus = self.data.collection.corpus
        name = f"{which}_full_{MEASURE}"
        queries, qrels = self.data.dev_queries, self.data.dev_qrels
        score = self._as_in_search(lambda: full_score(self.encoder, corpus, queries, qrels))
        self._log(**{f"dev_{name}": score})
        logger.info("%s model: dev %s over all %d documents %.4f", which, MEASURE, len(corpus), score)
        return {name: score}


def _names(batch: Batch) -> list[str]:
    """Return how a message names the queries of a batch: by id, or by text where the id was made from that."""
    pairs = zip(batch.query_ids, batch.queries, strict=True)
    return [repr(text[:40]) if query_id.startswith("text:") else query_id for query_id, text in pairs]
