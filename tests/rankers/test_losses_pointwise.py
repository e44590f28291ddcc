"""BiXSE, SigLIP and PointCE: values by hand, torch's BCE, and the bias prior."""

import math

import pytest
import torch
import torch.nn.functional as F

from rankers.losses import bixse, build, point_ce, siglip
from rankers.losses.pointwise import bixse_count, bixse_tally, bixse_totals


def batch(rows=5, columns=7, seed=0):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(rows, columns, generator=generator, dtype=torch.float64) * 2 - 1
    labels = torch.rand(rows, columns, generator=generator, dtype=torch.float64)
    where = torch.rand(rows, columns, generator=generator) < 0.8
    return scores, labels, where


def siglip_by_hand(scores, signs, scale, bias):
    """Sigmoid loss of the paper: -1/B sum_ij log sigmoid(l_ij (t c_ij + b)), l = +1 or -1."""
    total = 0.0
    for row, marks in zip(scores.tolist(), signs.tolist(), strict=True):
        for cosine, sign in zip(row, marks, strict=True):
            total += math.log1p(math.exp(-sign * (scale * cosine + bias)))
    return total / len(scores)


def test_by_hand():
    scores, labels = torch.tensor([[0.5, -0.5]]), torch.tensor([[0.75, 0.0]])
    z = [4 * 0.5 - 1, 4 * -0.5 - 1]
    expected = math.log1p(math.exp(z[0])) - 0.75 * z[0] + math.log1p(math.exp(z[1]))
    assert bixse(scores, labels, scale=4, bias=-1).item() == pytest.approx(expected)


@pytest.mark.parametrize(("scale", "bias"), [(10.0, -10.0), (3.0, 0.5)])
def test_hard_labels_give_siglip(scale, bias):
    scores, _, _ = batch(rows=4, columns=6)
    labels = torch.eye(4, 6)
    got = bixse(scores, labels, scale=scale, bias=bias)
    assert got.item() == pytest.approx(siglip_by_hand(scores, 2 * labels - 1, scale, bias), rel=1e-12)
    assert got == siglip(scores, labels, scale=scale, bias=bias)


def test_it_is_torch_bce_summed_over_columns_and_averaged_over_rows():
    scores, labels, where = batch()
    wanted = F.binary_cross_entropy_with_logits(10 * scores - 2, labels, weight=where.double(), reduction="sum") / 5
    torch.testing.assert_close(bixse(scores, labels, where=where, scale=10, bias=-2), wanted)
    torch.testing.assert_close(bixse(scores, labels, where=where, temperature=0.1, bias=-2), wanted)


def test_gradients_of_scores_scale_and_bias():
    scores, labels, where = batch()
    leaf = scores.clone().requires_grad_()
    scale = torch.tensor(4.0, dtype=torch.float64, requires_grad=True)
    bias = torch.tensor(-1.0, dtype=torch.float64, requires_grad=True)
    bixse(leaf, labels, where=where, scale=scale, bias=bias).backward()
    error = ((4 * scores - 1).sigmoid() - labels) * where / 5
    torch.testing.assert_close(leaf.grad, 4 * error)
    torch.testing.assert_close(scale.grad, (error * scores).sum())
    torch.testing.assert_close(bias.grad, error.sum())


def prior_of(labels, where=None, **settings):
    return bixse_totals(bixse_tally(labels, where, **settings))["bias"]


@pytest.mark.parametrize("size", [2, 8, 64, 1024])
def test_auto_bias_is_the_prior_of_one_positive_in_the_batch(size):
    assert prior_of(torch.eye(size)).item() == pytest.approx(-math.log(size - 1), abs=1e-4)


def test_a_model_that_knows_nothing_has_no_gradient_on_the_auto_bias():
    _, labels, where = batch()
    prior = prior_of(labels, where)
    assert prior.dtype == torch.float64
    torch.testing.assert_close(prior, torch.logit(labels[where].mean()))
    bias = prior.clone().requires_grad_()
    bixse(torch.zeros_like(labels), labels, where=where, bias=bias).backward()
    assert bias.grad.item() == pytest.approx(0, abs=1e-12)
    auto = bixse(torch.zeros_like(labels), labels, where=where)
    torch.testing.assert_close(auto, bixse(torch.zeros_like(labels), labels, where=where, bias=prior.item()))


@pytest.mark.parametrize("labels", [torch.ones(2, 3), torch.ones(1, 1), torch.zeros(2, 3)])
def test_auto_bias_stays_finite_when_all_labels_are_equal(labels):
    assert prior_of(labels).isfinite()
    assert bixse(torch.zeros_like(labels), labels).isfinite()


