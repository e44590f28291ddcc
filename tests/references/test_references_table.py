"""The committed table is of these comparisons and these versions, and a comparison can fail."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from reference_cases import Inputs, Reference, difference, torch, with_torch
from results_table import RESULTS, TOLERANCE, Result, table
from test_references_lightgbm import references as lightgbm
from test_references_metric_learning import references as metric_learning
from test_references_rax import references as rax
from test_references_sentence_transformers import references as sentence_transformers
from test_references_torch import references as of_torch

ALL = [*lightgbm.all, *metric_learning.all, *rax.all, *sentence_transformers.all, *of_torch.all]
OF_THE_ENGINE = ("CachedMultipleNegativesRankingLoss",)
PINS = Path(__file__).resolve().parents[2] / "constraints.txt"


def parts():
    """Return the rows of the committed table, as lists of cells: those that agree and those that do not."""
    return [
        [
            [cell.strip().strip("`") for cell in line.strip("|").split(" | ")]
            for line in part.splitlines()
            if line.startswith("| `")
        ]
        for part in RESULTS.read_text(encoding="utf-8").split("## Not the same function")
    ]


def test_the_committed_table_names_every_comparison_with_the_pinned_versions():
    pins = dict(line.split("==") for line in PINS.read_text().splitlines() if "==" in line and line[0] != "#")
    for rows, differ in zip(parts(), (False, True), strict=True):
        wanted = [
            (one.shown, f"{one.library} {pins[one.library]}", one.function)
            for one in ALL
            if bool(one.differs) == differ
        ]
        assert sorted(tuple(row[:3]) for row in rows if row[2] not in OF_THE_ENGINE) == sorted(wanted)


def test_at_least_15_losses_agree_in_it():
    agreed, _ = parts()
    assert all(float(figure) <= TOLERANCE for row in agreed for figure in row[4:6] if figure != "–")
    stated = re.search(r"\*\*(\d+) losses agree\*\*", RESULTS.read_text(encoding="utf-8"))
    assert len({row[0].partition("(")[0] for row in agreed}) == int(stated[1]) >= 15


def test_the_table_parts_what_agrees_from_what_differs():
    one = Result("ranknet(temperature=1.0)", "torch", "soft_margin_loss", "3 × 5", 1e-8, 2e-7, "", "")
    other = replace(one, loss="poly1", value=0.5, differs="another sum")
    text = table([one, replace(one, loss="mw", value=None), other])
    assert "**2 losses agree**: mw, ranknet." in text
    agreed, _, differing = text.partition("## Not the same function")
    assert "| 1.0e-08 | 2.0e-07 | – |" in agreed
    assert "| – | 2.0e-07 | – |" in agreed
    assert "poly1" not in agreed
    assert "| 5.0e-01 | 2.0e-07 | another sum |" in differing


def reference(function, **settings):
    return Reference("softmax_ce", settings, "torch", "f", with_torch(function), Inputs("one", masked=False))


def test_a_comparison_of_two_functions_disagrees_in_what_differs():
    def cross_entropy(scores, labels, where):
        return torch.nn.functional.cross_entropy(scores, labels)

    def another_slope(scores, labels, where):
        return cross_entropy(scores, labels, where) + 1e-3 * (scores - scores.detach()).sum()

    assert reference(cross_entropy, temperature=1.0).compare().agrees
    assert not reference(cross_entropy, temperature=1.001).compare().agrees
    sloped = reference(another_slope, temperature=1.0).compare()
    assert sloped.value <= TOLERANCE < sloped.gradient
    assert not sloped.agrees


def test_a_difference_is_relative_and_nothing_is_not_compared():
    assert difference(1.01, 1.0) == pytest.approx(0.01)
    assert difference(np.array([0.0, -4.1]), np.array([0.1, -4.0])) == pytest.approx(0.025)
    with pytest.raises(AssertionError):
        difference(0.0, 0.0)


@pytest.mark.parametrize("labels", ["grades", "order", "one", "several", "diagonal", "fractions", "teacher"])
def test_cases_have_what_a_loss_needs(labels):
    for case in Inputs(labels, shapes=((3, 5), (4, 9))).cases():
        for scores, row, valid in zip(case.scores, case.labels, case.where, strict=True):
            assert len(set(scores)) == len(scores)
            assert np.array_equal(scores, np.float32(scores))
            assert valid.sum() >= 2
            if labels != "diagonal":  # whose documents have fixed places, so that it takes no mask
                assert row[valid].max() > row[valid].min()
            if labels == "order":
                assert len(set(row)) == len(row)
            if labels in ("one", "diagonal"):
                assert sorted(row)[-2:] == [0, 1]
