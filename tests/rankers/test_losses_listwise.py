"""ListNet, Poly-1, ListMLE and p-ListMLE: values by hand, loops over places and shuffles, FORMULAS' identities."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from rankers.losses import build, decoupled_softmax, infonce, listmle, listnet, p_listmle, poly1, softmax_ce

E = math.e


def batch(rows=4, columns=6, seed=0, grades=4):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, grades, (rows, columns), generator=generator).double()
    where = torch.rand(rows, columns, generator=generator) < 0.8
    return scores, labels, where


def gradient(loss, scores, labels, **settings):
    leaf = scores.clone().requires_grad_()
    loss(leaf, labels, **settings).backward()
    return leaf.grad


# --- ListNet -------------------------------------------------------------------------------------------------------


def test_listnet_by_hand():
    scores, grades = torch.tensor([[2.0, 1.0, 3.0]]), torch.tensor([[1.0, 0.0, 0.0]])
    target = [E / (E + 2), 1 / (E + 2), 1 / (E + 2)]
    log_p = [-math.log(1 + 1 / E + E), -math.log(1 + E + E**2), -math.log(1 + 1 / E + 1 / E**2)]
    expected = -sum(q * log for q, log in zip(target, log_p, strict=True))
    assert listnet(scores, grades, temperature=1).item() == pytest.approx(expected)
    assert listnet(scores, grades * 3, temperature=1, target_temperature=3).item() == pytest.approx(expected)


@pytest.mark.parametrize("target_temperature", [0.5, 1.0, 3.0])
def test_listnet_is_least_the_entropy_of_its_target_where_the_scores_are_the_grades(target_temperature):
    grades = torch.tensor([[3.0, 0.0, 1.0, 1.0]], dtype=torch.float64)
    q = torch.softmax(grades / target_temperature, -1)
    at_best = grades * 0.05 / target_temperature + 7
    settings = {"target_temperature": target_temperature}
    torch.testing.assert_close(listnet(at_best, grades, **settings), -(q * q.log()).sum())
    slopes = gradient(listnet, at_best, grades, **settings)
    torch.testing.assert_close(slopes, torch.zeros_like(slopes), atol=1e-10, rtol=0)


def test_gradient_of_listnet_is_the_softmax_minus_the_target():
    scores, grades, _ = batch(rows=1)
    wanted = torch.softmax(scores, -1) - torch.softmax(grades, -1)
    torch.testing.assert_close(gradient(listnet, scores, grades, temperature=1), wanted)


def test_listnet_is_not_softmax_ce_but_becomes_it_for_a_sharp_target():
    scores, grades = torch.tensor([[0.3, -0.2, 0.9]], dtype=torch.float64), torch.tensor([[0.0, 2.0, 0.0]])
    assert abs(listnet(scores, grades) - softmax_ce(scores, grades)) > 0.1
    torch.testing.assert_close(listnet(scores, grades, target_temperature=0.05), softmax_ce(scores, grades))


def test_a_query_without_a_grade_is_left_out_and_masked_documents_have_no_share():
    scores, grades, _ = batch(rows=3)
    grades[:2, 0], grades[2] = 1, 0
    for loss in (listnet, poly1, listmle, p_listmle):
        torch.testing.assert_close(loss(scores, grades), loss(scores[:2], grades[:2]))
    where = torch.ones_like(grades, dtype=torch.bool)
    where[:, 3:] = False
    for loss in (listnet, poly1, listmle, p_listmle):
        torch.testing.assert_close(loss(scores, grades, where=where), loss(scores[:, :3], grades[:, :3]))


# --- Poly-1 --------------------------------------------------------------------------------------------------------


@given(st.integers(0, 10**6), st.sampled_from([0.05, 1.0]))
def test_poly1_with_epsilon_zero_is_softmax_ce(seed, temperature):
    scores, grades, where = batch(seed=seed)
    wanted = softmax_ce(scores, grades, where=where, temperature=temperature)
    assert torch.equal(poly1(scores, grades, where=where, temperature=temperature, epsilon=0), wanted)


def test_poly1_by_hand():
    scores, grades = torch.tensor([[2.0, 1.0, 3.0]]), torch.tensor([[3.0, 0.0, 1.0]])
    p = [1 / (1 + 1 / E + E), 1 / (1 + E + E**2), 1 / (1 + 1 / E + 1 / E**2)]
    expected = -0.75 * math.log(p[0]) - 0.25 * math.log(p[2]) + 2 * (1 - 0.75 * p[0] - 0.25 * p[2])
    assert poly1(scores, grades, temperature=1, epsilon=2).item() == pytest.approx(expected)


def test_poly1_changes_the_first_factor_of_the_series_of_the_logarithm():
    scores, labels = torch.tensor([[0.4, 0.1, -0.3]], dtype=torch.float64), torch.tensor([[1, 0, 0]])
    missed = 1 - torch.softmax(scores, -1)[0, 0].item()
    series = [missed**k / k for k in range(1, 200)]
    assert infonce(scores, labels, temperature=1).item() == pytest.approx(sum(series))
    assert poly1(scores, labels, temperature=1, epsilon=1.5).item() == pytest.approx(2.5 * series[0] + sum(series[1:]))


def test_gradient_of_poly1_at_the_target():
    scores, labels = torch.tensor([[0.4, 0.1, -0.3]], dtype=torch.float64), torch.tensor([[1, 0, 0]])
    p = torch.softmax(scores, -1)[0, 0]
    for epsilon in (-1.0, 0.5, 3.0):
        slope = gradient(poly1, scores, labels, temperature=1, epsilon=epsilon)[0, 0]
        torch.testing.assert_close(slope, -(1 - p) * (1 + epsilon * p))
        assert slope < 0


def test_impossible_settings_are_refused():
    with pytest.raises(ValueError, match=r"epsilon must be >= -1, got -1.5: a good target"):
        build("poly1", epsilon=-1.5)
    with pytest.raises(ValueError, match="epsilon must be a finite number"):
        build("poly1", epsilon="1")
    for value in (0, -1, float("inf"), True):
        with pytest.raises(ValueError, match="target_temperature must be"):
            build("listnet", target_temperature=value)
    with pytest.raises(ValueError, match=r"labels\[0, 1\] is -1: labels must be finite grades"):
        listmle(torch.zeros(1, 2), torch.tensor([[1.0, -1.0]]))


# --- ListMLE and p-ListMLE -----------------------------------------------------------------------------------------


def likelihood(row, weights):
    """The paper's loss of scores that stand in the order of their grades already, one place after the other."""
    return sum(w * (torch.logsumexp(row[i:], 0) - row[i]) for i, w in enumerate(weights))


