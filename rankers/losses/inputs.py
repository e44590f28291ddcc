"""What every loss asks of its input, asked once: shapes, label kinds, temperature, reduction.

Values are looked at only where `where` is True. In a large batch nearly every label is 0 and every entry valid, so the
checks are quick there: labels that are 0 need none, and a mask that masks nothing is not applied.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Reduction = Literal["mean", "sum"]
_BINARY = (
    "binary labels are 0/1 or grades, relevant from positive_from={} on; for probabilities "
    "give positive_from (0.5, say) or take a loss whose labels are probabilities"
)
Number = float | Tensor  # a tensor has shape () and may require a gradient: a learned setting
Cells = tuple[Tensor, ...]  # (rows, columns) of some entries, each (cells,)


def check_matrix(scores: Tensor, labels: Tensor, where: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return (scores in float32 or float64, 0 where masked; where as bool) or say which shape or dtype is wrong.

    Half precision is lifted to float32 because every loss takes logarithms: bfloat16 holds 3 digits.
    """
    if scores.ndim != 2 or not scores.is_floating_point():
        raise ValueError(f"scores must be float (queries, docs), got {scores.dtype} {tuple(scores.shape)}")
    where = check_mask("where", where, labels)
    if scores.shape != labels.shape:
        raise ValueError(
            f"scores {tuple(scores.shape)} and labels {tuple(labels.shape)} must have the same (queries, "
            "docs) shape; did you forget rankers.lists.pad_lists()?"
        )
    # Masked scores become 0: a learned temperature's gradient is the sum of all gradients × scores, and 0 × nan is nan.
    lifted = scores if scores.dtype == torch.float64 else scores.to(torch.float32)
    return cleared(lifted, where), where


def check_mask(name: str, where: Tensor | None, labels: Tensor) -> Tensor:
    """Return the mask, all True for None; False wins over any label."""
    if where is None:
        return torch.ones_like(labels, dtype=torch.bool)
    if where.shape != labels.shape or where.dtype != torch.bool:
        raise ValueError(f"{name} must be bool {tuple(labels.shape)}, got {where.dtype} {tuple(where.shape)}")
    return where


def positives(labels: Tensor, where: Tensor, positive_from: float) -> Tensor:
    """Return where a valid label is >= positive_from; labels are 0/1 or grades.

    Raises:
        ValueError: at a valid label that is negative, not finite, or a fraction while `positive_from` is
            whole: 0.7 is then a probability or a teacher's score and would silently count as irrelevant.

    """
    bad = where & ~_is_binary(labels, positive_from)
    if bool(bad.any()):
        raise _refusal(labels, bad.nonzero()[0], _BINARY.format(positive_from))
    return where & (labels >= positive_from)


def positive_cells(labels: Tensor, where: Tensor, positive_from: float) -> Cells:
    """Return rows and columns, each (positives,), of the same entries, by ascending row.

    The way of a large batch, whose labels are nearly all 0: only the others are looked at.
    """
    cells = labels.nonzero()  # nan too
    cells = cells[where[cells[:, 0], cells[:, 1]]]
    values = labels[cells[:, 0], cells[:, 1]]
    good = _is_binary(values, positive_from)
    if not bool(good.all()):
        raise _refusal(labels, cells[~good][0], _BINARY.format(positive_from))
    return cells[values >= positive_from].unbind(1)


def _is_binary(labels: Tensor, positive_from: float) -> Tensor:
    """Return which labels are 0/1 or grades."""
    if not (check_number("positive_from", positive_from) > 0):
        raise ValueError(f"positive_from must be > 0, got {positive_from}: with 0 every document is relevant")
    good = labels >= 0
    if labels.is_floating_point():
        good &= labels < math.inf
        if float(positive_from).is_integer():
            good &= labels == labels.round()
    return good


def probabilities(labels: Tensor, where: Tensor, dtype: torch.dtype) -> Tensor:
    """Return labels in [0, 1] as `dtype`, 0 where masked; ValueError at any other valid value."""
    wanted = "labels must be probabilities in [0, 1]; divide grades by the highest grade"
    return _within(labels, where, dtype, 0, 1, wanted)


def grades(labels: Tensor, where: Tensor, dtype: torch.dtype) -> Tensor:
    """Return grades >= 0 as `dtype`, 0 where masked; ValueError at any other valid value."""
    wanted = "labels must be finite grades >= 0; mark padding in where, not in the labels"
    return _within(labels, where, dtype, 0, math.inf, wanted)


