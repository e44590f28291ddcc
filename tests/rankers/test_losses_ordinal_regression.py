"""Ordinal regression: probabilities of "at least k" by hand, the binary case, thresholds."""

import math

import pytest
import torch

from rankers.losses import build, ordinal, point_ce


def batch(rows=4, columns=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    grades = torch.randint(0, 5, (rows, columns), generator=generator)
    grades[:, 0] = 4
    where = torch.rand(rows, columns, generator=generator) < 0.8
    where[:, 0] = True
    return scores, grades, where


def test_by_hand():
    def p(score, border):
        return 1 / (1 + math.exp(border - score))

    scores, grades = torch.tensor([[0.7, -0.2]]), torch.tensor([[2, 0]])
    first = -math.log(p(0.7, -1)) - math.log(p(0.7, 0.5)) - math.log(1 - p(0.7, 2))  # >= 1, >= 2, not >= 3
    second = -sum(math.log(1 - p(-0.2, border)) for border in (-1, 0.5, 2))
    got = ordinal(scores, grades, levels=4, thresholds=(-1, 0.5, 2))
    assert got.item() == pytest.approx(first + second)
    assert got == ordinal(scores, grades, levels=4, thresholds=[-1.0, 0.5, 2.0])


def test_the_default_thresholds_are_one_apart_around_zero():
    scores, grades, where = batch()
    wanted = ordinal(scores, grades, where=where, thresholds=(-1.5, -0.5, 0.5, 1.5))
    assert ordinal(scores, grades, where=where) == wanted
    assert ordinal(scores, grades, where=where, levels=6) != wanted


def test_two_levels_are_point_ce():
    scores, grades, where = batch()
    labels = (grades > 2).long()
    torch.testing.assert_close(ordinal(scores, labels, where=where, levels=2), point_ce(scores, labels, where=where))


def test_each_threshold_pulls_by_its_error():
    scores, grades, where = batch()
    leaf = scores.clone().requires_grad_()
    ordinal(leaf, grades, where=where, scale=3).backward()
    borders = torch.tensor([-1.5, -0.5, 0.5, 1.5], dtype=torch.float64)
    errors = (3 * scores[..., None] - borders).sigmoid() - (grades[..., None] >= torch.arange(1, 5)).double()
    torch.testing.assert_close(leaf.grad, 3 * errors.sum(-1) * where / 4)


def test_the_best_score_rises_with_the_grade():
    scores = torch.zeros(1, 5, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.SGD([scores], lr=1.0)
    for _ in range(200):
        optimiser.zero_grad()
        ordinal(scores, torch.arange(5)[None]).backward()
        optimiser.step()
    assert (scores.diff() > 0.5).all()
    assert scores[0, 2].item() == pytest.approx(0, abs=1e-6)  # between the two middle thresholds


def test_rows_without_a_grade_are_left_out_unless_kept():
    scores, grades, _ = batch()
    grades[2:] = 0
    torch.testing.assert_close(ordinal(scores, grades), ordinal(scores[:2], grades[:2]))
    kept = ordinal(scores, grades, keep_empty_rows=True)
    rows = [ordinal(scores[i : i + 1], grades[i : i + 1], keep_empty_rows=True) for i in range(4)]
    torch.testing.assert_close(kept, sum(rows) / 4)
    assert build("ordinal").count(grades) == 2
    assert build("ordinal", keep_empty_rows=True).count(grades) == 4


def test_a_grade_beyond_the_levels_is_refused_unless_masked():
    scores, grades, where = batch()
    grades[0, 0] = 5
    with pytest.raises(ValueError, match=r"labels hold grade 5, but levels=5 end at 4; raise levels"):
        ordinal(scores, grades)
    where[0, 0] = False
    assert ordinal(scores, grades, where=where).isfinite()


@pytest.mark.parametrize("levels", [1, 0, 2.5, "5", True, None])
def test_other_levels_are_refused(levels):
    with pytest.raises(ValueError, match="levels must be a whole number >= 2"):
        build("ordinal", levels=levels)


@pytest.mark.parametrize(
    ("thresholds", "message"),
    [
        ((0, 1), "thresholds must be 4 numbers, one fewer than levels=5, got .0, 1."),
        (0.5, "thresholds must be 4 numbers"),
        ("0123", "thresholds must be 4 numbers"),
        ((0, 1, 1, 2), "thresholds must rise"),
        ((0, 1, "2", 3), "thresholds must be a finite number, got '2'"),
        ((0, 1, 2, math.nan), "thresholds must be a finite number, got nan"),
    ],
)
def test_other_thresholds_are_refused(thresholds, message):
    with pytest.raises(ValueError, match=message):
        build("ordinal", thresholds=thresholds)
