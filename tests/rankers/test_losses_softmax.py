"""InfoNCE, decoupled softmax and graded cross-entropy: values by hand, torch's own losses, FORMULAS' identities."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from rankers.losses import build, decoupled_softmax, infonce, softmax_ce

E = math.e


def batch(rows=6, columns=9, seed=0, relevant=0.3):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    labels = (torch.rand(rows, columns, generator=generator) < relevant).double()
    labels[:, 0] = 1
    where = torch.rand(rows, columns, generator=generator) < 0.8
    return scores, labels, where


def gradient(loss, scores, labels, **settings):
    leaf = scores.clone().requires_grad_()
    loss(leaf, labels, **settings).backward()
    return leaf.grad


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ([1, 0, 0], math.log(1 + 1 / E + E)),  # -log softmax([2, 1, 3])_0
        ([0, 0, 1], math.log(1 + 1 / E + 1 / E**2)),
        (
            [1, 0, 1],
            (math.log(1 + 1 / E + E) + math.log(1 + 1 / E + 1 / E**2)) / 2,
        ),  # each against all columns
        ([0, 0, 0], 0.0),
    ],
)
def test_infonce_by_hand(labels, expected):
    scores = torch.tensor([[2.0, 1.0, 3.0]])
    assert infonce(scores, torch.tensor([labels]), temperature=1).item() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ([1, 0, 0], math.log(1 + 1 / E + E)),
        ([1, 0, 1], (math.log(1 + 1 / E) + math.log(1 + 1 / E**2)) / 2),  # each against the middle one alone
        ([1, 1, 1], 0.0),  # nothing to be told from
        ([0, 0, 0], 0.0),
    ],
)
def test_decoupled_softmax_by_hand(labels, expected):
    scores = torch.tensor([[2.0, 1.0, 3.0]])
    assert decoupled_softmax(scores, torch.tensor([labels]), temperature=1).item() == pytest.approx(expected)


@pytest.mark.parametrize(("list_weight", "factor"), [("equal", 1), ("sum", 4)])
def test_softmax_ce_by_hand(list_weight, factor):
    scores, labels = torch.tensor([[2.0, 1.0, 3.0]]), torch.tensor([[3, 0, 1]])
    expected = 3 / 4 * math.log(1 + 1 / E + E) + 1 / 4 * math.log(1 + 1 / E + 1 / E**2)
    loss = softmax_ce(scores, labels, temperature=1, list_weight=list_weight)
    assert loss.item() == pytest.approx(factor * expected)


def test_infonce_is_torch_cross_entropy_when_each_row_has_one_positive():
    scores, _, _ = batch(columns=12)
    target = torch.tensor([3, 0, 11, 5, 5, 1])
    labels = F.one_hot(target, 12)
    wanted = F.cross_entropy(scores / 0.07, target)
    torch.testing.assert_close(infonce(scores, labels, temperature=0.07), wanted)
    torch.testing.assert_close(infonce(scores, labels, scale=1 / 0.07), wanted)


def test_softmax_ce_is_torch_cross_entropy_with_probabilities():
    scores, _, _ = batch()
    grades = torch.randint(1, 4, scores.shape, generator=torch.Generator().manual_seed(1)).double()
    wanted = F.cross_entropy(scores, grades / grades.sum(1, keepdim=True))
    torch.testing.assert_close(softmax_ce(scores, grades, temperature=1), wanted)


def test_symmetric_is_the_mean_of_both_directions_and_mined_negatives_stay_in_the_rows():
    scores, _, _ = batch(rows=4, columns=10)  # 4 queries, their 4 documents, 6 mined negatives
    labels, target = torch.eye(4, 10), torch.arange(4)
    rows = F.cross_entropy(scores, target)
    columns = F.cross_entropy(scores[:, :4].T, target)
    torch.testing.assert_close(infonce(scores, labels, temperature=1, symmetric=True), (rows + columns) / 2)


def test_the_columns_direction_has_its_own_mask():
    scores, _, _ = batch(rows=3, columns=3)
    labels = torch.eye(3)
    where_columns = torch.ones(3, 3, dtype=torch.bool)
    where_columns[1, 0] = False  # query 1 is also answered by document 0
    rows = F.cross_entropy(scores, torch.arange(3))
    columns = F.cross_entropy(scores.T.masked_fill(~where_columns.T, -torch.inf), torch.arange(3))
    got = infonce(scores, labels, temperature=1, symmetric=True, where_columns=where_columns)
    torch.testing.assert_close(got, (rows + columns) / 2)


def test_a_mask_for_the_columns_alone_is_refused():
    with pytest.raises(ValueError, match=r"where_columns .* needs symmetric=True"):
        infonce(torch.zeros(2, 2), torch.eye(2), where_columns=torch.ones(2, 2, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"where_columns must be bool \(2, 2\), got torch.bool \(2, 3\)"):
        infonce(torch.zeros(2, 2), torch.eye(2), symmetric=True, where_columns=torch.ones(2, 3, dtype=torch.bool))


@pytest.mark.parametrize("columns", [1, 2, 7, 1000])
def test_equal_scores_give_log_n(columns):
    labels = torch.zeros(3, columns)
    labels[:, 0] = 1
    for loss in (infonce, softmax_ce, decoupled_softmax):
        assert loss(torch.full((3, columns), 0.4), labels).item() == pytest.approx(math.log(columns), rel=1e-6)


def test_gradient_is_softmax_minus_one_hot():
    scores, _, _ = batch(rows=4, columns=5)
    labels = torch.eye(4, 5, dtype=torch.float64)
    wanted = (torch.softmax(scores / 0.2, 1) - labels) / 4 / 0.2
    torch.testing.assert_close(gradient(infonce, scores, labels, temperature=0.2), wanted)
    torch.testing.assert_close(gradient(softmax_ce, scores, labels, temperature=0.2), wanted)


def test_temperature_limits():
    scores, _, _ = batch(rows=5, columns=6)
    labels = torch.eye(5, 6)
    hinge = (scores.masked_fill(labels.bool(), -torch.inf).amax(1) - scores.diagonal()).clamp_min(0).mean()
    torch.testing.assert_close(1e-4 * infonce(scores, labels, temperature=1e-4), hinge, atol=1e-4, rtol=0)
    assert infonce(scores, labels, temperature=1e6).item() == pytest.approx(math.log(6), abs=1e-5)


def test_gradient_of_the_scale():
    scores, _, _ = batch(rows=4, columns=5)
    labels = torch.eye(4, 5, dtype=torch.float64)
    scale = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    infonce(scores, labels, scale=scale).backward()
    expected = ((torch.softmax(3 * scores, 1) - labels) * scores).sum() / 4  # E_p[C] - C_y, averaged
    torch.testing.assert_close(scale.grad, expected)


def naive_decoupled(scores, labels, where):
    per_row = []
    for row, marks, valid in zip(scores, labels, where, strict=True):
        found = [j for j in range(len(row)) if valid[j] and marks[j] >= 1]
        others = [j for j in range(len(row)) if valid[j] and marks[j] < 1]
        if found:
            terms = [-row[p] + torch.logsumexp(row[[p, *others]], 0) for p in found]
            per_row.append(sum(terms) / len(terms))
    return sum(per_row) / len(per_row)


@given(st.integers(0, 10**6))
def test_decoupled_softmax_is_the_loop(seed):
    scores, labels, where = batch(seed=seed)
    wanted = naive_decoupled(scores / 0.3, labels, where)
    torch.testing.assert_close(decoupled_softmax(scores, labels, where=where, temperature=0.3), wanted)


def test_decoupled_softmax_with_one_positive_is_infonce():
    scores, _, where = batch(rows=5, columns=8)
    labels = torch.eye(5, 8)
    torch.testing.assert_close(decoupled_softmax(scores, labels, where=where), infonce(scores, labels, where=where))


@given(st.integers(0, 10**6))
def test_decoupled_softmax_never_exceeds_infonce_and_never_pushes_a_positive_down(seed):
    scores, labels, where = batch(seed=seed)
    assert decoupled_softmax(scores, labels, where=where) <= infonce(scores, labels, where=where) + 1e-12
    slopes = gradient(decoupled_softmax, scores, labels, where=where)
    assert (slopes[where & (labels == 1)] <= 0).all()
    assert (slopes[where & (labels == 0)] >= 0).all()
    torch.testing.assert_close(slopes.sum(1), torch.zeros(6, dtype=torch.float64), atol=1e-10, rtol=0)


def test_infonce_does_push_an_easy_positive_down():
    scores, labels = torch.tensor([[5.0, 0.0, 0.0]]), torch.tensor([[1.0, 1.0, 0.0]])
    assert gradient(infonce, scores, labels, temperature=1)[0, 0] > 0  # p_0 > 1/2
    assert gradient(decoupled_softmax, scores, labels, temperature=1)[0, 0] < 0


def test_gradient_of_decoupled_softmax():
    scores, labels = torch.tensor([[0.3, -0.2, 0.9, 0.1]], dtype=torch.float64), torch.tensor([[1, 1, 0, 0]])
    negatives = scores[0, 2:]
    certainty = torch.sigmoid(scores[0, :2] - torch.logsumexp(negatives, 0))
    pull = (1 - certainty) / 2
    wanted = torch.cat([-pull, torch.softmax(negatives, 0) * pull.sum()])
    torch.testing.assert_close(gradient(decoupled_softmax, scores, labels, temperature=1)[0], wanted)


def test_infonce_infimum_is_log_of_the_positives_and_decoupled_is_zero():
    scores, labels = torch.tensor([[50.0, 50.0, 50.0, -50.0]]), torch.tensor([[1, 1, 1, 0]])
    assert infonce(scores, labels, temperature=1).item() == pytest.approx(math.log(3))
    assert decoupled_softmax(scores, labels, temperature=1).item() == pytest.approx(0)


def test_rows_without_a_relevant_document_are_left_out_not_averaged_in():
    scores, labels, _ = batch()
    labels[2:] = 0
    for loss in (infonce, decoupled_softmax, softmax_ce):
        torch.testing.assert_close(loss(scores, labels), loss(scores[:2], labels[:2]))


def test_softmax_ce_list_weight_sum_divides_by_rows_not_by_weight():
    scores, _, _ = batch(rows=3, columns=4)
    grades = torch.tensor([[3.0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]], dtype=torch.float64)
    rows = [softmax_ce(scores[i : i + 1], grades[i : i + 1]) for i in range(2)]
    torch.testing.assert_close(softmax_ce(scores, grades, list_weight="sum"), (4 * rows[0] + 1 * rows[1]) / 2)
    torch.testing.assert_close(softmax_ce(scores, grades), (rows[0] + rows[1]) / 2)


def test_softmax_ce_of_equal_grades_is_infonce_and_scaling_grades_changes_nothing():
    scores, labels, where = batch()
    torch.testing.assert_close(softmax_ce(scores, labels, where=where), infonce(scores, labels, where=where))
    torch.testing.assert_close(softmax_ce(scores, labels * 3, where=where), softmax_ce(scores, labels, where=where))


def test_softmax_ce_is_least_where_the_softmax_is_the_target():
    grades = torch.tensor([[3.0, 1.0, 2.0]], dtype=torch.float64)
    best = grades.log()
    entropy = -(grades / 6 * (grades / 6).log()).sum()
    torch.testing.assert_close(softmax_ce(best, grades, temperature=1), entropy)
    torch.testing.assert_close(gradient(softmax_ce, best, grades, temperature=1), torch.zeros_like(best))


def test_tiny_grades_do_not_lose_their_proportions():
    scores, grades = torch.randn(1, 3), torch.tensor([[3e-30, 1e-30, 0.0]])
    torch.testing.assert_close(softmax_ce(scores, grades), softmax_ce(scores, grades * 1e30))


def test_grades_are_binarised_where_asked():
    scores, grades = torch.randn(3, 5), torch.tensor([[0, 1, 2, 3, 0], [3, 0, 0, 0, 1], [1, 1, 0, 0, 2]])
    for loss in (infonce, decoupled_softmax):
        torch.testing.assert_close(loss(scores, grades, positive_from=3), loss(scores, grades >= 3))
        torch.testing.assert_close(loss(scores, grades), loss(scores, grades >= 1))


def test_per_query_offsets_leave_infonce_alone():
    """Half of the blind spot: the loss cannot see whether scores compare across queries (the other half is MW's)."""
    scores, labels, _ = batch()
    offsets = torch.empty(6, 1, dtype=torch.float64).uniform_(-100, 100)
    torch.testing.assert_close(infonce(scores + offsets, labels), infonce(scores, labels), atol=1e-6, rtol=1e-6)


def test_hardness_shifts_the_negatives_logits_and_not_their_slope():
    """LLaVE: the softmax P' of the shifted logits, the gradient t (P' - Y) / B."""
    scores, labels, where = batch()
    shifted = (scores / 0.2 + 3 * scores * (labels == 0)).masked_fill(~where, -torch.inf)
    target = labels * where / (labels * where).sum(1, keepdim=True)
    wanted = -(target * torch.log_softmax(shifted, 1).masked_fill(~where, 0)).sum(1).mean()
    settings = {"where": where, "temperature": 0.2, "hardness": 3}
    torch.testing.assert_close(infonce(scores, labels, **settings), wanted)
    slopes = (torch.softmax(shifted, 1) - target) / 0.2 / len(scores)
    torch.testing.assert_close(gradient(infonce, scores, labels, **settings), slopes)
    torch.testing.assert_close(slopes.sum(1), torch.zeros(6, dtype=torch.float64), atol=1e-12, rtol=0)


def test_hardness_gives_hard_negatives_a_larger_share():
    scores, labels = torch.tensor([[0.9, 0.7, 0.1]]), torch.tensor([[1, 0, 0]])
    plain, hard = (gradient(infonce, scores, labels, temperature=1, hardness=a)[0] for a in (0.0, 9.0))
    assert hard[1] / hard[2] == pytest.approx((plain[1] / plain[2]).item() * math.exp(9 * 0.6), rel=1e-4)


@pytest.mark.parametrize("symmetric", [False, True])
def test_at_their_defaults_the_arguments_change_nothing(symmetric):
    scores, labels, where = batch()
    wanted = infonce(scores, labels, where=where, symmetric=symmetric)
    ones = torch.ones_like(scores)
    for settings in (
        {"hardness": 0},
        {"grade_weight": True},
        {"weights": ones},
        {"weights": 1 - 0.7 * labels},
    ):
        assert infonce(scores, labels, where=where, symmetric=symmetric, **settings) == wanted


def test_weights_multiply_the_negatives_in_the_denominator():
    scores, labels = torch.tensor([[2.0, 1.0, 3.0]]), torch.tensor([[1, 0, 0]])
    weights = torch.tensor([[0.0, 0.25, 0.5]])  # the positive's own is not read
    wanted = math.log(math.exp(2) + 0.25 * math.exp(1) + 0.5 * math.exp(3)) - 2
    assert infonce(scores, labels, temperature=1, weights=weights).item() == pytest.approx(wanted)


@pytest.mark.parametrize("symmetric", [False, True])
def test_a_weight_of_zero_is_a_mask(symmetric):
    scores, labels, where = batch()
    out = (torch.rand(scores.shape, generator=torch.Generator().manual_seed(3)) < 0.4) & (labels == 0)
    weights = (~out).double()
    weights[~where] = torch.nan  # not read either
    got = gradient(infonce, scores, labels, where=where, weights=weights, symmetric=symmetric)
    wanted = gradient(infonce, scores, labels, where=where & ~out, symmetric=symmetric)
    torch.testing.assert_close(got, wanted)
    assert (got[out] == 0).all()


def test_a_row_whose_negatives_all_have_weight_zero_costs_nothing():
    labels = torch.eye(2, 3)
    assert infonce(torch.rand(2, 3), labels, weights=torch.zeros(2, 3)) == 0


def test_weights_and_hardness_work_in_both_directions():
    scores, _, _ = batch(rows=4, columns=4)
    labels = torch.eye(4)
    weights = torch.rand(4, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    weights[0, 1] = 0
    lifted = scores / 0.5 + (1 - labels) * (2 * scores + weights.log())
    lifted[range(4), range(4)] = scores.diag() / 0.5
    target = torch.arange(4)
    wanted = (F.cross_entropy(lifted, target) + F.cross_entropy(lifted.T, target)) / 2
    got = infonce(scores, labels, temperature=0.5, symmetric=True, hardness=2, weights=weights)
    torch.testing.assert_close(got, wanted)


def test_the_columns_mask_opens_scores_that_the_rows_mask_closes():
    scores, _, _ = batch(rows=3, columns=3)
    where = ~torch.eye(3, dtype=torch.bool).roll(1, 0)
    settings = {"temperature": 1, "symmetric": True, "where_columns": torch.ones_like(where)}
    rows = F.cross_entropy(scores.masked_fill(~where, -torch.inf), torch.arange(3))
    columns = F.cross_entropy(scores.T, torch.arange(3))
    torch.testing.assert_close(infonce(scores, torch.eye(3), where=where, **settings), (rows + columns) / 2)


def test_no_gradient_flows_into_the_weights():
    weights = torch.full((2, 3), 0.5, requires_grad=True)
    infonce(torch.rand(2, 3, requires_grad=True), torch.eye(2, 3), weights=weights).backward()
    assert weights.grad is None


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (torch.full((2, 3), 1.5), r"weights\[0, 1\] is 1.5: weights must be in \[0, 1\]"),
        (torch.full((2, 3), -0.5), r"weights\[0, 1\] is -0.5"),
        (torch.full((2, 3), torch.nan), r"weights\[0, 1\] is nan"),
        (torch.ones(3, 2), r"weights must be float \(2, 3\), got torch.float32 \(3, 2\)"),
        (torch.ones(2, 3) > 0, r"weights must be float \(2, 3\), got torch.bool"),
    ],
)
def test_other_weights_are_refused(weights, message):
    with pytest.raises(ValueError, match=message):
        infonce(torch.zeros(2, 3), torch.eye(2, 3), weights=weights)
    with pytest.raises(ValueError, match="unknown setting 'weights' of infonce"):
        build("infonce", weights=weights)


