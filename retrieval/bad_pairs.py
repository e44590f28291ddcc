"""Training pairs whose losses say that they are bad: too easy to teach anything, or never learned at all.

A `LossMemory` keeps what every training row has cost over the epochs; `judged` compares each row with all of them. Rows
far below the mean are "noisy" (in text: duplicates and trivial pairs), rows far above it "faulty" (wrong pairs, which
no training makes cheap). `flagged_rows` lists them with their texts for a person to read, `pair_weights` gives
them less weight. numpy only.

Source: Lan et al. 2024, Dynamic Bad Pair Mining (arXiv:2302.03357), there for time series.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from retrieval.errors import InputError
from retrieval.rows import TrainingRow
from retrieval.textfiles import publish_lines

if TYPE_CHECKING:
    from retrieval.corpus import Corpus

Verdict = Literal["noisy", "faulty"]

_SHOWN = 300  # characters of a text in the report


class LossMemory:
    """The losses of every training row, over the epochs of one run.

    Two sums and the last loss for each row are kept, whatever the number of epochs; later epochs count more. A row may
    be added several times in an epoch, or not at all.

    Args:
        rows: how many training rows there are; they are known by their numbers from 0.
        epochs: of the whole run, E in the formulas.
    """

    def __init__(self, rows: int, epochs: int) -> None:
        if rows < 1 or epochs < 1:
            raise ValueError(f"rows and epochs must be at least 1, got {rows} and {epochs}")
        self.epochs = epochs
        self._sums = np.zeros(rows)
        self._weights = np.zeros(rows)
        self._last = np.full(rows, np.nan)
        self._begun = 0  # epochs of which a loss is known

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self._sums)

    def add(self, row_numbers: ArrayLike, losses: ArrayLike, epoch: int) -> None:
        """Remember the losses of a batch.

        Args:
            row_numbers: (n,) int, which training row each loss is of.
            losses: (n,) finite float, before any weight.
            epoch: from 0.

        Raises:
            ValueError: at other shapes, a row or an epoch that does not exist, or a loss that is not finite.
        """
        numbers, values = np.asarray(row_numbers), np.asarray(losses, dtype=np.float64)
        if numbers.ndim != 1 or numbers.shape != values.shape:
            raise ValueError(f"row_numbers {numbers.shape} and losses {values.shape} must have the same shape (n,)")
        if not len(numbers):
            return
        if not np.issubdtype(numbers.dtype, np.integer) or numbers.min() < 0 or numbers.max() >= len(self):
            raise ValueError(f"row_numbers must be whole numbers from 0 to {len(self) - 1}")
        if not 0 <= epoch < self.epochs:
            raise ValueError(f"epoch must be from 0 to {self.epochs - 1}, got {epoch}")
        if not np.isfinite(values).all():
            raise ValueError(f"the loss of row {numbers[int(np.argmin(np.isfinite(values)))]} is not finite")
        np.add.at(self._sums, numbers, values * (epoch + 1))
        np.add.at(self._weights, numbers, epoch + 1)
        self._last[numbers] = values
        self._begun = max(self._begun, epoch + 1)

    def means(self) -> NDArray[np.float64]:
        """Return (rows,) the mean loss of each row, later epochs counting more; nan where none is known.

            m_i = mean over the past epochs e of l_ie (e + 1) / E

        A row that missed an epoch gets what the formula gives for its weighted mean loss in every epoch, so that it can
        be compared with the others.
        """
        known = self._weights > 0
        own = np.divide(self._sums, self._weights, out=np.full(len(self), np.nan), where=known)
        means: NDArray[np.float64] = own * ((self._begun + 1) / (2 * self.epochs))  # the mean of (e + 1) / E
        return means

    @property
    def last(self) -> NDArray[np.float64]:
        """(rows,) the last loss of each row; nan where none is known."""
        return self._last.copy()

    def state(self) -> dict[str, NDArray[Any]]:
        """Return copies of the arrays that `load` needs; a run that goes on from them goes on exactly."""
        sums = {"sums": self._sums.copy(), "weights": self._weights.copy(), "last": self._last.copy()}
        return {**sums, "epochs": np.array([self._begun, self.epochs], dtype=np.int64)}

    def load(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Take over what `state` returned.

        Raises:
            ValueError: it is of another number of rows or epochs, or an array is missing.
        """
        if missing := {"sums", "weights", "last", "epochs"} - state.keys():
            raise ValueError(f"the state of a loss memory lacks {', '.join(sorted(missing))}")
        begun, epochs = (int(number) for number in state["epochs"])
        if len(state["sums"]) != len(self) or epochs != self.epochs:
            got = f"{len(state['sums'])} rows and {epochs} epochs"
            raise ValueError(f"the state is of {got}, the run has {len(self)} rows and {self.epochs} epochs")
        self._sums[:], self._weights[:], self._last[:] = state["sums"], state["weights"], state["last"]
        self._begun = begun


