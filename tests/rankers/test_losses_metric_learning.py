"""Multi-Similarity and Circle: loops over documents, limits, and the unified loss beside InfoNCE."""

import math

import pytest
import torch

from rankers.losses import build, circle, infonce, multi_similarity


def batch(rows=4, columns=7, seed=0):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(rows, columns, generator=generator, dtype=torch.float64) * 2 - 1
    labels = (torch.rand(rows, columns, generator=generator) < 0.4).double()
    labels[:, 0], labels[:, 1] = 1, 0
    where = torch.rand(rows, columns, generator=generator) < 0.8
    where[:, :2] = True
    return scores, labels, where


def sides(scores, labels, where):
    """Return, for each row, the scores of its relevant and of its other valid documents."""
    for row, marks, valid in zip(scores.tolist(), labels.tolist(), where.tolist(), strict=True):
        kept = [(score, mark) for score, mark, ok in zip(row, marks, valid, strict=True) if ok]
        yield [score for score, mark in kept if mark], [score for score, mark in kept if not mark]


def gradient(loss, scores, labels, **settings):
    leaf = scores.clone().requires_grad_()
    loss(leaf, labels, **settings).backward()
    return leaf.grad


def naive_multi_similarity(found, others, alpha, beta, base):
    pulls = math.log(1 + sum(math.exp(-alpha * (s - base)) for s in found)) / alpha
    return pulls + math.log(1 + sum(math.exp(beta * (s - base)) for s in others)) / beta


@pytest.mark.parametrize(("alpha", "beta", "base"), [(2.0, 50.0, 0.5), (5, 10, 1.0), (1, 1, -0.3)])
def test_multi_similarity_is_the_loop(alpha, beta, base):
    scores, labels, where = batch()
    rows = [naive_multi_similarity(*pair, alpha, beta, base) for pair in sides(scores, labels, where)]
    got = multi_similarity(scores, labels, where=where, alpha=alpha, beta=beta, base=base)
    assert got.item() == pytest.approx(sum(rows) / 4)


def test_multi_similarity_of_large_scales_sees_the_worst_documents_only():
    scores, labels, where = batch()
    rows = [max(0, 0.2 - min(p)) + max(0, max(n) - 0.2) for p, n in sides(scores, labels, where)]
    got = multi_similarity(scores, labels, where=where, alpha=1e5, beta=1e5, base=0.2)
    assert got.item() == pytest.approx(sum(rows) / 4, abs=1e-4)


def test_multi_similarity_weights():
    """d/ds_n = e^{b(s - l)} / (1 + sum e^{b(s - l)}), the weight of general pair weighting."""
    scores, labels = torch.tensor([[0.7, 0.6, 0.4, 0.2]], dtype=torch.float64), torch.tensor([[1, 0, 0, 1]])
    pushes, pulls = (50 * (scores[0, 1:3] - 0.5)).exp(), (-2 * (scores[0, [0, 3]] - 0.5)).exp()
    got = gradient(multi_similarity, scores, labels)[0]
    torch.testing.assert_close(got[1:3], pushes / (1 + pushes.sum()))
    torch.testing.assert_close(got[[0, 3]], -pulls / (1 + pulls.sum()))


def test_mining_keeps_the_pairs_that_may_be_out_of_order():
    scores, labels, where = batch()
    rows = []
    for found, others in sides(scores, labels, where):
        kept = [s for s in found if s < max(others) + 0.1], [s for s in others if s > min(found) - 0.1]
        rows.append(naive_multi_similarity(*kept, 2, 50, 0.5))
    got = multi_similarity(scores, labels, where=where, mining=0.1)
    assert got.item() == pytest.approx(sum(rows) / 4)
    assert got < multi_similarity(scores, labels, where=where)
    torch.testing.assert_close(
        multi_similarity(scores, labels, where=where, mining=9.0), multi_similarity(scores, labels, where=where)
    )


def test_mining_finds_nothing_in_a_row_in_order_or_without_others():
    scores = torch.tensor([[0.9, 0.1], [0.1, 0.3]])
    assert multi_similarity(scores, torch.tensor([[1, 0], [1, 1]]), mining=0.1) == 0


def naive_circle(found, others, margin, gamma):
    pushes = sum(math.exp(gamma * max(0, s + margin) * (s - margin)) for s in others)
    pulls = sum(math.exp(-gamma * max(0, 1 + margin - s) * (s - 1 + margin)) for s in found)
    return math.log(1 + pushes * pulls)


