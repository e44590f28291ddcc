"""Ragged lists to padded matrices."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rankers.lists import pad, pad_groups, pad_lists, valid_entries
from rankers.losses import LOSSES, build

ragged = st.lists(st.lists(st.tuples(st.floats(-5, 5, width=32), st.integers(0, 1)), max_size=5), max_size=6)


def test_by_hand():
    scores, labels, where = pad_lists([[0.5, 0.25], [], [1.0]], [[1, 0], [], [2]])
    assert scores.tolist() == [[0.5, 0.25], [0, 0], [1, 0]]
    assert labels.tolist() == [[1, 0], [0, 0], [2, 0]]
    assert where.tolist() == [[True, True], [False, False], [True, False]]
    assert (scores.dtype, labels.dtype, where.dtype) == (torch.float32, torch.float32, torch.bool)


@given(ragged)
def test_nothing_is_lost_or_moved(lists):
    scores = [[score for score, _ in row] for row in lists]
    labels = [[label for _, label in row] for row in lists]
    padded = pad_lists(scores, labels)
    assert padded.scores.shape == (len(lists), max(map(len, lists), default=0))
    for i, row in enumerate(lists):
        assert padded.scores[i][padded.where[i]].tolist() == [score for score, _ in row]
        assert padded.labels[i][padded.where[i]].tolist() == [label for _, label in row]
        assert padded.where[i].tolist() == [j < len(row) for j in range(padded.where.shape[1])]
    assert (padded.scores[~padded.where] == 0).all()
    assert (padded.labels[~padded.where] == 0).all()


@given(ragged)
def test_groups_are_the_lists_end_to_end(lists):
    scores = [[score for score, _ in row] for row in lists]
    labels = [[label for _, label in row] for row in lists]
    flat = torch.tensor([score for row in scores for score in row])
    marks = torch.tensor([label for row in labels for label in row], dtype=torch.long)
    groups = pad_groups(flat, marks, torch.tensor([len(row) for row in lists], dtype=torch.long))
    for ours, theirs in zip(groups, pad_lists(scores, labels), strict=True):
        assert torch.equal(ours, theirs)


@given(ragged)
def test_gradients_come_back_to_the_documents(lists):
    flat = torch.rand(sum(map(len, lists)), requires_grad=True)
    padded = pad_groups(flat, torch.zeros(len(flat)), [len(row) for row in lists])
    weights = torch.rand(padded.scores.shape)
    (padded.scores * weights).sum().backward()
    if len(flat):
        assert torch.equal(flat.grad, weights[padded.where])


@pytest.mark.parametrize("name", LOSSES)
def test_a_padded_loss_is_the_mean_of_the_lists(name):
    scores, labels = [[0.3, 0.1, -0.2], [0.9, 0.4]], [[1, 0, 0], [0, 1]]
    settings = {"bias": -1.0} if name == "bixse" else {}
    loss = build(name, **settings)
    padded = loss(*pad_lists(scores, labels))
    if name == "mw":
        return
    alone = [loss(torch.tensor([s]), torch.tensor([y])) for s, y in zip(scores, labels, strict=True)]
    torch.testing.assert_close(padded, sum(alone) / 2)


def test_tensors_arrays_and_lists_mix_and_the_tensor_sets_the_dtype():
    padded = pad_lists([torch.tensor([1.0, 2.0], dtype=torch.float64), [3.0]], [np.array([1, 0]), [0.5]])
    assert padded.scores.dtype == torch.float64
    assert padded.labels.tolist() == [[1, 0], [0.5, 0]]
    leaf = torch.rand(3, requires_grad=True)
    pad_lists([leaf, [1.0]], [[1, 0, 0], [1]]).scores.sum().backward()
    assert leaf.grad.tolist() == [1, 1, 1]


def test_bfloat16_scores_stay_as_they_are():
    flat = torch.rand(3).bfloat16()
    assert pad_groups(flat, torch.tensor([True, False, True]), [2, 1]).scores.dtype == torch.bfloat16


def test_features_are_padded_like_scores():
    where = valid_entries([2, 0, 1])
    features = torch.arange(6.0).reshape(3, 2)
    assert pad(features, where).tolist() == [[[0, 1], [2, 3]], [[0, 0], [0, 0]], [[4, 5], [0, 0]]]


def test_no_queries_at_all():
    padded = pad_lists([], [])
    assert [tuple(tensor.shape) for tensor in padded] == [(0, 0)] * 3
    assert build("infonce")(*padded) == 0


@pytest.mark.parametrize(
    ("scores", "labels", "message"),
    [
        ([[1.0]], [], "scores of 1 queries and labels of 0"),
        ([[1.0], [1.0, 2.0]], [[1], [1]], "query 1 has 2 scores but 1 labels"),
        ([[[1.0]]], [[1]], r"scores of query 0 must be one number per document, got shape \(1, 1\)"),
        ([[1.0]], [1], r"labels of query 0 must be one number per document, got shape \(\)"),
    ],
)
def test_lists_that_do_not_fit_are_refused(scores, labels, message):
    with pytest.raises(ValueError, match=message):
        pad_lists(scores, labels)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ([2, 2], "got 3 values for lists that hold 4"),
        ([4, -1], "sizes must be >= 0, got -1"),
        ([[3]], r"one number per query, got shape \(1, 1\)"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(sizes, message):
    with pytest.raises(ValueError, match=message):
        pad_groups(torch.rand(3), torch.zeros(3), sizes)
