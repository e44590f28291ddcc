"""A score that is no number shows in InfoNCE's loss, whatever is added to the logits of the negatives."""

import functools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rankers.losses import build, infonce

WIDTH = 4


@pytest.mark.parametrize("symmetric", [False, True])
@given(
    st.integers(0, 2),
    st.integers(0, WIDTH - 1),
    st.sampled_from([0.0, 0.5, 9.0]),
    st.booleans(),
    st.floats(0.01, 1),
    st.integers(0, 10**6),
)
def test_a_nan_at_a_valid_entry_never_gives_a_finite_loss(symmetric, row, column, hardness, weighed, weight, seed):
    """Every row has a relevant document; weights of 0 are no valid entries, so that the broken one has another."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(3, WIDTH, generator=generator)
    labels = torch.eye(3, WIDTH)
    where = (torch.rand(3, WIDTH, generator=generator) < 0.7) | (labels > 0)
    weights = torch.rand(3, WIDTH, generator=generator).round()  # 0 and 1
    where[row, column], weights[row, column] = True, weight
    settings = {"hardness": hardness, "symmetric": symmetric}
    at_call = {"weights": weights} if weighed else {}
    assert infonce(scores, labels, where=where, **settings, **at_call).isfinite()
    scores[row, column] = torch.nan
    assert infonce(scores, labels, where=where, **settings, **at_call).isnan()

    loss = build("infonce", **settings)
    blocks = [
        (scores[i : i + 1], labels[i : i + 1], where[i : i + 1], {n: w[i : i + 1] for n, w in at_call.items()})
        for i in range(3)
    ]
    tallies = [loss.tally(*block[1:3]) for block in blocks]
    totals = loss.totals({name: sum(tally[name] for tally in tallies) for name in tallies[0]})
    more = {}
    if symmetric:
        more["seen"] = functools.reduce(loss.merge, [loss.observe(*block[:3], **block[3]) for block in blocks])
    shares = [loss.share(*block[:3], totals=totals, **more, **block[3]) for block in blocks]
    assert sum(shares).isnan()
