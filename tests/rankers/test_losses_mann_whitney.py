"""MW: the naive form, values by hand, the bound on the pooled AUC, and what it sees that InfoNCE does not."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from rankers.losses import infonce, mann_whitney, mw

LOG2 = math.log(2)


def batch(rows=6, columns=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    labels = (torch.rand(rows, columns, generator=generator) < 0.3).double()
    labels[0, 0], labels[0, 1] = 1, 0
    where = torch.rand(rows, columns, generator=generator) < 0.8
    where[0, :2] = True
    return scores, labels, where


def naive(scores, labels, where, temperature):
    """Every pair at once, left to autograd."""
    relevant, irrelevant = scores[where & (labels >= 1)], scores[where & (labels < 1)]
    margins = (irrelevant[None, :] - relevant[:, None]) / temperature
    return torch.logaddexp(margins, torch.zeros_like(margins)).mean()


def area_over_curve(scores, labels):
    """1 - AUC of the pooled scores, ties counted as errors."""
    relevant, irrelevant = scores[labels >= 1], scores[labels < 1]
    return (irrelevant[None, :] >= relevant[:, None]).double().mean()


@pytest.mark.parametrize("pairs_at_once", [1, 7, 1 << 18])
@given(seed=st.integers(0, 10**6))
def test_blocks_equal_the_naive_form_in_loss_and_gradient(pairs_at_once, seed):
    scores, labels, where = batch(seed=seed)
    ours, theirs = scores.clone().requires_grad_(), scores.clone().requires_grad_()
    wanted = naive(theirs, labels, where, 0.1)
    wanted.backward()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mann_whitney, "_PAIRS_AT_ONCE", pairs_at_once)
        got = mw(ours, labels, where=where, temperature=0.1)
        got.backward()
    torch.testing.assert_close(got, wanted)
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_float32_agrees_with_float64_on_a_real_batch_size():
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(64, 64, generator=generator, dtype=torch.float64)
    low, high = scores.float().requires_grad_(), scores.clone().requires_grad_()
    ours, exact = mw(low, torch.eye(64)), mw(high, torch.eye(64))
    ours.backward()
    exact.backward()
    torch.testing.assert_close(ours.double(), exact, rtol=1e-6, atol=0)
    torch.testing.assert_close(low.grad.double(), high.grad, rtol=1e-4, atol=1e-8)


def test_by_hand():
    scores, labels = torch.tensor([[2.0, 1.0], [0.0, 3.0]]), torch.tensor([[1, 0], [0, 1]])
    pairs = [1 - 2, 0 - 2, 1 - 3, 0 - 3]  # each irrelevant minus each relevant, across the queries
    expected = sum(math.log1p(math.exp(pair)) for pair in pairs)
    assert mw(scores, labels, temperature=1).item() == pytest.approx(expected / 4)
    assert mw(scores, labels, temperature=1, reduction="sum").item() == pytest.approx(expected)
    assert mw(scores, labels, temperature=1, reduction="paper_sum").item() == pytest.approx(expected / 2)


def test_papers_sum_is_the_mean_times_the_negatives():
    scores, _, _ = batch(rows=5, columns=15)  # 5 queries with 2 mined negatives each
    labels = torch.eye(5, 15)
    negatives = 5 * (2 * 5 + 5 - 1)
    torch.testing.assert_close(mw(scores, labels, reduction="paper_sum"), mw(scores, labels) * negatives)


def test_ties_give_log_2():
    assert mw(torch.full((3, 4), 0.7), torch.eye(3, 4)).item() == pytest.approx(LOG2)


@given(st.integers(0, 10**6), st.sampled_from([0.01, 0.1, 1.0, 10.0]))
def test_loss_over_log_2_bounds_the_area_over_the_curve(seed, temperature):
    scores, labels, _ = batch(seed=seed)
    scores = (scores * 4).round() / 4  # with ties
    assert area_over_curve(scores, labels) <= mw(scores, labels, temperature=temperature) / LOG2 + 1e-12


def test_one_query_is_the_mean_pairwise_logistic_loss():
    scores = torch.tensor([[0.3, 0.9, -0.4, 0.2]], dtype=torch.float64)
    margins = scores[0, 0] - scores[0, 1:]
    torch.testing.assert_close(mw(scores, torch.eye(1, 4), temperature=1), -F.logsigmoid(margins).mean())


def test_one_pair_is_infonce_with_one_negative():
    scores, labels = torch.tensor([[0.2, 0.5]]), torch.tensor([[1, 0]])
    torch.testing.assert_close(mw(scores, labels), infonce(scores, labels))


def test_low_temperature_is_the_mean_hinge():
    scores, labels, _ = batch()
    hinge = (scores[labels == 0][None] - scores[labels == 1][:, None]).clamp_min(0).mean()
    torch.testing.assert_close(1e-4 * mw(scores, labels, temperature=1e-4), hinge, atol=1e-4, rtol=0)


def test_gradient_is_the_sums_of_the_sigmoids():
    scores, labels, _ = batch()
    leaf = scores.clone().requires_grad_()
    mw(leaf, labels, temperature=0.5).backward()
    relevant, irrelevant = scores[labels == 1], scores[labels == 0]
    slopes = torch.sigmoid((irrelevant[None] - relevant[:, None]) / 0.5) / (0.5 * len(relevant) * len(irrelevant))
    torch.testing.assert_close(leaf.grad[labels == 1], -slopes.sum(1))
    torch.testing.assert_close(leaf.grad[labels == 0], slopes.sum(0))
    assert leaf.grad.sum().item() == pytest.approx(0, abs=1e-12)


def test_blind_spot_of_infonce():
    """Offsets per query leave InfoNCE unchanged while no threshold works any more; MW sees it."""
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(200, 20, generator=generator, dtype=torch.float64)
    labels = torch.zeros(200, 20)
    labels[:, 0] = 1
    scores[:, 0] += 1  # a perfect ranking of every query
    shifted = scores + torch.empty(200, 1, dtype=torch.float64).uniform_(-100, 100, generator=generator)
    torch.testing.assert_close(infonce(shifted, labels), infonce(scores, labels), rtol=1e-6, atol=1e-6)
    assert area_over_curve(scores, labels) == 0
    assert area_over_curve(shifted, labels).item() == pytest.approx(0.5, abs=0.02)
    assert mw(shifted, labels) > 10 * mw(scores, labels)


def test_another_query_changes_the_gradient_of_the_first():
    def first_row(other):
        scores = torch.tensor([[0.9, 0.1], [other, other - 0.1]], dtype=torch.float64, requires_grad=True)
        mw(scores, torch.tensor([[1, 0], [1, 0]])).backward()
        return scores.grad[0]

    assert not torch.allclose(first_row(0.5), first_row(0.0))


def test_rows_without_a_relevant_document_give_negatives():
    scores, labels = torch.tensor([[1.0, 0.0], [0.5, 2.0]]), torch.tensor([[1, 0], [0, 0]])
    expected = sum(math.log1p(math.exp(score - 1)) for score in (0, 0.5, 2)) / 3
    assert mw(scores, labels, temperature=1).item() == pytest.approx(expected)


@pytest.mark.parametrize("labels", [torch.ones(2, 3), torch.zeros(2, 3)])
def test_no_pair_no_loss(labels):
    scores = torch.randn(2, 3, requires_grad=True)
    for reduction in ("mean", "sum", "paper_sum"):
        loss = mw(scores, labels, reduction=reduction)
        assert loss == 0
        loss.backward()
    assert (scores.grad == 0).all()


def test_the_graph_holds_no_pair():
    """64 queries make 258,048 pairs; what is saved for the gradient are the scores' worth of sums."""
    saved = []
    scores = torch.rand(64, 64, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor.numel()), lambda _: None):
        mw(scores, torch.eye(64))
    assert max(saved) <= 64 * 64
