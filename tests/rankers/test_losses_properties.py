"""One suite, every loss: what must hold whatever the formula."""

import functools
import random

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rankers.losses import LOSSES, build

VARIANTS = [
    ("infonce", {"symmetric": True}),
    ("infonce", {"scale": 3.0, "positive_from": 2}),
    ("bixse", {"bias": -1.5, "temperature": 0.3}),
    ("bixse", {"keep_empty_rows": True}),
    ("mw", {"reduction": "paper_sum"}),
    ("mw", {"method": "tabulated"}),
    ("mw", {"method": "exact"}),
    ("sl_at_k", {"k": 1, "weight_temperature": 1.0}),
    ("sl_at_k", {"k": 10**6, "detach_weight": True}),
    ("softmax_ce", {"list_weight": "sum"}),
    ("infonce", {"grade_weight": True}),
    ("infonce", {"grade_weight": True, "symmetric": True}),
    ("siglip", {"bias": "auto", "temperature": 0.3}),
    ("point_ce", {"keep_empty_rows": True}),
    ("ordinal", {"levels": 6, "thresholds": [-1, 0, 0.5, 2, 3.5]}),
    ("isogclr", {"count_positives": True, "temperature": 0.5}),
    ("multi_similarity", {"mining": 0.1, "temperature": 0.5}),
    ("circle", {"self_paced": False}),
    ("listnet", {"target_temperature": 0.5}),
    ("poly1", {"epsilon": -1.0}),
    ("soft_topk", {"k": 2, "alpha": 0.5}),
    ("soft_topk", {"k": "num_positives"}),
    ("approx_ndcg", {"gain": "linear"}),
    ("neural_ndcg", {"k": 2, "sinkhorn_iterations": 0, "temperature": 1.0}),
    ("kl_div", {"teacher_temperature": 3.0, "debias": 0.1}),
    ("soft_alignment", {"divergence": "jensen_shannon", "debias": 0.2}),
    ("ranknet", {"pair_weight": "squares", "list_weight": "sum"}),
    ("triplet", {"negatives": "all"}),
    ("margin_mse", {"pairs": "all"}),
    ("rank_distil", {"k": 2, "margin_function": "hinge"}),
    ("lambdarank", {"gain": "linear"}),
    ("lambdaloss", {"k": 2}),
    ("lambdaloss", {"k": 2, "truncation": "block"}),
]
CASES = [(name, {}) for name in LOSSES] + VARIANTS
IDS = ["-".join([name, *map(str, settings)]) for name, settings in CASES]
every_loss = pytest.mark.parametrize(("name", "settings"), CASES, ids=IDS)

LEVELS = {"binary": 1, "probability": 4, "grade": 3}


def labels_of(name, levels):
    """Turn 0..4 into labels of the kind that the loss takes."""
    kind = LOSSES[name].labels
    if kind == "teacher":
        return levels - 1
    return levels / 4 if kind == "probability" else levels.clamp(max=LEVELS[kind] + 1)


shapes = st.tuples(st.integers(1, 4), st.integers(1, 6))
matrices = shapes.flatmap(
    lambda shape: st.tuples(
        hnp.arrays(np.float64, shape, elements=st.floats(-2, 2, width=32)),
        hnp.arrays(np.float64, shape, elements=st.sampled_from([0.0, 0.0, 1.0, 2.0, 4.0])),
        hnp.arrays(np.bool_, shape, elements=st.sampled_from([True, True, True, False])),
    )
)


def tensors(name, matrix):
    scores, levels, where = map(torch.from_numpy, matrix)
    return scores, labels_of(name, levels), where


def value_and_gradient(loss, scores, labels, where=None):
    leaf = scores.clone().requires_grad_()
    value = loss(leaf, labels, where)
    value.backward()
    return value.detach(), leaf.grad


def assert_same(got, wanted, **tolerance):
    for ours, theirs in zip(got, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, **tolerance)


