"""LambdaRank and the NDCG losses: weights against swaps of the project's own nDCG, bounds, ties, truncation."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rankers.losses import build, lambdaloss, lambdarank, ndcg_loss1, ndcg_loss2, ndcg_loss2pp, ranknet
from rankers.losses.rank_weights import expected_weights, of_distance, of_first, of_swap
from rankers.metrics import ndcg

LOG2 = math.log(2)
GAIN = {"exp2": lambda y: 2**y - 1, "linear": lambda y: y}
seeds = st.integers(0, 10**6)
gains = st.sampled_from(["exp2", "linear"])


def batch(rows=4, columns=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    grades = torch.randint(0, 5, (rows, columns), generator=generator).double()
    where = torch.rand(rows, columns, generator=generator) < 0.8
    return scores, grades, where


def gradient(loss, scores, labels, **settings):
    leaf = scores.clone().requires_grad_()
    loss(leaf, labels, **settings).backward()
    return leaf.grad


def sp(x):
    return math.log(1 + math.exp(x))


def discount(rank):
    return 1 / math.log2(1 + rank)


def delta(distance):
    return discount(distance) - discount(distance + 1)


def one_ndcg(ranked_grades, gain="exp2"):
    return float(ndcg(np.array([ranked_grades]), gain=gain)[0])


def loop(scores, grades, where, weight, gain="exp2", every=False):
    """Mean over rows of the sum of weight(rank i, rank j) × gain / IDCG × softplus(s_j - s_i); no ties."""
    rows = []
    for s, y, valid in zip(scores.tolist(), grades.tolist(), where.tolist(), strict=True):
        docs = sorted((i for i in range(len(s)) if valid[i]), key=lambda i: -s[i])
        rank = {doc: place for place, doc in enumerate(docs, 1)}
        g = {i: GAIN[gain](y[i]) for i in docs}
        ideal = sum(value * discount(place) for place, value in enumerate(sorted(g.values(), reverse=True), 1))
        pairs = [(i, j) for i in docs for j in docs if i != j and (y[i] > 0 if every else y[i] > y[j])]
        if pairs:
            stakes = [g[i] if every else g[i] - g[j] for i, j in pairs]
            terms = [weight(rank[i], rank[j]) * sp(s[j] - s[i]) / ideal for i, j in pairs]
            rows.append(sum(stake * term for stake, term in zip(stakes, terms, strict=True)))
    return sum(rows) / max(len(rows), 1)


# Values


def test_by_hand():
    scores, labels = torch.tensor([[2.0, 1.0, 3.0]]), torch.tensor([[2, 0, 1]])  # at ranks 2, 3, 1
    ideal = 3 + 1 * discount(2)
    high_low, high_mid, mid_low = 3 / ideal * sp(-1), 2 / ideal * sp(1), 1 / ideal * sp(-2)
    swap = high_low * (discount(2) - discount(3)) + high_mid * (1 - discount(2)) + mid_low * (1 - discount(3))
    distance = high_low * delta(1) + high_mid * delta(1) + mid_low * delta(2)
    first = 3 / ideal * discount(2) * (sp(-1) + sp(1)) + 1 / ideal * (sp(-1) + sp(-2))
    assert lambdarank(scores, labels, temperature=1).item() == pytest.approx(swap)
    assert ndcg_loss1(scores, labels, temperature=1).item() == pytest.approx(first / LOG2)
    assert ndcg_loss2(scores, labels, temperature=1).item() == pytest.approx(distance / LOG2)
    assert ndcg_loss2pp(scores, labels, temperature=1, mu=4).item() == pytest.approx(4 * distance + swap)
    assert lambdaloss(scores, labels, temperature=1).item() == pytest.approx(distance / LOG2)


@given(seeds, gains)
def test_the_weight_of_lambdarank_is_what_a_swap_changes_in_ndcg(seed, gain):
    """The independent loop asks the project's nDCG of the ranked list, before and after each swap."""
    scores, grades, where = batch(seed=seed)
    rows = []
    for s, y, valid in zip(scores.tolist(), grades.tolist(), where.tolist(), strict=True):
        docs = sorted((i for i in range(len(s)) if valid[i]), key=lambda i: -s[i])
        ranked = [y[i] for i in docs]
        terms = []
        for a, b in itertools.permutations(range(len(docs)), 2):
            if ranked[a] > ranked[b]:
                swapped = list(ranked)
                swapped[a], swapped[b] = ranked[b], ranked[a]
                change = abs(one_ndcg(swapped, gain) - one_ndcg(ranked, gain))
                terms.append(change * sp(s[docs[b]] - s[docs[a]]))
        if terms:
            rows.append(sum(terms))
    got = lambdarank(scores, grades, where=where, temperature=1, gain=gain)
    assert got.item() == pytest.approx(sum(rows) / max(len(rows), 1))


