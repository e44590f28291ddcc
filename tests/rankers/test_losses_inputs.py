"""The quick ways of reading labels and masks find and refuse what the plain ones do."""

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rankers.losses.inputs import cleared, fill_masked, grades, positive_cells, positives, probabilities, teacher_scores

SHAPES = st.tuples(st.integers(0, 4), st.integers(0, 5))
NAN, INF = float("nan"), float("inf")


def tensors(shape, seed, levels, valid):
    generator = np.random.default_rng(seed)
    where = generator.random(shape) < valid
    return torch.from_numpy(generator.choice(levels, shape)), torch.from_numpy(where)


@given(SHAPES, st.integers(0, 100), st.sampled_from([0.5, 1.0, 2.0]), st.sampled_from([0.5, 1.0]))
def test_positive_cells_are_the_positives(shape, seed, positive_from, valid):
    labels, where = tensors(shape, seed, [0.0, 0.0, 1.0, 2.0], valid)
    for some in (labels, labels.long(), labels.half()):
        cells = torch.stack(positive_cells(some, where, positive_from), dim=1)
        assert torch.equal(cells, positives(some, where, positive_from).nonzero())


@pytest.mark.parametrize("bad", [-1.0, 0.5, INF, NAN])
@pytest.mark.parametrize("read", [positives, positive_cells])
def test_both_readers_of_binary_labels_refuse_the_same_cell(read, bad):
    labels = torch.tensor([[0.0, 1.0, 0.0], [0.0, bad, bad]])
    with pytest.raises(ValueError, match=rf"labels\[1, 1\] is {bad:g}: binary labels are 0/1 .*positive_from=1.0 on"):
        read(labels, torch.ones(2, 3).bool(), 1.0)
    read(labels, torch.tensor([[True] * 3, [True, False, False]]), 1.0)
    with pytest.raises(ValueError, match="positive_from must be > 0, got 0"):
        read(labels, torch.zeros(2, 3).bool(), 0)


@pytest.mark.parametrize(
    ("read", "good", "bad"),
    [
        (probabilities, [0.0, 0.5, 1.0], [-0.1, 1.1, INF, NAN]),
        (grades, [0.0, 0.5, 4.0], [-0.1, -INF, INF, NAN]),
        (teacher_scores, [-3.0, 0.0, 1e30], [-INF, INF, NAN]),
    ],
)
@given(SHAPES, st.integers(0, 100), st.sampled_from([0.5, 1.0]))
def test_other_labels_are_refused_where_valid_and_0_where_masked(read, good, bad, shape, seed, valid):
    labels, where = tensors(shape, seed, good, valid)
    assert torch.equal(read(labels, where, torch.float64), torch.where(where, labels, 0))
    for value in bad:
        masked = torch.where(where, labels, value)
        assert torch.equal(read(masked, where, torch.float64), torch.where(where, labels, 0))
        if where.any():
            row, column = cell = where.nonzero()[-1].tolist()
            broken = masked.clone()
            broken[tuple(cell)] = value
            with pytest.raises(ValueError, match=rf"labels\[{row}, {column}\] is {value:g}: labels must be"):
                read(broken, where, torch.float64)


@given(hnp.arrays(np.bool_, SHAPES))
def test_masks_are_applied_wherever_they_mask(where):
    mask, values = torch.from_numpy(where), torch.ones(where.shape)
    for turned in (mask, mask.T):
        ones = values.reshape(turned.shape)
        assert torch.equal(cleared(ones, turned), turned.float())
        assert torch.equal(fill_masked(ones, turned) > 0, turned)
