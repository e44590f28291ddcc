"""LightGBM: its objectives' gradients, read off one boosting step from our scores.

A tree with one split has in each leaf the value -G / H and the weight H, of sums over the leaf's documents; their
product is -G. A document's gradient is what the sum over half of the documents changes by when it moves to the other
half: alone in a leaf it may be refused, for LightGBM estimates a leaf's size from H. Its objectives have no value.
"""

import numpy as np
import pytest
from reference_cases import Case, Inputs, Library, References, rows_with

pytestmark = pytest.mark.slow

lightgbm = Library("lightgbm")

SIGMOID = 50 / 64  # LightGBM tabulates the logistic function on a grid of 50 / SIGMOID / 2^20: ours hold its points
EXACT = {"num_leaves": 2, "min_data_in_leaf": 1, "min_sum_hessian_in_leaf": 0.0, "learning_rate": 1.0}
QUIET = {"verbose": -1, "num_threads": 1, "feature_pre_filter": False, "min_data_in_bin": 1}


def gradients(scores, labels, sizes, objective: dict) -> np.ndarray:
    """Return the objective's gradient over each score; `sizes` of the lists, None where it has no lists."""

    def gradient_of(inside: np.ndarray) -> float:
        data = lightgbm.Dataset(
            inside.astype(float)[:, None], label=labels, group=sizes, init_score=scores, params=QUIET
        )
        booster = lightgbm.train({**EXACT, **QUIET, **objective}, data, num_boost_round=1)
        leaf = booster.dump_model()["tree_info"][0]["tree_structure"]["right_child"]  # where the only feature is 1
        return -leaf["leaf_value"] * leaf["leaf_weight"]

    documents = np.arange(len(scores))
    half = documents % 2 == 0
    whole = gradient_of(half)
    return np.array([(gradient_of(half ^ (documents == one)) - whole) * (-1 if half[one] else 1) for one in documents])


def with_lightgbm(theirs):
    """Return no value and the gradient of a function of (scores, labels, sizes), laid back into the matrix."""

    def run(case: Case):
        slope = np.zeros_like(case.scores)
        slope[case.where] = theirs(case.scores[case.where], case.labels[case.where], case.where.sum(-1))
        return None, slope / rows_with(case.labels, case.where)

    return run


SMALL = ((2, 5), (3, 8))
references = References("lightgbm", with_lightgbm)


@references.add(
    "lambdarank",
    "lambdarank(lambdarank_norm=false)",
    Inputs("grades", shapes=SMALL),
    scale=SIGMOID,
    note="sigmoid=0.78125; no truncation of the list; sum / lists",
)
def lambdarank(scores, labels, sizes):
    objective = {"objective": "lambdarank", "lambdarank_norm": False, "lambdarank_truncation_level": 1000}
    return gradients(scores, labels, sizes, objective | {"sigmoid": SIGMOID})


@references.add(
    "lambdarank",
    "lambdarank",
    Inputs("grades", shapes=SMALL),
    scale=SIGMOID,
    differs="lambdarank_norm, the default, divides pairs by 0.01 + abs(s_i − s_j) and rescales each list by its sum",
)
def normalised_lambdarank(scores, labels, sizes):
    return gradients(scores, labels, sizes, {"objective": "lambdarank", "sigmoid": SIGMOID})


@references.add(
    "point_ce",
    "cross_entropy",
    Inputs("fractions", shapes=SMALL),
    keep_empty_rows=True,
    note="sum over documents / lists",
)
def cross_entropy(scores, labels, sizes):
    return gradients(scores, labels, None, {"objective": "cross_entropy", "boost_from_average": False})


@pytest.mark.parametrize("reference", references.all, ids=str)
def test_as_in_lightgbm(reference, agreement):
    agreement(reference.compare())
