"""Rax, Google's learning to rank in JAX."""

from functools import partial
from typing import Any

import numpy as np
import pytest
from reference_cases import Case, Inputs, Library, References, rows_with

pytestmark = pytest.mark.slow

jax, rax = Library("jax"), Library("rax")


def with_jax(theirs):
    """Return the value and gradient of a function of (scores, labels, where) as arrays."""

    def run(case: Case):
        jax.config.update("jax_platforms", "cpu")
        with jax.enable_x64(True):
            value, slope = jax.value_and_grad(theirs)(case.scores, case.labels, case.where)
            return float(value), np.asarray(slope)

    return run


def total(values: Any, where: Any = None) -> Any:
    """Sum in place of rax's mean, which also divides by what we do not count."""
    return values.sum(where=where)


def each_list(function, scores, labels, where, **settings):
    """Return one value of each list."""
    return [
        function(*lists, where=valid, **settings)
        for *lists, valid in zip(scores, labels, where, strict=True)  # a JAX array is a sequence of its rows
    ]


GRADES, ORDER, FRACTIONS = Inputs("grades"), Inputs("order"), Inputs("fractions")
ONE, SEVERAL = Inputs("one"), Inputs("several")
WITH_EMPTY = Inputs("grades", empty=True)
BY_ROWS = "sum over lists / lists with a grade > 0"
references = References("rax", with_jax)


@references.add("infonce", "softmax_loss", Inputs("one", cosines=True, empty=True), note=f"scores / 0.05; {BY_ROWS}")
def one_positive(scores, labels, where):
    return rax.softmax_loss(scores / 0.05, labels, where=where, reduce_fn=total) / rows_with(labels, where)


@references.add("sl", "softmax_loss", Inputs("several", empty=True), temperature=1.0, note=BY_ROWS)
@references.add("softmax_ce", "softmax_loss", WITH_EMPTY, temperature=1.0, list_weight="sum", note=BY_ROWS)
def softmax(scores, labels, where):
    return rax.softmax_loss(scores, labels, where=where, reduce_fn=total) / rows_with(labels, where)


@references.add("softmax_ce", "softmax_loss(label_fn=normalize_probabilities)", GRADES, temperature=1.0)
def normalised_softmax(scores, labels, where):
    return rax.softmax_loss(scores, labels, where=where, label_fn=rax.utils.normalize_probabilities)


@references.add(
    "softmax_ce",
    "softmax_loss(label_fn=normalize_probabilities)",
    WITH_EMPTY,
    temperature=1.0,
    differs="a list without a grade > 0 has a uniform target there; here it is left out",
)
def uniform_where_empty(scores, labels, where):
    return rax.softmax_loss(scores, labels, where=where, label_fn=rax.utils.normalize_probabilities)


@references.add("listnet", "softmax_loss(label_fn=softmax)", GRADES, temperature=1.0)
def softmax_of_labels(scores, labels, where):
    return rax.softmax_loss(scores, labels, where=where, label_fn=jax.nn.softmax)


@references.add("poly1", "poly1_softmax_loss", Inputs("one"), temperature=1.0)
def poly1_of_one(scores, labels, where):
    return rax.poly1_softmax_loss(scores, labels, where=where)


@references.add("poly1", "poly1_softmax_loss", GRADES, temperature=1.0, epsilon=0.5, note="labels / their sum")
def poly1_of_shares(scores, labels, where):
    shares = rax.utils.normalize_probabilities(labels, where=where)
    return rax.poly1_softmax_loss(scores, shares, where=where, epsilon=0.5)


@references.add(
    "poly1",
    "poly1_softmax_loss",
    GRADES,
    temperature=1.0,
    differs="its cross-entropy grows with the sum of the grades and its second term does not; here both take shares",
)
def poly1_of_grades(scores, labels, where):
    return rax.poly1_softmax_loss(scores, labels, where=where)


@references.add("listmle", "listmle_loss", ORDER, temperature=1.0, note="no equal grades")
def listmle(scores, labels, where):
    return rax.listmle_loss(scores, labels, where=where)


