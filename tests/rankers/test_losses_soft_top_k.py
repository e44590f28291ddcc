"""The soft top-k operator and its loss: sums, limits, gradients, and what is far outside the top k."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rankers.losses import build, log_soft_top_k, soft_topk


def batch(rows=4, columns=7, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, columns, generator=generator, dtype=torch.float64) * 2
    where = torch.rand(rows, columns, generator=generator) < 0.8
    labels = (torch.rand(rows, columns, generator=generator) < 0.4).double()
    return x, where, labels


def gradient(loss, scores, labels, **settings):
    leaf = scores.clone().requires_grad_()
    loss(leaf, labels, **settings).backward()
    return leaf.grad


def naive(row, k, alpha):
    """log p of one list by bisection on the sum of p, with the source's bracket."""
    low, high = -row.max() - 10 / alpha - 20, -row.min() + 10 / alpha + 20
    for _ in range(200):
        t = (low + high) / 2
        low, high = (t, high) if torch.sigmoid(alpha * (row + t)).sum() < k else (low, t)
    return torch.nn.functional.logsigmoid(alpha * (row + t))


# --- the operator --------------------------------------------------------------------------------------------------


@given(st.integers(0, 10**6), st.integers(1, 8), st.sampled_from([0.1, 1.0, 2.0, 30.0]))
def test_memberships_sum_to_k_over_valid_entries(seed, k, alpha):
    x, where, _ = batch(seed=seed)
    log_p = log_soft_top_k(x, k, where=where, alpha=alpha)
    p = log_p.exp().masked_fill(~where, 0)
    torch.testing.assert_close(p.sum(-1), where.sum(-1).clamp_max(k).double(), rtol=1e-12, atol=0)
    assert (log_p[~where] == 0).all()
    assert (log_p <= 0).all()
    whole = where.sum(-1) <= k
    assert (log_p[whole] == 0).all()


@given(st.integers(0, 10**6), st.integers(1, 5), st.sampled_from([0.5, 2.0]))
def test_memberships_are_those_of_the_plain_bisection(seed, k, alpha):
    x, _, _ = batch(rows=1, seed=seed)
    torch.testing.assert_close(log_soft_top_k(x, k, alpha=alpha)[0], naive(x[0], k, alpha))


def test_k_may_differ_between_rows():
    x, where, _ = batch(rows=3)
    sizes = [1, 3, 2]
    got = log_soft_top_k(x, torch.tensor(sizes), where=where)
    wanted = [log_soft_top_k(x[i : i + 1], k, where=where[i : i + 1]) for i, k in enumerate(sizes)]
    torch.testing.assert_close(got, torch.cat(wanted))


@given(st.integers(0, 10**6), st.integers(1, 6))
def test_a_steep_operator_is_the_hard_top_k(seed, k):
    x = torch.randperm(7, generator=torch.Generator().manual_seed(seed))[None].double() / 4
    hard = torch.zeros_like(x).scatter(-1, x.topk(k).indices, 1.0)
    torch.testing.assert_close(log_soft_top_k(x, k, alpha=200.0).exp(), hard, atol=1e-8, rtol=0)


@pytest.mark.parametrize("n", [2, 3, 10])
def test_equal_entries_have_equal_memberships(n):
    for k in range(1, n):
        for value in (0.0, -3e4, 1e4):
            log_p = log_soft_top_k(torch.full((1, n), value), k)
            torch.testing.assert_close(log_p, torch.full((1, n), math.log(k / n)), rtol=1e-6, atol=1e-6)


@given(st.integers(0, 10**6), st.integers(1, 6))
def test_larger_entries_have_larger_memberships_and_a_shift_changes_nothing(seed, k):
    x, _, _ = batch(seed=seed)
    log_p = log_soft_top_k(x, k)
    order = x.argsort(-1)
    assert (log_p.gather(-1, order).diff(dim=-1) >= 0).all()
    torch.testing.assert_close(log_soft_top_k(x + torch.tensor([[-50.0], [3], [0], [1000]]), k), log_p)


