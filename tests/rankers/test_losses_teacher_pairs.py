"""MarginMSE and RankDistil: values by hand, ten-line loops, what a shift or the order of a teacher's scores changes."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from rankers.losses import build, hinge, margin_mse, rank_distil, ranknet

seeds = st.integers(0, 10**6)


def batch(rows=5, columns=6, seed=0):
    """Return a student's scores, a teacher's with ties and negative ones among them, and a mask."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    teacher = torch.randint(-3, 4, (rows, columns), generator=generator).double()
    where = torch.rand(rows, columns, generator=generator) < 0.8
    return scores, teacher, where


def gradient(loss, scores, labels, **settings):
    leaf = scores.clone().requires_grad_()
    loss(leaf, labels, **settings).backward()
    return leaf.grad


def sp(x):
    return math.log(1 + math.exp(x))


def valid_rows(scores, teacher, where):
    for s, t, valid in zip(scores.tolist(), teacher.tolist(), where.tolist(), strict=True):
        docs = [i for i in range(len(s)) if valid[i]]
        yield [s[i] for i in docs], [t[i] for i in docs]


# MarginMSE


def test_margin_mse_by_hand():
    scores, teacher = torch.tensor([[0.5, 0.9, 0.1]]), torch.tensor([[4.0, 1.0, -2.0]])
    # the teacher's best is the first: its margins are 3 and 6, the student's -0.4 and 0.4
    assert margin_mse(scores, teacher).item() == pytest.approx(((-0.4 - 3) ** 2 + (0.4 - 6) ** 2) / 2)
    assert margin_mse(scores, teacher, scale=10).item() == pytest.approx(((-4 - 3) ** 2 + (4 - 6) ** 2) / 2)
    every = ((-0.4 - 3) ** 2 + (0.4 - 6) ** 2 + (0.8 - 3) ** 2) / 3
    assert margin_mse(scores, teacher, pairs="all").item() == pytest.approx(every)


def test_two_documents_are_the_papers_mean_squared_error_of_margins():
    scores, _, _ = batch(columns=2)
    teacher = torch.tensor([[9.0, 2.0], [1.5, -3.0], [0.2, 0.1], [7.0, 7.0], [-1.0, -4.0]], dtype=torch.float64)
    wanted = F.mse_loss(scores[:, 0] - scores[:, 1], teacher[:, 0] - teacher[:, 1])
    torch.testing.assert_close(margin_mse(scores, teacher), wanted)
    torch.testing.assert_close(margin_mse(scores, teacher, pairs="all"), wanted)


@given(seeds)
def test_margin_mse_is_the_loop_with_any_of_the_tied_best_in_turn(seed):
    scores, teacher, where = batch(seed=seed)
    rows = []
    for s, t in valid_rows(scores, teacher, where):
        if len(s) > 1:
            best = [i for i in range(len(s)) if t[i] == max(t)]
            errors = [(3 * (s[p] - s[n]) - (t[p] - t[n])) ** 2 for p in best for n in range(len(s)) if n != p]
            rows.append(sum(errors) / len(errors))
    assert margin_mse(scores, teacher, where=where, scale=3).item() == pytest.approx(sum(rows) / len(rows))


@given(seeds)
def test_all_pairs_are_twice_the_unbiased_variance_of_the_residuals(seed):
    scores, teacher, _ = batch(seed=seed)
    wanted = 2 * (scores - teacher).var(1).mean()
    torch.testing.assert_close(margin_mse(scores, teacher, pairs="all"), wanted)


@pytest.mark.parametrize("pairs", ["best", "all"])
@given(seeds, st.floats(-50, 50), st.floats(-50, 50))
def test_shifts_of_the_teacher_or_the_student_change_nothing_and_scales_do(pairs, seed, one, other):
    scores, teacher, where = batch(seed=seed)
    offsets = torch.arange(5)[:, None]
    wanted = margin_mse(scores, teacher, where=where, pairs=pairs)
    moved = margin_mse(scores + one * offsets, teacher + other * offsets, where=where, pairs=pairs)
    torch.testing.assert_close(moved, wanted, atol=1e-9, rtol=1e-9)
    both = margin_mse(3 * scores, 3 * teacher, where=where, pairs=pairs)
    torch.testing.assert_close(both, 9 * wanted)
    torch.testing.assert_close(margin_mse(scores, teacher * 3, where=where, pairs=pairs, scale=3), 9 * wanted)