@pytest.mark.parametrize(("margin", "gamma"), [(0.4, 80.0), (0.25, 64), (-0.2, 3)])
def test_circle_is_the_loop(margin, gamma):
    scores, labels, where = batch()
    rows = [naive_circle(*pair, margin, gamma) for pair in sides(scores, labels, where)]
    got = circle(scores, labels, where=where, margin=margin, gamma=gamma)
    assert got.item() == pytest.approx(sum(rows) / 4)


def test_the_pace_of_circle_carries_no_gradient():
    """Of one pair: d/ds_n = gamma a_n sigmoid(n + p), not that of gamma (s + m)(s - m)."""
    scores, labels = torch.tensor([[0.6, 0.3]], dtype=torch.float64), torch.tensor([[1, 0]])
    pull_pace, push_pace = 1.4 - 0.6, 0.3 + 0.4
    share = 1 / (1 + math.exp(-8 * (push_pace * (0.3 - 0.4) - pull_pace * (0.6 - 0.6))))
    got = gradient(circle, scores, labels, gamma=8)[0].tolist()
    assert got == pytest.approx([-8 * pull_pace * share, 8 * push_pace * share])


def test_a_score_beyond_its_optimum_is_left_alone():
    scores, labels = torch.tensor([[1.5, -0.5, 0.9]], dtype=torch.float64), torch.tensor([[1, 0, 0]])
    got = gradient(circle, scores, labels)[0]
    assert (got[:2] == 0).all()
    assert got[2] > 0


def test_the_unified_loss_is_infonce_when_one_document_is_relevant():
    scores, _, where = batch()
    labels = torch.eye(4, 7)
    where[range(4), range(4)] = True
    wanted = infonce(scores, labels, where=where, temperature=1 / 20)
    torch.testing.assert_close(circle(scores, labels, where=where, self_paced=False, margin=0, gamma=20), wanted)


def test_the_unified_loss_is_one_softplus_of_all_pairs():
    scores, labels, where = batch()
    rows = [
        math.log(1 + sum(math.exp(5 * (n - p + 0.3)) for n in others for p in found))
        for found, others in sides(scores, labels, where)
    ]
    settings = {"self_paced": False, "margin": 0.3, "gamma": 5}
    got = circle(scores, labels, where=where, **settings)
    assert got.item() == pytest.approx(sum(rows) / 4)
    shifted = circle(scores + torch.arange(4)[:, None], labels, where=where, **settings)
    torch.testing.assert_close(shifted, got)


def test_large_gamma_of_the_unified_loss_is_the_hinge_of_the_hardest_pair():
    scores, labels, where = batch()
    rows = [max(0, max(n) - min(p) + 0.3) for p, n in sides(scores, labels, where)]
    got = circle(scores, labels, where=where, self_paced=False, margin=0.3, gamma=1e5) / 1e5
    assert got.item() == pytest.approx(sum(rows) / 4, abs=1e-4)


@pytest.mark.parametrize("self_paced", [True, False])
def test_a_row_without_an_irrelevant_document_costs_circle_nothing_but_counts(self_paced):
    scores, labels, _ = batch(rows=2)
    labels[1] = 1
    one = circle(scores[:1], labels[:1], self_paced=self_paced)
    torch.testing.assert_close(circle(scores, labels, self_paced=self_paced), one / 2)
    assert (gradient(circle, scores, labels, self_paced=self_paced)[1] == 0).all()


@pytest.mark.parametrize("loss", [circle, multi_similarity])
def test_temperature_divides_the_scores(loss):
    scores, labels, where = batch()
    torch.testing.assert_close(loss(scores, labels, where=where, temperature=2), loss(scores / 2, labels, where=where))


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("multi_similarity", {"alpha": 0}),
        ("multi_similarity", {"beta": -1}),
        ("multi_similarity", {"base": "0.5"}),
        ("multi_similarity", {"mining": True}),
        ("circle", {"gamma": 0}),
        ("circle", {"margin": float("nan")}),
        ("circle", {"self_paced": 1}),
    ],
)
def test_impossible_settings_are_refused(name, settings):
    with pytest.raises(ValueError, match=f"{next(iter(settings))} must be"):
        build(name, **settings)
