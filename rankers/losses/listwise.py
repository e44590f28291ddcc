"""Losses of a whole graded list: ListNet, Poly-1, and the likelihood of the ideal order (ListMLE).

All are unchanged when a constant is added to a query's scores, so each row of the gradient sums to 0.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from rankers.losses.entry import LossEntry, count_graded_rows
from rankers.losses.inputs import (
    Number,
    Reduction,
    check_matrix,
    check_number,
    fill_masked,
    grades,
    reduced,
    scale_of,
)
from rankers.losses.softmax import TEMPERATURE, _cross_entropy


def listnet(
    scores: Tensor,
    labels: Tensor,
    *,
    where: Tensor | None = None,
    temperature: Number | None = None,
    scale: Number | None = None,
    target_temperature: float = 1.0,
    reduction: Reduction = "mean",
) -> Tensor:
    """Cross-entropy between the softmax of the grades and that of the scores (ListNet, top one).

        q_i = softmax(y_i / target_temperature);   row(i) = -sum_j q_ij log softmax(s_i / temperature)_j
        loss = mean of row(i) over the rows with a grade > 0

    The least value is the entropy of q, not 0, and is reached where scores / temperature are the grades /
    target_temperature plus a constant. Documents of grade 0 have a share of q too: that is the difference to
    `softmax_ce`, whose target is y / sum(y). The paper also takes rows without any grade > 0 and pulls their
    scores together; they are left out here, as in every other loss.

    Args:
        scores: (queries, docs) float, larger is better. The default is meant for cosines; unbounded scores of
            a cross-encoder or a feature scorer take temperature=1, as the paper.
        labels: (queries, docs) finite grades >= 0; rows without a grade > 0 are left out.
        where: (queries, docs) bool, False at padding and at masked false negatives. None: all valid.
        temperature: divides the scores; > 0; default 0.05.
        scale: multiplies the scores, 1 / temperature; give one of the two.
        target_temperature: divides the grades; > 0; smaller is nearer to the best grade alone.
        reduction: "sum" is the numerator: loss × number of rows with a grade > 0.

    Returns:
        () float loss in nats; 0, with zero gradient, when no row has a grade > 0.

    Raises:
        ValueError: at wrong shapes, dtypes, labels or settings.

    Source: Cao et al. 2007, "Learning to Rank: From Pairwise Approach to Listwise Approach"
    (doi:10.1145/1273496.1273513), the model of the top one.

    """
    scores, where = check_matrix(scores, labels, where)
    sharpness = 1 / check_number("target_temperature", target_temperature, positive=True)
    logits = scores * scale_of(temperature, scale, 1 / TEMPERATURE)
    gains = grades(labels, where, logits.dtype)
    rows = (gains > 0).any(-1)
    target = F.softmax(fill_masked(gains * sharpness, where), dim=-1).masked_fill(~(where & rows[:, None]), 0)
    return reduced(_cross_entropy(logits, target, where).sum(), rows.sum(), reduction)


def poly1(
    scores: Tensor,
    labels: Tensor,
    *,
    where: Tensor | None = None,
    temperature: Number | None = None,
    scale: Number | None = None,
    epsilon: float = 1.0,
    reduction: Reduction = "mean",
) -> Tensor:
    """Softmax cross-entropy with one more step towards the target (Poly-1).

        t_i = y_i / sum(y_i);   p_i = softmax(s_i / temperature)
        row(i) = -sum_j t_ij log p_ij + epsilon (1 - sum_j t_ij p_ij)
        loss = mean of row(i) over the rows with a grade > 0

    -log p is the series of (1 - p)^k / k over k >= 1; epsilon is added to the factor of its first term.
    epsilon=0 is `softmax_ce`. With one grade > 0 the target's gradient is -(1 - p)(1 + epsilon p).

    Args:
        scores: (queries, docs) float, larger is better. The default is meant for cosines; unbounded scores of
            a cross-encoder or a feature scorer take temperature=1.
        labels: (queries, docs) finite grades >= 0; rows without a grade > 0 are left out.
        where: (queries, docs) bool, False at padding and at masked false negatives. None: all valid.
        temperature: divides the scores; > 0; default 0.05, as `softmax_ce`.
        scale: multiplies the scores, 1 / temperature; give one of the two.
        epsilon: >= -1, below which a good target would be pushed down; default 1.
        reduction: "sum" is the numerator: loss × number of rows with a grade > 0.

    Returns:
        () float loss; 0, with zero gradient, when no row has a grade > 0.

    Raises:
        ValueError: at wrong shapes, dtypes, labels or settings.

    Source: Leng et al. 2022, PolyLoss (arXiv:2204.12511); for lists: TF-Ranking, RankT5 (arXiv:2210.10634).

    """
    scores, where = check_matrix(scores, labels, where)
    if check_number("epsilon", epsilon) < -1:
        raise ValueError(f"epsilon must be >= -1, got {epsilon}: a good target would be pushed down")
    logits = scores * scale_of(temperature, scale, 1 / TEMPERATURE)
    gains = grades(labels, where, logits.dtype)
    mass = gains.sum(-1, keepdim=True)
    target = gains / mass.masked_fill(mass == 0, 1)
    missed = target.sum(-1) - (target * F.softmax(fill_masked(logits, where), dim=-1)).sum(-1)
    per_row = _cross_entropy(logits, target, where) + epsilon * missed
    return reduced(per_row.sum(), (mass > 0).sum(), reduction)


def listmle(
    scores: Tensor,
    labels: Tensor,
    *,
    where: Tensor | None = None,
    temperature: Number | None = None,
    scale: Number | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """Negative log-likelihood of the order by falling grade (ListMLE).

        s = scores / temperature, sorted by falling grade
        row(i) = sum over places r of LSE(s_r, s_r+1, ..., s_n) - s_r
        loss = mean of row(i) over the rows with a grade > 0

    The paper shuffles equal grades. Here their order does not matter: at the l-th place (from 0) of a group
    of m equal grades, exp(s) of the m - l members that are still there is taken as (m - l) / m of the group's
    sum (Efron's rule for ties in Cox's likelihood). Distinct grades: the paper's loss. Equal grades: never less
    than the mean over the shuffles, and equal to it where the group's scores are equal. Two documents of
    different grades: RankNet.

    Equal grades are pulled together, as the shuffle does: with 0/1 labels and long lists, that of the irrelevant
    ones is most of the loss. Take `softmax_ce` or `decoupled_softmax` for those.

    Args:
        scores: (queries, docs) float, larger is better. The default is meant for cosines; unbounded scores of
            a cross-encoder or a feature scorer take temperature=1, as the paper.
        labels: (queries, docs) finite grades >= 0, of which only the order counts; rows without a grade > 0
            are left out.
        where: (queries, docs) bool, False at padding and at masked false negatives. None: all valid.
        temperature: divides the scores; > 0; default 0.05.
        scale: multiplies the scores, 1 / temperature; give one of the two.
        reduction: "sum" is the numerator: loss × number of rows with a grade > 0.

    Returns:
        () float loss in nats; 0, with zero gradient, when no row has a grade > 0.

    Raises:
        ValueError: at wrong shapes, dtypes, labels or settings.

    Source: Xia et al. 2008, "Listwise Approach to Learning to Rank: Theory and Algorithm"
    (doi:10.1145/1390156.1390306); ties: Efron 1977, "The Efficiency of Cox's Likelihood Function for Censored
    Data" (JASA 72).

    """
    return _ideal_order(scores, labels, where, scale_of(temperature, scale, 1 / TEMPERATURE), _equal, reduction)


def p_listmle(
    scores: Tensor,
    labels: Tensor,
    *,
    where: Tensor | None = None,
    temperature: Number | None = None,
    scale: Number | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """Negative log-likelihood of the order by falling grade, where the top places count more (p-ListMLE).

        s = scores / temperature, sorted by falling grade;   w_r = c (2^(n - r + 1) - 1) for places r = 1..n
        row(i) = sum over places r of w_r (LSE(s_r, s_r+1, ..., s_n) - s_r)
        loss = mean of row(i) over the rows with a grade > 0

    sentence-transformers counts one place further, w_r = 2^(n - r) - 1, so that its last place weighs nothing.
    c makes the weights sum to n, the number of valid documents of the row. With the paper's own (c = 1) long
    lists would outweigh all others, and beyond 127 documents overflow float32. All weights 1: `listmle`, which
    also says how equal grades are treated; their scores have the mean weight of their places.

    Args:
        scores: (queries, docs) float, larger is better. The default is meant for cosines; unbounded scores of
            a cross-encoder or a feature scorer take temperature=1, as the paper.
        labels: (queries, docs) finite grades >= 0, of which only the order counts; rows without a grade > 0
            are left out.
        where: (queries, docs) bool, False at padding and at masked false negatives. None: all valid.
        temperature: divides the scores; > 0; default 0.05.
        scale: multiplies the scores, 1 / temperature; give one of the two.
        reduction: "sum" is the numerator: loss × number of rows with a grade > 0.

    Returns:
        () float loss in nats; 0, with zero gradient, when no row has a grade > 0.

    Raises:
        ValueError: at wrong shapes, dtypes, labels or settings.

    Source: Lan et al. 2014, "Position-Aware ListMLE: A Sequential Learning Process for Ranking" (UAI).

    """
    return _ideal_order(scores, labels, where, scale_of(temperature, scale, 1 / TEMPERATURE), _halving, reduction)


def _equal(place: Tensor, found: Tensor) -> Tensor:
    return torch.ones_like(place - found)


def _halving(place: Tensor, found: Tensor) -> Tensor:
    """Return (2^(n - place) - 1) × n / (their sum), for places from 0; divided by 2^n all along, so always finite."""
    total = 2 - (2 + found) * torch.exp2(-found)
    return (torch.exp2(-place) - torch.exp2(-found)) * found / total.masked_fill(found == 0, 1)


def _ideal_order(
    scores: Tensor,
    labels: Tensor,
    where: Tensor | None,
    factor: Number,
    weights_of: Callable[[Tensor, Tensor], Tensor],
    reduction: str,
) -> Tensor:
    """Return sum_r w_r (LSE(s_r...) - s_r) over the places of the ideal order, reduced over rows.

    `weights_of` gives the weights of (places from 0, number of valid documents), (queries, docs).
    """
    scores, where = check_matrix(scores, labels, where)
    logits = scores * factor
    gains = grades(labels, where, logits.dtype)
    rows = (gains > 0).any(-1)
    if not logits.shape[1]:  # the maximum of no columns is not known
        return reduced(logits.sum(), rows.sum(), reduction)
    peak = fill_masked(logits.detach(), where).amax(-1, keepdim=True)  # keeps digits; a shift changes nothing
    ideal, order = gains.masked_fill(~where, -1).sort(dim=-1, descending=True, stable=True)  # masked ones last
    found = where.sum(-1, keepdim=True).to(logits.dtype)
    place = torch.arange(logits.shape[1], device=logits.device, dtype=logits.dtype).expand_as(logits)
    there = place < found
    ordered = fill_masked((logits - peak).gather(-1, order), there)

    new = F.pad(ideal[:, 1:] != ideal[:, :-1], (1, 0))
    group = new.cumsum(-1)
    size = _group_sums(torch.ones_like(ordered), group).gather(-1, group)
    tied = _group_logsumexp(ordered, group)
    below = F.pad(tied[:, 1:].flip(-1).logcumsumexp(-1).flip(-1), (0, 1), value=torch.finfo(tied.dtype).min)
    left = 1 - (place - (place * new).cummax(-1).values) / size  # share of the group that still has no place
    remaining = torch.logaddexp(below.gather(-1, group), tied.gather(-1, group) + left.log())

    weights = weights_of(place, found).masked_fill(~there, 0)
    own = _group_sums(weights, group).gather(-1, group) / size
    per_row = (weights * remaining - own * ordered).masked_fill(~there, 0).sum(-1)
    return reduced(per_row.masked_fill(~rows, 0).sum(), rows.sum(), reduction)


def _group_sums(values: Tensor, group: Tensor) -> Tensor:
    """Return (queries, docs) whose column g is the row's sum over group g; 0 for groups that do not exist."""
    return torch.zeros_like(values).scatter_add(-1, group, values)