def test_top_1_is_not_the_softmax():
    x = torch.tensor([[1.0, 0.0, -1.0]], dtype=torch.float64)
    p = log_soft_top_k(x, 1, alpha=1.0).exp()
    assert (p - torch.softmax(x, -1)).abs().max() > 0.05
    # With two entries, p = sigmoid(alpha (x_1 - x_2) / 2), half the slope of the softmax.
    pair = log_soft_top_k(x[:, :2], 1, alpha=1.0).exp()[0, 0]
    torch.testing.assert_close(pair, torch.sigmoid(torch.tensor(0.5, dtype=torch.float64)))


@pytest.mark.parametrize("logarithm", [True, False])
@pytest.mark.parametrize("alpha", [0.7, 2.0])
@pytest.mark.parametrize("k", [1, 3, 6, torch.tensor([1, 2, 7, 4])], ids=str)
def test_gradients_against_finite_differences(k, alpha, logarithm):
    x, where, _ = batch()
    leaf = x.requires_grad_()

    def run(values):
        log_p = log_soft_top_k(values, k, where=where, alpha=alpha)
        return log_p if logarithm else log_p.exp()

    assert torch.autograd.gradcheck(run, leaf)


def test_gradient_is_that_of_the_implicit_function():
    x, _, _ = batch(rows=1)
    leaf = x.requires_grad_()
    p = log_soft_top_k(leaf, 3, alpha=2.0).exp()
    v = (2 * p * (1 - p)).detach()[0]
    for j in range(7):
        (row,) = torch.autograd.grad(p[0, j], leaf, retain_graph=True)
        wanted = -v[j] * v / v.sum()
        wanted[j] += v[j]
        torch.testing.assert_close(row[0], wanted)


