"""KL distillation and soft alignment: values by hand, torch's own divergence, limits of the temperatures."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from rankers.losses import build, infonce, kl_div, listnet, soft_alignment

DIVERGENCES = ["half_jeffreys", "jensen_shannon"]


def batch(rows=4, columns=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    teacher = torch.randn(rows, columns, generator=generator, dtype=torch.float64) * 2
    where = torch.rand(rows, columns, generator=generator) < 0.8
    where[:, :2] = True
    return scores, teacher, where


def gradient(loss, scores, labels, **settings):
    leaf = scores.clone().requires_grad_()
    loss(leaf, labels, **settings).backward()
    return leaf.grad


def rows_of(scores, teacher, where):
    return [(row[valid], taught[valid]) for row, taught, valid in zip(scores, teacher, where, strict=True)]


def kl(p, q):
    return (p * (p / q).log()).sum()


# --- KL ------------------------------------------------------------------------------------------------------------


def test_kl_by_hand():
    # Teacher 3 : 1, student 1 : 1.
    value = kl_div(torch.zeros(1, 2), torch.tensor([[math.log(3), 0.0]]))
    assert value.item() == pytest.approx(0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5))


@given(st.integers(0, 10**6), st.sampled_from([0.5, 1.0, 4.0]), st.sampled_from([0.0, 0.3, 1.0]))
def test_kl_is_torchs_own_over_the_valid_documents(seed, heat, debias):
    scores, teacher, where = batch(seed=seed)
    wanted = []
    for row, taught in rows_of(scores, teacher, where):
        target = (1 - debias) * torch.softmax(taught / heat, 0) + debias / len(row)
        student = F.log_softmax(row / 0.2 / heat, 0)
        wanted.append(heat**2 * F.kl_div(student, target, reduction="sum"))
    got = kl_div(scores, teacher, where=where, temperature=0.2, teacher_temperature=heat, debias=debias)
    torch.testing.assert_close(got, torch.stack(wanted).mean())


@pytest.mark.parametrize("heat", [1.0, 3.0])
def test_gradient_of_kl_is_the_temperature_times_the_difference_of_the_shares(heat):
    scores, teacher, _ = batch(rows=1)
    wanted = heat * (torch.softmax(scores / heat, -1) - torch.softmax(teacher / heat, -1))
    torch.testing.assert_close(gradient(kl_div, scores, teacher, temperature=1, teacher_temperature=heat), wanted)


def test_a_teacher_that_is_sure_makes_it_infonce():
    scores, _, _ = batch(rows=5, columns=5)
    torch.testing.assert_close(kl_div(scores, torch.eye(5) * 1e4), infonce(scores, torch.eye(5)))


def test_a_soft_teacher_makes_it_half_the_mean_square_of_the_centred_differences():
    scores, teacher, where = batch()
    halves = []
    for row, taught in rows_of(scores, teacher, where):
        difference = row / 0.5 - taught
        halves.append(((difference - difference.mean()) ** 2).mean() / 2)
    got = kl_div(scores, teacher, where=where, temperature=0.5, teacher_temperature=1e4)
    torch.testing.assert_close(got, torch.stack(halves).mean(), rtol=1e-3, atol=0)


def test_kl_is_listnet_less_the_entropy_of_the_teacher():
    scores, _, _ = batch(rows=1)
    grades = torch.tensor([[3.0, 0, 1, 1, 0, 2]], dtype=torch.float64)
    q = torch.softmax(grades, -1)
    torch.testing.assert_close(kl_div(scores, grades), listnet(scores, grades) + (q * q.log()).sum())


@pytest.mark.parametrize(
    ("name", "settings"),
    [("kl_div", {"temperature": 0.5}), ("kl_div", {"temperature": 0.5, "teacher_temperature": 3.0})]
    + [("soft_alignment", {"temperature": 0.5, "teacher_temperature": 1.0, "divergence": d}) for d in DIVERGENCES],
)
def test_zero_where_the_student_says_what_the_teacher_says_and_more_elsewhere(name, settings):
    _, teacher, where = batch()
    loss = build(name, **settings)
    student = teacher * 0.5 + torch.arange(4.0)[:, None]
    leaf = student.clone().requires_grad_()
    value = loss(leaf, teacher, where)
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-12)
    torch.testing.assert_close(leaf.grad, torch.zeros_like(student), atol=1e-12, rtol=0)
    assert loss(student + 0.1 * torch.eye(4, 6), teacher, where) > 1e-4


@pytest.mark.parametrize("name", ["kl_div", "soft_alignment"])
def test_a_constant_added_to_the_teacher_changes_nothing(name):
    scores, teacher, where = batch()
    loss = build(name)
    offsets = torch.arange(-2.0, 2.0)[:, None] * 50
    torch.testing.assert_close(loss(scores, teacher + offsets, where), loss(scores, teacher, where))


@pytest.mark.parametrize("name", ["kl_div", "soft_alignment"])
def test_rows_with_fewer_than_two_documents_are_not_counted(name):
    scores, teacher, _ = batch(rows=3)
    where = torch.ones_like(scores, dtype=torch.bool)
    where[1, 1:], where[2] = False, False
    loss = build(name)
    assert loss.count(teacher, where) == 1
    torch.testing.assert_close(loss(scores, teacher, where), loss(scores[:1], teacher[:1]))
    assert loss(scores[1:], teacher[1:], where[1:]) == 0


def test_debias_one_asks_for_equal_scores_whatever_the_teacher_says():
    scores, teacher, where = batch()
    even = torch.zeros_like(teacher)
    torch.testing.assert_close(kl_div(scores, teacher, where=where, debias=1), kl_div(scores, even, where=where))
    for divergence in DIVERGENCES:
        settings = {"where": where, "divergence": divergence}
        torch.testing.assert_close(
            soft_alignment(scores, teacher, debias=1, **settings), soft_alignment(scores, even, **settings)
        )


# --- soft alignment ------------------------------------------------------------------------------------------------


def test_soft_alignment_by_hand():
    scores, judge = torch.zeros(1, 2), torch.tensor([[math.log(3) * 0.05, 0.0]])  # 1 : 1 and 3 : 1
    jeffreys = 0.25 * (math.log(0.75 / 0.5) - math.log(0.25 / 0.5))
    assert soft_alignment(scores, judge).item() == pytest.approx(jeffreys / 2)
    mixed = (0.625, 0.375)
    shannon = [0.5 * math.log(0.5 / mixed[0]) + 0.5 * math.log(0.5 / mixed[1])]
    shannon.append(0.75 * math.log(0.75 / mixed[0]) + 0.25 * math.log(0.25 / mixed[1]))
    got = soft_alignment(scores, judge, divergence="jensen_shannon")
    assert got.item() == pytest.approx(sum(shannon) / 2)


@given(st.integers(0, 10**6), st.sampled_from([0.3, 1.0]), st.sampled_from([0.0, 0.2]))
def test_soft_alignment_is_the_mean_of_two_divergences(seed, heat, debias):
    scores, judge, where = batch(seed=seed)
    wanted = {name: [] for name in DIVERGENCES}
    for row, taught in rows_of(scores, judge, where):
        p = torch.softmax(row / 0.5, 0)
        q = (1 - debias) * torch.softmax(taught / heat, 0) + debias / len(row)
        wanted["half_jeffreys"].append((kl(p, q) + kl(q, p)) / 2)
        wanted["jensen_shannon"].append((kl(p, (p + q) / 2) + kl(q, (p + q) / 2)) / 2)
    settings = {"where": where, "temperature": 0.5, "teacher_temperature": heat, "debias": debias}
    for name, rows in wanted.items():
        got = soft_alignment(scores, judge, divergence=name, **settings)
        torch.testing.assert_close(got, torch.stack(rows).mean())


def test_gradient_of_half_the_jeffreys_divergence():
    scores, judge, _ = batch(rows=1)
    p, q = torch.softmax(scores, -1), torch.softmax(judge, -1)
    wanted = p * ((p / q).log() - kl(p, q)) / 2 + (p - q) / 2
    got = gradient(soft_alignment, scores, judge, temperature=1, teacher_temperature=1)
    torch.testing.assert_close(got, wanted)


@given(st.integers(0, 10**6), st.sampled_from([0.05, 0.5, 2.0]))
def test_jensen_shannon_is_at_most_log_2_and_at_most_the_other(seed, heat):
    scores, judge, where = batch(seed=seed)
    settings = {"where": where, "temperature": heat, "teacher_temperature": heat}
    shannon = soft_alignment(scores, judge, divergence="jensen_shannon", **settings)
    assert 0 <= shannon <= math.log(2) + 1e-12
    assert shannon <= soft_alignment(scores, judge, divergence="half_jeffreys", **settings) + 1e-12


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_student_and_judge_may_change_places(divergence):
    scores, judge, where = batch()
    settings = {"where": where, "temperature": 0.4, "teacher_temperature": 0.4, "divergence": divergence}
    torch.testing.assert_close(soft_alignment(scores, judge, **settings), soft_alignment(judge, scores, **settings))


def test_a_sure_judge_who_disagrees_costs_without_end_unless_debiased():
    scores = torch.tensor([[0.0, 0.0, 0.0]])
    sure = torch.tensor([[1.0, 0.0, 0.0]])
    costs = [soft_alignment(scores, sure * size).item() for size in (1, 10, 100)]
    assert costs[1] > 9 * costs[0]
    assert costs[2] > 9 * costs[1]
    capped = [soft_alignment(scores, sure * size, debias=0.01).item() for size in (10, 100)]
    assert capped[0] == pytest.approx(capped[1])
    assert capped[1] < 2
    apart = torch.tensor([[0.0, 100.0, 0.0]])
    worst = soft_alignment(apart, sure * 100, divergence="jensen_shannon")
    assert worst.item() == pytest.approx(math.log(2))


def test_a_teacher_may_give_any_finite_score_and_nothing_else():
    scores = torch.zeros(2, 3)
    teacher = torch.tensor([[-7.5, 0.0, 30.0], [float("nan"), 1.0, -1e4]])
    for name in ("kl_div", "soft_alignment"):
        loss = build(name)
        with pytest.raises(ValueError, match=r"labels\[1, 0\] is nan: labels must be a teacher's finite scores"):
            loss(scores, teacher)
        with pytest.raises(ValueError, match=r"labels\[1, 0\] is nan"):
            loss.count(teacher)
        where = ~teacher.isnan()
        assert loss(scores, teacher, where).isfinite()
        assert loss.count(teacher, where) == 2
        assert loss(scores, torch.tensor([[1, 0, 2], [0, -3, 0]])) > 0


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("kl_div", {"teacher_temperature": 0}, "teacher_temperature must be > 0, got 0"),
        ("kl_div", {"debias": 1.5}, r"debias must be in \[0, 1\], got 1.5"),
        ("soft_alignment", {"debias": -0.1}, r"debias must be in \[0, 1\], got -0.1"),
        ("soft_alignment", {"debias": True}, "debias must be a finite number, got True"),
        ("soft_alignment", {"divergence": "js"}, "divergence must be one of half_jeffreys, jensen_shannon, got 'js'"),
        ("kl_div", {"divergence": "jensen_shannon"}, "unknown setting 'divergence' of kl_div"),
    ],
)
def test_impossible_settings_are_refused_at_build(name, settings, message):
    with pytest.raises(ValueError, match=message):
        build(name, **settings)
