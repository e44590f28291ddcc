"""How alike texts are by the words that they share: the cosine of TF-IDF vectors, without a model.

A word is a run of letters, digits and underscores, without regard to case. Its weight in a text is

    (1 + ln tf) · (1 + ln((1 + n) / (1 + df)))

with tf its count in the text and df the number of the n texts that have it; vectors have length 1. No stop words: the
second factor does their work. (Salton and Buckley 1988, doi:10.1016/0306-4573(88)90021-0; smoothed as in scikit-learn.)
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

_WORD = re.compile(r"\w+")


class TextLikeness:
    """The vectors of some texts.

    Args:
        texts: read once, in order; text i is row i below.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        from scipy.sparse import csr_array

        words: dict[str, int] = {}
        columns: list[int] = []
        counts: list[int] = []
        ends = [0]
        for text in texts:
            own = Counter(_WORD.findall(text.casefold()))
            columns += [words.setdefault(word, len(words)) for word in own]
            counts += own.values()
            ends.append(len(columns))
        n = len(ends) - 1
        frequency = np.bincount(columns, minlength=len(words)) if columns else np.zeros(0)
        weights = (1 + np.log(np.array(counts, dtype=np.float64))) * (1 + np.log((1 + n) / (1 + frequency)))[columns]
        squares = np.add.reduceat(np.append(weights**2, 0), ends[:-1]) if n else np.zeros(0)
        sizes = np.diff(ends)
        lengths = np.where(sizes, np.sqrt(squares), 1)  # reduceat gives an empty text its neighbour's
        weights /= np.repeat(lengths, sizes)
        self._vectors: Any = csr_array((weights, columns, ends), shape=(n, len(words)))

    def cosines(self, rows: Sequence[int], others: Sequence[int]) -> NDArray[np.float64]:
        """Return the (rows, others) cosines, 0 to 1; a text without a word is like nothing, not even itself."""
        found: NDArray[np.float64] = (self._vectors[list(rows)] @ self._vectors[list(others)].T).toarray()
        return found