def teacher_scores(labels: Tensor, where: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a teacher's scores, any finite number, as `dtype`, 0 where masked; ValueError at any other value."""
    wanted = "labels must be a teacher's finite scores; where it gave none, where must be False"
    return _within(labels, where, dtype, -math.inf, math.inf, wanted)


def check_list(name: str, scores: Tensor, max_list: int) -> None:
    """Refuse rows that are longer than a loss with a cost of n² should take."""
    check_whole("max_list", max_list, least=1)
    n = scores.shape[1]
    if n > max_list:
        raise ValueError(
            f"{name} compares all pairs of a row: {n} documents are {n * n:,} pairs per query, above "
            f"max_list={max_list} ({max_list * max_list:,}); give it shorter lists, raise max_list, or take a loss "
            "of linear cost"
        )


def check_state(state: Mapping[str, Tensor], first: Mapping[str, float], scores: Tensor) -> Mapping[str, Tensor]:
    """Return the rows' state without gradient, in the scores' precision; `first` names what it must hold."""
    if not isinstance(state, Mapping) or state.keys() != first.keys():
        held = ", ".join(state) if isinstance(state, Mapping) else type(state).__name__
        raise ValueError(f"state must hold {', '.join(first)}, each (queries,), got {held}")
    for name, values in state.items():
        if values.shape != scores.shape[:1]:
            raise ValueError(
                f"state[{name!r}] must hold one number per query {tuple(scores.shape[:1])}, got {tuple(values.shape)}"
            )
    return {name: values.detach().to(scores) for name, values in state.items()}


def scale_of(temperature: Number | None, scale: Number | None, default: Number) -> Number:
    """Return the factor on the scores: `scale`, or 1 / `temperature`, or `default` when both are None."""
    if temperature is not None and scale is not None:
        raise ValueError(f"got temperature={temperature} and scale={scale}; they are 1/x of each other, give one")
    if temperature is not None:
        return 1 / check_number("temperature", temperature, positive=True)
    return check_number("scale", default if scale is None else scale, positive=True)


def check_number(name: str, value: Number, *, positive: bool = False) -> Number:
    """Return a finite number or a () tensor unchanged, and refuse anything else."""
    if isinstance(value, Tensor):
        if value.ndim or not value.is_floating_point():
            raise ValueError(f"{name} must be a number or a () tensor, got {value.dtype} {tuple(value.shape)}")
    elif isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{name} must be a finite number, got {value!r}")
    elif positive and not value > 0:
        raise ValueError(f"{name} must be > 0, got {value!r}")
    return value


def check_whole(name: str, value: object, *, least: int) -> None:
    """Refuse anything but an int from `least` on."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name} must be a whole number >= {least}, got {value!r}")


def check_switch(name: str, value: object) -> None:
    """Refuse anything but True and False: the word "false" is true."""
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be true or false, got {value!r}")


def check_choice(name: str, value: object, *choices: str) -> None:
    """Refuse a value that is none of `choices`."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")


def reduced(total: Tensor, count: Tensor, reduction: str) -> Tensor:
    """Return total ("sum") or total / count ("mean"), 0 with a zero gradient when the count is 0."""
    check_choice("reduction", reduction, "mean", "sum")
    return total if reduction == "sum" else total / count.clamp_min(1)


def fill_masked(logits: Tensor, where: Tensor) -> Tensor:
    """Take masked entries out of a softmax or maximum, with exactly no gradient.

    The lowest finite number and not -inf: exp() of it is 0 all the same, and a row without any valid entry
    stays finite until it is dropped.
    """
    return logits if _masks_nothing(where) else logits.masked_fill(~where, torch.finfo(logits.dtype).min)


def cleared(values: Tensor, where: Tensor) -> Tensor:
    """Return values, 0 where masked."""
    return values if _masks_nothing(where) else values.masked_fill(~where, 0)


def _masks_nothing(where: Tensor) -> bool:
    """Return whether every entry is valid: the least of the bytes, which is many times faster than `all`."""
    return not where.numel() or bool(where.view(torch.uint8).amin())


def softplus(values: Tensor) -> Tensor:
    """Return log(1 + exp(values)) to full precision; torch's own turns linear at 20, an error of 2e-9."""
    return -F.logsigmoid(-values)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return "; did you mean 'x'?", or what is known when nothing is near."""
    near = get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(sorted(known))}"


def _within(labels: Tensor, where: Tensor, dtype: torch.dtype, low: float, high: float, wanted: str) -> Tensor:
    """Return labels as `dtype`, 0 where masked; ValueError when a valid one is not finite and in [low, high]."""

    def is_good(values: Tensor) -> Tensor:
        return (values >= low) & (values <= high) & values.isfinite()

    # masked or not, the least and the greatest label are nearly always good, and then all are
    if labels.numel() and not bool(is_good(torch.stack(labels.aminmax())).all()):
        bad = where & ~is_good(labels)
        if bool(bad.any()):
            raise _refusal(labels, bad.nonzero()[0], wanted)
    return cleared(labels.to(dtype), where)


def _refusal(labels: Tensor, cell: Tensor, wanted: str) -> ValueError:
    row, column = cell.tolist()
    return ValueError(f"labels[{row}, {column}] is {labels[row, column].item():g}: {wanted}")