def test_the_operator_cannot_be_differentiated_twice():
    leaf = torch.randn(1, 4, requires_grad=True)
    (slopes,) = torch.autograd.grad(log_soft_top_k(leaf, 2).square().sum(), leaf, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slopes.sum().backward()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_is_far_outside_has_its_exact_logarithm_and_gradient(dtype):
    """Where all p are 0 or 1 the threshold lies in the middle of the gap: what is lacking equals what is had."""
    x = torch.tensor([[5000.0, 0.0, -3000.0]], dtype=dtype, requires_grad=True)
    log_p = log_soft_top_k(x, 1, alpha=2.0)
    torch.testing.assert_close(log_p.detach(), torch.tensor([[0.0, -5000.0, -11000.0]], dtype=dtype))
    (slopes,) = torch.autograd.grad(-log_p[0, 2], x)
    # t moves with the two documents at the gap, half each; the last one has the whole slope alpha.
    torch.testing.assert_close(slopes, torch.tensor([[1.0, 1.0, -2.0]], dtype=dtype))


def test_a_large_offset_costs_no_digits():
    x = (torch.randn(3, 50, generator=torch.Generator().manual_seed(0)) * 64).round() / 64
    torch.testing.assert_close(log_soft_top_k(x + 8192, 7), log_soft_top_k(x, 7))


@pytest.mark.parametrize(
    ("x", "k", "settings", "message"),
    [
        (torch.zeros(3), 1, {}, r"x must be float32 or float64 \(queries, docs\), got torch.float32 \(3,\)"),
        (torch.zeros(1, 3).half(), 1, {}, "got torch.float16"),
        (torch.zeros(1, 3), 0, {}, "k must be a whole number >= 1, got 0"),
        (torch.zeros(1, 3), 1.5, {}, "k must be a whole number >= 1, got 1.5"),
        (torch.zeros(2, 3), torch.tensor([1]), {}, r"k must be whole numbers >= 1, one per query \(2,\)"),
        (torch.zeros(2, 3), torch.tensor([1, 0]), {}, "k must be whole numbers >= 1"),
        (torch.zeros(1, 3), torch.tensor([1.0]), {}, "k must be whole numbers >= 1"),
        (torch.zeros(1, 3), 1, {"alpha": 0}, "alpha must be > 0, got 0"),
        (torch.zeros(1, 3), 1, {"where": torch.ones(1, 2) > 0}, r"where must be bool \(1, 3\)"),
    ],
)
def test_the_operator_refuses_what_it_cannot_take(x, k, settings, message):
    with pytest.raises(ValueError, match=message):
        log_soft_top_k(x, k, **settings)


# --- the loss ------------------------------------------------------------------------------------------------------


def test_by_hand_of_two_documents():
    """k=1: p = sigmoid(alpha (s_1 - s_2) / (2 temperature))."""
    value = soft_topk(torch.tensor([[0.3, 0.2]]), torch.tensor([[0, 1]]), k=1)
    assert value.item() == pytest.approx(math.log(1 + math.exp(2 * 0.1 / 0.05 / 2)))


@given(st.integers(0, 10**6), st.sampled_from([1, 3, "num_positives"]), st.sampled_from([0.5, 2.0]))
def test_the_loss_is_the_loop_over_valid_documents(seed, k, alpha):
    scores, where, labels = batch(seed=seed)
    rows = []
    for row, marks, valid in zip(scores, labels, where, strict=True):
        row, relevant = row[valid], marks[valid] == 1
        size = int(relevant.sum()) if k == "num_positives" else k
        if relevant.any():
            log_p = naive(row / 0.5, size, alpha) if size < len(row) else torch.zeros_like(row)
            rows.append(-log_p[relevant].mean())
    got = soft_topk(scores, labels, where=where, temperature=0.5, k=k, alpha=alpha)
    torch.testing.assert_close(got, torch.stack(rows).mean() if rows else torch.zeros((), dtype=torch.float64))


@pytest.mark.parametrize("k", [3, 4, 10**6, 10**30])
def test_a_k_that_holds_the_whole_row_leaves_nothing_to_learn(k):
    scores, labels = torch.tensor([[0.3, 0.1, -0.5]]), torch.tensor([[0, 1, 0]])
    assert soft_topk(scores, labels, k=k) == 0
    assert (gradient(soft_topk, scores, labels, k=k) == 0).all()
    assert build("soft_topk", k=k).count(labels) == 1  # it counts all the same
    longer = torch.tensor([[0.3, 0.1, -0.5, 0.0]])
    assert soft_topk(longer, torch.tensor([[0, 1, 0, 0]]), k=3) > 0


def test_positives_on_top_cost_nothing_and_their_order_does_not_matter():
    labels = torch.tensor([[1, 1, 1, 0, 0, 0]])
    for top in ([0.9, 0.8, 0.7], [0.7, 0.9, 0.8]):
        scores = torch.tensor([[*top, -0.7, -0.8, -0.9]])
        for k in (3, "num_positives"):
            assert soft_topk(scores, labels, k=k).item() == pytest.approx(0, abs=1e-6)
    # Two places for three relevant documents: at equal scores each is in with probability 2/3.
    equal = torch.tensor([[0.8, 0.8, 0.8, -0.7, -0.8, -0.9]])
    assert soft_topk(equal, labels, k=2).item() == pytest.approx(math.log(3 / 2), rel=1e-5)


def test_a_positive_far_below_is_pulled_up_with_the_full_slope():
    scores = torch.tensor([[1.0, 0.9, 0.8, -1.0]])
    slopes = gradient(soft_topk, scores, torch.tensor([[0, 0, 0, 1]]), k=2)[0]
    assert slopes[3].item() == pytest.approx(-2 / 0.05, rel=1e-6)
    assert slopes[:3].min() >= 0
    assert slopes[1] > slopes[0]  # at the k-th place, not the first one
    assert slopes.sum().item() == pytest.approx(0, abs=1e-5)


def test_a_larger_k_never_costs_more():
    scores, where, labels = batch()
    values = [soft_topk(scores, labels, where=where, temperature=1, k=k).item() for k in range(1, 8)]
    assert values == sorted(values, reverse=True)
    assert values[-1] == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"k": 0}, "k must be a whole number >= 1, got 0"),
        ({"k": True}, "k must be a whole number >= 1, got True"),
        ({"k": 2.5}, "k must be a whole number >= 1, got 2.5"),
        ({"k": "all"}, "k must be a whole number >= 1 or \"num_positives\", got 'all'"),
        ({"alpha": -1}, "alpha must be > 0, got -1"),
        ({"alpha": "2"}, "alpha must be a finite number, got '2'"),
        ({"positive_from": -1}, "positive_from must be > 0, got -1"),
    ],
)
def test_impossible_settings_are_refused_at_build(settings, message):
    with pytest.raises(ValueError, match=message):
        build("soft_topk", **settings)