def test_rows_without_relevance_leave_the_mean_and_the_prior_unless_kept():
    scores, labels, _ = batch()
    labels[3:] = 0
    torch.testing.assert_close(bixse(scores, labels), bixse(scores[:3], labels[:3]))
    kept = bixse(scores, labels, scale=10, bias=-2, keep_empty_rows=True)
    torch.testing.assert_close(kept, F.binary_cross_entropy_with_logits(10 * scores - 2, labels, reduction="sum") / 5)
    assert bixse_count(labels) == 3
    assert bixse_count(labels, keep_empty_rows=True) == 5
    prior = prior_of(labels, keep_empty_rows=True)
    torch.testing.assert_close(prior, torch.logit(labels.mean()))


def test_the_floor_is_the_entropy_of_the_labels():
    _, labels, _ = batch()
    labels = labels.clamp(0.05, 0.95)
    at_optimum = torch.logit(labels) / 10
    floor = -(labels * labels.log() + (1 - labels) * (1 - labels).log()).sum() / 5
    torch.testing.assert_close(bixse(at_optimum, labels, bias=0.0), floor)
    worse = at_optimum + 0.01 * torch.randn_like(labels)
    assert bixse(worse, labels, bias=0.0) > floor


def test_an_extra_column_adds_one_softplus_per_row():
    scores, labels, _ = batch()
    more = torch.cat([scores, torch.full((5, 1), 0.3, dtype=torch.float64)], 1)
    targets = torch.cat([labels, torch.zeros(5, 1, dtype=torch.float64)], 1)
    difference = bixse(more, targets, bias=-2.0) - bixse(scores, labels, bias=-2.0)
    assert difference.item() == pytest.approx(math.log1p(math.exp(10 * 0.3 - 2)))


def test_square_matrices_may_be_transposed():
    scores, labels, _ = batch(5, 5)
    torch.testing.assert_close(bixse(scores.T, labels.T), bixse(scores, labels))


def test_half_relevant_at_zero_has_no_gradient():
    scores = torch.zeros(1, 2, requires_grad=True)
    bixse(scores, torch.tensor([[0.5, 0.5]]), bias=0.0).backward()
    assert (scores.grad == 0).all()