def example(name, rows=5, columns=7, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(rows, columns, generator=generator, dtype=torch.float64) * 2 - 1
    levels = torch.randint(0, 5, (rows, columns), generator=generator).double()
    where = torch.rand(rows, columns, generator=generator) < 0.8
    return scores.to(dtype), labels_of(name, levels).to(dtype), where


@every_loss
@given(
    matrices,
    st.sampled_from([0.0, -7.0, 1e4, float("inf"), float("nan")]),
    st.sampled_from([9.0, -1.0, float("nan")]),
)
def test_padding_changes_neither_loss_nor_gradient(name, settings, matrix, junk_score, junk_label):
    loss = build(name, **settings)
    scores, labels, where = tensors(name, matrix)
    value, gradient = value_and_gradient(loss, scores, labels, where)

    def padded(tensor, fill):
        return torch.nn.functional.pad(tensor, (0, 2, 0, 1), value=fill)

    long_value, long_gradient = value_and_gradient(
        loss, padded(scores, junk_score), padded(labels, junk_label), padded(where, False)
    )
    assert_same((long_value, long_gradient), (value, padded(gradient, 0.0)))


@every_loss
@given(matrices)
def test_masked_entries_count_for_nothing_and_get_exactly_no_gradient(name, settings, matrix):
    loss = build(name, **settings)
    scores, labels, where = tensors(name, matrix)
    value, gradient = value_and_gradient(loss, scores, labels, where)
    assert (gradient[~where] == 0).all()
    other = scores.masked_fill(~where, 1e4), labels.masked_fill(~where, -1), where
    assert_same(value_and_gradient(loss, *other), (value, gradient))


@every_loss
@pytest.mark.parametrize("junk", [float("nan"), float("inf"), 1e30])
def test_masked_scores_never_reach_a_learned_temperature(name, settings, junk):
    scores, labels, where = example(name)
    given = {key: value for key, value in settings.items() if key not in ("scale", "temperature")}
    slopes = []
    for fill in (0.0, junk):
        temperature = torch.tensor(0.5, requires_grad=True)
        masked = scores.masked_fill(~where, fill)
        LOSSES[name].fn(masked, labels, where=where, temperature=temperature, **given).backward()
        slopes.append(temperature.grad)
    torch.testing.assert_close(*slopes)


@every_loss
@given(matrices, st.randoms())
def test_the_order_of_queries_and_documents_never_matters(name, settings, matrix, shuffler):
    loss = build(name, **settings)
    scores, labels, where = tensors(name, matrix)
    rows, columns = list(range(scores.shape[0])), list(range(scores.shape[1]))
    shuffler.shuffle(rows)
    shuffler.shuffle(columns)
    value, gradient = value_and_gradient(loss, scores, labels, where)
    moved = [tensor[rows][:, columns] for tensor in (scores, labels, where)]
    assert_same(value_and_gradient(loss, *moved), (value, gradient[rows][:, columns]))


@every_loss
@given(matrices)
def test_a_mask_that_masks_nothing_is_no_mask(name, settings, matrix):
    loss = build(name, **settings)
    scores, labels, _ = tensors(name, matrix)
    wanted = value_and_gradient(loss, scores, labels)
    longer = [torch.nn.functional.pad(one, (0, 1)) for one in (scores, labels, torch.ones_like(labels).bool())]
    value, gradient = value_and_gradient(loss, *longer)  # one masked entry: the masks are applied
    assert_same((value, gradient[:, :-1]), wanted)


@every_loss
@given(matrices, st.floats(-3, 3))
def test_a_constant_added_to_scores(name, settings, matrix, shift):
    loss = build(name, **settings)
    scores, labels, where = tensors(name, matrix)
    # On a grid, where the sum is exact: next to a kink (a tie, a hinge) rounding would choose the slope.
    scores, shift = (scores * 64).round() / 64, round(shift * 64) / 64
    wanted = value_and_gradient(loss, scores, labels, where)
    unchanged_by = LOSSES[name].unchanged_by
    if unchanged_by == "none":  # unless a bias absorbs it
        bias = loss.settings.get("bias", "none")
        if isinstance(bias, str):
            return
        factor = loss.settings["scale"] if "scale" in loss.settings else 1 / loss.settings["temperature"]
        settings = {**settings, "bias": bias - shift * factor}
        shifts = torch.full((len(scores), 1), shift, dtype=torch.float64)
    elif unchanged_by == "one for all" or settings.get("symmetric"):  # one for all queries
        shifts = torch.full((len(scores), 1), shift, dtype=torch.float64)
    else:  # another one for each query
        shifts = shift * torch.arange(len(scores))[:, None]
    assert_same(
        value_and_gradient(build(name, **settings), scores + shifts, labels, where),
        wanted,
        rtol=1e-5 if settings.get("method") == "tabulated" else 1e-6,
        atol=1e-7 if settings.get("method") == "tabulated" else 1e-9,
    )


@every_loss
@given(matrices)
def test_gradients_sum_to_zero_where_only_differences_count(name, settings, matrix):
    _, gradient = value_and_gradient(build(name, **settings), *tensors(name, matrix))
    unchanged_by = LOSSES[name].unchanged_by
    if unchanged_by == "none" or (name == "sl_at_k" and not settings.get("detach_weight")):
        return  # SL@K: the threshold moves with the scores but carries no gradient
    sums = gradient.sum() if unchanged_by == "one for all" or settings.get("symmetric") else gradient.sum(1)
    torch.testing.assert_close(sums, torch.zeros_like(sums), atol=1e-8, rtol=0)


@every_loss
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [0.0, 1.0, 1e4])
def test_loss_and_gradient_stay_finite_at_extreme_scores(name, settings, dtype, size):
    for seed in range(5):
        scores, labels, where = example(name, seed=seed)
        where[0] = False
        value, gradient = value_and_gradient(build(name, **settings), (scores.sign() * size).to(dtype), labels, where)
        assert value.isfinite()
        assert gradient.dtype == dtype
        assert gradient.isfinite().all() or dtype == torch.float16  # float16 itself ends at 65504
        assert (gradient[~where] == 0).all()


