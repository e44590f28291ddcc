"""Which of a query's candidates become its negatives: what is forbidden, the window of ranks, margins, the draw.

Candidates come best first. First everything goes that may not be a negative (`PermittedDocuments`): documents judged
relevant, and texts that say the same. What is left is numbered from 1: a rank counts permitted candidates only, so
that a query with five relevant documents on top has the same window as one with none. Then, in this order:

    window            first_rank <= rank <= last_rank
    absolute margin   drop s > s₊ - m
    relative margin   drop s > s₊ - r·|s₊|        (the same as (1 - r)·s₊ where s₊ is not negative)
    highest score     drop s > t
    draw              the first n; n at random; or n by Gumbel-top-k

Documents that are judged not relevant (grade 0) are the only certain negatives: margins and the highest score, which
guard against relevant documents that nobody judged, do not apply to them.

Sources: for the margins Moreira et al. 2024, NV-Retriever (arXiv:2407.15831), section 3; for Gumbel-top-k Kool et al.
2019 (arXiv:1903.06059), section 2.3: taking the n largest of s / temperature + Gumbel noise draws n without replacement
from softmax(s / temperature).
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from retrieval.embedding_store import text_digests
from retrieval.errors import InputError, did_you_mean

if TYPE_CHECKING:
    from retrieval.batches import Judgements, Key
    from retrieval.corpus import Corpus
    from retrieval.rows import TrainingRow

Sampling = Literal["top", "random", "gumbel"]
MarginFrom = Literal["lowest", "mean", "highest"]


@dataclass(frozen=True, slots=True)
class NegativeRules:
    """How negatives are chosen among a query's permitted candidates; see the module.

    Attributes:
        first_rank, last_rank: the window, both ends in it, counted from 1.
        num_negatives: of each query, at most; a query that has fewer keeps what it has.
        absolute_margin: how far below the positive's score a negative must stay, >= 0.
        relative_margin: the same as a share of the positive's score, in [0, 1].
        margin_from: whose score that is where a row has several positives: the lowest one's, the highest one's, or
            their mean. A document that outscores any relevant one may be relevant; but of dozens of positives one
            has a score so low that "lowest" leaves nothing.
        max_score: the highest score that a negative may have.
        sampling: "top" takes the first, "random" each with the same chance, "gumbel" in proportion to
            exp(score / temperature).
        temperature: of "gumbel", > 0, in units of the score; small ones come near to "top" by score.
        seed: the draw of a query depends on this and on the query's key alone.

    Raises:
        InputError: a value that is out of range; it is named.
    """

    first_rank: int = 1
    last_rank: int = 100
    num_negatives: int = 7
    absolute_margin: float | None = None
    relative_margin: float | None = None
    margin_from: MarginFrom = "lowest"
    max_score: float | None = None
    sampling: Sampling = "top"
    temperature: float = 0.05
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what has no meaning."""
        for name in ("first_rank", "last_rank", "num_negatives"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.seed < 0:
            raise InputError(f"seed must be at least 0, got {self.seed}")
        if self.first_rank > self.last_rank:
            raise InputError(
                f"the window of ranks {self.first_rank}:{self.last_rank} is empty; wanted first:last, such as 1:100"
            )
        if self.absolute_margin is not None and not 0 <= self.absolute_margin < math.inf:
            raise InputError(f"absolute_margin must be at least 0, got {self.absolute_margin}")
        if self.relative_margin is not None and not 0 <= self.relative_margin <= 1:
            raise InputError(f"relative_margin must be in [0, 1], a share of the score; got {self.relative_margin}")
        if self.max_score is not None and not math.isfinite(self.max_score):
            raise InputError(f"max_score must be a finite number, got {self.max_score}")
        for name, known in (("sampling", get_args(Sampling)), ("margin_from", get_args(MarginFrom))):
            if getattr(self, name) not in known:
                raise InputError(f"unknown {name} {getattr(self, name)!r}{did_you_mean(getattr(self, name), known)}")
        if not 0 < self.temperature < math.inf:
            raise InputError(f"temperature must be above 0, got {self.temperature}")

    @property
    def has_margin(self) -> bool:
        """Whether a positive's score is needed."""
        return self.absolute_margin is not None or self.relative_margin is not None

    def positive_score(self, scores: Sequence[float] | NDArray[np.float32]) -> float | None:
        """Return what the margins are measured from, s₊, of a row's (positives,) scores; None where there are none."""
        if not len(scores):
            return None
        values = [float(score) for score in scores]
        if self.margin_from == "mean":
            return sum(values) / len(values)
        return min(values) if self.margin_from == "lowest" else max(values)


def parse_range(text: str, name: str = "range") -> tuple[int, int]:
    """Read a window of ranks, "10:100", both ends in it.

    Args:
        text: what the user wrote.
        name: what the user calls it, for messages.

    Raises:
        InputError: it is none, begins below 1, or is empty.
    """
    first, sign, last = (part.strip() for part in str(text).partition(":"))
    if not sign or not first.isdecimal() or not last.isdecimal():
        raise InputError(f"{name} got {text!r}; wanted the first and the last rank, such as 10:100")
    if int(first) < 1:
        raise InputError(f"{name} got {text!r}; ranks begin at 1, as in 1:100")
    if int(first) > int(last):
        raise InputError(f"{name}: the window of ranks {text} is empty; wanted first:last, such as 1:100")
    return int(first), int(last)


def choose_places(
    rules: NegativeRules,
    scores: NDArray[np.floating],
    ranks: NDArray[np.int64],
    positive_score: float | None,
    key: str,
    removed: Counter[str] | None = None,
    exempt: NDArray[np.bool_] | None = None,
) -> list[int]:
    """Return which of a query's candidates become negatives.

    Args:
        rules: what is wanted.
        scores, ranks: (candidates,) of each candidate, without what is forbidden: see `PermittedDocuments`. "top" takes
            them in the order given.
        positive_score: what the margins are measured from, on the same scale: `NegativeRules.positive_score`. None is
            enough without margins.
        key: the query's id; decides the draw together with the seed.
        removed: counts, of the candidates in the window, how many each rule removed; the first that did.
        exempt: (candidates,) which ones neither margins nor the highest score remove.

    Returns:
        Rising places in `scores`, at most `num_negatives`; fewer, or none, where the rules leave no more.

    Raises:
        InputError: there is a margin and no positive's score.
    """
    if rules.has_margin and positive_score is None:
        raise InputError(f"query {key!r}: a margin is measured from the positive's score, and there is none")
    scores = scores.astype(np.float64)
    left = (ranks >= rules.first_rank) & (ranks <= rules.last_rank)
    checked = np.ones(len(scores), dtype=bool) if exempt is None else ~exempt
    for name, highest in _limits(rules, positive_score):
        gone = left & checked & (scores > highest)
        if removed is not None:
            removed[name] += int(gone.sum())
        left &= ~gone
    places = np.flatnonzero(left)
    if rules.sampling != "top" and len(places) > rules.num_negatives:
        noise = _random(rules.seed, key).gumbel(size=len(places))
        weights = scores[places] / rules.temperature if rules.sampling == "gumbel" else 0.0
        drawn = np.argsort(-(weights + noise), kind="stable")[: rules.num_negatives]
        places = np.sort(places[drawn])
    found: list[int] = places[: rules.num_negatives].tolist()
    return found


def _limits(rules: NegativeRules, positive_score: float | None) -> Iterable[tuple[str, float]]:
    """Yield (rule, highest score that it allows)."""
    if positive_score is not None and rules.absolute_margin is not None:
        yield "absolute_margin", positive_score - rules.absolute_margin
    if positive_score is not None and rules.relative_margin is not None:
        yield "relative_margin", positive_score - rules.relative_margin * abs(positive_score)
    if rules.max_score is not None:
        yield "max_score", rules.max_score


def _random(seed: int, key: str) -> np.random.Generator:
    digest = hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()
    return np.random.default_rng([seed, int.from_bytes(digest[:8], "little")])


class PermittedDocuments:
    """Tells which documents may be negatives of a row.

    Forbidden are documents that are judged relevant (grade > 0) for the row's query, or for another query with the
    same text; the row's own positives; every document whose text equals the text of one of these or of the query; and
    of candidates with the same text all but the first. Texts are compared by 64 bits of their sha256, as models read
    them: title + " " + text.

    Args:
        corpus: the documents.
        rows: all training rows, whose queries may share texts.
        judgements: `retrieval.batches.collect_judgements` of these rows.
        digests: (documents, 32) uint8, `EmbeddingStore.corpus_digests`.
    """

    def __init__(
        self, corpus: Corpus, rows: Iterable[TrainingRow], judgements: Judgements, digests: NDArray[np.uint8]
    ) -> None:
        self.corpus, self.judgements = corpus, judgements
        self._texts = _numbers(digests)
        _, place, count = np.unique(self._texts, return_inverse=True, return_counts=True)
        self._has_copies = count[place] > 1
        self._same_text: dict[str, set[str]] = {}
        for row in rows:
            self._same_text.setdefault(row.query, set()).add(row.query_id)

    def forbidden(self, row: TrainingRow) -> Forbidden:
        """Return what may not be a negative of a row."""
        from retrieval.batches import positive_documents

        keys = {key for key, _ in positive_documents(row)}
        keys |= {key for key, grade in self._judged(row) if grade > 0}
        texts = [row.query, *row.positives, *(key[1] for key in keys if isinstance(key, tuple))]
        rows = self._rows(keys)
        return Forbidden(rows, np.concatenate([self._texts[rows], _numbers(text_digests(texts))]))

    def judged_irrelevant(self, row: TrainingRow) -> NDArray[np.int64]:
        """Return the row numbers of documents that are judged for a row's query, and not relevant.

        Some may be forbidden: another judgement of the same query and document may say that it is relevant.
        """
        return self._rows({key for key, grade in self._judged(row) if grade <= 0})

    def _judged(self, row: TrainingRow) -> Iterator[tuple[Key, float]]:
        for query_id in {row.query_id, *self._same_text.get(row.query, ())}:
            yield from self.judgements.get(query_id, {}).items()

    def _rows(self, keys: Iterable[Key]) -> NDArray[np.int64]:
        """Return the row numbers of documents that are known by their ids and that the corpus has."""
        found = [self.corpus.ids.find(key) for key in keys if isinstance(key, str)]
        return np.array([place for place in found if place is not None], dtype=np.int64)

    def mask(self, forbidden: Forbidden, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return which of (candidates,) row numbers of the corpus, best first and none twice, are permitted."""
        texts = self._texts[rows]
        mask: NDArray[np.bool_] = ~(texts[:, None] == forbidden.texts).any(axis=1)
        if self._has_copies[rows].sum() > 1:
            first = np.zeros(len(rows), dtype=bool)
            first[np.unique(texts, return_index=True)[1]] = True
            mask &= first
        return mask


@dataclass(frozen=True, slots=True)
class Forbidden:
    """What may not be a negative: rows (documents,) int64 by themselves, texts (texts,) uint64 by what they say."""

    rows: NDArray[np.int64]
    texts: NDArray[np.uint64]

    def count(self, rows: NDArray[np.int64], mask: NDArray[np.bool_], removed: Counter[str]) -> None:
        """Count under "relevant" and "same_text" what a mask of `PermittedDocuments` removed."""
        if not mask.all():
            n_relevant = int(np.isin(rows[~mask], self.rows).sum())
            removed["relevant"] += n_relevant
            removed["same_text"] += int((~mask).sum()) - n_relevant


def _numbers(digests: NDArray[np.uint8]) -> NDArray[np.uint64]:
    return np.ascontiguousarray(digests[:, :8]).view(np.uint64)[:, 0]