def test_conflicting_labels_of_one_pair_are_fitted_by_their_mean():
    score = torch.zeros(1, 1, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.SGD([score], lr=0.3)
    labels = torch.tensor([[0.9], [0.2], [0.4]], dtype=torch.float64)
    for _ in range(500):
        optimiser.zero_grad()
        bixse(score.expand(3, 1), labels, scale=1, bias=0.0).backward()
        optimiser.step()
    assert score.sigmoid().item() == pytest.approx(0.5, abs=1e-6)


def test_learned_scale_and_bias_are_parameters_of_the_module():
    scale, bias = torch.nn.Parameter(torch.tensor(10.0)), torch.nn.Parameter(torch.tensor(-2.0))
    loss = build("bixse", scale=scale, bias=bias)
    assert set(loss.state_dict()) == {"learned.scale", "learned.bias"}
    assert "bias" not in loss.totals(loss.tally(torch.eye(3)))
    torch.optim.SGD(loss.parameters(), lr=0.1).zero_grad()
    scores = torch.rand(3, 3)
    loss(scores, torch.eye(3)).backward()
    assert scale.grad != 0
    assert bias.grad != 0
    torch.testing.assert_close(loss(scores, torch.eye(3)), bixse(scores, torch.eye(3), scale=10, bias=-2))


@pytest.mark.parametrize("bias", ["Auto", "prior", None, True, float("nan"), torch.zeros(2)])
def test_other_biases_are_refused(bias):
    with pytest.raises(ValueError, match="bias must be"):
        bixse(torch.zeros(1, 2), torch.zeros(1, 2), bias=bias)


def hard_batch(rows=4, columns=6):
    scores, labels, where = batch(rows, columns)
    return scores, (labels > 0.6).long(), where


@pytest.mark.parametrize("settings", [{"bias": -2.0}, {"bias": "auto"}, {"bias": "auto", "keep_empty_rows": True}])
def test_siglip_is_bixse_of_hard_labels_in_loss_and_gradient(settings):
    scores, labels, where = hard_batch()
    one, two = scores.clone().requires_grad_(), scores.clone().requires_grad_()
    siglip(one, labels, where=where, **settings).backward()
    bixse(two, labels, where=where, **settings).backward()
    assert torch.equal(one.grad, two.grad)
    assert torch.equal(siglip(one, labels, where=where, **settings), bixse(two, labels, where=where, **settings))


def test_siglip_takes_grades_and_starts_at_the_sources_scale_and_bias():
    scores, _, _ = batch(3, 3)
    grades = torch.tensor([[3, 1, 0], [0, 2, 0], [1, 0, 3]])
    wanted = bixse(scores, grades >= 2, scale=10, bias=-10)
    torch.testing.assert_close(siglip(scores, grades, positive_from=2), wanted)
    torch.testing.assert_close(siglip(scores, grades), bixse(scores, grades >= 1, scale=10, bias=-10))


def test_one_relevant_pair_alone():
    assert siglip(torch.tensor([[0.3]]), torch.ones(1, 1), bias=-1.0).item() == pytest.approx(math.log1p(math.exp(-2)))


def test_siglip_gradients_of_scores_scale_and_bias():
    scores, labels, where = hard_batch()
    labels[:, 0], where[:, 0] = 1, True
    leaf = scores.clone().requires_grad_()
    scale = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    bias = torch.tensor(-1.0, dtype=torch.float64, requires_grad=True)
    siglip(leaf, labels, where=where, scale=scale, bias=bias).backward()
    error = ((3 * scores - 1).sigmoid() - labels) * where / 4
    torch.testing.assert_close(leaf.grad, 3 * error)
    torch.testing.assert_close(scale.grad, (error * scores).sum())
    torch.testing.assert_close(bias.grad, error.sum())


@pytest.mark.parametrize("size", [1, 2, 5])
def test_any_blocks_of_rows_and_columns_add_up_with_the_gradients_of_scale_and_bias(size):
    scores, labels, _ = hard_batch(5, 6)

    def gradients(parts):
        leaf = scores.clone().requires_grad_()
        scale, bias = (torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (10.0, -3.0))
        for rows, columns in parts:
            settings = {"scale": scale, "bias": bias, "keep_empty_rows": True, "reduction": "sum"}
            siglip(leaf[rows, columns], labels[rows, columns], **settings).backward()
        return leaf.grad, scale.grad, bias.grad

    cuts = [slice(start, start + size) for start in range(0, 6, size)]
    blocks = [(rows, columns) for rows in cuts for columns in cuts]
    for got, wanted in zip(gradients(blocks), gradients([(slice(None), slice(None))]), strict=True):
        torch.testing.assert_close(got, wanted)


def test_siglip_needs_a_statistic_only_for_the_automatic_bias():
    assert build("siglip").needs == "rows"
    auto = build("siglip", bias="auto")
    assert auto.needs == "rows + statistic"
    assert auto.totals(auto.tally(torch.eye(8)))["bias"].item() == pytest.approx(-math.log(7), rel=1e-6)
    assert set(build("siglip").totals(auto.tally(torch.eye(8)))) == {"count"}
    with pytest.raises(ValueError, match='bias must be "auto"'):
        build("siglip", bias="prior")


@pytest.mark.parametrize("name", ["bixse", "siglip"])
def test_half_precision_labels_are_counted_exactly(name):
    labels = torch.ones(1, 300, dtype=torch.bfloat16)  # which holds no 299
    labels[0, 0] = 0
    tally = build(name, bias="auto").tally(labels)
    assert (tally["mass"], tally["entries"]) == (299, 300)


def test_point_ce_by_hand():
    scores, labels = torch.tensor([[2.0, -1.0], [0.5, 3.0]]), torch.tensor([[1.0, 0.25], [0.0, 0.0]])
    first = math.log1p(math.exp(2)) - 2 + math.log1p(math.exp(-1)) + 0.25
    second = math.log1p(math.exp(0.5)) + math.log1p(math.exp(3))
    assert point_ce(scores, labels).item() == pytest.approx(first)
    assert point_ce(scores, labels, keep_empty_rows=True).item() == pytest.approx((first + second) / 2)


def test_point_ce_is_bixse_without_a_bias_at_scale_one():
    scores, labels, where = batch()
    wanted = bixse(scores, labels, where=where, scale=1, bias=0.0)
    assert torch.equal(point_ce(scores, labels, where=where), wanted)
    torch.testing.assert_close(point_ce(10 * scores, labels, where=where, temperature=10), wanted)


def test_point_ce_pulls_every_score_by_its_error():
    scores, labels, where = batch()
    leaf = scores.clone().requires_grad_()
    point_ce(leaf, labels, where=where).backward()
    torch.testing.assert_close(leaf.grad, (scores.sigmoid() - labels) * where / 5)
