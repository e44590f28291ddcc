"""The training loop of dual encoders: short, deterministic, resumable to the bit."""

from __future__ import annotations

import logging
import math
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from indexes.storage import locked, remove_folder
from retrieval.attention import set_attention
from retrieval.batches import Batch, Batcher, micro_batches
from retrieval.checkpoints import (
    Progress,
    checkpoint_folder,
    checkpoint_steps,
    load_checkpoint,
    load_weights,
    remove_old_checkpoints,
    save_checkpoint,
)
from retrieval.encoder import Encoder, token_batches
from retrieval.errors import InputError, require
from retrieval.fast_dropout import use_fast_dropout
from retrieval.interrupts import finish_step_on_signal
from retrieval.models import save_model
from retrieval.optimizer import learning_rate, make_optimizer
from retrieval.progress import progress as progress_bar
from retrieval.run_folder import RunFolder, model_card
from retrieval.train_config import TrainConfig
from retrieval.training_data import TrainingData, load_training_data
from retrieval.validation import MEASURE, DevSet, full_score, make_dev_set

if TYPE_CHECKING:
    import torch

    from rankers.losses import RankingLoss

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


@dataclass(frozen=True, slots=True)
class _Prepared:
    """One batch with its texts tokenised."""

    batch: Batch
    queries: list[list[int]]
    documents: list[list[int]]


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
    config = config or TrainConfig.from_dict(settings)
    require("torch", "train")
    loss = build_loss(config)
    folder = RunFolder(Path(config.out))
    finished = folder.prepare(config, resume=resume, overwrite=overwrite)
    if finished is not None:
        logger.info("%s is finished (%d steps); nothing to do", config.out, finished["steps"])
        return TrainResult(Path(config.out), finished["steps"], finished["best_step"], finished["dev"])
    with locked(folder.path):
        return _Run(config, loss, folder).finish()


def build_loss(config: TrainConfig) -> RankingLoss:
    """Build the loss that the settings name, or say which setting is wrong."""
    from rankers.losses import build

    try:
        return build(config.loss, **config.loss_settings)
    except (ValueError, TypeError) as error:
        raise InputError(f"loss: {error}") from error


