"""Losses of the differences between the scores of a query's documents: RankNet and the hinges.

All are unchanged when a constant is added to a query's scores, so each row of the gradient sums to 0.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from torch import Tensor

from rankers.losses.entry import LossEntry
from rankers.losses.inputs import (
    Number,
    Reduction,
    check_choice,
    check_list,
    check_mask,
    check_matrix,
    check_whole,
    fill_masked,
    positives,
    reduced,
    scale_of,
)
from rankers.losses.pairs import (
    ListWeight,
    count_rows_of_two_grades,
    hinge_above,
    logistic,
    own_grades,
    pair_sums,
    preferred_pairs,
    reduced_rows,
)
from rankers.losses.softmax import TEMPERATURE

MARGIN = 0.2  # of a cosine: FaceNet's and PromCSE's


def ranknet(
    scores: Tensor,
    labels: Tensor,
    *,
    where: Tensor | None = None,
    temperature: Number | None = None,
    scale: Number | None = None,
    pair_weight: Literal["equal", "difference", "squares"] = "equal",
    list_weight: ListWeight = "equal",
    max_list: int = 1000,
    reduction: Reduction = "mean",
) -> Tensor:
    """Logistic loss of every pair of documents with different grades (RankNet, pairwise logistic).

        row(i) = mean over j, k with y_ij > y_ik of w_jk log(1 + exp(-(s_ij - s_ik) / temperature))
        loss = mean of row(i) over the rows with such a pair

    w_jk is 1 ("equal"), y_j - y_k ("difference") or y_j² - y_k² ("squares"); the mean divides by the number of
    pairs, not by their weight. Two documents: InfoNCE. One row, 0/1 labels: MW.

    Args:
        scores: (queries, docs) float, larger is better. The default is meant for cosines; unbounded scores of
            a cross-encoder or a feature scorer take temperature=1.
        labels: (queries, docs) finite grades >= 0; documents of the same grade are not compared.
        where: (queries, docs) bool, False at padding and at masked false negatives. None: all valid.
        temperature: divides the differences; > 0; default 0.05.
        scale: multiplies the differences, 1 / temperature; give one of the two.
        pair_weight: w: "equal", "difference" or "squares".
        list_weight: "equal", or "sum": the row is the sum over its pairs, so that longer lists count more; the
            divisor stays the number of rows.
        max_list: longest row taken; time and memory grow with its square.
        reduction: "sum" is the numerator: loss × number of rows with a pair.

    Returns:
        () float loss in nats; 0, with zero gradient, when no row has two different grades.

    Raises:
        ValueError: at wrong shapes, dtypes, labels or settings; at a row longer than `max_list`.

    Source: Burges et al. 2005, "Learning to Rank using Gradient Descent"; pair_weight: allRank (arXiv:2005.10084).

    """
    scores, where = check_matrix(scores, labels, where)
    check_list("ranknet", scores, max_list)
    check_choice("pair_weight", pair_weight, "equal", "difference", "squares")
    logits = scores * scale_of(temperature, scale, 1 / TEMPERATURE)
    values = own_grades(labels, where)
    pairs = preferred_pairs(values, where)
    weights = None
    if pair_weight != "equal":
        powers = values.to(logits.dtype) ** (2 if pair_weight == "squares" else 1)
        weights = powers[:, :, None] - powers[:, None, :]
    sums = pair_sums(logits, pairs, logistic, weights)
    return reduced_rows(sums, pairs.sum((-2, -1)), list_weight, reduction)


def hinge(
    scores: Tensor,
    labels: Tensor,
    *,
    where: Tensor | None = None,
    temperature: Number | None = None,
    scale: Number | None = None,
    margin: float = MARGIN,
    list_weight: ListWeight = "equal",
    max_list: int = 1000,
    reduction: Reduction = "mean",
) -> Tensor:
    """Hinge loss of every pair of documents with different grades (ranking SVM).

        row(i) = mean over j, k with y_ij > y_ik of max(0, margin - (s_ij - s_ik) / temperature)
        loss = mean of row(i) over the rows with such a pair

    0/1 labels: `triplet` with negatives="all". The default temperature is 1, so that the margin is one of the
    scores themselves; only margin × temperature decides which pairs are far enough apart.

    Args:
        scores: (queries, docs) float, larger is better; the default margin is meant for cosines.
        labels: (queries, docs) finite grades >= 0; documents of the same grade are not compared.
        where: (queries, docs) bool, False at padding and at masked false negatives. None: all valid.
        temperature: divides the differences; > 0; default 1.
        scale: multiplies the differences, 1 / temperature; give one of the two.
        margin: difference from which on a pair costs nothing, after the temperature; > 0: at 0 equal scores would
            have no gradient.
        list_weight: "equal", or "sum": the row is the sum over its pairs; the divisor stays the number of rows.
        max_list: longest row taken; time and memory grow with its square.
        reduction: "sum" is the numerator: loss × number of rows with a pair.

    Returns:
        () float loss; 0, with zero gradient, when no row has two different grades.

    Raises:
        ValueError: at wrong shapes, dtypes, labels or settings; at a row longer than `max_list`.

    Source: Joachims 2002, "Optimizing Search Engines using Clickthrough Data" (doi:10.1145/775047.775067).

    """
    scores, where = check_matrix(scores, labels, where)
    check_list("hinge", scores, max_list)
    logits = scores * scale_of(temperature, scale, 1)
    pairs = preferred_pairs(own_grades(labels, where), where)
    return reduced_rows(pair_sums(logits, pairs, hinge_above(margin)), pairs.sum((-2, -1)), list_weight, reduction)


def triplet(
    scores: Tensor,
    labels: Tensor,
    *,
    where: Tensor | None = None,
    temperature: Number | None = None,
    scale: Number | None = None,
    margin: float = MARGIN,
    negatives: Literal["hardest", "all"] = "hardest",
    positive_from: float = 1.0,
    max_list: int = 1000,
    reduction: Reduction = "mean",
) -> Tensor:
    """Hinge loss between relevant and irrelevant documents: the hardest of each (batch-hard) or all of them.

        "hardest":  row(i) = max(0, margin + max over n in N_i of s_in - min over p in P_i of s_ip)
        "all":      row(i) = mean over p in P_i, n in N_i of max(0, margin + s_in - s_ip)
        loss = mean of row(i) over the rows with a relevant and an irrelevant document

    s are the scores / temperature, similarities in place of the source's distances. When all scores are equal
    the loss is exactly the margin: a sign that the encoder has collapsed. "hardest" takes linear time and
    rows of any length; false negatives that `where` does not mask are the hardest.

    Args:
        scores: (queries, docs) float, larger is better; the default margin is meant for cosines.
        labels: (queries, docs) binary: 0/1 or grades, `>= positive_from` is relevant.
        where: (queries, docs) bool, False at padding and at masked false negatives. None: all valid.
        temperature: divides the scores; > 0; default 1: the margin is one of the scores themselves.
        scale: multiplies the scores, 1 / temperature; give one of the two.
        margin: difference from which on a pair costs nothing, after the temperature; > 0.
        negatives: "hardest": the irrelevant document of the highest score against the relevant one of the lowest;
            tied ones share the gradient. "all": every pair.
        positive_from: smallest relevant grade, > 0.
        max_list: longest row taken with negatives="all".
        reduction: "sum" is the numerator: loss × number of rows counted.

    Returns:
        () float loss; 0, with zero gradient, when no row has a relevant and an irrelevant document.

    Raises:
        ValueError: at wrong shapes, dtypes, labels or settings; at a row longer than `max_list`.

    Source: Schroff et al. 2015, FaceNet (arXiv:1503.03832); hardest: Hermans et al. 2017 (arXiv:1703.07737).

    """
    scores, where = check_matrix(scores, labels, where)
    check_choice("negatives", negatives, "hardest", "all")
    check_whole("max_list", max_list, least=1)
    logits = scores * scale_of(temperature, scale, 1)
    positive = positives(labels, where, positive_from)
    if negatives == "hardest":
        terms, counted = _against_hardest(logits, positive, where & ~positive, hinge_above(margin))
        # The relevant document of the lowest score has the largest term; an empty row has no maximum.
        per_row = terms.amax(-1) if terms.shape[1] else terms.sum(-1)
        return reduced(per_row.sum(), counted.any(-1).sum(), reduction)
    check_list("triplet", scores, max_list)
    pairs = positive[:, :, None] & (where & ~positive)[:, None, :]
    return reduced_rows(pair_sums(logits, pairs, hinge_above(margin)), pairs.sum((-2, -1)), "equal", reduction)


def energy_hinge(
    scores: Tensor,
    labels: Tensor,
    *,
    where: Tensor | None = None,
    temperature: Number | None = None,
    scale: Number | None = None,
    margin: float = MARGIN,
    positive_from: float = 1.0,
    reduction: Reduction = "mean",
) -> Tensor:
    """Hinge loss of each relevant document against the hardest irrelevant one (PromCSE's energy hinge).

        row(i) = mean over p in P_i of max(0, margin + max over n in N_i of s_in - s_ip)
        loss = mean of row(i) over the rows with a relevant and an irrelevant document

    s are the scores / temperature. The source adds it to InfoNCE: "infonce + 10 * energy_hinge". One relevant
    document: `triplet`, which with several looks at the worst of them only. Linear time.

    Args:
        scores: (queries, docs) float, larger is better; the default margin is meant for cosines.
        labels: (queries, docs) binary: 0/1 or grades, `>= positive_from` is relevant.
        where: (queries, docs) bool, False at padding and at masked false negatives. None: all valid.
        temperature: divides the scores; > 0; default 1: the margin is one of the cosines themselves.
        scale: multiplies the scores, 1 / temperature; give one of the two.
        margin: difference from which on a document costs nothing, after the temperature; > 0.
        positive_from: smallest relevant grade, > 0.
        reduction: "sum" is the numerator: loss × number of rows counted.

    Returns:
        () float loss; 0, with zero gradient, when no row has a relevant and an irrelevant document.

    Raises:
        ValueError: at wrong shapes, dtypes, labels or settings.

    Source: Jiang et al. 2022, PromCSE (arXiv:2203.06875).

    """
    scores, where = check_matrix(scores, labels, where)
    logits = scores * scale_of(temperature, scale, 1)
    positive = positives(labels, where, positive_from)
    terms, counted = _against_hardest(logits, positive, where & ~positive, hinge_above(margin))
    return reduced_rows(terms.sum(-1), counted.sum(-1), "equal", reduction)


def _against_hardest(
    logits: Tensor, positive: Tensor, negative: Tensor, term: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """Return (queries, docs) term(s_p - max over n of s_n), 0 elsewhere, and where a positive has a negative."""
    counted = positive & negative.any(-1, keepdim=True)
    if not logits.shape[1]:  # an empty row has no maximum
        return logits, counted
    hardest = fill_masked(logits, negative).amax(-1, keepdim=True).masked_fill(~negative.any(-1, keepdim=True), 0)
    return term(logits - hardest).masked_fill(~counted, 0), counted


def _count_rows_of_both(
    labels: Tensor, where: Tensor | None = None, *, positive_from: float = 1.0, **_: object
) -> Tensor:
    where = check_mask("where", where, labels)
    positive = positives(labels, where, positive_from)
    return (positive.any(-1) & (where & ~positive).any(-1)).sum()


ENTRIES = (
    LossEntry(
        name="ranknet",
        fn=ranknet,
        labels="grade",
        use="short lists of documents with grades: every pair in the right order",
        needs="rows",
        cost="n²",
        paper="Burges et al. 2005, doi:10.1145/1102351.1102363",
        defaults={"temperature": TEMPERATURE, "pair_weight": "equal", "list_weight": "equal", "max_list": 1000},
        count=count_rows_of_two_grades,
    ),
    LossEntry(
        name="hinge",
        fn=hinge,
        labels="grade",
        use="the same, and a pair that is far enough apart is left alone",
        needs="rows",
        cost="n²",
        paper="Joachims 2002, doi:10.1145/775047.775067",
        defaults={"temperature": 1.0, "margin": MARGIN, "list_weight": "equal", "max_list": 1000},
        count=count_rows_of_two_grades,
    ),
    LossEntry(
        name="triplet",
        fn=triplet,
        labels="binary",
        use="embeddings of pictures or faces; in text, few and clean negatives",
        needs="rows",
        cost="linear",
        paper="Schroff et al. 2015, arXiv:1503.03832",
        defaults={
            "temperature": 1.0,
            "margin": MARGIN,
            "negatives": "hardest",
            "positive_from": 1.0,
            "max_list": 1000,
        },
        count=_count_rows_of_both,
    ),
    LossEntry(
        name="energy_hinge",
        fn=energy_hinge,
        labels="binary",
        use="an addition to infonce: keep the hardest negative at a distance",
        needs="rows",
        cost="linear",
        paper="Jiang et al. 2022, arXiv:2203.06875",
        defaults={"temperature": 1.0, "margin": MARGIN, "positive_from": 1.0},
        count=_count_rows_of_both,
    ),
)
