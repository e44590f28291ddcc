"""The tables of the MW loss are equal to every pair, whole or joined from blocks."""

import functools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rankers.losses import mann_whitney, mw, pair_tables


def both(scores, labels, where=None, **settings):
    found = []
    for method in ("exact", "tabulated"):
        leaf = scores.clone().requires_grad_()
        value = mw(leaf, labels, where=where, method=method, **settings)
        found.append((value.detach(), torch.autograd.grad(value, leaf)[0]))
    return found


@given(
    st.integers(1, 12),
    st.integers(1, 12),
    st.sampled_from([0.01, 0.05, 1.0]),
    st.sampled_from(["mean", "paper_sum", "sum"]),
    st.integers(0, 10**6),
)
def test_tables_are_equal_to_every_pair(rows, columns, temperature, reduction, seed):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(rows, columns, generator=generator, dtype=torch.float64) * 2 - 1
    labels = (torch.rand(rows, columns, generator=generator) < 0.3).double()
    where = torch.rand(rows, columns, generator=generator) < 0.8
    exact, tabulated = both(scores, labels, where, temperature=temperature, reduction=reduction)
    torch.testing.assert_close(tabulated[0], exact[0], rtol=1e-5, atol=1e-8)
    biggest = exact[1].abs().max().clamp_min(1e-30)
    assert ((tabulated[1] - exact[1]).abs() <= 1e-5 * biggest).all()


@pytest.mark.parametrize("point", [-30.0, -3.0, -0.4, 0.0, 0.06, 2.0, 30.0])
def test_one_pair_is_interpolated_to_a_hundred_thousandth_of_itself(point):
    exact, tabulated = both(torch.tensor([[0.0, point]], dtype=torch.float64), torch.tensor([[1, 0]]), temperature=1.0)
    assert exact[0].item() == pytest.approx(math.log1p(math.exp(point)), rel=1e-12)
    torch.testing.assert_close(tabulated[0], exact[0], rtol=1e-5, atol=0)
    torch.testing.assert_close(tabulated[1], exact[1], rtol=1e-5, atol=0)


def test_auto_takes_the_tables_when_the_pairs_are_too_many(monkeypatch):
    scores, labels = torch.rand(6, 6), torch.eye(6)
    monkeypatch.setattr(mann_whitney, "EXACT_UP_TO", 6 * 30)
    assert torch.equal(mw(scores, labels), mw(scores, labels, method="exact"))
    monkeypatch.setattr(mann_whitney, "EXACT_UP_TO", 6 * 30 - 1)
    assert torch.equal(mw(scores, labels), mw(scores, labels, method="tabulated"))


def test_too_many_exact_pairs_are_refused_with_their_number(monkeypatch):
    monkeypatch.setattr(mann_whitney, "REFUSED_ABOVE", 179)
    with pytest.raises(
        ValueError, match=r"6 relevant × 30 irrelevant entries are 180 pairs, above the 179 .*tabulated"
    ):
        mw(torch.rand(6, 6), torch.eye(6), method="exact")
    assert mann_whitney.REFUSED_ABOVE == 179


def test_scores_that_no_grid_holds_are_refused_and_broken_ones_are_nan(monkeypatch):
    scores, labels = torch.tensor([[0.0, 1e4, -1e4]]), torch.tensor([[1, 0, 0]])
    assert mw(scores, labels, temperature=1.0, method="tabulated") == pytest.approx(5e3)
    monkeypatch.setattr(pair_tables, "_MOST_NODES", 10**4)
    with pytest.raises(ValueError, match=r"the scores spread over 20,000 temperatures, .* raise the temperature"):
        mw(scores, labels, temperature=1.0, method="tabulated")
    monkeypatch.setattr(pair_tables, "_MOST_CELLS", 4)
    with pytest.raises(ValueError, match="need 8 nodes for each of 1 relevant ones; raise the temperature"):
        mw(scores / 1e4, labels, temperature=4.0, method="tabulated")
    for broken in (float("nan"), float("inf")):
        value = mw(torch.tensor([[0.0, broken, 0.5]]), torch.tensor([[1, 0, 0]]), method="tabulated")
        assert value.isnan()


@given(st.lists(st.integers(0, 5), min_size=1, max_size=5), st.integers(0, 10**6))
def test_tables_of_blocks_join_to_the_tables_of_all(sizes, seed):
    generator = torch.Generator().manual_seed(seed)
    parts = [(torch.randn(n, generator=generator) * 3, torch.randn(4 * n, generator=generator) * 3) for n in sizes]

    def tables(relevant, irrelevant):
        return pair_tables.PairTables.of(relevant, irrelevant, torch.ones_like(irrelevant, dtype=torch.bool))

    relevant, irrelevant = (torch.cat(side) for side in zip(*parts, strict=True))
    whole = tables(relevant, irrelevant)
    joined = functools.reduce(pair_tables.PairTables.joined, [tables(*part) for part in parts])
    torch.testing.assert_close(joined.pushes(irrelevant), whole.pushes(irrelevant))
    torch.testing.assert_close(joined.pulls(relevant), whole.pulls(relevant))