@given(seeds, gains)
def test_the_ndcg_losses_are_the_loop(seed, gain):
    scores, grades, where = batch(seed=seed)
    given_ = {"where": where, "temperature": 1, "gain": gain}
    loss1 = loop(scores, grades, where, lambda a, b: discount(a), gain, every=True)
    # A row of one grade > 0 has no pair of grades but counts in Loss1, as it does in the loop.
    assert ndcg_loss1(scores, grades, **given_).item() == pytest.approx(loss1 / LOG2)
    loss2 = loop(scores, grades, where, lambda a, b: delta(abs(a - b)), gain)
    assert ndcg_loss2(scores, grades, **given_).item() == pytest.approx(loss2 / LOG2)


@given(seeds, st.integers(1, 6))
def test_both_truncations_are_the_loop(seed, k):
    scores, grades, where = batch(seed=seed)

    def metric(a, b):
        return delta(abs(a - b)) / (1 - discount(max(a, b)) if max(a, b) > k else 1)

    def block(a, b):
        return delta(abs(a - b)) * (max(a, b) <= k)

    given_ = {"where": where, "temperature": 1, "k": k}
    wanted = loop(scores, grades, where, metric) / LOG2
    assert lambdaloss(scores, grades, **given_).item() == pytest.approx(wanted)
    wanted = loop(scores, grades, where, block) / LOG2
    assert lambdaloss(scores, grades, truncation="block", **given_).item() == pytest.approx(wanted, abs=1e-12)


# Identities


@given(seeds, gains, st.floats(0.05, 5))
def test_loss_1_and_2_bound_one_minus_ndcg(seed, gain, temperature):
    scores, grades, _ = batch(rows=1, seed=seed)
    grades[0, 0] += 1
    ranked = grades[0, scores[0].argsort(descending=True)].tolist()
    given_ = {"temperature": temperature, "gain": gain}
    for loss in (ndcg_loss1, ndcg_loss2):
        assert loss(scores, grades, **given_).item() >= 1 - one_ndcg(ranked, gain) - 1e-12


@given(seeds)
def test_loss_2pp_without_mu_is_lambdarank_and_mu_adds_loss_2(seed):
    scores, grades, where = batch(seed=seed)
    base = lambdarank(scores, grades, where=where)
    torch.testing.assert_close(ndcg_loss2pp(scores, grades, where=where, mu=0), base)
    more = LOG2 * ndcg_loss2(scores, grades, where=where)
    torch.testing.assert_close(ndcg_loss2pp(scores, grades, where=where, mu=3), base + 3 * more)
    torch.testing.assert_close(ndcg_loss2pp(scores, grades, where=where), base + 10 * more)


@pytest.mark.parametrize("truncation", ["metric", "block"])
@given(seeds, st.integers(6, 50))
def test_lambdaloss_of_the_whole_list_is_loss_2(truncation, seed, k):
    scores, grades, where = batch(seed=seed)
    got = lambdaloss(scores, grades, where=where, k=k, truncation=truncation)
    torch.testing.assert_close(got, ndcg_loss2(scores, grades, where=where))


def test_two_documents_are_the_logistic_loss_times_their_stake():
    scores, labels = batch(columns=2)[0], torch.tensor([[1, 0], [0, 1], [1, 0], [0, 1]])
    logistic = ranknet(scores, labels, temperature=0.5)
    stake = 1 - discount(2)  # a swap loses 1 - D(2) of an nDCG of 1
    given_ = {"temperature": 0.5}
    torch.testing.assert_close(lambdarank(scores, labels, **given_), stake * logistic)
    torch.testing.assert_close(ndcg_loss2(scores, labels, **given_), stake * logistic / LOG2)
    torch.testing.assert_close(ndcg_loss2pp(scores, labels, **given_), 11 * stake * logistic)
    same, graded = torch.tensor([[3, 0]] * 4), torch.tensor([[1, 0]] * 4)
    torch.testing.assert_close(lambdarank(scores, same), lambdarank(scores, graded))


def test_no_gradient_flows_through_the_weights():
    scores, labels = torch.tensor([[0.4, 0.1, 0.3]], dtype=torch.float64), torch.tensor([[0, 1, 0]])  # ranks 1, 3, 2
    sure = torch.sigmoid(scores[0, [0, 2]] - scores[0, 1])
    weights = torch.tensor([1 - discount(3), discount(2) - discount(3)], dtype=torch.float64)
    first, last = weights * sure
    wanted = torch.stack([first, -first - last, last])
    torch.testing.assert_close(gradient(lambdarank, scores, labels, temperature=1)[0], wanted)


