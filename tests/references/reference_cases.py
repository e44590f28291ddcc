"""Our losses beside public implementations: the same scores, labels and masks, both values and both gradients."""

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import numpy as np
import pytest
from results_table import Result

torch = pytest.importorskip("torch", reason="needs the train extra")

from rankers.losses import LOSSES  # noqa: E402

SHAPES = ((3, 5), (4, 9), (6, 17))
Slope = np.ndarray


class Library:
    """A module that is imported at its first use, and skips the test that uses it where it is not installed.

    Collecting the tests must not import jax: `make test` collects these too.
    """

    def __init__(self, name: str, extra: str = "references"):
        self._name, self._extra = name, extra

    def __getattr__(self, attribute: str) -> Any:
        if attribute.startswith(("_", "pytest")):  # pytest asks every name of a test module
            raise AttributeError(attribute)
        pytest.importorskip(self._name.partition(".")[0], reason=f"needs the {self._extra} extra")
        return getattr(import_module(self._name), attribute)


@dataclass(frozen=True)
class Case:
    """One input of a loss: (queries, docs) scores that are all different, labels, and which entries are valid."""

    scores: np.ndarray
    labels: np.ndarray
    where: np.ndarray


@dataclass(frozen=True)
class Inputs:
    """What a public implementation is asked with.

    Attributes:
        labels: "grades" 0 to 4; "order", grades of which no two are equal; "one" or "several" relevant documents of a
            query; "diagonal", the i-th document of query i; "fractions", probabilities; "teacher", a teacher's scores,
            the best one first.
        cosines: scores between -1 and 1; else unbounded ones.
        masked: some entries are not valid, at any place.
        empty: a query has no label above 0.
        whole: scores are whole numbers, so some are 0 or equal.
        shapes: of the cases; None: SHAPES.

    """

    labels: str = "grades"
    cosines: bool = False
    masked: bool = True
    empty: bool = False
    whole: bool = False
    shapes: tuple[tuple[int, int], ...] = SHAPES

    def cases(self) -> Iterator[Case]:
        """Yield one case of each shape."""
        for seed, (queries, docs) in enumerate(self.shapes):
            random = np.random.default_rng(seed)
            # Numbers that float32 holds, so that a library that computes in it has the same input. None is 0, where
            # rax's pointwise loss has another slope.
            step = 1 / 512 if self.cosines else 1 / 128
            scores = np.stack([random.choice(1022, docs, replace=False) - 510.5 for _ in range(queries)]) * step
            scores = scores.round() if self.whole else scores
            labels = np.stack([self._row(random, docs) for _ in range(queries)])
            where = np.ones_like(scores, dtype=bool)
            if self.masked:
                where[:, 2:] = random.random((queries, docs - 2)) < 0.7
            if self.labels == "diagonal":
                labels = np.eye(queries, docs)
            elif self.labels != "teacher":  # there the first column must stay the best
                shuffled = random.permuted(np.tile(np.arange(docs), (queries, 1)), axis=1)
                labels, where = (np.take_along_axis(values, shuffled, axis=1) for values in (labels, where))
            if self.empty:
                labels[-1] = 0
            yield Case(scores, labels, where)

    def _row(self, random: np.random.Generator, docs: int) -> np.ndarray:
        """Return the labels of a query; of the first two documents, which are always valid, only the first is best."""
        if self.labels == "order":
            return np.concatenate([[docs - 1.0], random.permutation(docs - 1)])
        if self.labels == "teacher":
            rest = np.float32(random.normal(size=docs - 1))
            return np.concatenate([[np.ceil(rest.max()) + 0.5], rest]).astype(np.float64)
        rest = {
            "grades": random.integers(0, 5, docs - 2),
            "one": np.zeros(docs - 2),
            "diagonal": np.zeros(docs - 2),
            "several": random.integers(0, 2, docs - 2),
            "fractions": np.float32(random.random(docs - 2)),
        }[self.labels]
        return np.concatenate([[3.0 if self.labels == "grades" else 1.0, 0.0], rest]).astype(np.float64)


@dataclass(frozen=True)
class Reference:
    """A loss of ours and a public function that should be the same."""

    loss: str
    settings: dict[str, Any]
    library: str
    function: str
    theirs: Callable[[Case], tuple[float | None, Slope]]
    inputs: Inputs
    note: str = ""
    differs: str = ""

    def __str__(self) -> str:
        settings = "-".join(f"{value}" for value in self.settings.values() if isinstance(value, str | bool))
        return f"{self.loss}{'-' * bool(settings)}{settings}-{self.function}"

    @property
    def shown(self) -> str:
        """The loss and its settings, as the table has them."""
        settings = ", ".join(f"{name}={value}" for name, value in self.settings.items())
        return f"{self.loss}({settings})" if settings else self.loss

    def compare(self) -> Result:
        """Return the largest differences over all cases."""
        values, slopes = [], []
        for case in self.inputs.cases():
            value, slope = self.theirs(case)
            for dtype in (torch.float64, torch.float32):
                our_value, our_slope = self._ours(case, dtype)
                if value is not None:
                    values.append(difference(our_value, value))
                slopes.append(difference(our_slope, slope))
        return Result(
            self.shown,
            self.library,
            self.function,
            ", ".join(f"{queries} × {docs}" for queries, docs in self.inputs.shapes)
            + (", masked" if self.inputs.masked else ""),
            max(values) if values else None,
            max(slopes),
            self.note,
            self.differs,
        )

    def _ours(self, case: Case, dtype: torch.dtype) -> tuple[float, Slope]:
        scores = torch.tensor(case.scores, dtype=dtype, requires_grad=True)
        labels, where = torch.tensor(case.labels, dtype=dtype), torch.tensor(case.where)
        value = LOSSES[self.loss].fn(scores, labels, where=where, **self.settings)
        value.backward()
        return value.item(), scores.grad.double().numpy()


def difference(ours: float | Slope, theirs: float | Slope) -> float:
    """Return the largest difference over the largest of theirs; a case in which they are 0 would show nothing."""
    largest = float(np.abs(theirs).max())
    assert largest > 0
    return float(np.abs(ours - theirs).max()) / largest


def with_torch(theirs: Callable[..., torch.Tensor]) -> Callable[[Case], tuple[float, Slope]]:
    """Return the value and gradient of a function of (scores, labels, where) as tensors."""

    def run(case: Case) -> tuple[float, Slope]:
        scores = torch.tensor(case.scores, requires_grad=True)
        value = theirs(scores, torch.tensor(case.labels), torch.tensor(case.where))
        value.backward()
        return value.item(), scores.grad.numpy()

    return run


@dataclass
class References:
    """The comparisons with one library, each written as a function of (scores, labels, where) of that library."""

    library: str
    run: Callable[[Callable[..., Any]], Callable[[Case], tuple[float | None, Slope]]] = with_torch
    all: list[Reference] = field(default_factory=list)

    def add(
        self, loss: str, function: str, inputs: Inputs, *, note: str = "", differs: str = "", **settings: Any
    ) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """Note that the decorated function is that of `loss` with these settings, in terms of their `function`."""
        assert set(settings) <= set(inspect.signature(LOSSES[loss].fn).parameters)

        def noted(theirs: Callable[..., Any]) -> Callable[..., Any]:
            reference = Reference(
                loss, settings, self.library, function, self.run(theirs), inputs, note=note, differs=differs
            )
            self.all.append(reference)
            return theirs

        return noted


def rows_with(labels: Any, where: Any) -> Any:
    """Return the number of queries with a valid label above 0, which our means divide by."""
    return ((labels > 0) & where).any(-1).sum()