def test_the_loss_is_nothing_where_the_student_has_the_teachers_margins():
    _, teacher, where = batch()
    scores = teacher / 4 + torch.arange(5)[:, None]
    for pairs in ("best", "all"):
        assert margin_mse(scores, teacher, where=where, scale=4, pairs=pairs).item() == pytest.approx(0, abs=1e-20)
        assert margin_mse(scores, teacher, where=where, pairs=pairs) > 0.1


def test_gradient_of_a_pair_is_equal_and_opposite():
    scores, teacher = torch.tensor([[0.5, 0.9]], dtype=torch.float64), torch.tensor([[4.0, 1.0]])
    slope = 2 * ((0.5 - 0.9) - 3)
    torch.testing.assert_close(gradient(margin_mse, scores, teacher)[0], torch.tensor([slope, -slope]).double())


def test_a_learned_scale_finds_the_teachers_unit():
    scores = torch.tensor([[0.1, 0.2, 0.4], [0.9, 0.3, 0.5]])
    scale = torch.tensor(1.0, requires_grad=True)
    (slope,) = torch.autograd.grad(margin_mse(scores, 7 * scores, scale=scale), scale)
    assert slope < 0  # larger is better, up to 7
    at_7 = torch.tensor(7.0, requires_grad=True)
    (slope,) = torch.autograd.grad(margin_mse(scores, 7 * scores, scale=at_7), at_7)
    assert slope.item() == pytest.approx(0, abs=1e-5)


def test_margin_mse_counts_rows_of_two_scored_documents():
    scores, teacher, _ = batch(rows=3)
    where = torch.tensor([[1, 0, 0, 0, 0, 0], [0, 1, 1, 0, 0, 0], [0, 0, 0, 0, 0, 0]]) > 0
    assert build("margin_mse").count(teacher, where) == 1
    wanted = margin_mse(scores[1:2, 1:3], teacher[1:2, 1:3])
    torch.testing.assert_close(margin_mse(scores, teacher, where=where), wanted)


def test_a_missing_teacher_score_is_an_error_unless_masked():
    scores, teacher = torch.zeros(1, 3), torch.tensor([[3.0, math.nan, 1.0]])
    for loss in (margin_mse, rank_distil):
        with pytest.raises(ValueError, match=r"labels\[0, 1\] is nan: labels must be a teacher's finite scores"):
            loss(scores, teacher)
        assert loss(scores, teacher, where=~teacher.isnan()) > 0


# RankDistil


@pytest.mark.parametrize(
    ("k", "pairs"),
    [
        (1, [(0, 1), (0, 2), (0, 3)]),  # the best above all others
        (2, [(0, 1), (1, 2), (1, 3)]),  # the order of two, the second above the others
        (3, [(0, 1), (0, 2), (1, 2), (2, 3)]),
        (4, [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]),
        (99, [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]),
    ],
)
def test_rank_distil_by_hand(k, pairs):
    s = [0.3, -0.5, 0.9, 0.2]  # in the teacher's order
    scores, teacher = torch.tensor([[*reversed(s)]]), torch.tensor([[-7.0, 1.0, 2.0, 30.0]])
    logistic = [sp(s[b] - s[a]) for a, b in pairs]
    hinges = [max(0.0, 0.5 + s[b] - s[a]) for a, b in pairs]
    given_ = {"k": k, "temperature": 1}
    assert rank_distil(scores, teacher, **given_).item() == pytest.approx(sum(logistic) / len(pairs))
    assert rank_distil(scores, teacher, **given_, list_weight="sum").item() == pytest.approx(sum(logistic), rel=1e-6)
    got = rank_distil(scores, teacher, **given_, margin_function="hinge", margin=0.5)
    assert got.item() == pytest.approx(sum(hinges) / len(pairs))