def test_loss_1_pushes_relevant_documents_apart_even_if_equally_relevant_and_loss_2_does_not():
    scores, labels = torch.tensor([[0.4, 0.1]]), torch.tensor([[1, 1]])
    assert ndcg_loss1(scores, labels) > 0
    assert build("ndcg_loss1").count(labels) == 1
    for loss in (lambdarank, ndcg_loss2, ndcg_loss2pp, lambdaloss):
        assert loss(scores, labels) == 0
        assert build(loss.__name__).count(labels) == 0


def test_rows_without_a_pair_are_left_out_not_averaged_in():
    scores, grades, _ = batch(rows=4)
    grades[1], grades[3] = 0, 0
    for loss in (lambdarank, ndcg_loss1, ndcg_loss2, ndcg_loss2pp, lambdaloss):
        torch.testing.assert_close(loss(scores, grades), loss(scores[[0, 2]], grades[[0, 2]]))


def test_a_document_alone_has_no_pair():
    for loss in (lambdarank, ndcg_loss1, ndcg_loss2, ndcg_loss2pp, lambdaloss):
        assert loss(torch.ones(1, 1), torch.ones(1, 1)) == 0
        assert build(loss.__name__).count(torch.ones(1, 1)) == 0


def test_ranks_are_among_the_valid_documents():
    scores, grades, _ = batch(rows=2, columns=4)
    crowd = torch.full((2, 3), 99.0, dtype=torch.float64)  # above all, but masked
    where = torch.tensor([[True] * 4 + [False] * 3] * 2)
    for loss in (lambdarank, ndcg_loss1, ndcg_loss2, lambdaloss):
        got = loss(torch.cat([scores, crowd], 1), torch.cat([grades, crowd], 1), where=where)
        torch.testing.assert_close(got, loss(scores, grades))


def test_a_block_leaves_what_is_below_it_alone_and_the_metric_does_not():
    scores, labels = torch.tensor([[0.9, 0.8, 0.3, 0.1]]), torch.tensor([[0, 1, 0, 1]])
    block = gradient(lambdaloss, scores, labels, k=2, truncation="block")
    assert (block[0, 2:] == 0).all()
    assert block[0, 1] < 0 < block[0, 0]
    metric = gradient(lambdaloss, scores, labels, k=2)
    assert metric[0, 3] < 0
    whole = gradient(lambdaloss, scores, labels, k=4)
    assert metric[0, 3] < whole[0, 3]  # what reaches below rank k counts more


@pytest.mark.parametrize("gain", ["exp2", "linear"])
def test_high_grades_stay_finite_and_low_ones_keep_their_proportions(gain):
    scores = batch(rows=1, columns=3)[0].float()
    high = lambdarank(scores, torch.tensor([[0.0, 300.0, 299.0]]), gain=gain)
    ratio = (0, 1, 0.5 if gain == "exp2" else 299 / 300)
    wanted = lambdarank(scores, torch.tensor([ratio]), gain="linear")
    torch.testing.assert_close(high, wanted)
    low = lambdarank(scores, torch.tensor([[0.0, 2e-9, 1e-9]]), gain=gain)
    torch.testing.assert_close(low, lambdarank(scores, torch.tensor([[0.0, 2, 1]]), gain="linear"))


def test_linear_gains_do_not_know_the_unit_of_the_grades_and_exponential_ones_do():
    scores, grades, where = batch()
    given_ = {"where": where, "gain": "linear"}
    torch.testing.assert_close(lambdarank(scores, 7 * grades, **given_), lambdarank(scores, grades, **given_))
    assert lambdarank(scores, 2 * grades) != lambdarank(scores, grades)


# Ties: the mean over all orders of the tied documents


def ranked_without_ties(scores, order, size=1e-7):
    """Break ties by a nudge that leaves the differences as they are."""
    nudges = torch.empty(len(order), dtype=torch.float64)
    nudges[list(order)] = -size * torch.arange(len(order), dtype=torch.float64)
    return scores + nudges


