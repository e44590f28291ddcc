"""RankNet, hinge, triplet and energy hinge: values by hand, loops, torch's own losses, FORMULAS' identities."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from rankers.losses import build, energy_hinge, hinge, infonce, listmle, mw, ranknet, triplet
from rankers.losses.pairs import pair_sums, preferred_pairs, valid_pairs

seeds = st.integers(0, 10**6)


def batch(rows=5, columns=6, seed=0, levels=4):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    grades = torch.randint(0, levels, (rows, columns), generator=generator).double()
    where = torch.rand(rows, columns, generator=generator) < 0.8
    return scores, grades, where


def gradient(loss, scores, labels, **settings):
    leaf = scores.clone().requires_grad_()
    loss(leaf, labels, **settings).backward()
    return leaf.grad


def sp(x):
    return math.log(1 + math.exp(x))


def naive(scores, grades, where, term, weight=lambda y, z: 1, list_weight="equal"):
    """Mean over the rows with a pair of the mean (or sum) of weight(y_i, y_j) × term(s_i - s_j) over y_i > y_j."""
    rows = []
    for s, y, valid in zip(scores.tolist(), grades.tolist(), where.tolist(), strict=True):
        docs = [i for i in range(len(s)) if valid[i]]
        terms = [weight(y[i], y[j]) * term(s[i] - s[j]) for i in docs for j in docs if y[i] > y[j]]
        if terms:
            rows.append(sum(terms) / (len(terms) if list_weight == "equal" else 1))
    return sum(rows) / max(len(rows), 1)


# The engine


def test_the_engine_sums_a_function_of_the_differences_over_the_pairs():
    scores = torch.tensor([[3.0, 1.0, 0.0]])
    pairs = torch.zeros(1, 3, 3, dtype=torch.bool)
    pairs[0, 0, 1] = pairs[0, 2, 0] = True  # 3 - 1 and 0 - 3
    assert pair_sums(scores, pairs, torch.square).tolist() == [4 + 9]
    assert pair_sums(scores, pairs, torch.square, torch.full((1, 3, 3), 2.0)).tolist() == [2 * (4 + 9)]


def test_pairs_need_both_documents_and_a_difference():
    where = torch.tensor([[True, True, False, True]])
    assert valid_pairs(where)[0].nonzero().tolist() == [[0, 1], [0, 3], [1, 0], [1, 3], [3, 0], [3, 1]]
    values = torch.tensor([[1.0, 2.0, 9.0, 1.0]])
    assert preferred_pairs(values, where)[0].nonzero().tolist() == [[1, 0], [1, 3]]


# RankNet


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ([1, 0, 0], (sp(-1) + sp(1)) / 2),  # 2 above 1, not above 3
        ([0, 0, 1], (sp(-1) + sp(-2)) / 2),
        ([2, 0, 1], (sp(-1) + sp(1) + sp(-2)) / 3),
        ([1, 1, 1], 0.0),
        ([0, 0, 0], 0.0),
    ],
)
def test_ranknet_by_hand(labels, expected):
    scores = torch.tensor([[2.0, 1.0, 3.0]])
    assert ranknet(scores, torch.tensor([labels]), temperature=1).item() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("pair_weight", "weights"),
    [("equal", (1, 1, 1)), ("difference", (3, 2, 1)), ("squares", (9, 8, 1))],
)
@pytest.mark.parametrize(("list_weight", "divisor"), [("equal", 3), ("sum", 1)])
def test_weighted_ranknet_by_hand(pair_weight, weights, list_weight, divisor):
    scores, labels = torch.tensor([[2.0, 1.0, 3.0]]), torch.tensor([[3, 0, 1]])
    terms = (sp(-1), sp(1), sp(-2))  # grades 3 and 0, 3 and 1, 1 and 0
    expected = sum(weight * term for weight, term in zip(weights, terms, strict=True)) / divisor
    loss = ranknet(scores, labels, temperature=1, pair_weight=pair_weight, list_weight=list_weight)
    assert loss.item() == pytest.approx(expected)


@given(seeds, st.sampled_from(["equal", "difference", "squares"]), st.sampled_from(["equal", "sum"]))
def test_ranknet_is_the_loop(seed, pair_weight, list_weight):
    scores, grades, where = batch(seed=seed)
    weight = {"equal": lambda y, z: 1, "difference": lambda y, z: y - z, "squares": lambda y, z: y**2 - z**2}
    wanted = naive(scores, grades, where, lambda d: sp(-d / 0.3), weight[pair_weight], list_weight)
    got = ranknet(scores, grades, where=where, temperature=0.3, pair_weight=pair_weight, list_weight=list_weight)
    assert got.item() == pytest.approx(wanted)


def test_two_documents_are_the_logistic_loss_infonce_and_listmle():
    scores, _, _ = batch(columns=2)
    labels = torch.tensor([[1, 0], [0, 1], [3, 1], [0, 2], [1, 0]])
    sign = torch.tensor([1, -1, 1, -1, 1])
    wanted = F.binary_cross_entropy_with_logits(sign * (scores[:, 0] - scores[:, 1]) / 0.05, torch.ones(5).double())
    torch.testing.assert_close(ranknet(scores, labels), wanted)
    torch.testing.assert_close(infonce(scores, (labels == labels.amax(1, keepdim=True)).int()), wanted)
    torch.testing.assert_close(listmle(scores, labels, temperature=0.05), wanted)


@given(seeds)
def test_one_row_of_binary_labels_is_mw(seed):
    scores, labels, where = batch(rows=1, columns=8, seed=seed, levels=2)
    torch.testing.assert_close(
        ranknet(scores, labels, where=where, temperature=0.2), mw(scores, labels, where=where, temperature=0.2)
    )


def test_equal_scores_cost_log_2_whatever_the_list():
    labels = torch.tensor([[3, 1, 0, 0], [1, 0, 0, 0]])
    assert ranknet(torch.full((2, 4), 0.7), labels).item() == pytest.approx(math.log(2))


def test_gradient_of_ranknet_is_the_sum_of_each_documents_pulls():
    scores, labels = torch.tensor([[0.3, -0.2, 0.9]], dtype=torch.float64), torch.tensor([[2, 1, 0]])
    (a, b, c), sigmoid = scores[0], torch.sigmoid
    wanted = torch.stack(
        [-sigmoid(b - a) - sigmoid(c - a), sigmoid(b - a) - sigmoid(c - b), sigmoid(c - a) + sigmoid(c - b)]
    )
    torch.testing.assert_close(gradient(ranknet, scores, labels, temperature=1)[0], wanted / 3)


def test_a_long_list_counts_as_one_or_by_its_pairs():
    scores = torch.zeros(2, 5)
    labels = torch.tensor([[1, 0, 0, 0, 0], [1, 0, 9, 9, 9]])  # 4 pairs and 1
    where = labels < 9
    assert ranknet(scores, labels, where=where).item() == pytest.approx(math.log(2))
    assert ranknet(scores, labels, where=where, list_weight="sum").item() == pytest.approx((4 + 1) / 2 * math.log(2))


@pytest.mark.parametrize("loss", [ranknet, hinge])
def test_rows_of_one_grade_are_left_out_not_averaged_in(loss):
    scores, grades, _ = batch(rows=4)
    grades[1], grades[3] = 0, 2
    torch.testing.assert_close(loss(scores, grades), loss(scores[[0, 2]], grades[[0, 2]]))
    assert build(loss.__name__).count(grades) == 2


def test_only_the_order_of_the_grades_counts_unless_pairs_are_weighted():
    scores, grades, where = batch()
    for loss in (ranknet, hinge):
        torch.testing.assert_close(loss(scores, grades, where=where), loss(scores, 2**grades, where=where))
    weighted = {"where": where, "pair_weight": "difference"}
    torch.testing.assert_close(ranknet(scores, 3 * grades, **weighted), 3 * ranknet(scores, grades, **weighted))
    torch.testing.assert_close(ranknet(scores, grades + 1, **weighted), ranknet(scores, grades, **weighted))


def test_grades_that_float32_cannot_tell_apart_are_compared_as_given():
    grades = torch.tensor([[1.0, 1.0 + 1e-12]], dtype=torch.float64)
    assert ranknet(torch.tensor([[1.0, 0.0]]), grades, temperature=1).item() == pytest.approx(sp(1))
    assert build("ranknet").count(grades) == 1


# Hinge


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ([1, 0, 0], (0 + 1.5) / 2),  # 2 is 1 above 1 and 1 below 3, with a margin of 0.5
        ([0, 0, 1], 0.0),
        ([0, 1, 2], (1.5 + 0 + 0) / 3),
        ([0, 0, 0], 0.0),
    ],
)
def test_hinge_by_hand(labels, expected):
    scores = torch.tensor([[2.0, 1.0, 3.0]])
    assert hinge(scores, torch.tensor([labels]), margin=0.5).item() == pytest.approx(expected)


@given(seeds, st.sampled_from(["equal", "sum"]))
def test_hinge_is_the_loop(seed, list_weight):
    scores, grades, where = batch(seed=seed)
    wanted = naive(scores, grades, where, lambda d: max(0.0, 0.4 - 3 * d), list_weight=list_weight)
    got = hinge(scores, grades, where=where, scale=3, margin=0.4, list_weight=list_weight)
    assert got.item() == pytest.approx(wanted)


def test_hinge_of_two_documents_is_torchs_margin_ranking_loss():
    scores, _, _ = batch(columns=2)
    labels = torch.tensor([[1, 0]] * 5)
    wanted = F.margin_ranking_loss(scores[:, 0], scores[:, 1], torch.ones(5), margin=0.2)
    torch.testing.assert_close(hinge(scores, labels), wanted)


def test_only_margin_times_temperature_decides_which_pairs_are_done():
    scores, grades, where = batch()
    wanted = hinge(scores, grades, where=where, margin=0.6)
    torch.testing.assert_close(10 * wanted, hinge(scores, grades, where=where, margin=6.0, temperature=0.1))


def test_satisfied_margins_give_no_loss_and_no_gradient_and_others_do():
    labels = torch.tensor([[2, 1, 0]])
    for loss in (hinge, triplet, energy_hinge):
        done = torch.tensor([[0.9, 0.6, 0.3]])
        assert loss(done, labels, margin=0.2) == 0
        assert (gradient(loss, done, labels, margin=0.2) == 0).all()
        assert loss(done, labels, margin=0.4) > 0


def test_mw_at_a_low_temperature_is_the_mean_violation():
    scores, labels, _ = batch(rows=1, columns=8, seed=3, levels=2)
    violation = hinge(scores, labels, margin=1e-12)
    torch.testing.assert_close(1e-4 * mw(scores, labels, temperature=1e-4), violation, atol=1e-4, rtol=0)


# Triplet and energy hinge


@pytest.mark.parametrize(
    ("loss", "settings", "expected"),
    [
        (triplet, {"negatives": "hardest"}, 0.2 + 0.6 - 0.1),
        (triplet, {"negatives": "all"}, ((0.2 + 0.6 - 0.7) + (0.2 + 0.6 - 0.1) + 0 + (0.2 + 0.3 - 0.1)) / 4),
        (energy_hinge, {}, ((0.2 + 0.6 - 0.7) + (0.2 + 0.6 - 0.1)) / 2),
    ],
)
def test_triplets_by_hand(loss, settings, expected):
    scores, labels = torch.tensor([[0.7, 0.1, 0.6, 0.3]]), torch.tensor([[1, 1, 0, 0]])
    assert loss(scores, labels, **settings).item() == pytest.approx(expected)


@given(seeds)
def test_triplets_are_the_loops(seed):
    scores, labels, where = batch(seed=seed, levels=2)
    worst, mean, every = [], [], []
    for s, y, valid in zip(scores.tolist(), labels.tolist(), where.tolist(), strict=True):
        good = [s[i] for i in range(6) if valid[i] and y[i] == 1]
        bad = [s[i] for i in range(6) if valid[i] and y[i] == 0]
        if good and bad:
            worst.append(max(0.0, 0.3 + max(bad) - min(good)))
            mean.append(sum(max(0.0, 0.3 + max(bad) - p) for p in good) / len(good))
            every.append(sum(max(0.0, 0.3 + n - p) for p in good for n in bad) / len(good) / len(bad))
    given_ = {"where": where, "margin": 0.3}
    for got, rows in (
        (triplet(scores, labels, **given_), worst),
        (energy_hinge(scores, labels, **given_), mean),
        (triplet(scores, labels, negatives="all", **given_), every),
    ):
        assert got.item() == pytest.approx(sum(rows) / max(len(rows), 1))


@pytest.mark.parametrize("score", [0.0, 1.0, -3e3])
def test_collapsed_scores_cost_exactly_the_margin(score):
    labels = torch.tensor([[1, 0, 0, 1], [1, 1, 1, 0], [0, 0, 0, 0]])
    scores = torch.full((3, 4), score)
    for margin in (0.2, 0.5):
        assert triplet(scores, labels, margin=margin).item() == torch.tensor(margin).item()
        assert triplet(scores, labels, margin=margin, negatives="all").item() == pytest.approx(margin)
        assert energy_hinge(scores, labels, margin=margin).item() == pytest.approx(margin)


@given(seeds)
def test_all_triplets_are_the_hinge_of_binary_labels(seed):
    scores, grades, where = batch(seed=seed)
    wanted = hinge(scores, (grades >= 2).int(), where=where, margin=0.3)
    got = triplet(scores, grades, where=where, margin=0.3, negatives="all", positive_from=2)
    torch.testing.assert_close(got, wanted)


@given(seeds)
def test_one_relevant_document_makes_triplet_and_energy_hinge_the_same_else_triplet_is_more(seed):
    scores, labels, where = batch(seed=seed, levels=2)
    one = torch.eye(5, 6)
    torch.testing.assert_close(triplet(scores, one, where=where), energy_hinge(scores, one, where=where))
    assert triplet(scores, labels, where=where) >= energy_hinge(scores, labels, where=where) - 1e-12
    assert energy_hinge(scores, labels, where=where) >= triplet(scores, labels, where=where, negatives="all") - 1e-12


def test_gradient_of_the_hardest_triplet_is_on_two_documents_and_shared_among_tied_ones():
    labels = torch.tensor([[1, 1, 0, 0, 0]])
    assert gradient(triplet, torch.tensor([[0.7, 0.1, 0.6, 0.3, 0.2]]), labels).tolist() == [[0, -1, 1, 0, 0]]
    assert gradient(triplet, torch.tensor([[0.1, 0.1, 0.6, 0.6, 0.2]]), labels).tolist() == [[-0.5, -0.5, 0.5, 0.5, 0]]
    each = gradient(energy_hinge, torch.tensor([[0.7, 0.1, 0.6, 0.3, 0.2]]), labels)
    assert each.tolist() == [[-0.5, -0.5, 1, 0, 0]]


def test_infonce_at_a_low_temperature_is_the_energy_hinge_without_a_margin():
    scores, labels = batch(rows=4)[0], torch.eye(4, 6)
    limit = 1e-3 * infonce(scores, labels, temperature=1e-3)
    torch.testing.assert_close(energy_hinge(scores, labels, margin=1e-9), limit, atol=1e-3, rtol=0)


@pytest.mark.parametrize("name", ["triplet", "energy_hinge"])
def test_rows_that_lack_one_side_are_left_out(name):
    scores, labels, where = batch(rows=4, levels=2)
    labels[:, 0], labels[:, 1], where[:, :2] = 1, 0, True
    labels[1], labels[2] = 1, 0
    loss = build(name)
    assert loss.count(labels, where) == 2
    wanted = loss(scores[[0, 3]], labels[[0, 3]], where[[0, 3]])
    torch.testing.assert_close(loss(scores, labels, where), wanted)


# Settings


@pytest.mark.parametrize("name", ["ranknet", "hinge", "triplet"])
def test_a_long_list_is_refused_with_its_cost(name):
    scores, labels = torch.zeros(1, 7), torch.eye(1, 7)
    settings = {"negatives": "all"} if name == "triplet" else {}
    build(name, max_list=7, **settings)(scores, labels)
    with pytest.raises(
        ValueError, match=rf"{name} compares all pairs of a row: 7 documents are 49 pairs .* max_list=6"
    ):
        build(name, max_list=6, **settings)(scores, labels)
    with pytest.raises(ValueError, match="max_list must be a whole number >= 1, got 0"):
        build(name, max_list=0)


def test_losses_of_linear_cost_take_any_list():
    scores, labels = torch.zeros(1, 3000), torch.eye(1, 3000)
    assert triplet(scores, labels).item() == energy_hinge(scores, labels).item() == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("ranknet", {"pair_weight": "cubes"}, "pair_weight must be one of equal, difference, squares, got 'cubes'"),
        ("ranknet", {"list_weight": "mean"}, "list_weight must be one of equal, sum, got 'mean'"),
        ("hinge", {"list_weight": True}, "list_weight must be one of equal, sum, got True"),
        ("hinge", {"margin": 0}, "margin must be > 0, got 0"),
        ("hinge", {"margin": "wide"}, "margin must be a finite number, got 'wide'"),
        ("hinge", {"margin": torch.tensor(0.2)}, "margin must be a number, got a tensor"),
        ("triplet", {"margin": -0.1}, "margin must be > 0, got -0.1"),
        ("triplet", {"negatives": "hard"}, "negatives must be one of hardest, all, got 'hard'"),
        ("energy_hinge", {"margin": math.inf}, "margin must be a finite number, got inf"),
        ("energy_hinge", {"max_list": 5}, "unknown setting 'max_list' of energy_hinge"),
    ],
)
def test_impossible_settings_are_refused_at_build(name, settings, message):
    with pytest.raises(ValueError, match=message):
        build(name, **settings)
