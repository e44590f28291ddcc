"""ApproxNDCG, ApproxRR and NeuralNDCG: loops over documents, and the measures themselves as their limits."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rankers import metrics
from rankers.losses import approx_ndcg, approx_rr, build, neural_ndcg
from rankers.losses.gains import discounts, normalised_gains
from rankers.losses.smooth_ranks import _doubly_stochastic, _soft_places

SMALL = 1e-3  # a temperature at which scores of a grid of 1/8 are as good as sorted


def batch(rows=4, columns=6, seed=0):
    """Return scores of which no two of a row are equal, grades and a mask."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.stack([torch.randperm(columns, generator=generator) for _ in range(rows)]).double() / 8
    grades = torch.randint(0, 4, (rows, columns), generator=generator).double()
    where = torch.rand(rows, columns, generator=generator) < 0.8
    return scores, grades, where


def gradient(loss, scores, labels, **settings):
    leaf = scores.clone().requires_grad_()
    loss(leaf, labels, **settings).backward()
    return leaf.grad


def ranked(scores, labels, where):
    """Return labels and mask in ranked order, as the measures take them."""
    order = scores.masked_fill(~where, -math.inf).argsort(dim=-1, descending=True)
    return labels.gather(-1, order).numpy(), where.gather(-1, order).numpy()


def mean_of_counted(values, counted):
    return values[counted].mean() if counted.any() else 0.0


# --- ApproxNDCG ----------------------------------------------------------------------------------------------------


def smooth_rank(row, i, temperature):
    return 1 + sum(1 / (1 + math.exp((row[i] - row[j]) / temperature)) for j in range(len(row)) if j != i)


def loop_approx_ndcg(row, grades, temperature, gain):
    gains = [2**y - 1 if gain == "exp2" else y for y in grades]
    found = sum(g / math.log2(1 + smooth_rank(row, i, temperature)) for i, g in enumerate(gains))
    best = sum(g / math.log2(2 + i) for i, g in enumerate(sorted(gains, reverse=True)))
    return -found / best


@given(st.integers(0, 10**6), st.sampled_from(["exp2", "linear"]), st.sampled_from([0.1, 1.0]))
def test_approx_ndcg_is_the_loop_over_valid_documents(seed, gain, temperature):
    scores, grades, where = batch(seed=seed)
    rows = [
        loop_approx_ndcg(row[valid].tolist(), marks[valid].tolist(), temperature, gain)
        for row, marks, valid in zip(scores, grades, where, strict=True)
        if marks[valid].sum() > 0
    ]
    got = approx_ndcg(scores, grades, where=where, temperature=temperature, gain=gain)
    assert got.item() == pytest.approx(sum(rows) / max(len(rows), 1))


def test_approx_ndcg_by_hand():
    """Two documents 0.1 apart: the ranks are 1 + sigmoid(-1) and 1 + sigmoid(1), the relevant one is behind."""
    behind = 1 + 1 / (1 + math.exp(-1))
    value = approx_ndcg(torch.tensor([[0.2, 0.3]]), torch.tensor([[1, 0]]))
    assert value.item() == pytest.approx(-1 / math.log2(1 + behind))


@given(st.integers(0, 10**6), st.sampled_from(["exp2", "linear"]))
def test_approx_ndcg_nears_minus_ndcg(seed, gain):
    scores, grades, where = batch(seed=seed)
    labels, valid = ranked(scores, grades, where)
    ndcg = metrics.ndcg(labels, where=valid, gain=gain)
    counted = (grades.masked_fill(~where, 0) > 0).any(-1).numpy()
    got = approx_ndcg(scores, grades, where=where, temperature=SMALL, gain=gain)
    assert got.item() == pytest.approx(-mean_of_counted(ndcg, counted))


def test_equal_scores_share_the_mean_of_their_ranks():
    value = approx_ndcg(torch.zeros(1, 3), torch.tensor([[1, 0, 0]]), temperature=SMALL)
    assert value.item() == pytest.approx(-1 / math.log2(1 + 2))