@pytest.mark.parametrize(
    ("loss", "settings"),
    [
        (lambdarank, {}),
        (ndcg_loss1, {}),
        (ndcg_loss2, {}),
        (ndcg_loss2pp, {"mu": 2}),
        (lambdaloss, {"k": 2}),
        (lambdaloss, {"k": 2, "truncation": "block"}),
    ],
)
@pytest.mark.parametrize(
    "scores",
    [[0.5, 0.5, 0.1, 0.9], [0.5, 0.5, 0.1, 0.1], [0.5, 0.5, 0.5, 0.2], [0.3, 0.3, 0.3, 0.3]],
)
def test_ties_are_the_mean_over_all_their_orders(loss, settings, scores):
    scores, labels = torch.tensor([scores], dtype=torch.float64), torch.tensor([[3, 0, 1, 0]])
    got = [loss(scores, labels, temperature=1, **settings), gradient(loss, scores, labels, temperature=1, **settings)]
    orders = list(itertools.permutations(range(4)))
    broken = [ranked_without_ties(scores, order) for order in orders]
    values = torch.stack([loss(matrix, labels, temperature=1, **settings) for matrix in broken])
    slopes = torch.stack([gradient(loss, matrix, labels, temperature=1, **settings) for matrix in broken])
    torch.testing.assert_close(got[0], values.mean(), atol=1e-6, rtol=0)
    torch.testing.assert_close(got[1], slopes.mean(0), atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", ["lambdarank", "ndcg_loss1", "ndcg_loss2", "ndcg_loss2pp", "lambdaloss"])
def test_a_model_whose_scores_are_all_equal_still_learns(name):
    labels = torch.tensor([[2, 1, 0, 0]])
    best, middle, worst, other = gradient(build(name), torch.zeros(1, 4), labels)[0].tolist()
    assert best < middle < worst == other
    assert best < 0 < worst


def test_the_bounds_hold_of_the_mean_ndcg_over_the_orders_of_ties():
    scores, labels = torch.tensor([[0.5, 0.5, 0.5, 0.9]]), torch.tensor([[3, 1, 0, 0]])
    mean = sum(one_ndcg([0, *order]) for order in itertools.permutations([3, 1, 0])) / 6
    for loss in (ndcg_loss1, ndcg_loss2):
        assert loss(scores, labels) >= 1 - mean


def test_expected_weights_by_hand():
    ordered = torch.tensor([[0.9, 0.5, 0.5], [0.9, 0.5, 0.1], [0.5, 0.5, 0.0]])
    where = torch.tensor([[True] * 3, [True] * 3, [True, True, False]])
    weights = torch.tensor([[0.0, 1, 2], [3, 0, 4], [5, 6, 0]])
    got = expected_weights(weights, ordered, where)
    off = ~torch.eye(3, dtype=torch.bool)
    assert got[0][off].tolist() == [1.5, 1.5, 4, 5, 4, 5]  # (1 + 2) / 2, the same, (3 + 5) / 2, (4 + 6) / 2, …
    assert got[1][off].tolist() == weights[off].tolist()
    assert got[2][off].tolist() == [2, (2 + 4) / 2, 2, (2 + 4) / 2, 5.5, 5.5]


def test_weights_of_ranks_by_hand():
    ranks = torch.arange(1, 4, dtype=torch.float64)
    a, b = ranks[:, None], ranks[None, :]
    assert of_swap(a, b)[0, 2].item() == pytest.approx(1 - 1 / 2)  # log2(2) and log2(4)
    assert of_swap(a, b)[2, 0] == of_swap(a, b)[0, 2]
    assert of_first(a, b)[2].tolist() == [0.5] * 3
    assert of_distance(a, b)[0, 1].item() == pytest.approx(1 - 1 / math.log2(3))
    assert of_distance(a, b)[2, 0].item() == pytest.approx(1 / math.log2(3) - 1 / 2)


# Settings


@pytest.mark.parametrize("name", ["lambdarank", "ndcg_loss1", "ndcg_loss2", "ndcg_loss2pp", "lambdaloss"])
def test_a_long_list_is_refused_with_its_cost(name):
    scores, labels = torch.zeros(1, 7), torch.eye(1, 7)
    build(name, max_list=7)(scores, labels)
    with pytest.raises(
        ValueError, match=rf"{name} compares all pairs of a row: 7 documents are 49 pairs .* max_list=6"
    ):
        build(name, max_list=6)(scores, labels)
    with pytest.raises(ValueError, match="gain must be one of exp2, linear, got 'exp'"):
        build(name, gain="exp")


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("ndcg_loss2pp", {"mu": -1}, "mu must be a number >= 0, got -1"),
        ("ndcg_loss2pp", {"mu": "10"}, "mu must be a finite number, got '10'"),
        ("ndcg_loss2pp", {"mu": torch.tensor(1.0)}, "mu must be a number >= 0, got 1.0"),
        ("lambdaloss", {"k": 0}, "k must be a whole number >= 1, got 0"),
        ("lambdaloss", {"k": None}, "k must be a whole number >= 1, got None"),
        ("lambdaloss", {"truncation": "top"}, "truncation must be one of metric, block, got 'top'"),
    ],
)
def test_impossible_settings_are_refused_at_build(name, settings, message):
    with pytest.raises(ValueError, match=message):
        build(name, **settings)