class _Run:
    """One run in one process: data, model, optimizer, and where it stands."""

    def __init__(self, config: TrainConfig, loss: RankingLoss, folder: RunFolder) -> None:
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
            self.data.label_rule(loss.entry, loss.settings),
            batch_size=config.per_device_train_batch_size,
            num_positives=config.num_positives,
            num_negatives=config.num_negatives,
            seed=config.seed,
        )
        if self.batcher.dropped:
            logger.info("%d training rows have no positive of the loss's grade and are left out", self.batcher.dropped)
        self.steps_per_epoch = math.ceil(len(self.batcher.epoch(0)) / config.gradient_accumulation_steps)
        epochs = math.ceil(config.num_train_epochs * self.steps_per_epoch)
        self.total_steps = config.max_steps if config.max_steps > 0 else max(1, epochs)
        self.model = self.encoder.model
        self.loss.to(self.model.device)
        self.parameters = [*self.model.parameters(), *self.loss.parameters()]
        self.optimizer = make_optimizer(self.model, self.loss, config)
        self.progress = Progress()
        self.dev: DevSet | None = None
        if config.eval_strategy != "no" and self.data.dev_queries:
            self.dev = make_dev_set(
                self.data.dev_queries,
                self.data.dev_qrels,
                self.data.collection.corpus,
                pool_size=config.eval_pool_size,
                seed=config.seed,
            )
        self.folder.check_data(self.data.fingerprint(), self.encoder.fingerprint()["weights_sha256"])

    def finish(self) -> TrainResult:
        """Run what is left of the run, choose the model, publish it."""
        steps = checkpoint_steps(self.folder.path)
        if steps:
            last = checkpoint_folder(self.folder.path, steps[-1])
            self.progress = load_checkpoint(last, self.model, self.loss, self.optimizer)
            logger.info("going on from step %d of %d", self.progress.step, self.total_steps)
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
        losses: list[float] = []
        label = f"training {config.loss}"
        with (
            progress_bar(total=self.total_steps, unit="steps", label=label) as bar,
            finish_step_on_signal() as stop,
        ):
            bar.update(state.step)
            for prepared in self._ahead():
                if self._is_over():
                    break
                value, norm = self._step(prepared)
                state.step += 1
                losses.append(value)
                pairs += sum(len(p.batch.query_ids) for p in prepared)
                bar.update(1)
                if state.step % config.logging_steps == 0 or state.step == self.total_steps:
                    rate = pairs / (time.perf_counter() - started)
                    bar.set_postfix(loss=f"{np.mean(losses):.4f}", pairs_per_s=f"{rate:.0f}")
                    self._log(loss=float(np.mean(losses)), grad_norm=norm, pairs_per_second=rate, **state.causes)
                    started, pairs, losses = time.perf_counter(), 0, []
                if self._due(config.eval_strategy == "steps" and config.eval_steps, config.eval_strategy == "epoch"):
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

    def _due(self, every: int | bool, at_epoch_end: bool) -> bool:
        """Whether this step ends a validation interval; never twice for one step."""
        if self.dev is None:
            return False
        step = self.progress.step
        ends_epoch = at_epoch_end and step % self.steps_per_epoch == 0
        return ends_epoch or (bool(every) and step % every == 0) or step == self.total_steps

    def _ahead(self) -> Iterator[list[_Prepared]]:
        """Yield each step's batches from where the run stands, made and tokenised one step ahead of their use."""
        with ThreadPoolExecutor(1) as pool:
            steps = self._steps()
            waiting = pool.submit(next, steps, None)
            while (prepared := waiting.result()) is not None:
                waiting = pool.submit(next, steps, None)
                yield prepared

    def _steps(self) -> Iterator[list[_Prepared]]:
        first = self.progress.step
        for epoch in range(first // self.steps_per_epoch, math.ceil(self.total_steps / self.steps_per_epoch)):
            groups = micro_batches(self.batcher, epoch, self.config.gradient_accumulation_steps)
            for step, numbers in enumerate(groups, start=epoch * self.steps_per_epoch):
                if first <= step < self.total_steps:
                    yield [self._prepare(self.batcher.make(n.tolist(), epoch)) for n in numbers]

    def _prepare(self, batch: Batch) -> _Prepared:
        encoder = self.encoder
        return _Prepared(
            batch,
            encoder.tokenize(batch.queries, encoder.query),
            encoder.tokenize(batch.documents, encoder.document),
        )

    def _step(self, prepared: Sequence[_Prepared]) -> tuple[float, float]:
        """Take one optimizer step and return (loss, gradient norm before clipping)."""
        import torch

        tensors = [self._targets(p.batch) for p in prepared]
        total = sum(int(self.loss.count(labels, where)) for labels, where in tensors)
        value = 0.0
        for item, (labels, where) in zip(prepared, tensors, strict=True):
            self.progress.causes = dict(Counter(self.progress.causes) + item.batch.causes)
            with torch.autocast(self.model.device.type, torch.bfloat16, enabled=self.encoder.precision == "bf16"):
                queries = embed(self.encoder, item.queries)
                documents = embed(self.encoder, item.documents)
            scores = queries[torch.from_numpy(item.batch.row_query).to(queries.device)] @ documents.T
            # Divided by the counts of the whole step: uneven batches weigh what they hold.
            share = self.loss(scores, labels, where) * (int(self.loss.count(labels, where)) / max(1, total))
            value += float(share.detach())
            self._refuse_if_not_finite(value, prepared)
            share.backward()
        norm = self._clip()
        self._refuse_if_not_finite(norm, prepared)
        rate = learning_rate(self.progress.step, self.total_steps, self.config)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return value, norm

    def _targets(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        import torch

        device = self.model.device
        return torch.from_numpy(batch.labels).to(device), torch.from_numpy(batch.where).to(device)

    def _clip(self) -> float:
        import torch

        limit = self.config.max_grad_norm or math.inf
        return float(torch.nn.utils.clip_grad_norm_(self.parameters, limit))

    def _refuse_if_not_finite(self, value: float, prepared: Sequence[_Prepared]) -> None:
        if math.isfinite(value):
            return
        ids = [
            name or text[:40] for p in prepared for name, text in zip(p.batch.query_ids, p.batch.queries, strict=True)
        ]
        steps = checkpoint_steps(self.folder.path)
        last = f"the checkpoint of step {steps[-1]} is intact" if steps else "no checkpoint was due yet"
        raise TrainingStoppedError(
            f"loss or gradient is {value} at step {self.progress.step + 1}; batch of queries {', '.join(ids[:8])}"
            f"{', …' if len(ids) > 8 else ''}; {last}; try a lower learning_rate (now {self.config.learning_rate:g})"
        )

    # --- what is kept ---------------------------------------------------------------------------------------------

    def _validate(self) -> None:
        """Measure the model on the pool; keep it when it is the best so far."""
        if self.dev is None:
            return
        score = self._measured(lambda: self.dev.score(self.encoder, self.data.collection.corpus) if self.dev else 0.0)
        state = self.progress
        better = score > state.best_score
        if better:
            state.best_score, state.best_step, state.stale = score, state.step, 0
        else:
            state.stale += 1
        self._log(**{f"dev_pool_{MEASURE}": score})
        logger.info("step %d: dev %s %.4f%s", state.step, MEASURE, score, " (best)" if better else "")
        if better:
            self._save()

    def _measured(self, measure: Any) -> float:
        """Run `measure` with the model as it is used for search, and put it back into training."""
        import torch

        training, random = self.model.training, torch.get_rng_state()
        self.model.eval()
        set_attention(self.model, training=False)
        self.encoder.weights_changed()
        score = float(measure())
        set_attention(self.model, training=training)
        self.model.train(training)
        torch.set_rng_state(random)
        return score

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
        self.encoder.weights_changed()
        apply_lengths(self.encoder)
        result = TrainResult(self.folder.path, last_step, best_step, scores)
        target = self.folder.path / "model"
        if target.exists():
            remove_folder(target)
        save_model(self.model, target, card=model_card(self.config, self.encoder, self.loss.settings, result.dev))
        self.folder.write_result(steps=last_step, best_step=best_step, dev=scores, causes=state.causes)
        logger.info("model of step %d in %s", best_step, target)
        return result

    def _full(self, which: str) -> dict[str, float]:
        if not self.config.eval_full:
            return {}
        corpus = self.data.collection.corpus
        name = f"{which}_full_{MEASURE}"
        score = self._measured(lambda: full_score(self.encoder, corpus, self.data.dev_queries, self.data.dev_qrels))
        self._log(**{f"dev_{name}": score})
        logger.info("%s model: dev %s over all %d documents %.4f", which, MEASURE, len(corpus), score)
        return {name: score}


def embed(encoder: Encoder, tokens: Sequence[Sequence[int]]) -> torch.Tensor:
    """Return the (n, dim) embeddings with their graph, computed in batches of similar length, in the given order."""
    import torch

    order: list[int] = []
    parts: list[torch.Tensor] = []
    for positions in token_batches([len(ids) for ids in tokens], encoder.batch_tokens):
        order += positions
        parts.append(encoder.forward([tokens[position] for position in positions]))
    inverse = torch.empty(len(order), dtype=torch.long)
    inverse[torch.tensor(order)] = torch.arange(len(order))
    return torch.cat(parts)[inverse.to(parts[0].device)]


def apply_lengths(encoder: Encoder) -> None:
    """Write prompts and lengths into the model, so that plain sentence-transformers encodes as this encoder does."""
    first = encoder.model[0]
    for name, side in (("query", encoder.query), ("document", encoder.document)):
        encoder.model.prompts[name] = side.prompt
        if hasattr(first, f"{name}_length"):
            setattr(first, f"{name}_length", side.max_length)
