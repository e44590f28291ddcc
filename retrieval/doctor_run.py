"""What `rankwright doctor` reads in the log of a run: the loss against guessing, the scores' spread, collapse, dev."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from retrieval.doctor_findings import Commands, Examination
from retrieval.errors import InputError
from retrieval.textfiles import numbered_lines, parse_object
from retrieval.train_config import TrainConfig

Line = Mapping[str, Any]

_ENOUGH = 4  # lines of a log that a trend is read from


def read_log(folder: Path) -> list[dict[str, Any]]:
    """Read a run's metrics.jsonl; empty where nothing was logged yet.

    Raises:
        InputError: a line that is no JSON object.

    """
    path = folder / "metrics.jsonl"
    if not path.is_file():
        return []
    return [parse_object(text, path, number) for number, text in numbered_lines(path) if text.strip()]


def read_result(folder: Path) -> dict[str, Any] | None:
    """Read a run's result.json; None while the run is not finished.

    Raises:
        InputError: it is damaged.

    """
    path = folder / "result.json"
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"is damaged ({error})", path=path) from None
    return found if isinstance(found, dict) else {}


def read_stop(folder: Path | None) -> str | None:
    """Read why a run stopped by itself; None where it did not."""
    path = None if folder is None else folder / "stopped.json"
    if path is None or not path.is_file():
        return None
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["reason"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"is damaged ({error}); delete it", path=path) from None


def examine_log(exam: Examination, lines: Sequence[Line], result: Line | None, commands: Commands) -> None:
    """Look at what a run has logged.

    Args:
        exam: where findings go.
        lines: of metrics.jsonl.
        result: result.json, or None.
        commands: what to type next.

    """
    steps = [line for line in lines if "loss" in line]
    if (stopped := read_stop(commands.run)) is not None:
        lower = commands.train("--learning-rate", f"{commands.config.learning_rate / 10:g}")
        exam.problem("overflow", f"training stopped by itself: {stopped}", lower)
    if result is None:
        where = f"the last line of its log is step {lines[-1]['step']}" if lines else "nothing is logged"
        config = commands.config
        again = f"rankwright train --config {config.out}/config.yaml --out {config.out} --resume"
        exam.remark("unfinished", f"there is no result.json; {where}", again)
    if steps:
        _loss(exam, steps, commands)
        _scores(exam, steps, commands)
    else:
        exam.unchecked.append("how the loss went: no step is logged")
    _dev(exam, lines, commands)


def _loss(exam: Examination, steps: Sequence[Line], commands: Commands) -> None:
    """Compare the loss with its beginning, and with that of guessing."""
    limits = exam.thresholds
    losses = [float(line["loss"]) for line in steps]
    third = max(1, len(losses) // 3)
    first, last = losses[0], float(np.mean(losses[-third:]))
    exam.figures |= {"loss_first": first, "loss_last": last}
    lower = commands.train("--learning-rate", f"{commands.config.learning_rate / 10:g}")
    norms = [float(line["grad_norm"]) for line in steps if line.get("grad_norm") is not None]
    if len(norms) >= _ENOUGH and max(norms) > limits.exploded * float(np.median(norms)) > 0:
        found = f"a gradient has the norm {max(norms):.3g}, and the median one {np.median(norms):.3g}"
        exam.remark("diverged", found, lower)
    grown = f"the loss was {first:.3g} at first and is {last:.3g}"
    chances = [float(line["chance_loss"]) for line in steps if line.get("chance_loss")]
    if not chances or not _is_softmax(commands.config.loss):
        why = "the log has no chance_loss" if not chances else f"ln C is no measure of {commands.config.loss}"
        exam.unchecked.append(f"the loss against guessing: {why}")
        if len(losses) >= _ENOUGH and first > 0 and last > limits.doubled * first:
            exam.problem("diverged", grown, lower)
        return
    chance = _times(commands.config) * float(np.mean(chances))
    exam.figures["chance_loss"] = chance
    if last - first > limits.risen * chance and (last > chance or not _hardens(commands.config)):
        exam.problem("diverged", f"{grown}; guessing has {chance:.3g}", lower)
    elif abs(chance - last) <= limits.flat * chance and first - last <= limits.still * chance:
        found = (
            f"the loss is {last:.3g} in the last {third} lines, and guessing among a batch's documents has {chance:.3g}"
        )
        exam.problem("flat_loss", found, commands.train("--set", "loss.temperature=0.05"))


def _times(config: TrainConfig) -> float:
    """Return how many times the loss is in the sum that is logged: for first dimensions, and for proxies."""
    return max(1, len(config.matryoshka_dims)) + (config.proxy_weight if config.batching == "proxy" else 0)


def _hardens(config: TrainConfig) -> bool:
    """Whether batches become harder on purpose, so that a loss may rise and documents may be more alike."""
    return config.batching != "random" or config.refresh_every > 0


def _is_softmax(loss: str) -> bool:
    """Whether a loss is ln C where all scores are equal."""
    return loss in ("infonce", "decoupled_softmax", "softmax_ce")


def _scores(exam: Examination, steps: Sequence[Line], commands: Commands) -> None:
    """Look at the last batches' scores and embeddings, where the run has logged them."""
    limits = exam.thresholds
    lower = commands.train("--learning-rate", f"{commands.config.learning_rate / 10:g}")
    if not any(name in line for line in steps for name in ("score_std", "negatives_per_query", "document_cosine")):
        exam.unchecked.append("spread of scores, negatives, masks and collapse: the log of this run does not hold them")
    if (spread := _last(steps, "score_std")) is not None:
        exam.figures["score_std"] = spread
        if spread <= limits.equal_scores:
            exam.problem("equal_scores", f"a query's scores differ by {spread:.4f} (standard deviation)", lower)
    cosine, before = _last(steps, "document_cosine"), steps[0].get("document_cosine")
    if cosine is not None and before is not None:
        exam.figures |= {"document_cosine_first": float(before), "document_cosine": cosine}
        told = f"the mean cosine of a batch's documents was {before:.2f} at first and is {cosine:.2f}"
        rank, full = _last(steps, "effective_rank"), steps[0].get("effective_rank")
        if rank is not None and full is not None:
            exam.figures |= {"effective_rank_first": float(full), "effective_rank": rank}
            told += f", their effective rank {full:.1f} and {rank:.1f}"
        flat = rank is not None and full is not None and rank <= limits.document_rank < full / 2
        drawn = cosine - float(before) >= limits.risen_cosine and not _hardens(commands.config)
        if cosine >= limits.document_cosine or drawn or flat:
            exam.problem("collapsed_in_training", told, lower)
    negatives, masked = _last(steps, "negatives_per_query"), _last(steps, "masked_share")
    if negatives is not None:
        exam.figures["negatives_per_query"] = negatives
        if negatives < limits.negatives_per_query:
            exam.problem("one_class", f"a query has {negatives:.1f} negatives in a batch", commands.data())
    if masked is not None and masked >= limits.masked:
        exam.remark("masked", f"{masked:.0%} of a batch's cells are masked", commands.train("--num-positives", "1"))
    accuracy = steps[0].get("accuracy")
    if accuracy is not None:
        exam.figures["accuracy_first"] = float(accuracy)
        if accuracy >= limits.easy:
            exam.remark(
                "easy_negatives", f"{accuracy:.0%} of the rows are right in the first line of the log", commands.mine()
            )