def test_a_step_down_the_gradient_lifts_a_relevant_document():
    slopes = gradient(approx_ndcg, torch.tensor([[0.0, 0.1, 0.2]]), torch.tensor([[2, 0, 1]]))
    assert slopes[0, 0] < 0 < slopes[0, 1]


# --- gains ---------------------------------------------------------------------------------------------------------


@given(st.integers(0, 10**6), st.sampled_from(["exp2", "linear"]), st.sampled_from([None, 1, 3, 99]))
def test_gains_are_over_the_ideal_dcg(seed, gain, k):
    _, grades, _ = batch(seed=seed)
    grades[1] = 0
    shares = normalised_gains(grades, gain, k)
    raw = grades.exp2() - 1 if gain == "exp2" else grades
    ideal = raw.sort(-1, descending=True).values[:, : k or 6]
    best = (ideal / torch.log2(torch.arange(2, ideal.shape[1] + 2))).sum(-1, keepdim=True)
    torch.testing.assert_close(shares * best, raw)
    assert (shares[1] == 0).all()
    torch.testing.assert_close(discounts(torch.tensor([1.0, 3.0, 2.5])), torch.tensor([1, 0.5, 1 / math.log2(3.5)]))


def test_gains_of_huge_and_tiny_grades_are_finite_and_keep_their_proportions():
    huge = normalised_gains(torch.tensor([[5000.0, 4999.0, 0.0]]), "exp2")
    torch.testing.assert_close(huge[0] / huge[0, 0], torch.tensor([1.0, 0.5, 0.0]))
    for gain in ("exp2", "linear"):
        tiny = normalised_gains(torch.tensor([[3e-30, 1e-30]]), gain)
        torch.testing.assert_close(tiny[0, 1] / tiny[0, 0], torch.tensor(1 / 3))
    for loss in (approx_ndcg, neural_ndcg):
        assert -1 <= loss(torch.tensor([[0.1, 0.2]]), torch.tensor([[5000.0, 4998.0]])) < 0


# --- ApproxRR ------------------------------------------------------------------------------------------------------


@given(st.integers(0, 10**6))
def test_approx_rr_is_the_loop_over_valid_documents(seed):
    scores, grades, where = batch(seed=seed)
    rows = []
    for row, marks, valid in zip(scores, grades, where, strict=True):
        row, relevant = row[valid].tolist(), (marks[valid] >= 2).tolist()
        if any(relevant):
            best = max((i for i in range(len(row)) if relevant[i]), key=row.__getitem__)
            rows.append(-1 / smooth_rank(row, best, 0.1))
    got = approx_rr(scores, grades, where=where, positive_from=2)
    assert got.item() == pytest.approx(sum(rows) / max(len(rows), 1))


@given(st.integers(0, 10**6))
def test_approx_rr_nears_minus_the_reciprocal_rank(seed):
    scores, grades, where = batch(seed=seed)
    labels, valid = ranked(scores, grades, where)
    values = metrics.reciprocal_rank(labels, where=valid, positive_from=2)
    got = approx_rr(scores, grades, where=where, positive_from=2, temperature=SMALL)
    assert got.item() == pytest.approx(-mean_of_counted(values, values > 0))


def test_the_best_relevant_documents_share_the_gradient_where_they_are_equal():
    scores, labels = torch.tensor([[0.3, 0.5, 0.3, 0.1]]), torch.tensor([[1, 0, 1, 1]])
    slopes = gradient(approx_rr, scores, labels)[0]
    assert slopes[0] == slopes[2] < 0 < slopes[1]
    assert slopes[3] > 0  # relevant, but behind the best one: pushed further down
    rank = smooth_rank([0.3, 0.5, 0.3, 0.1], 0, 0.1)
    assert approx_rr(scores, labels).item() == pytest.approx(-1 / rank)


# --- NeuralNDCG ----------------------------------------------------------------------------------------------------


def loop_places(row, temperature, iterations, tolerance):
    """NeuralSort's matrix of one list without padding, then Sinkhorn."""
    n = len(row)
    distances = torch.stack([(row - row[j]).abs().sum() for j in range(n)])
    matrix = torch.stack([torch.softmax(((n + 1 - 2 * r) * row - distances) / temperature, 0) for r in range(1, n + 1)])
    for _ in range(iterations):
        if (matrix.sum(0) - 1).abs().max() <= tolerance:
            break
        matrix = matrix / matrix.sum(0, keepdim=True)
        matrix = matrix / matrix.sum(1, keepdim=True)
    return matrix


