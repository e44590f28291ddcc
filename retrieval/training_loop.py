"""The one training loop: short, deterministic, resumable to the bit; for dual encoders, rerankers and feature rankers.

What is trained is a :class:`Task`: it brings the steps, their gradients, and the score on dev. The loop brings the
optimizer, the log, validation, checkpoints, signals, and the choice of the model that is published.
"""

from __future__ import annotations

import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from indexes.storage import locked
from retrieval.checkpoints import (
    Progress,
    checkpoint_folder,
    checkpoint_steps,
    load_arrays,
    load_checkpoint,
    load_weights,
    remove_old_checkpoints,
    resumable_step,
    save_checkpoint,
)
from retrieval.interrupts import finish_step_on_signal
from retrieval.loop_config import LoopConfig
from retrieval.optimizer import learning_rate, make_optimizer
from retrieval.progress import progress as progress_bar
from retrieval.run_folder import RunFolder
from retrieval.training_task import Step, Task

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
        dev: what best and last model reached on dev, by name.

    """

    out: Path
    steps: int
    best_step: int
    dev: dict[str, float]


class TrainingLoop:
    """One run in one process, and where it stands. Nothing is written before `finish`."""

    def __init__(self, config: LoopConfig, task: Task, folder: RunFolder) -> None:
        self.config, self.task, self.folder = config, task, folder
        self.total_steps = config.total_steps(task.steps_per_epoch)
        self.optimizer = make_optimizer(task.model, task.loss, config)
        self.progress = Progress()

    def finish(self) -> TrainResult:
        """Run what is left of the run, choose the model, publish it."""
        self.task.prepare()
        step = resumable_step(self.folder.path)
        if step is not None:
            last = checkpoint_folder(self.folder.path, step)
            self.progress = load_checkpoint(last, self.task.model, self.task.loss, self.optimizer)
            self.task.restore(load_arrays(last))
            logger.info("going on from step %d of %d", step, self.total_steps)
        self.folder.write_metrics(self.progress.metrics)
        if self.progress.best_step < 0:
            self._validate()
        with self.task.training():
            self._train()
        return self._publish()

    # --- the loop -------------------------------------------------------------------------------------------------

    def _train(self) -> None:
        config, state, task = self.config, self.progress, self.task
        if self._is_over():  # stopped early, and then interrupted
            return
        clock, started, seen = _Clock(state), state.seconds, 0
        steps: Any = task.steps(state.step, self.total_steps)
        bar: Any = progress_bar(total=self.total_steps, unit="steps", label=f"training {config.loss}")
        with bar, closing(steps), finish_step_on_signal() as stop:
            bar.update(state.step)
            for step in steps:
                clock.add()
                if news := task.news():
                    self._log(**news)
                norm = self._step(step)
                clock.add()
                seen += task.size(step)
                bar.update(1)
                if state.step % config.logging_steps == 0 or state.step == self.total_steps:
                    rate, loss = seen / max(state.seconds - started, 1e-9), float(np.mean(state.losses))
                    state.losses = []
                    speed = {f"{task.unit}_per_second": rate}
                    bar.set_postfix(loss=f"{loss:.4f}", **{f"{task.unit}_per_s": f"{rate:.0f}"})
                    found = {**speed, **task.observed(loss), **self._learned(), **state.causes}
                    self._log(loss=loss, grad_norm=norm, **found)
                    started, seen = state.seconds, 0
                if self._validation_is_due():
                    self._validate()
                if stop.requested or state.step % config.save_steps == 0 or state.step == self.total_steps:
                    self._save()
                if stop.requested:
                    stop.deliver()
                clock.skip()
                if self._is_over():
                    break

    def _is_over(self) -> bool:
        patience = self.config.early_stopping_patience
        return self.progress.step >= self.total_steps or bool(patience and self.progress.stale >= patience)

    def _validation_is_due(self) -> bool:
        if self.task.measure is None:
            return False
        step = self.progress.step
        interval = self.config.eval_steps if self.config.eval_strategy == "steps" else self.task.steps_per_epoch
        return step % interval == 0 or step == self.total_steps

    def _step(self, step: Step) -> float:
        """Take one optimizer step and return the norm of its gradient before clipping."""
        state, queries = self.progress, self.task.names(step)
        value = self.task.gradient(step)
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
        causes.update(self.task.causes(step))
        state.causes = dict(causes)
        return norm

    def _clip(self) -> float:
        import torch

        limit = self.config.max_grad_norm or math.inf
        parameters = [*self.task.model.parameters(), *self.task.loss.parameters()]
        return float(torch.nn.utils.clip_grad_norm_(parameters, limit))

    def _refuse_if_not_finite(self, what: str, value: float, queries: Sequence[str], step: int | None = None) -> None:
        if math.isfinite(value):
            return
        names = ", ".join(queries[:8]) + (", …" if len(queries) > 8 else "")
        step = self.progress.step + 1 if step is None else step
        found = checkpoint_steps(self.folder.path)
        last = f"the checkpoint of step {found[-1]} is intact" if found else "no checkpoint was due yet"
        fix = f"start again with --overwrite and a lower learning_rate (now {self.config.learning_rate:g})"
        raise TrainingStoppedError(f"{what} is {value} at step {step}, queries {names}; {last}; {fix}")

    def _refuse_broken_model(self) -> None:
        """Stop before a model that has stopped making numbers is measured or saved: a gradient cannot tell."""
        what, value, query = self._in_use(self.task.probe)
        self._refuse_if_not_finite(what, value, [query], self.progress.step)

    # --- what is kept ---------------------------------------------------------------------------------------------

    def _validate(self) -> None:
        """Measure the model on dev; keep it when it is the best so far."""
        name, state = self.task.measure, self.progress
        if name is None:
            return
        self._refuse_broken_model()
        score = self._in_use(self.task.score)
        better = score > state.best_score
        if better:
            state.best_score, state.best_step, state.stale = score, state.step, 0
        else:
            state.stale += 1
        self._log(**{f"dev_{name}": score})
        logger.info("step %d: dev %s %.4f%s", state.step, name, score, " (best)" if better else "")
        if better:
            self._save()

    def _in_use(self, measure: Callable[[], T]) -> T:
        """Return `measure()` with the model as it is used; what training draws next stays the same."""
        import torch

        random = torch.get_rng_state()
        with self.task.in_use():
            found = measure()
        torch.set_rng_state(random)
        return found

    def _learned(self) -> dict[str, float]:
        """Return what the loss has learned so far, by name."""
        return {f"loss.{name}": float(value.detach()) for name, value in self.task.loss.named_parameters()}

    def _log(self, **values: float) -> None:
        state = self.progress
        rate = learning_rate(max(0, state.step - 1), self.total_steps, self.config)
        epoch = round(state.step / self.task.steps_per_epoch, 4)
        seconds = round(state.seconds, 3)
        state.metrics.append({"step": state.step, "epoch": epoch, "seconds": seconds, "learning_rate": rate, **values})
        self.folder.write_metrics(state.metrics)

    def _save(self) -> None:
        state = self.progress
        folder = checkpoint_folder(self.folder.path, state.step)
        if not folder.exists():
            self._refuse_broken_model()
            save_checkpoint(folder, state, self.task.model, self.task.loss, self.optimizer, self.task.arrays())
        limit = self.config.save_total_limit
        remove_old_checkpoints(self.folder.path, keep=[state.best_step], limit=limit)

    def _publish(self) -> TrainResult:
        """Measure last and best model, publish the best as `model/`, write the result."""
        state, task = self.progress, self.task
        scores: dict[str, float] = {}
        last_step = state.step
        best_step = state.best_step if state.best_step >= 0 else last_step
        if best_step == 0 < last_step:
            logger.warning("no validation beat the start model, which therefore is what model/ holds")
        if task.measure is not None:
            scores[f"best_{task.measure}"] = state.best_score
            found = self._measured("last")
            scores |= {f"last_{name}": value for name, value in found.items()}
            if best_step != last_step:
                load_weights(checkpoint_folder(self.folder.path, best_step), task.model)
                found = self._measured("best")
            scores |= {f"best_{name}": value for name, value in found.items()}
        task.publish(self.folder.cleared_model(), scores)
        self.folder.write_result(steps=last_step, best_step=best_step, dev=scores, causes=state.causes)
        logger.info("model of step %d in %s", best_step, self.folder.path / "model")
        return TrainResult(self.folder.path, last_step, best_step, scores)

    def _measured(self, which: str) -> dict[str, float]:
        found = self._in_use(self.task.measured)
        for name, value in found.items():
            self._log(**{f"dev_{which}_{name}": value})
            logger.info("%s model: dev %s %.4f", which, name, value)
        return found


class _Clock:
    """Adds the time that passes to a run's seconds, but for what is skipped."""

    def __init__(self, progress: Progress) -> None:
        self._progress, self._since = progress, time.perf_counter()

    def add(self) -> None:
        """Count the time since the last call."""
        now = time.perf_counter()
        self._progress.seconds, self._since = self._progress.seconds + now - self._since, now

    def skip(self) -> None:
        """Do not count the time since the last call."""
        self._since = time.perf_counter()