@pytest.mark.parametrize("settings", [{"hardness": -1}, {"hardness": "9"}, {"grade_weight": 1}])
def test_other_settings_are_refused(settings):
    with pytest.raises(ValueError, match=f"{next(iter(settings))} must be"):
        build("infonce", **settings)


def test_grade_weight_weighs_a_row_by_the_mean_grade_of_its_positives():
    scores, _, _ = batch(rows=3, columns=4)
    grades = torch.tensor([[3.0, 0, 0, 0], [1, 2, 0, 0], [0, 0, 0, 0]], dtype=torch.float64)
    one, two = (infonce(scores[i : i + 1], grades[i : i + 1]) for i in (0, 1))
    torch.testing.assert_close(infonce(scores, grades, grade_weight=True), (3 * one + 1.5 * two) / 4.5)
    loss = build("infonce", grade_weight=True)
    assert loss.count(grades) == 4.5
    torch.testing.assert_close(loss(scores, grades, reduction="sum"), 3 * one + 1.5 * two)


def test_grade_weight_in_both_directions():
    scores, _, _ = batch(rows=2, columns=2)
    grades = torch.tensor([[3, 0], [0, 1]])
    logs = [-torch.log_softmax(scores / 0.05, axis).diag() for axis in (1, 0)]
    wanted = sum((3 * log[0] + log[1]) / 4 for log in logs) / 2
    torch.testing.assert_close(infonce(scores, grades, grade_weight=True, symmetric=True), wanted)


def test_one_row_of_a_grade_below_one_is_not_weighed_down():
    scores, labels = torch.rand(2, 3), torch.tensor([[0.6, 0.1, 0.0], [0, 0, 0.9]])
    settings = {"grade_weight": True, "positive_from": 0.5}
    rows = [infonce(scores[i : i + 1], labels[i : i + 1], positive_from=0.5) for i in (0, 1)]
    torch.testing.assert_close(infonce(scores[:1], labels[:1], **settings), rows[0])
    torch.testing.assert_close(infonce(scores, labels, **settings), (0.6 * rows[0] + 0.9 * rows[1]) / 1.5)
    assert build("infonce", **settings).count(labels).item() == pytest.approx(1.5 / 0.5)