@references.add(
    "listmle",
    "listmle_loss",
    GRADES,
    temperature=1.0,
    differs="equal grades keep the order of the columns, or a random one; here their order does not matter (Efron)",
)
def listmle_of_ties(scores, labels, where):
    return rax.listmle_loss(scores, labels, where=where)


@references.add("decoupled_softmax", "unique_softmax_loss", SEVERAL, temperature=1.0, note="each list / its positives")
def unique_softmax(scores, labels, where):
    sums = each_list(rax.unique_softmax_loss, scores, labels, where)
    found = (labels * where).sum(-1)
    return sum(value / count for value, count in zip(sums, found, strict=True)) / len(sums)


@references.add(
    "point_ce",
    "pointwise_sigmoid_loss",
    Inputs("fractions", empty=True),
    keep_empty_rows=True,
    note="sum over documents / lists",
)
def sigmoid(scores, labels, where):
    return rax.pointwise_sigmoid_loss(scores, labels, where=where, reduce_fn=total) / len(labels)


@references.add(
    "point_ce",
    "pointwise_sigmoid_loss",
    Inputs("fractions", whole=True),
    differs="at a score of 0 its slope is −1/2 − y in place of 1/2 − y (of max(0, x) and abs(x) at 0), so 0/1 labels 0 "
    "are pushed up",
)
def sigmoid_at_zero(scores, labels, where):
    return sigmoid(scores, labels, where)


@references.add(
    "bixse",
    "pointwise_sigmoid_loss",
    Inputs("fractions", cosines=True),
    note="scores × 10 + logit(mean label); sum over documents / lists",
)
def sigmoid_with_prior(scores, labels, where):
    mean = labels.mean(where=where)
    return sigmoid(scores * 10 + np.log(mean / (1 - mean)), labels, where)


@references.add(
    "siglip", "pointwise_sigmoid_loss", Inputs("several", cosines=True), note="scores × 10 − 10; sum / lists"
)
def sigmoid_with_bias(scores, labels, where):
    return sigmoid(scores * 10 - 10, labels, where)


@references.add("ranknet", "pairwise_logistic_loss", GRADES, temperature=1.0, note="mean of each list, then of lists")
def logistic(scores, labels, where):
    return sum(each_list(rax.pairwise_logistic_loss, scores, labels, where)) / len(labels)


@references.add(
    "ranknet",
    "pairwise_logistic_loss",
    WITH_EMPTY,
    temperature=1.0,
    list_weight="sum",
    note="sum over pairs / lists with two grades",
)
def summed_logistic(scores, labels, where):
    return rax.pairwise_logistic_loss(scores, labels, where=where, reduce_fn=total) / rows_with(labels, where)


@references.add(
    "ranknet",
    "pairwise_logistic_loss(lambdaweight_fn=labeldiff_lambdaweight)",
    GRADES,
    temperature=1.0,
    pair_weight="difference",
    note="mean of each list, then of lists",
)
def logistic_by_difference(scores, labels, where):
    weigh = rax.labeldiff_lambdaweight
    return sum(each_list(rax.pairwise_logistic_loss, scores, labels, where, lambdaweight_fn=weigh)) / len(labels)


@references.add(
    "mw", "pairwise_logistic_loss", Inputs("several", cosines=True), note="all documents as one list; scores / 0.05"
)
def logistic_of_the_batch(scores, labels, where):
    return rax.pairwise_logistic_loss(scores.ravel() / 0.05, labels.ravel(), where=where.ravel())


@references.add("hinge", "pairwise_hinge_loss", GRADES, margin=1.0, note="mean of each list, then of lists")
@references.add(
    "triplet", "pairwise_hinge_loss", SEVERAL, margin=1.0, negatives="all", note="mean of each list, then of lists"
)
def hinge(scores, labels, where):
    return sum(each_list(rax.pairwise_hinge_loss, scores, labels, where)) / len(labels)