@every_loss
@pytest.mark.parametrize("shape", [(0, 0), (0, 3), (3, 0), (1, 1), (3, 4)])
@pytest.mark.parametrize("masked", [True, False])
def test_nothing_relevant_gives_zero_and_a_zero_gradient(name, settings, shape, masked):
    loss = build(name, **settings)
    labels = torch.ones(shape) if masked else torch.zeros(shape)
    where = torch.full(shape, not masked)
    value, gradient = value_and_gradient(loss, torch.randn(shape), labels, where)
    if settings.get("keep_empty_rows") and not masked and labels.numel():
        assert value >= 0  # irrelevant documents are something to learn from, if you ask for it
        return
    if LOSSES[name].labels == "teacher" and name != "rank_distil" and not masked and labels.shape[1] > 1:
        assert loss.count(labels, where) == len(labels)  # a teacher that calls all documents equal is one to follow
        return
    assert value == 0
    assert value.shape == ()
    assert gradient.shape == shape
    assert (gradient == 0).all()
    assert loss.count(labels, where) == 0


@every_loss
@pytest.mark.parametrize("columns", [1, 2, 50])
def test_any_number_of_columns(name, settings, columns):
    labels = torch.zeros(2, columns)
    labels[:, 0] = 1
    value, gradient = value_and_gradient(build(name, **settings), torch.randn(2, columns), labels)
    assert value.isfinite()
    assert gradient.isfinite().all()


