"""Normalisation of features: values by hand, what is fitted and what is not, and the way through JSON."""

import json
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from retrieval.errors import InputError
from retrieval.feature_normalisation import KINDS, MISSING, Normalisation

NAN = np.nan
# Columns: 1, 3, missing · constant · constant where it is there · nowhere
TRAIN = np.array([[1, 7, NAN, NAN], [3, 7, 2, NAN], [NAN, 7, 2, NAN]], dtype=np.float32)


def test_standard_by_hand():
    found = Normalisation.fit(TRAIN)
    assert found.mean[:3].tolist() == [2, 7, 2]
    assert found.scale.tolist() == [1, 0, 0, 0]
    other = np.array([[5, 9, 9, 9], [NAN, NAN, NAN, NAN]], dtype=np.float32)
    assert found.apply(other).tolist() == [[3, 0, 0, 0], [0, 0, 0, 0]]


def test_missing_as_zero_by_hand():
    found = Normalisation.fit(TRAIN[:, :1], missing="zero")  # 1, 3 and 0
    deviation = (((1 - 4 / 3) ** 2 + (3 - 4 / 3) ** 2 + (4 / 3) ** 2) / 3) ** 0.5
    expected = [[(5 - 4 / 3) / deviation], [-4 / 3 / deviation]]
    np.testing.assert_allclose(found.apply(np.array([[5], [NAN]], dtype=np.float32)), expected, rtol=1e-6)


def test_within_a_query_by_hand():
    found = Normalisation.fit(TRAIN, kind="query")
    own = np.array([[2, 1, 4, NAN], [4, 1, NAN, NAN], [3, 1, 8, NAN]], dtype=np.float32)
    assert found.apply(own).tolist() == [[0, 0, 0, 0], [1, 0, 0, 0], [0.5, 0, 1, 0]]
    assert found.apply(own[:0]).shape == (0, 4)
    assert found.apply(own[:1]).tolist() == [[0, 0, 0, 0]]


def test_none_changes_nothing_but_what_is_missing():
    found = Normalisation.fit(TRAIN, kind="none")
    assert found.apply(TRAIN[:2]).tolist() == [[1, 7, 0, 0], [3, 7, 2, 0]]


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_missing_can_stay_so(kind):
    found = Normalisation.fit(TRAIN, kind=kind).apply(TRAIN, keep_missing=True)
    assert (np.isnan(found) == np.isnan(TRAIN)).all()


@pytest.mark.parametrize(("kind", "missing"), [("zscore", "mean"), ("standard", "drop")])
def test_an_unknown_name_is_refused(kind, missing):
    with pytest.raises(InputError, match=r"unknown (normalisation 'zscore'|missing 'drop')"):
        Normalisation.fit(TRAIN, kind=kind, missing=missing)


numbers = st.floats(width=32, allow_infinity=False)
tables = hnp.arrays(np.float32, st.tuples(st.integers(1, 5), st.integers(1, 3)), elements=numbers)


@given(tables, st.sampled_from(KINDS), st.sampled_from(MISSING))
def test_no_value_makes_an_infinite_one(values, kind, missing):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = Normalisation.fit(values, kind=kind, missing=missing)
        assert np.isfinite(found.apply(values)).all()
        assert np.isfinite(found.apply(np.full_like(values, 3e38))).all()


@given(tables)
def test_training_documents_have_mean_0_and_deviation_1(values):
    found = Normalisation.fit(values)
    z = found.apply(values).astype(np.float64)
    there = ~np.isnan(values)
    for column in range(values.shape[1]):
        own = z[there[:, column], column]
        if found.scale[column] == 0:
            assert (own == 0).all()
        elif np.abs(own).max() < 1e5:
            assert own.mean() == pytest.approx(0, abs=1e-4)
            assert own.std() == pytest.approx(1, rel=1e-4)


@given(tables, st.sampled_from(KINDS))
def test_json_keeps_every_bit(values, kind):
    found = Normalisation.fit(values, kind=kind)
    back = Normalisation.from_dict(json.loads(json.dumps(found.to_dict())))
    assert np.array_equal(back.apply(values), found.apply(values))
