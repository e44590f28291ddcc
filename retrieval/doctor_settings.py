"""What `rankwright doctor` sees in the settings alone: the learning rate, the temperature, what is validated."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from retrieval.doctor_findings import Commands, Examination
from retrieval.train_config import TrainConfig

if TYPE_CHECKING:
    from rankers.losses import LossSum, RankingLoss

_ROWS, _COLUMNS = 16, 512  # of the made-up batch that a temperature is tried on, at most


def examine_settings(
    exam: Examination,
    config: TrainConfig,
    loss: RankingLoss | LossSum,
    commands: Commands,
    *,
    columns: float,
    steps: int | None,
    static: bool = False,
    bounded: bool = True,
) -> None:
    """Look at what can be known without texts.

    Args:
        exam: where findings go.
        config, loss: the settings, and the loss that they name.
        commands: what to type next.
        columns: documents that a row compares.
        steps: optimizer steps of the run; None where they are not known.
        static: the model is a table of word vectors, which takes other learning rates than a transformer.
        bounded: scores are cosines.

    """
    _learning_rate(exam, config, commands, steps=steps, static=static)
    several = len(loss.terms) > 1
    for term in loss.terms:
        _temperature(
            exam, term, commands, columns=min(max(2, round(columns)), _COLUMNS), bounded=bounded, several=several
        )
    if config.eval_strategy == "no":
        exam.remark("no_validation", "eval_strategy is no", commands.train("--eval-strategy", "epoch"))


def _learning_rate(
    exam: Examination, config: TrainConfig, commands: Commands, *, steps: int | None, static: bool
) -> None:
    limits, rate = exam.thresholds, config.learning_rate
    highest = limits.static_learning_rate if static else limits.learning_rate
    better = commands.train("--learning-rate", "1e-2" if static else "2e-5")
    if rate >= highest:
        exam.problem(
            "learning_rate",
            f"learning_rate is {rate:g}; usual are {'1e-3 to 1e-1' if static else '5e-6 to 2e-4'}",
            better,
        )
    elif rate > limits.usual_learning_rate and not static:
        exam.remark("learning_rate", f"learning_rate is {rate:g}; usual are 5e-6 to 2e-4", better)
    elif steps is not None and rate * steps < limits.least_movement:
        exam.problem(
            "learning_rate",
            f"learning_rate {rate:g} in {steps} steps moves a weight by {rate * steps:.0e} at most",
            better,
        )


def _temperature(
    exam: Examination, term: RankingLoss, commands: Commands, *, columns: int, bounded: bool, several: bool
) -> None:
    """Try the loss on scores that are all equal, as good as training makes them, and as far apart as they can be."""
    from rankers.losses import build

    if term.kind == "teacher" or not {"scale", "temperature"} & {*term.entry.settings}:
        return
    setting = "scale" if "scale" in term.entry.defaults else "temperature"
    key = f"loss.{term.name}.{setting}" if several else f"loss.{setting}"
    better = commands.train("--set", f"{key}={20 if setting == 'scale' else 0.05}")
    told = _told(term)
    worst = _value(term, columns, gap=-2.0)
    if not math.isfinite(worst):
        exam.problem("overflow", f"{told} makes the loss {worst} where the positive is ranked last", better)
        return
    if not bounded:
        exam.unchecked.append(f"temperature of {term.name}: the model's scores are dot products, which have no scale")
        return
    limits = exam.thresholds
    left, own = _left(term, columns, limits.gap), _left(build(term.name), columns, limits.gap)
    exam.figures[f"loss_left_{term.name}"] = left
    if own <= limits.measured_by_gap and limits.unreachable <= left <= 1:
        equal = _value(term, columns, gap=0.0)
        found = f"at {told} a positive {limits.gap:g} above all {columns - 1} negatives has the loss {left * equal:.3g}"
        exam.problem("temperature", f"{found}, and guessing has {equal:.3g}: cosines end at 1", better)
    scale = _scale(term)
    if scale is not None and scale > limits.sharp:
        found = f"{told} multiplies cosines by {scale:,.0f}"
        exam.problem(
            "temperature", f"{found}, and with them the rounding of bf16 by up to {0.004 * scale:.0f} nats", better
        )


def _left(term: RankingLoss, columns: int, gap: float) -> float:
    """Return the loss of positives `gap` above all negatives, as a share of that of equal scores; inf where unclear."""
    equal = _value(term, columns, gap=0.0)
    return _value(term, columns, gap=gap) / equal if equal > 0 else math.inf


def _value(term: RankingLoss, columns: int, *, gap: float) -> float:
    """Return the loss of a batch whose positives lie `gap` above every negative, which all are 0."""
    import torch

    rows = min(_ROWS, columns)
    labels = torch.zeros(rows, columns)
    labels[torch.arange(rows), torch.arange(rows)] = max(1.0, float(term.settings.get("positive_from") or 1))
    with torch.no_grad():
        return float(term(labels.bool() * gap, labels))


def _scale(term: RankingLoss) -> float | None:
    """Return what the loss multiplies scores by; None where that is learned or has no name."""
    scale, temperature = term.settings.get("scale"), term.settings.get("temperature")
    if isinstance(scale, int | float):
        return float(scale)
    return 1 / temperature if isinstance(temperature, int | float) and temperature > 0 else None


def _told(term: RankingLoss) -> str:
    named = [
        f"{name} {term.settings[name]:g}"
        for name in ("temperature", "scale")
        if isinstance(term.settings.get(name), int | float)
    ]
    return f"{term.name} with {named[0]}" if named else f"{term.name} with a learned scale"