def _group_logsumexp(values: Tensor, group: Tensor) -> Tensor:
    """Return (queries, docs) whose column g is the logsumexp of group g; the lowest number where there is none."""
    lowest = torch.full_like(values, torch.finfo(values.dtype).min)
    peak = lowest.scatter_reduce(-1, group, values.detach(), "amax")
    sums = _group_sums((values - peak.gather(-1, group)).exp(), group)
    exists = sums > 0
    return fill_masked(peak + sums.masked_fill(~exists, 1).log(), exists)


_GRADED = {"temperature": TEMPERATURE}

ENTRIES = (
    LossEntry(
        name="listnet",
        fn=listnet,
        labels="grade",
        use="lists of graded documents, where the differences between grades count",
        needs="rows",
        cost="linear",
        paper="Cao et al. 2007, doi:10.1145/1273496.1273513",
        defaults={**_GRADED, "target_temperature": 1.0},
        count=count_graded_rows,
    ),
    LossEntry(
        name="poly1",
        fn=poly1,
        labels="grade",
        use="as softmax_ce, with more push on targets that are nearly right",
        needs="rows",
        cost="linear",
        paper="Leng et al. 2022, arXiv:2204.12511",
        defaults={**_GRADED, "epsilon": 1.0},
        count=count_graded_rows,
    ),
    LossEntry(
        name="listmle",
        fn=listmle,
        labels="grade",
        use="lists whose whole order is known, a teacher's ranking for example",
        needs="rows",
        cost="n log n",
        paper="Xia et al. 2008, doi:10.1145/1390156.1390306",
        defaults=_GRADED,
        count=count_graded_rows,
    ),
    LossEntry(
        name="p_listmle",
        fn=p_listmle,
        labels="grade",
        use="as listmle, where the top of the order counts most",
        needs="rows",
        cost="n log n",
        paper="Lan et al. 2014, UAI",
        defaults=_GRADED,
        count=count_graded_rows,
    ),
)
