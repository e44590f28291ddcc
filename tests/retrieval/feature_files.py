"""Small feature files, made by a rule, for the tests of feature rankers."""

from pathlib import Path

import numpy as np

from retrieval.svmlight import FeatureLists, write_svmlight


def lists(queries: int, seed: int = 0, *, docs: int = 6, prefix: str = "q") -> FeatureLists:
    """Return lists whose grade, 0 to 2, follows the first feature; the second is noise, the third constant."""
    random = np.random.default_rng(seed)
    features = random.normal(size=(queries * docs, 3)).astype(np.float32)
    features[:, 2] = 5
    grades = np.digitize(features[:, 0], [0.2, 1.0]).astype(np.float32)
    return FeatureLists(
        query_ids=[f"{prefix}{number}" for number in range(queries)],
        sizes=np.full(queries, docs),
        labels=grades,
        features=features,
        doc_ids=[f"d{number}" for number in range(queries * docs)],
        numbers=np.array([1, 2, 4]),
        names=["signal", "noise", "constant"],
    )


def odd_one_out(queries: int, seed: int = 0, *, prefix: str = "q") -> FeatureLists:
    """Return lists of which one document is relevant: that whose feature the others do not share.

    Each feature is relevant as often as another, so that whoever looks at one document alone knows nothing.
    """
    random = np.random.default_rng(seed)
    kinds = np.array([random.permutation(4)[[0, 1, 1, 1]] for _ in range(queries)])
    order = np.argsort(random.random((queries, 4)), axis=1)
    kinds, grades = (np.take_along_axis(v, order, axis=1) for v in (kinds, np.tile([1, 0, 0, 0], (queries, 1))))
    return FeatureLists(
        query_ids=[f"{prefix}{number}" for number in range(queries)],
        sizes=np.full(queries, 4),
        labels=grades.reshape(-1).astype(np.float32),
        features=np.eye(4, dtype=np.float32)[kinds.reshape(-1)],
        doc_ids=None,
        numbers=np.arange(1, 5),
    )


def written(path: Path, found: FeatureLists) -> str:
    """Write lists and return the path."""
    write_svmlight(path, found)
    return str(path)