def loop_neural_ndcg(row, grades, k, temperature, iterations, tolerance):
    gains = 2**grades - 1
    discount = 1 / torch.log2(torch.arange(2, len(row) + 2, dtype=row.dtype))
    k = min(k or len(row), len(row))
    best = (gains.sort(descending=True).values * discount)[:k].sum()
    return -((loop_places(row, temperature, iterations, tolerance) @ gains) * discount)[:k].sum() / best


@given(
    st.integers(0, 10**6),
    st.sampled_from([None, 1, 3, 50]),
    st.sampled_from([0.05, 0.3, 2.0]),
    st.sampled_from([(50, 1e-6), (3, 1e-9), (0, 1e-6)]),
)
def test_neural_ndcg_is_the_loop_over_lists_without_padding(seed, k, temperature, sinkhorn):
    scores, grades, where = batch(seed=seed)
    settings = {"sinkhorn_iterations": sinkhorn[0], "tolerance": sinkhorn[1]}
    rows = [
        loop_neural_ndcg(row[valid], marks[valid], k, temperature, *sinkhorn)
        for row, marks, valid in zip(scores, grades, where, strict=True)
        if marks[valid].sum() > 0
    ]
    got = neural_ndcg(scores, grades, where=where, k=k, temperature=temperature, **settings)
    torch.testing.assert_close(got, torch.stack(rows).mean() if rows else torch.zeros((), dtype=torch.float64))


@given(st.integers(0, 10**6), st.sampled_from([None, 1, 2, 5]), st.sampled_from(["exp2", "linear"]))
def test_neural_ndcg_nears_minus_ndcg_at_k(seed, k, gain):
    scores, grades, where = batch(seed=seed)
    labels, valid = ranked(scores, grades, where)
    ndcg = metrics.ndcg(labels, k=k, where=valid, gain=gain)
    counted = (grades.masked_fill(~where, 0) > 0).any(-1).numpy()
    got = neural_ndcg(scores, grades, where=where, k=k, gain=gain, temperature=SMALL)
    assert got.item() == pytest.approx(-mean_of_counted(ndcg, counted))


def test_two_documents_by_hand():
    """A_1 = s - |s_1 - s_2| and A_2 = -s - |s_1 - s_2|: the columns sum to 1 already."""
    scores, grades = torch.tensor([[0.2, 0.3]]), torch.tensor([[1, 0]])
    first = 1 / (1 + math.exp((0.3 - 0.2) / 0.05))
    expected = -(first + (1 - first) / math.log2(3))
    assert neural_ndcg(scores, grades).item() == pytest.approx(expected)


@pytest.mark.parametrize("temperature", [0.05, 0.5, 5.0])
def test_places_are_shares_over_documents_and_after_sinkhorn_over_places_too(temperature):
    scores, _, where = batch(seed=3)
    places = _soft_places(scores / temperature, where)
    found = where.sum(-1)
    exists = torch.arange(6) < found[:, None]
    torch.testing.assert_close(places.sum(-1), exists.double())
    assert (places.masked_select(~where[:, None, :].expand_as(places)) == 0).all()
    both = _doubly_stochastic(places, where, 500, 1e-6)
    torch.testing.assert_close(both.sum(-1), exists.double())
    torch.testing.assert_close(both.sum(-2), where.double(), atol=1e-6, rtol=0)
    best = scores.masked_fill(~where, -1).argmax(-1)
    assert torch.equal(both[:, 0].argmax(-1), best)