def run_training(
    config: LoopConfig,
    make_task: Callable[[], tuple[Task, Mapping[str, str]]],
    *,
    verb: str,
    resume: bool = False,
    overwrite: bool = False,
) -> TrainResult:
    """Train into `config.out`, or go on there, or say that it is finished.

    Args:
        config: the settings.
        make_task: loads model and data and returns what is trained, and hashes of what it is trained on by name.
        verb: the command whose run it is.
        resume: go on from the last checkpoint (from step 0 where there is none).
        overwrite: delete an existing run first, once settings, model and data have proved good.

    Raises:
        InputError: at bad data, or a folder that is in the way.
        TrainingStoppedError: when the loss or a gradient is not finite.

    """
    folder = RunFolder(Path(config.out), verb)
    finished = folder.check(config, resume=resume, overwrite=overwrite)
    if finished is None:
        task, fingerprints = make_task()
        loop = TrainingLoop(config, task, folder)
        with locked(folder.path):
            finished = folder.begin(config, fingerprints, resume=resume, overwrite=overwrite)
            if finished is None:
                try:
                    return loop.finish()
                except TrainingStoppedError as error:
                    folder.write_stop(step=loop.progress.step, reason=str(error))
                    raise
    logger.info("%s is finished (%d steps); nothing to do", config.out, finished["steps"])
    return TrainResult(folder.path, finished["steps"], finished["best_step"], finished["dev"])


def planned_steps(
    config: LoopConfig, make_task: Callable[[], tuple[Task, Mapping[str, str]]], *, verb: str, **how: bool
) -> int:
    """Check settings, run folder, model and data as :func:`run_training` would, write nothing, return the steps."""
    folder = RunFolder(Path(config.out), verb)
    folder.check(config, resume=how.get("resume", False), overwrite=how.get("overwrite", False))
    task, _ = make_task()
    return TrainingLoop(config, task, folder).total_steps