@dataclass(frozen=True, slots=True)
class Judged:
    """Rows compared with all rows.

    Attributes:
        means: (rows,) see `LossMemory.means`.
        centre, spread: mean and standard deviation of the known means.
        noisy, faulty: (rows,) bool.

    """

    means: NDArray[np.float64]
    centre: float
    spread: float
    noisy: NDArray[np.bool_]
    faulty: NDArray[np.bool_]

    def deviations(self) -> NDArray[np.float64]:
        """Return (rows,) how many standard deviations each row is from the centre; nan where no loss is known."""
        return (self.means - self.centre) / self.spread if self.spread else self.means * 0


def judged(memory: LossMemory, *, noisy_from: float = 2.0, faulty_from: float = 3.0) -> Judged:
    """Find the rows whose mean losses are far from those of the others.

        noisy:   m_i <= centre - noisy_from * spread        faulty:  m_i >= centre + faulty_from * spread

    Losses cannot be below 0, so where most are near it no row is noisy; that is as it should be.

    Args:
        memory: losses of some epochs; the source waits for 50 of 80.
        noisy_from: standard deviations below the centre, > 0.
        faulty_from: standard deviations above it, > 0; the source's settings have 3, its command line 2.

    Returns:
        No row is noisy or faulty when all cost the same, or fewer than two are known.

    Raises:
        InputError: a threshold is not above 0.
    """
    for name, value in (("noisy_from", noisy_from), ("faulty_from", faulty_from)):
        if not value > 0:
            raise InputError(f"{name} must be above 0 standard deviations, got {value}")
    means = memory.means()
    known = means[np.isfinite(means)]
    centre, spread = (float(known.mean()), float(known.std())) if len(known) else (0.0, 0.0)
    if len(known) < 2 or spread <= 1e-12 * abs(centre):
        none = np.zeros(len(means), dtype=np.bool_)
        return Judged(means, centre, 0.0, none, none)
    # A comparison with nan is False.
    return Judged(means, centre, spread, means <= centre - noisy_from * spread, means >= centre + faulty_from * spread)


def pair_weights(found: Judged, losses: ArrayLike, *, relative: bool = True) -> NDArray[np.float64]:
    """Return (rows,) weights: less for noisy and faulty rows the further their current loss is from the centre.

        weight = exp(-((l - centre) / spread)² / 2) for a flagged row, 1 for others

    Args:
        found: of `judged`.
        losses: (rows,) current losses; nan, for a row without one, counts as its mean.
        relative: False: the density of the normal distribution itself, as in the source; with a spread below 0.4 it
            is above 1 near the centre.
    """
    current = np.asarray(losses, dtype=np.float64)
    if current.shape != found.means.shape:
        raise ValueError(f"got losses of shape {current.shape} for {len(found.means)} rows")
    flagged = found.noisy | found.faulty
    weights = np.ones(len(found.means))
    values = np.where(np.isfinite(current), current, found.means)[flagged]
    if flagged.any():  # and so the spread is not 0
        weights[flagged] = np.exp(-(((values - found.centre) / found.spread) ** 2) / 2)
        if not relative:
            weights[flagged] /= found.spread * np.sqrt(2 * np.pi)
    return weights