# What is detached is not the slope of the loss.
@pytest.mark.parametrize(
    ("name", "settings"),
    [case for case in CASES if not case[1].get("detach_weight") and case != ("circle", {})],
)
@pytest.mark.filterwarnings("ignore:sl_at_k")
def test_gradients_against_finite_differences(name, settings):
    scores, labels, where = example(name, rows=4, columns=5, dtype=torch.float64)
    at_call = {"beta": torch.zeros(4, dtype=torch.float64)} if name == "sl_at_k" else {}  # else the rank moves beta
    for temperature in (0.5, torch.tensor(0.5, dtype=torch.float64, requires_grad=True)):
        given = {key: value for key, value in settings.items() if key not in ("scale", "temperature")}
        leaves = [scores.clone().requires_grad_(), *([temperature] if torch.is_tensor(temperature) else [])]

        def run(matrix, heat=temperature, given=given):
            return LOSSES[name].fn(matrix, labels, where=where, temperature=heat, **given, **at_call)

        assert torch.autograd.gradcheck(run, leaves)


@every_loss
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_lifted_before_any_logarithm(name, settings, dtype):
    scores, labels, where = example(name)
    loss, low = build(name, **settings), scores.to(dtype)
    value, gradient = value_and_gradient(loss, low, labels, where)
    wanted, exact = value_and_gradient(loss, low.float(), labels, where)
    assert value.dtype == torch.float32
    assert value == wanted
    assert torch.equal(gradient, exact.to(dtype))


@every_loss
def test_autocast_changes_nothing(name, settings):
    scores, labels, where = example(name)
    loss = build(name, **settings)
    wanted = value_and_gradient(loss, scores, labels, where)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = value_and_gradient(loss, scores, labels, where)
    assert_same(got, wanted, rtol=0, atol=0)


@every_loss
@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float64])
def test_labels_of_any_dtype(name, settings, dtype):
    scores, labels, where = example(name)
    labels = (labels > 0).float()
    loss = build(name, **settings)
    assert_same(
        value_and_gradient(loss, scores, labels.to(dtype), where),
        value_and_gradient(loss, scores, labels, where),
    )


@every_loss
@given(matrices)
def test_sum_is_the_mean_times_the_count(name, settings, matrix):
    loss = build(name, **settings)
    scores, labels, where = tensors(name, matrix)
    count = loss.count(labels, where)
    assert count.shape == ()
    total = loss(scores, labels, where, reduction="sum")
    torch.testing.assert_close(total / count.clamp_min(1), loss(scores, labels, where))


@every_loss
@given(matrices, st.integers(0, 2**16))
def test_any_split_of_the_rows_gives_the_same_gradient(name, settings, matrix, seed):
    loss = build(name, **settings)
    scores, labels, where = tensors(name, matrix)
    cuts = sorted(random.Random(seed).sample(range(len(scores) + 1), k=min(2, len(scores))))
    if loss.needs == "whole matrix":
        cuts = []
    edges = list(zip([0, *cuts], [*cuts, len(scores)], strict=True))
    tallies = [loss.tally(labels[start:stop], where[start:stop]) for start, stop in edges]
    totals = loss.totals({number: sum(tally[number] for tally in tallies) for number in tallies[0]})
    at_call = {}
    if loss.observes:
        parts = [loss.observe(scores[start:stop], labels[start:stop], where[start:stop]) for start, stop in edges]
        at_call["seen"] = functools.reduce(loss.merge, parts)
    leaf = scores.clone().requires_grad_()
    value = torch.zeros((), dtype=torch.float64)
    for start, stop in edges:
        share = loss.share(leaf[start:stop], labels[start:stop], where[start:stop], totals=totals, **at_call)
        share.backward()
        value += share.detach()
    tolerance = {"rtol": 1e-5, "atol": 1e-7} if name == "mw" else {}  # from tables
    assert_same((value, leaf.grad), value_and_gradient(loss, scores, labels, where), **tolerance)


@every_loss
@given(matrices)
def test_a_step_down_the_gradient_lowers_the_loss(name, settings, matrix):
    loss = build(name, **settings)
    scores, labels, where = tensors(name, matrix)
    scores = scores + 0.01 * torch.arange(scores.numel()).reshape(scores.shape)  # SL@K is not smooth at ties
    value, gradient = value_and_gradient(loss, scores, labels, where)
    if gradient.abs().max() > 1e-3 and name != "sl_at_k":  # whose threshold moves with the scores
        assert loss(scores - 1e-6 * gradient, labels, where) < value