def test_one_query_is_never_scaled_further_because_another_one_needs_it():
    scores, grades, _ = batch(rows=2, seed=1)
    scores[1] /= 20  # near each other: Sinkhorn needs more rounds
    together = _doubly_stochastic(_soft_places(scores / 0.5, grades >= 0), grades >= 0, 50, 1e-3)
    for i in range(2):
        alone = _doubly_stochastic(_soft_places(scores[i : i + 1] / 0.5, grades[:1] >= 0), grades[:1] >= 0, 50, 1e-3)
        torch.testing.assert_close(together[i], alone[0], rtol=1e-12, atol=0)
    further = _doubly_stochastic(_soft_places(scores / 0.5, grades >= 0), grades >= 0, 50, 1e-12)
    assert (further - together).abs().max() > 1e-6  # so the tolerance does stop it


def test_equal_scores_share_their_places():
    value = neural_ndcg(torch.zeros(1, 3), torch.tensor([[1, 0, 0]]), temperature=SMALL)
    assert value.item() == pytest.approx(-(1 + 1 / math.log2(3) + 1 / 2) / 3)


def test_queries_without_a_grade_are_left_out_and_not_counted():
    scores, grades, _ = batch(rows=3)
    grades[1] = 0
    for loss in (approx_ndcg, neural_ndcg):
        torch.testing.assert_close(loss(scores, grades), loss(scores[[0, 2]], grades[[0, 2]]))
        assert build(loss.__name__).count(grades) == 2
    torch.testing.assert_close(approx_rr(scores, grades), approx_rr(scores[[0, 2]], grades[[0, 2]]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_scores_that_no_precision_can_place_leave_a_finite_gradient(dtype):
    """Near 1e4 float32 cannot tell the A of neighbours apart, and a document may be left without a place."""
    generator = torch.Generator().manual_seed(0)
    for size in (1.0, 1e2, 1e4):
        scores = (torch.randn(8, 60, generator=generator, dtype=dtype) * size).requires_grad_()
        grades = torch.randint(0, 5, (8, 60), generator=generator)
        value = neural_ndcg(scores, grades)
        assert torch.autograd.grad(value, scores)[0].isfinite().all()
        assert -1.001 <= value <= 0


@pytest.mark.parametrize("name", ["approx_ndcg", "approx_rr", "neural_ndcg"])
def test_long_lists_are_refused_with_their_cost(name):
    scores, labels = torch.zeros(1, 1001), torch.eye(1, 1001)
    with pytest.raises(ValueError, match=rf"{name} compares all pairs of a row: 1001 documents are 1,002,001 pairs"):
        build(name)(scores, labels)
    assert (
        -1 <= build(name, max_list=1001, **({"sinkhorn_iterations": 0} if "neural" in name else {}))(scores, labels) < 0
    )


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("approx_ndcg", {"gain": "exp"}, "gain must be one of exp2, linear, got 'exp'"),
        ("neural_ndcg", {"gain": 2}, "gain must be one of exp2, linear, got 2"),
        ("neural_ndcg", {"k": 0}, "k must be a whole number >= 1, got 0"),
        ("neural_ndcg", {"k": 2.0}, "k must be a whole number >= 1, got 2.0"),
        ("neural_ndcg", {"sinkhorn_iterations": -1}, "sinkhorn_iterations must be a whole number >= 0, got -1"),
        ("neural_ndcg", {"tolerance": 0}, "tolerance must be > 0, got 0"),
        ("approx_rr", {"max_list": True}, "max_list must be a whole number >= 1, got True"),
        ("approx_rr", {"positive_from": 0}, "positive_from must be > 0"),
    ],
)
def test_impossible_settings_are_refused_at_build(name, settings, message):
    with pytest.raises(ValueError, match=message):
        build(name, **settings)


@pytest.mark.parametrize("name", ["approx_ndcg", "neural_ndcg"])
def test_training_on_it_sorts_the_list(name):
    generator = torch.Generator().manual_seed(0)
    grades = torch.tensor([[0, 2, 1, 0, 3, 0]])
    scores = torch.randn(1, 6, generator=generator, dtype=torch.float64)
    loss = build(name, temperature=1.0)
    for _ in range(150):
        leaf = scores.clone().requires_grad_()
        (slopes,) = torch.autograd.grad(loss(leaf, grades), leaf)
        scores = scores - 3 * slopes
    labels, valid = ranked(scores, grades, torch.ones_like(grades, dtype=torch.bool))
    assert metrics.ndcg(labels, where=valid) == np.ones(1)