@given(seeds)
def test_the_whole_list_is_pairwise_on_the_teachers_order(seed):
    scores, teacher, where = batch(seed=seed)
    grades = teacher - teacher.min()  # the same order
    given_ = {"where": where, "temperature": 0.4}
    torch.testing.assert_close(rank_distil(scores, teacher, k=6, **given_), ranknet(scores, grades, **given_))
    got = rank_distil(scores, teacher, k=6, margin_function="hinge", margin=0.7, **given_)
    torch.testing.assert_close(got, hinge(scores, grades, margin=0.7, **given_))


@given(seeds, st.integers(1, 7))
def test_only_the_teachers_order_counts(seed, k):
    scores, teacher, where = batch(seed=seed)
    wanted = rank_distil(scores, teacher, where=where, k=k)
    torch.testing.assert_close(rank_distil(scores, teacher.exp() - 5, where=where, k=k), wanted)


def test_below_the_top_the_order_is_free_and_only_the_last_of_the_top_is_compared():
    scores = torch.tensor([[0.9, 0.8, 0.1, 0.2]], dtype=torch.float64)
    one, other = torch.tensor([[4.0, 3, 2, 1]]), torch.tensor([[4.0, 3, 1, 2]])
    torch.testing.assert_close(rank_distil(scores, one, k=2), rank_distil(scores, other, k=2))
    assert rank_distil(scores, one, k=3) > rank_distil(scores, other, k=3)  # which the student gets wrong
    first_alone = rank_distil(scores.index_fill(1, torch.tensor([0]), 99.0), one, k=2, list_weight="sum")
    without = sum(sp((low - 0.8) / 0.05) for low in (0.1, 0.2))
    assert first_alone.item() == pytest.approx(without)


def test_ties_across_rank_k_share_the_place_of_the_last():
    """Tied second documents a and b, and c below: the mean of (a, c) and (b, c) is one pair."""
    s = {"best": 0.9, "a": 0.2, "b": 0.6, "c": 0.5}
    scores, teacher = torch.tensor([list(s.values())]), torch.tensor([[5.0, 3.0, 3.0, 1.0]])
    above = sp(s["a"] - s["best"]) + sp(s["b"] - s["best"])
    below = (sp(s["c"] - s["a"]) + sp(s["c"] - s["b"])) / 2
    assert rank_distil(scores, teacher, k=2, temperature=1).item() == pytest.approx((above + below) / 3)
    for order in itertools.permutations(range(4)):
        moved = rank_distil(scores[:, list(order)], teacher[:, list(order)], k=2, temperature=1)
        assert moved.item() == pytest.approx((above + below) / 3)


def test_rank_distil_leaves_out_rows_that_the_teacher_does_not_order():
    scores, teacher, _ = batch(rows=3)
    teacher[1] = -2.5
    assert build("rank_distil").count(teacher) == 2
    torch.testing.assert_close(rank_distil(scores, teacher), rank_distil(scores[[0, 2]], teacher[[0, 2]]))


# Settings


@pytest.mark.parametrize("name", ["margin_mse", "rank_distil"])
def test_a_long_list_is_refused_with_its_cost(name):
    scores, labels = torch.zeros(1, 7), torch.eye(1, 7)
    build(name, max_list=7)(scores, labels)
    with pytest.raises(
        ValueError, match=rf"{name} compares all pairs of a row: 7 documents are 49 pairs .* max_list=6"
    ):
        build(name, max_list=6)(scores, labels)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("margin_mse", {"pairs": "first"}, "pairs must be one of best, all, got 'first'"),
        ("rank_distil", {"k": 0}, "k must be a whole number >= 1, got 0"),
        ("rank_distil", {"k": 2.0}, "k must be a whole number >= 1, got 2.0"),
        ("rank_distil", {"margin_function": "exp"}, "margin_function must be one of logistic, hinge, got 'exp'"),
        ("rank_distil", {"margin": 0}, "margin must be > 0, got 0"),
        ("rank_distil", {"list_weight": "pairs"}, "list_weight must be one of equal, sum, got 'pairs'"),
    ],
)
def test_impossible_settings_are_refused_at_build(name, settings, message):
    with pytest.raises(ValueError, match=message):
        build(name, **settings)