def top_heavy(n):
    """p-ListMLE's weights, in exact integers, over their sum and times n."""
    weights = [2 ** (n - i) - 1 for i in range(n)]
    return [n * w / sum(weights) for w in weights]


def efron(row, grades, weights):
    """The loss with ties, as a loop over groups of equal grades."""
    total = 0.0
    place = 0
    for grade in sorted(set(grades.tolist()), reverse=True):
        group, below = row[grades == grade].exp().sum(), row[grades < grade].exp().sum()
        size = int((grades == grade).sum())
        here = weights[place : place + size]
        total += sum(w * torch.log(below + group * (size - i) / size) for i, w in enumerate(here))
        total -= sum(here) / size * row[grades == grade].sum()
        place += size
    return total


@given(st.integers(0, 10**6), st.integers(1, 7))
def test_distinct_grades_give_the_papers_likelihood(seed, n):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(1, n, generator=generator, dtype=torch.float64)
    grades = (torch.randperm(n, generator=generator) + 1.0)[None]
    ideal = scores[0, grades[0].argsort(descending=True)]
    torch.testing.assert_close(listmle(scores, grades, temperature=1), likelihood(ideal, [1] * n))
    torch.testing.assert_close(p_listmle(scores, grades, temperature=1), likelihood(ideal, top_heavy(n)))


@given(st.integers(0, 10**6))
def test_equal_grades_follow_efrons_rule_in_every_row_for_itself(seed):
    scores, grades, where = batch(seed=seed)
    wanted = {listmle: [], p_listmle: []}
    for row, marks, valid in zip(scores, grades, where, strict=True):
        if marks[valid].sum() > 0:
            n = int(valid.sum())
            wanted[listmle].append(efron(row[valid], marks[valid], [1] * n))
            wanted[p_listmle].append(efron(row[valid], marks[valid], top_heavy(n)))
    for loss, rows in wanted.items():
        expected = sum(rows) / max(len(rows), 1)
        torch.testing.assert_close(
            loss(scores, grades, where=where, temperature=1), torch.as_tensor(expected, dtype=torch.float64)
        )


def shuffled(row, grades, weights):
    """The losses over all orders of equal grades that the paper's shuffle may give, each as often as it occurs."""
    orders = itertools.permutations(range(len(row)))
    falling = [list(order) for order in orders if all(grades[a] >= grades[b] for a, b in itertools.pairwise(order))]
    return torch.stack([likelihood(row[order], weights) for order in falling])


@pytest.mark.parametrize("weights", [[1] * 5, top_heavy(5)], ids=["listmle", "p_listmle"])
@pytest.mark.parametrize("grades", [[2, 1, 1, 0, 0], [1, 1, 1, 0, 0], [1, 0, 0, 0, 0], [3, 3, 3, 3, 3]])
def test_ties_cost_at_least_the_mean_of_the_shuffles_and_exactly_that_where_scores_are_equal(grades, weights):
    loss = listmle if weights[0] == 1 else p_listmle
    row = torch.tensor([0.3, -0.8, 0.5, 0.1, 1.2], dtype=torch.float64)
    mean = shuffled(row, grades, weights).mean()
    ours = loss(row[None], torch.tensor([grades]), temperature=1)
    assert mean + 1e-6 < ours < mean * 1.1
    equal = torch.tensor([float(grade) for grade in grades], dtype=torch.float64) * -0.7
    torch.testing.assert_close(
        loss(equal[None], torch.tensor([grades]), temperature=1), shuffled(equal, grades, weights).mean()
    )


