"""A reranker without a model: counts the words that query and document share, so that tests can do it by hand."""

import numpy as np


class StubReranker:
    """What `rerank` and `FeatureExtractor` use of a reranker.

    `fail_at` is a query at which it raises, `wrong` what it returns instead of its scores; `seen` lists the queries.
    """

    def __init__(self, *, fail_at=None, wrong=None, sign=1, **fingerprint):
        self.fail_at, self.wrong, self.sign, self.known = fail_at, wrong, sign, {"source": "stub"} | fingerprint
        self.seen = []

    def score(self, queries, documents):
        if self.fail_at in queries:
            raise KeyboardInterrupt
        self.seen += queries
        if self.wrong is not None:
            return self.wrong
        return [
            np.array([self.sign * shared(query, text) for text in texts], dtype=np.float32)
            for query, texts in zip(queries, documents, strict=True)
        ]

    def fingerprint(self):
        return self.known | {"sign": self.sign}


def shared(query: str, text: str) -> int:
    """The number of distinct words that both have."""
    return len(set(query.lower().split()) & set(text.lower().replace(".", "").split()))
