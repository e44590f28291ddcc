"""Measures of embeddings: against all pairs and against numpy's own eigenvalues, and what counts as collapsed."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from retrieval import embedding_health
from retrieval.embedding_health import (
    Health,
    alignment,
    collapse_warning,
    collapsed,
    effective_rank,
    health,
    mean_cosine,
    tolerance,
    uniformity,
)
from retrieval.errors import InputError

MATRICES = st.tuples(st.integers(2, 9), st.integers(1, 6)).flatmap(
    lambda shape: hnp.arrays(np.float32, shape, elements=st.floats(-4, 4, width=32))
)


def unit(vectors):
    lengths = np.linalg.norm(vectors.astype(float), axis=1, keepdims=True)
    return vectors / np.where(lengths > 0, lengths, 1)


def noise(n, dim, seed=0):
    return np.random.default_rng(seed).standard_normal((n, dim)).astype(np.float32)


@given(MATRICES)
def test_sums_over_pairs_are_those_of_all_pairs(vectors):
    rows = unit(vectors)
    pairs = list(itertools.combinations(range(len(rows)), 2))
    assert mean_cosine(vectors) == pytest.approx(np.mean([rows[i] @ rows[j] for i, j in pairs]), abs=1e-6)
    kernel = [math.exp(-2 * float(((rows[i] - rows[j]) ** 2).sum())) for i, j in pairs]
    assert uniformity(vectors) == pytest.approx(math.log(np.mean(kernel)), abs=1e-6)


@given(MATRICES, st.data())
def test_tolerance_is_the_mean_within_groups(vectors, data):
    groups = data.draw(st.lists(st.sampled_from("abc"), min_size=len(vectors), max_size=len(vectors)))
    rows = unit(vectors)
    same = [rows[i] @ rows[j] for i, j in itertools.combinations(range(len(rows)), 2) if groups[i] == groups[j]]
    found = tolerance(vectors, groups)
    assert math.isnan(found) if not same else found == pytest.approx(np.mean(same), abs=1e-6)


@given(MATRICES)
def test_the_rank_is_of_the_eigenvalues_whichever_side_is_smaller(vectors):
    rows = unit(vectors) - unit(vectors).mean(axis=0)
    values = np.linalg.eigvalsh(rows.T @ rows).clip(0)
    shares = values / values.sum() if values.sum() > 1e-9 else np.ones(1)
    shares = shares[shares > 0]
    assert effective_rank(vectors) == pytest.approx(math.exp(-(shares * np.log(shares)).sum()), rel=1e-4)
    assert 1 - 1e-9 <= effective_rank(vectors) <= max(min(len(vectors) - 1, vectors.shape[1]), 1) + 1e-6


def test_blocks_change_nothing(monkeypatch):
    vectors = noise(50, 7)
    groups = [number % 3 for number in range(50)]

    def all_of_them():
        found = health(vectors)
        return [found.mean_cosine, found.effective_rank, found.uniformity,
                tolerance(vectors, groups), alignment(vectors, vectors[::-1])]  # fmt: skip

    whole = all_of_them()
    monkeypatch.setattr(embedding_health, "_BLOCK", 8)
    assert all_of_them() == pytest.approx(whole)


def test_by_hand():
    east, north = [2.0, 0.0], [0.0, 5.0]
    vectors = np.array([east, east, north, north], dtype=np.float32)
    assert mean_cosine(vectors) == pytest.approx(2 / 6)  # 2 of the 6 pairs are equal, the others at right angles
    assert tolerance(vectors, ["a", "b", "a", "b"]) == pytest.approx(0)
    assert tolerance(vectors, ["a", "a", "b", "b"]) == pytest.approx(1)
    assert effective_rank(vectors) == pytest.approx(1)  # all on the line from east to north
    assert effective_rank(np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1.0]])) == pytest.approx(2)  # in one plane
    assert uniformity(vectors) == pytest.approx(math.log((2 + 4 * math.exp(-4)) / 6))
    assert alignment(vectors[[0, 2]], vectors[[2, 3]]) == pytest.approx((2 + 0) / 2)  # 2 - 2 cos
    assert alignment(vectors[[0, 2]], vectors[[2, 3]], alpha=1) == pytest.approx(math.sqrt(2) / 2)


def test_opposite_and_equal_rows():
    line = np.array([[1.0, 0.0], [-1.0, 0.0]])
    assert (mean_cosine(line), effective_rank(line)) == pytest.approx((-1, 1))
    assert uniformity(line) == pytest.approx(-8)  # -4t: the furthest that two points can be
    equal = np.ones((20, 3), dtype=np.float32)
    assert uniformity(equal) == pytest.approx(0, abs=1e-6)
    assert effective_rank(equal) == 1
    zero = np.zeros((3, 2), dtype=np.float32)
    assert (mean_cosine(zero), effective_rank(zero), health(zero).zeros) == (0, 1, 3)


def test_a_large_set_is_sampled_by_the_seed(monkeypatch):
    vectors = noise(400, 16)
    whole = uniformity(vectors)
    monkeypatch.setattr(embedding_health, "MAX_PAIRED", 200)
    assert uniformity(vectors, seed=1) == uniformity(vectors, seed=1)
    assert uniformity(vectors, seed=1) != uniformity(vectors, seed=2)
    assert uniformity(vectors) == pytest.approx(whole, abs=0.05)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mean_cosine(noise(1, 3)), "got 1 vectors; wanted at least 2"),
        (lambda: health(noise(4, 3)[0]), r"float array of shape \(n, dim\), got float32 \(3,\)"),
        (lambda: effective_rank(np.ones((3, 3), dtype=np.int64)), "got int64"),
        (lambda: health(np.where(noise(9, 3) == noise(9, 3)[5], np.nan, noise(9, 3))), "vector 5 is not finite"),
        (lambda: tolerance(noise(3, 2), ["a"]), "got 1 groups for 3 vectors"),
        (lambda: alignment(noise(3, 2), noise(2, 2)), "wanted one document a query"),
        (lambda: alignment(noise(3, 2), noise(3, 2), alpha=0), "alpha must be above 0"),
        (lambda: uniformity(noise(3, 2), t=-1), "t must be above 0"),
    ],
)
def test_what_cannot_be_measured_is_refused(call, message):
    with pytest.raises(InputError, match=message):
        call()


# --- collapse --------------------------------------------------------------------------------------------------------


def test_constant_plus_noise_has_collapsed_and_noise_alone_has_not():
    sound = noise(200, 32)
    assert collapsed(health(sound)) is None
    constant = np.full(32, 5, dtype=np.float32) + 0.3 * sound
    cosine = mean_cosine(constant)
    said = f"the mean cosine of different texts is {cosine:.3f}: all vectors are nearly the same"
    assert collapsed(health(constant)) == said
    assert effective_rank(constant) == pytest.approx(effective_rank(sound), rel=0.1)  # which does not see it


def test_a_plane_has_collapsed_however_it_is_turned_and_moved():
    turn = np.linalg.qr(noise(32, 32))[0].astype(np.float32)
    plane = noise(200, 2) @ turn[:2]
    assert collapsed(health(plane)) == "the effective rank is 2.0 of 32: all texts differ in a few dimensions only"
    assert "effective rank is" in collapsed(health(plane + 2 * turn[2]))


def test_zero_vectors_have_collapsed():
    vectors = noise(20, 32)
    vectors[:11] = 0
    assert collapsed(health(vectors)) == "11 of 20 vectors are zero"


def test_of_a_few_texts_nothing_is_said():
    assert collapsed(Health(15, 384, 1.0, 1.0, 0.0, 0)) is None
    assert collapsed(Health(16, 384, 1.0, 1.0, 0.0, 0)) is not None


SOUND = {"document_cosine": 0.1, "effective_rank": 40.0, "score_std": 0.1, "documents": 64}


@pytest.mark.parametrize(
    ("loss", "margin", "changes", "said"),
    [
        (0.2, 0.2, {}, None),  # by chance at the margin
        (0.5, None, {"document_cosine": 0.9}, None),
        (0.5, None, {"document_cosine": 0.97}, "the mean cosine of different documents is 0.970; look for wrong"),
        (0.5, None, {"effective_rank": 1.2}, "collapsed: the effective rank of 64 documents is 1.2; look for wrong"),
        (0.2, 0.2, {"document_cosine": 0.97}, "is 0.970 and the loss 0.2 is stuck at its margin; look for wrong"),
        (0.201, 0.2, {"score_std": 0.001}, "a query's scores differ by 0.0010 only and the loss 0.201 is stuck at"),
        (0.25, 0.2, {"score_std": 0.001}, None),
        (0.2, 0.2, {"document_cosine": 1.0, "documents": 15}, None),
    ],
)
def test_a_warning_needs_more_than_the_loss(loss, margin, changes, said):
    found = collapse_warning(loss, margin, **(SOUND | changes))
    assert found is None if said is None else said in found
