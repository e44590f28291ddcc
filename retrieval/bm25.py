"""BM25 over a corpus: the lexical yardstick, and a source of candidates that needs no model.

bm25s scores (MIT, kept up, numpy only), PyStemmer stems (Snowball). Runs are ordered by `retrieval.trec`'s rule.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from retrieval.errors import InputError
from retrieval.progress import progress
from retrieval.trec import Run, ranked

if TYPE_CHECKING:
    from retrieval.corpus import Corpus

_WORD = re.compile(r"\w\w+")
_LUCENE_ENGLISH = (
    "a an and are as at be but by for if in into is it no not of on or such that the their then there these they "
    "this to was will with"
)
STOP_WORDS = frozenset(_LUCENE_ENGLISH.split())


class BM25Searcher:
    """Okapi BM25 in Lucene's variant, over title + " " + text.

        score(q, d) = Σ_t idf(t) · tf(t, d) / (tf(t, d) + k1 · (1 − b + b · |d| / mean |d|))
        idf(t)      = ln(1 + (N − n_t + 0.5) / (n_t + 0.5))

    over the terms t of the query, a repeated one as often as it is repeated; N documents, n_t of them with t.
    A term is a word of two or more letters, digits or underscores, in lower case, no English stop word, stemmed
    by the English Snowball stemmer. Scores are sums of float32.

    Attributes:
        corpus: the documents.

    Source: Robertson and Zaragoza 2009, The Probabilistic Relevance Framework, eq. 3.15, without its constant
    factor k1 + 1; the idf is Lucene's, which is never negative.
    """

    def __init__(self, index: Any, vocabulary: dict[str, int], corpus: Corpus) -> None:
        self._index, self._vocabulary, self.corpus = index, vocabulary, corpus
        self._stem = _stemmer()

    @classmethod
    def build(cls, corpus: Corpus, k1: float = 0.9, b: float = 0.4) -> BM25Searcher:
        """Read every document of `corpus` once and index its terms, which are held in memory.

        Args:
            corpus: may be empty.
            k1: how soon a term's repetitions stop to count; ≥ 0.
            b: how much long documents are discounted; in [0, 1].

        Raises:
            InputError: if k1 or b is out of range.
        """
        if not 0 <= k1 < np.inf:
            raise InputError(f"k1 must be at least 0, got {k1}")
        if not 0 <= b <= 1:
            raise InputError(f"b must be in [0, 1], got {b}")
        import bm25s

        stem = _stemmer()
        vocabulary: dict[str, int] = {}
        known: dict[str, int] = {}  # word → number of its stem: a word is stemmed once
        documents: list[NDArray[np.int32]] = []
        for text in progress(_texts(corpus), total=len(corpus), unit="docs", label="BM25"):
            terms = []
            for word in _words(text):
                number = known.get(word)
                if number is None:
                    number = known[word] = vocabulary.setdefault(stem(word), len(vocabulary))
                terms.append(number)
            documents.append(np.array(terms, dtype=np.int32))
        if not vocabulary:
            return cls(None, {}, corpus)
        index = bm25s.BM25(k1=k1, b=b, method="lucene")
        # A copy: bm25s adds the empty token to what it is given.
        index.index((documents, dict(vocabulary)), show_progress=False)
        return cls(index, vocabulary, corpus)

    def run(self, queries: Mapping[str, str], k: int) -> Run:
        """Return the k best documents of each query; one that shares no term with the corpus has none.

        Documents without a term of the query are never returned, so a query may have fewer than k. Ties at the
        k-th place are settled by `retrieval.trec`'s rule, not by the order of the corpus.

        Raises:
            InputError: if k is below 1.
        """
        if k < 1:
            raise InputError(f"k must be at least 1, got {k}")
        items = progress(queries.items(), total=len(queries), unit="queries", label="BM25 search")
        return {query_id: dict(self._top(text, k)) for query_id, text in items}

    def search(self, text: str, k: int) -> list[tuple[str, float]]:
        """Return the (doc_id, score) pairs of the k best documents, best first; see `run`."""
        if k < 1:
            raise InputError(f"k must be at least 1, got {k}")
        return self._top(text, k)

    def scores(self, text: str) -> NDArray[np.float32]:
        """Return the (documents,) scores of all documents, in the order of the corpus; 0 where no term is shared."""
        stems = map(self._stem, _words(text))
        terms = [self._vocabulary[stem] for stem in stems if stem in self._vocabulary]
        if not terms:
            return np.zeros(len(self.corpus), dtype=np.float32)
        found: NDArray[np.float32] = self._index.get_scores(terms)
        return found

    def _top(self, text: str, k: int) -> list[tuple[str, float]]:
        scores = self.scores(text)
        rows = np.flatnonzero(scores)
        if len(rows) > k:
            # Everything that equals the k-th score stays in, so that ids can settle the tie.
            kth = np.partition(scores[rows], -k)[-k]
            rows = rows[scores[rows] >= kth]
        ids = self.corpus.ids
        return ranked({ids[row]: float(scores[row]) for row in rows.tolist()})[:k]


def _words(text: str) -> Iterator[str]:
    return (word for word in _WORD.findall(text.lower()) if word not in STOP_WORDS)


def _texts(corpus: Corpus) -> Iterator[str]:
    return (corpus.text(row) for row in range(len(corpus)))


def _stemmer() -> Callable[[str], str]:
    import Stemmer

    stem: Callable[[str], str] = Stemmer.Stemmer("english").stemWord
    return stem