@dataclass(frozen=True, slots=True)
class FlaggedRow:
    """A training row that a person should look at.

    Attributes:
        verdict: "faulty" or "noisy".
        deviations: standard deviations from the mean of all rows.
        mean_loss, last_loss: see `LossMemory`.
        row: its number, from 0.
        query_id, query: of the row.
        positive_ids: of the row; empty where it has texts alone.
        positive: the text of the first positive, shortened.

    """

    verdict: Verdict
    deviations: float
    mean_loss: float
    last_loss: float
    row: int
    query_id: str
    query: str
    positive_ids: tuple[str, ...]
    positive: str


def flagged_rows(
    memory: LossMemory,
    rows: Sequence[TrainingRow],
    corpus: Corpus | None = None,
    *,
    noisy_from: float = 2.0,
    faulty_from: float = 3.0,
) -> list[FlaggedRow]:
    """Return the noisy and faulty rows, those furthest from the mean first, ties in the order of the rows.

    Args:
        memory: what the rows have cost.
        rows: the training rows, numbered as in the memory.
        corpus: where texts are looked up; without one, rows with ids alone have an empty text.
        noisy_from, faulty_from: see `judged`.

    Raises:
        ValueError: there are other numbers of rows here and in the memory.
        InputError: see `judged`.
    """
    if len(rows) != len(memory):
        raise ValueError(f"got {len(rows)} rows for a memory of {len(memory)}")
    found = judged(memory, noisy_from=noisy_from, faulty_from=faulty_from)
    deviations, last = found.deviations(), memory.last
    flagged = np.flatnonzero(found.noisy | found.faulty)
    order = flagged[np.argsort(-np.abs(deviations[flagged]), kind="stable")]
    return [
        FlaggedRow(
            verdict="faulty" if found.faulty[number] else "noisy",
            deviations=float(deviations[number]),
            mean_loss=float(found.means[number]),
            last_loss=float(last[number]),
            row=int(number),
            query_id=rows[number].query_id,
            query=_line(rows[number].query),
            positive_ids=rows[number].positive_ids,
            positive=_positive(rows[number], corpus),
        )
        for number in order.tolist()
    ]


def write_flagged(path: str | Path, flagged: Sequence[FlaggedRow]) -> None:
    """Write a report: a table with a head where the name ends in .tsv, JSON lines where it ends in .jsonl.

    Raises:
        InputError: the name ends otherwise.
    """
    path = Path(path)
    if path.suffix == ".jsonl":
        publish_lines(path, (json.dumps(asdict(one), ensure_ascii=False) for one in flagged))
    elif path.suffix == ".tsv":
        publish_lines(path, _table(flagged))
    else:
        raise InputError(f"ends in {path.suffix!r}; wanted .tsv or .jsonl", path=path)


def _table(flagged: Sequence[FlaggedRow]) -> Iterator[str]:
    yield "\t".join(FlaggedRow.__dataclass_fields__)
    for one in flagged:
        numbers = (f"{one.deviations:+.2f}", f"{one.mean_loss:.5g}", f"{one.last_loss:.5g}", str(one.row))
        yield "\t".join([one.verdict, *numbers, one.query_id, one.query, " ".join(one.positive_ids), one.positive])


def _positive(row: TrainingRow, corpus: Corpus | None) -> str:
    if corpus is None and not row.positives:
        return ""
    texts = row.positive_texts(corpus)
    return _line(texts[0]) if texts else ""


def _line(text: str) -> str:
    """Return the beginning of a text on one line, without tabs."""
    line = " ".join(text.split())
    return line if len(line) <= _SHOWN else f"{line[:_SHOWN]}…"