def _last(steps: Sequence[Line], name: str) -> float | None:
    """Return the mean of a value over the last third of the lines that have it."""
    found = [float(line[name]) for line in steps if line.get(name) is not None]
    return float(np.mean(found[-max(1, len(found) // 3) :])) if found else None


def _dev(exam: Examination, lines: Sequence[Line], commands: Commands) -> None:
    """Compare the validations with the first one, of the start model, and with the best."""
    limits = exam.thresholds
    scores = [(int(line["step"]), float(line[name])) for line in lines for name in line if name.startswith("dev_pool_")]
    if len(scores) < 2:
        return
    (begin, start), (end, last) = scores[0], scores[-1]
    at, best = max(scores, key=lambda pair: pair[1])
    exam.figures |= {"dev_first": start, "dev_last": last, "dev_best": best}
    lower = commands.train("--learning-rate", f"{commands.config.learning_rate / 4:g}")
    if begin == 0 and last < start - limits.worse:
        found = f"dev nDCG@10 was {start:.3f} before training and is {last:.3f} at step {end}"
        exam.problem("worse_than_start", found, lower)
    elif at < 0.7 * end and last < best - limits.overfit:
        found = f"dev nDCG@10 was {best:.3f} at step {at} and is {last:.3f} at step {end}"
        exam.remark("overfit", found, commands.train("--early-stopping-patience", "2"))
