"""Hardness as it is typed: numbers, ramps, steps, and what is refused."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieval.errors import InputError
from retrieval.hardness_schedule import parse_hardness

SHARES = st.floats(0, 1)


@pytest.mark.parametrize("given", [0.3, "0.3", " .3 ", "3e-1"])
def test_a_number_holds_always(given):
    assert {parse_hardness(given).at(share) for share in (0, 0.4, 1)} == {0.3}


def test_a_ramp_goes_evenly_from_the_first_epoch_to_the_last():
    ramp = parse_hardness("0.2:1")
    assert [ramp.of_epoch(epoch, 5) for epoch in range(5)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert parse_hardness("0.2:1:linear") == ramp


def test_a_ramp_may_fall_and_one_epoch_is_its_start():
    assert parse_hardness("1:0").at(0.25) == 0.75
    assert parse_hardness("1:0").of_epoch(0, 1) == 1
    steps = parse_hardness("0.2@0,0.8@0.5")
    assert [steps.of_epoch(epoch, 4) for epoch in range(4)] == [0.2, 0.2, 0.8, 0.8]
    assert [steps.of_epoch(epoch, 3) for epoch in range(3)] == [0.2, 0.2, 0.8]  # half is done within the second


def test_cosine_by_hand():
    curve = parse_hardness("0:1:cosine")
    expected = [(1 - math.cos(math.pi * share)) / 2 for share in (0, 0.25, 0.5, 1)]
    assert [curve.at(share) for share in (0, 0.25, 0.5, 1)] == pytest.approx(expected)
    assert curve.at(0.5) == pytest.approx(0.5)
    assert curve.at(0.1) < 0.1  # slower than a line


def test_steps_hold_from_their_share_on():
    steps = parse_hardness("0.2@0, 0.8@0.5,1@1")
    assert [steps.at(share) for share in (0, 0.49, 0.5, 0.99, 1)] == [0.2, 0.2, 0.8, 0.8, 1]


@given(SHARES, SHARES, SHARES, st.sampled_from(["", ":linear", ":cosine"]))
def test_a_ramp_stays_between_its_ends(start, end, share, shape):
    value = parse_hardness(f"{start!r}:{end!r}{shape}").at(share)
    assert min(start, end) - 1e-12 <= value <= max(start, end) + 1e-12


@given(SHARES, SHARES, st.floats(-5, 6))
def test_beyond_the_training_its_ends_hold(start, end, share):
    ramp = parse_hardness(f"{start!r}:{end!r}")
    assert ramp.at(share) == pytest.approx(ramp.at(min(max(share, 0), 1)))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("hard", "hardness got 'hard'; wanted a number from 0 to 1, START:END"),
        ("", "hardness got ''; wanted"),
        ("nan", "hardness 'nan' has a hardness of nan; wanted a number from 0 to 1"),
        (1.5, "hardness '1.5' has a hardness of 1.5; wanted a number from 0 to 1"),
        ("0:-1", "hardness '0:-1' has a hardness of -1; wanted"),
        ("0:1:2:3", "hardness got '0:1:2:3'; wanted"),
        ("0:1:cosin", "hardness '0:1:cosin' has the unknown shape 'cosin'; did you mean 'cosine'?"),
        ("0:1:steps", "has the unknown shape 'steps'; known: cosine, linear"),
        ("0.2@0,0.8", "hardness '0.2@0,0.8' has the step '0.8'; wanted HARDNESS@SHARE, such as 0.8@0.5"),
        ("0.2@1,0.8@3", "hardness '0.2@1,0.8@3' has a share of the training of 3; wanted a number from 0 to 1"),
        ("0.2@0.1,0.8@0.5", "has steps at 0.1, 0.5; wanted 0, then rising"),
        ("0.2@0,0.8@0.5,1@0.5", "has steps at 0, 0.5, 0.5; wanted 0, then rising"),
        (True, "hardness got 'True'; wanted"),
    ],
)
def test_what_is_refused_names_the_part(given, message):
    with pytest.raises(InputError) as caught:
        parse_hardness(given)
    assert message in str(caught.value)
