"""Methods compared over the same queries: seeds averaged first, differences paired, p-values corrected together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from retrieval.statistics import holm, paired, randomisation_test

PerQuery = Mapping[str, float]
Pair = tuple[str, str]

SEEDS_FOR_A_CLAIM = 3


def averaged(runs: Sequence[PerQuery]) -> PerQuery:
    """Average every query over runs of the same queries.

    Raises:
        InputError: the runs are not about the same queries.

    """
    first, *others = runs
    columns = [np.array(list(first.values())), *(paired(first, other)[1] for other in others)]
    return dict(zip(first, np.mean(columns, axis=0).tolist(), strict=True))


def corrected_p(pairs: Sequence[Pair], values: Mapping[str, PerQuery]) -> dict[Pair, float]:
    """Return the p-value of every pair of methods: the paired randomisation test, after Holm over all the pairs.

    Args:
        pairs: names of two methods each; together they are the family.
        values: method → query → value, averaged over seeds.

    """
    p_values = [randomisation_test(*paired(values[one], values[other])) for one, other in pairs]
    return dict(zip(pairs, holm(p_values).tolist(), strict=True)) if pairs else {}