@references.add(
    "margin_mse",
    "pairwise_mse_loss",
    Inputs("teacher"),
    pairs="all",
    note="sum of each list / n (n − 1): it also counts a document with itself",
)
def squares(scores, labels, where):
    sums = each_list(rax.pairwise_mse_loss, scores, labels, where, reduce_fn=total)
    found = where.sum(-1)
    return sum(value / (n * (n - 1)) for value, n in zip(sums, found, strict=True)) / len(sums)


def weighted(weigh):
    """Return the pairwise logistic loss under these weights, which rax multiplies by the number of columns."""

    def theirs(scores, labels, where):
        loss = rax.pairwise_logistic_loss(scores, labels, where=where, lambdaweight_fn=weigh, reduce_fn=total)
        return loss / scores.shape[1] / rows_with(labels, where)

    return theirs


@references.add(
    "lambdarank",
    "pairwise_logistic_loss(lambdaweight_fn=dcg_lambdaweight)",
    WITH_EMPTY,
    temperature=1.0,
    note="normalize=True; / columns; sum over pairs / lists with two grades",
)
def lambdarank(scores, labels, where):
    return weighted(lambda *lists, **masks: rax.dcg_lambdaweight(*lists, normalize=True, **masks))(
        scores, labels, where
    )


@references.add(
    "ndcg_loss2",
    "pairwise_logistic_loss(lambdaweight_fn=dcg2_lambdaweight)",
    GRADES,
    temperature=1.0,
    note="normalize=True; / columns; in bits: / log 2; sum over pairs / lists",
)
def ndcg_loss2(scores, labels, where):
    theirs = weighted(lambda *lists, **masks: rax.dcg2_lambdaweight(*lists, normalize=True, **masks))
    return theirs(scores, labels, where) / np.log(2)


@references.add(
    "lambdaloss",
    "pairwise_logistic_loss(lambdaweight_fn=dcg2_lambdaweight)",
    GRADES,
    temperature=1.0,
    k=3,
    note="topn=3; each list / its whole IDCG; / columns; in bits: / log 2",
)
def lambdaloss(scores, labels, where):
    def weigh(*lists, **masks):
        return rax.dcg2_lambdaweight(*lists, topn=3, **masks)

    sums = each_list(rax.pairwise_logistic_loss, scores, labels, where, lambdaweight_fn=weigh, reduce_fn=total)
    ideal = rax.dcg_metric(np.where(where, labels, -1.0), labels, where=where, reduce_fn=None)
    return sum(value / most for value, most in zip(sums, ideal, strict=True)) / scores.shape[1] / len(sums) / np.log(2)


@references.add(
    "lambdaloss",
    "pairwise_logistic_loss(lambdaweight_fn=dcg2_lambdaweight)",
    GRADES,
    temperature=1.0,
    k=3,
    differs="normalize=True divides by the ideal DCG of the top 3; here by that of the whole list, whatever k",
)
def lambdaloss_normalised(scores, labels, where):
    theirs = weighted(lambda *lists, **masks: rax.dcg2_lambdaweight(*lists, topn=3, normalize=True, **masks))
    return theirs(scores, labels, where) / np.log(2)


def approximate(metric, scores, labels, where):
    """Do what rax.approx_t12n does, which in rax 0.4.0 asks for a part of jax that is gone."""
    ranks = partial(rax.utils.approx_ranks, step_fn=lambda differences: jax.nn.sigmoid(differences / 0.5))
    return -metric(scores, labels, where=where, rank_fn=ranks, reduce_fn=total) / rows_with(labels, where)


@references.add("approx_ndcg", "ndcg_metric(rank_fn=approx_ranks)", WITH_EMPTY, temperature=0.5, note=BY_ROWS)
def approx_ndcg(scores, labels, where):
    return approximate(rax.ndcg_metric, scores, labels, where)


@references.add(
    "approx_rr", "mrr_metric(rank_fn=approx_ranks)", Inputs("several", empty=True), temperature=0.5, note=BY_ROWS
)
def approx_rr(scores, labels, where):
    return approximate(rax.mrr_metric, scores, labels, where)


@pytest.mark.parametrize("reference", references.all, ids=str)
def test_as_in_rax(reference, agreement):
    agreement(reference.compare())