def test_two_documents_are_ranknet():
    scores = torch.tensor([[0.3, 1.1]], dtype=torch.float64)
    ranknet = math.log(1 + math.exp(1.1 - 0.3))
    assert listmle(scores, torch.tensor([[2, 1]]), temperature=1).item() == pytest.approx(ranknet)
    assert p_listmle(scores, torch.tensor([[2, 1]]), temperature=1).item() == pytest.approx(1.5 * ranknet)  # 3 : 1
    one_above_all = torch.tensor([[1, 0]])
    torch.testing.assert_close(listmle(scores, one_above_all), decoupled_softmax(scores, one_above_all))


def test_only_the_order_of_the_grades_counts():
    scores, grades, where = batch()
    for loss in (listmle, p_listmle):
        torch.testing.assert_close(loss(scores, grades.exp() - 0.5, where=where), loss(scores, grades + 1, where=where))


def test_the_right_order_far_apart_costs_nothing_and_the_wrong_one_its_gap():
    scores, grades = torch.tensor([[3.0, 2.0, 1.0]]), torch.tensor([[3, 2, 1]])
    for loss in (listmle, p_listmle):
        assert loss(scores * 100, grades, temperature=1).item() == pytest.approx(0)
        assert loss(torch.tensor([[4.0]]), torch.tensor([[1]])).item() == 0
    # 300 is two places too low: places 1 and 2 lose 200 and 100 to it, the last one nothing.
    wrong = torch.tensor([[100.0, 200.0, 300.0]])
    assert listmle(wrong, grades, temperature=1).item() == pytest.approx(200 + 100)
    assert p_listmle(wrong, grades, temperature=1).item() == pytest.approx(3 * (7 * 200 + 3 * 100) / 11)


@pytest.mark.parametrize("n", [1, 2, 30, 2000])
def test_weights_stay_finite_in_long_lists_and_sum_to_the_length(n):
    """At scores 0 the term of place r is log(n - r + 1); the paper's weights overflow from n = 1024 on."""
    grades = torch.arange(n, 0, -1)[None]
    value = p_listmle(torch.zeros(1, n), grades)
    expected = sum(w * math.log(n - i) for i, w in enumerate(top_heavy(n)))
    assert value.item() == pytest.approx(expected, rel=1e-5)
    assert gradient(p_listmle, torch.zeros(1, n), grades).isfinite().all()


def test_a_large_offset_costs_no_digits():
    scores, grades, where = batch(rows=3, columns=20, grades=3)
    scores = (scores.float() * 64).round() / 64  # exact, also with the offset
    for loss in (listmle, p_listmle):
        for fn in (loss, lambda *args, loss=loss, **kwargs: gradient(loss, *args, **kwargs)):
            wanted = fn(scores, grades, where=where, temperature=1)
            torch.testing.assert_close(fn(scores + 8192, grades, where=where, temperature=1), wanted)


def test_scores_far_apart_keep_the_terms_of_the_lowest_group():
    """exp() of the lowest scores is 0 next to the highest; their own order still counts."""
    scores = torch.tensor([[1e4, -1e4, -1e4 - 1]])
    expected = math.log(1 + math.exp(-1))
    # A step of float32 at 20,000 is 0.002.
    assert listmle(scores, torch.tensor([[3, 2, 1]]), temperature=1).item() == pytest.approx(expected, abs=2e-3)
    slopes = gradient(listmle, scores, torch.tensor([[3, 2, 1]]), temperature=1)
    pull = 1 / (1 + E)
    torch.testing.assert_close(slopes, torch.tensor([[0.0, -pull, pull]]), atol=2e-3, rtol=0)


def test_equal_grades_alone_pull_their_scores_together():
    scores, grades = torch.tensor([[1.0, -1.0, 0.0]]), torch.ones(1, 3)
    slopes = gradient(listmle, scores, grades, temperature=1)
    assert slopes[0, 0] > 0 > slopes[0, 1]
    settled = gradient(listmle, torch.zeros(1, 3), grades, temperature=1)
    torch.testing.assert_close(settled, torch.zeros(1, 3), atol=1e-6, rtol=0)


def test_listmle_trains_a_list_into_its_order():
    generator = torch.Generator().manual_seed(0)
    grades = torch.tensor([[3, 0, 2, 1, 2, 0]])
    for loss in (listmle, p_listmle, listnet, poly1):
        scores = torch.randn(1, 6, generator=generator, requires_grad=True)
        for _ in range(300):
            (slopes,) = torch.autograd.grad(loss(scores, grades, temperature=1), scores)
            scores = (scores - 0.5 * slopes).detach().requires_grad_()
        better = F.one_hot(grades.argmax(-1), 6).bool()
        assert scores[better] > scores[~better].max()
        if loss is not poly1:  # whose best is one share for all equal grades, reached slowly
            order = grades[0, scores.detach()[0].argsort(descending=True)]
            assert order.tolist() == [3, 2, 2, 1, 0, 0]
