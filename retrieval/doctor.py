"""Find out why a training does not work, before it begins or from the run that it left.

    examine_setup(config)   settings, rows, and the start model on a sample of them
    examine_run(folder)     the same for a run's own settings, and what the run has logged

Each returns an `Examination`: findings in the order of their probable causes, each with the next command. What a check
goes by stands in `retrieval.doctor_findings`.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from retrieval.doctor_data import examine_rows, spread
from retrieval.doctor_findings import THRESHOLDS, Commands, Examination, Thresholds
from retrieval.doctor_model import examine_model, given_negatives
from retrieval.doctor_run import examine_log, read_log, read_result
from retrieval.doctor_settings import examine_settings
from retrieval.embedding_health import collapsed, health
from retrieval.encoder import Encoder
from retrieval.errors import InputError
from retrieval.objective import build_loss
from retrieval.steps import TokenizedBatch
from retrieval.train_config import TrainConfig
from retrieval.training import DualEncoderTask
from retrieval.yamlfiles import read_yaml

__all__ = ["examine_run", "examine_setup"]

_BATCH = 32  # rows of the batch whose loss and gradient are computed, at most


def examine_setup(config: TrainConfig, *, thresholds: Thresholds = THRESHOLDS) -> Examination:
    """Look at a training before it begins; nothing is written.

    Args:
        config: its settings; `out` is not looked at.
        thresholds: the limits.

    Raises:
        InputError: at impossible settings and bad data, as a training would.

    """
    exam = Examination(f"{config.loss} on {config.data}", thresholds)
    _examine_setup(exam, config, Commands(config))
    return exam


def examine_run(folder: str | Path, *, probe: bool = True, thresholds: Thresholds = THRESHOLDS) -> Examination:
    """Look at a run, finished or not; nothing is written.

    Args:
        folder: of the run.
        probe: look at rows and start model as before a training, and at what the trained model makes of documents.
            Without it only settings and log are read, and what that leaves open is told.
        thresholds: the limits.

    Raises:
        InputError: the folder is no run of `rankwright train`, or its files are damaged.

    """
    folder = Path(folder)
    config = _config(folder)
    commands = Commands(config, folder)
    exam = Examination(str(folder), thresholds)
    lines, result = read_log(folder), read_result(folder)
    task = _probe(exam, config, commands) if probe else None
    if task is None:
        steps = int(result["steps"]) if result and result.get("steps") else max(0, config.max_steps) or None
        columns = [math.exp(line["chance_loss"]) for line in lines if line.get("chance_loss")]
        typical = float(np.mean(columns)) if columns else config.per_device_train_batch_size
        examine_settings(exam, config, build_loss(config), commands, columns=typical, steps=steps)
        exam.unchecked.append("rows, prompts, lengths and the model itself" + ("" if probe else ": --no-probe"))
    examine_log(exam, lines, result, commands)
    if task is not None and (folder / "model").is_dir():
        _trained(exam, folder, task, commands)
    return exam


def _config(folder: Path) -> TrainConfig:
    path = folder / "config.yaml"
    if not folder.is_dir() or not path.is_file():
        raise InputError(
            "is no training run: it holds no config.yaml; wanted the --out of `rankwright train`", path=folder
        )
    try:
        return TrainConfig.from_dict(read_yaml(path))
    except InputError as error:
        if error.path is not None:
            raise
        raise InputError(f"is no run of `rankwright train`: {error.reason}", path=path) from None


def _probe(exam: Examination, config: TrainConfig, commands: Commands) -> DualEncoderTask | None:
    """Examine a run's set-up; its data or model may have gone since."""
    try:
        return _examine_setup(exam, config, commands)
    except InputError as error:
        exam.unchecked.append(f"data and start model cannot be read any more ({error})")
        return None


def _examine_setup(exam: Examination, config: TrainConfig, commands: Commands) -> DualEncoderTask:
    loss = build_loss(config)
    task = DualEncoderTask(config, loss)
    encoder, batcher = task.encoder, task.batcher
    examine_rows(exam, config, task.data, batcher, loss, commands)
    examine_settings(
        exam,
        config,
        loss,
        commands,
        columns=1 + exam.figures["negatives_per_query"],
        steps=int(exam.figures["steps"]),
        static=not hasattr(encoder.model[0], "auto_model"),
        bounded=encoder.model.similarity_fn_name == "cosine",
    )
    if config.eval_strategy != "no" and not task.data.dev_queries:
        exam.remark("no_validation", "there are no dev queries", commands.train("--dev-split", "SPLIT"))
    examine_model(exam, encoder, batcher, commands)
    if not any(one.name == "overflow" for one in exam.problems):
        given_negatives(exam, encoder, batcher, commands)
        _first_gradient(exam, task, commands)
    return task


def _first_gradient(exam: Examination, task: DualEncoderTask, commands: Commands) -> None:
    """Compute loss and gradient of the first batch, or of its first rows, as the first step would."""
    batch = task.batcher.make(task.batcher.epoch(0)[0][:_BATCH].tolist(), 0)
    encoder = task.encoder
    tokens = TokenizedBatch(
        batch, encoder.tokenize(batch.queries, encoder.query), encoder.tokenize(batch.documents, encoder.document)
    )
    value = task.objective.gradient([tokens])
    gradients = [p.grad for p in task.objective.parameters if p.grad is not None]
    norm = math.sqrt(sum(float(gradient.double().square().sum()) for gradient in gradients))
    task.model.zero_grad(set_to_none=True)
    task.loss.zero_grad(set_to_none=True)
    exam.figures["first_loss"] = value
    if not (math.isfinite(value) and math.isfinite(norm)):
        found = f"the first batch has the loss {value} and a gradient of norm {norm}"
        exam.problem("overflow", found, commands.train("--precision", "fp32"))


def _trained(exam: Examination, folder: Path, task: DualEncoderTask, commands: Commands) -> None:
    """See whether the model that the run has left still tells documents apart."""
    config, corpus = task.config, task.data.collection.corpus
    encoder = Encoder.load(
        folder,
        precision=config.precision,
        device=config.device,
        document_max_length=config.document_max_length,
        batch_tokens=config.batch_tokens,
    )
    documents = encoder.encode_document(corpus.texts(spread(range(len(corpus)), exam.thresholds.sample)))
    lower = commands.train("--learning-rate", f"{config.learning_rate / 10:g}")
    if not np.isfinite(documents).all():
        exam.problem("overflow", "the trained model gives vectors that are not finite", lower)
    elif len(documents) > 1 and (reason := collapsed(health(documents))) is not None:
        exam.problem("collapsed_in_training", f"the trained model: {reason}", lower)
