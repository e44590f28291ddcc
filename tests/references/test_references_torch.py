"""The losses of torch.nn.functional."""

import pytest
from reference_cases import Inputs, References, rows_with, torch, with_torch
from torch.nn import functional as F

pytestmark = pytest.mark.slow

FRACTIONS, SEVERAL = Inputs("fractions"), Inputs("several")
references = References("torch", with_torch)


def masked(scores, where):
    """Take what is not valid out of a softmax."""
    return scores.masked_fill(~where, -torch.inf)


def mean_of_lists(term, better, where, scores):
    """Return the mean over lists of the mean of term(s_i, s_j) over the pairs (i, j) with better[i] > better[j]."""
    means = []
    for row, value, valid in zip(scores, better, where, strict=True):
        first, second = ((value[:, None] > value) & valid[:, None] & valid).nonzero().T
        means.append(term(row[first], row[second]))
    return torch.stack(means).mean()


@references.add("infonce", "cross_entropy", Inputs("one", cosines=True), note="scores / 0.05")
def cross_entropy(scores, labels, where):
    return F.cross_entropy(masked(scores / 0.05, where), labels.argmax(-1))


@references.add("sl", "cross_entropy", SEVERAL, temperature=1.0, note="sum over all relevant documents / lists")
def cross_entropy_of_each(scores, labels, where):
    rows, columns = ((labels > 0) & where).nonzero().T
    return F.cross_entropy(masked(scores, where)[rows], columns, reduction="sum") / rows_with(labels, where)


@references.add(
    "softmax_ce", "cross_entropy", Inputs("grades", masked=False), temperature=1.0, note="labels / their sum"
)
def cross_entropy_of_shares(scores, labels, where):
    return F.cross_entropy(scores, labels / labels.sum(-1, keepdim=True))


@references.add(
    "listnet", "cross_entropy", Inputs("grades", masked=False), temperature=1.0, note="labels: their softmax"
)
def cross_entropy_of_softmax(scores, labels, where):
    return F.cross_entropy(scores, labels.softmax(-1))


@references.add("point_ce", "binary_cross_entropy_with_logits", FRACTIONS, note="sum over documents / lists")
def binary_cross_entropy(scores, labels, where):
    return F.binary_cross_entropy_with_logits(scores[where], labels[where], reduction="sum") / len(labels)


@references.add(
    "bixse",
    "binary_cross_entropy_with_logits",
    Inputs("fractions", cosines=True),
    note="scores × 10 + logit(mean label); sum over documents / lists",
)
def binary_cross_entropy_with_prior(scores, labels, where):
    return binary_cross_entropy(scores * 10 + labels[where].mean().logit(), labels, where)


@references.add(
    "siglip",
    "binary_cross_entropy_with_logits",
    Inputs("several", cosines=True),
    note="scores × 10 − 10; sum over documents / lists",
)
def binary_cross_entropy_with_bias(scores, labels, where):
    return binary_cross_entropy(scores * 10 - 10, labels, where)


@references.add("ranknet", "soft_margin_loss", Inputs("grades"), temperature=1.0, note="s_i − s_j; mean of each list")
def soft_margin(scores, labels, where):
    def term(first, second):
        return F.soft_margin_loss(first - second, torch.ones_like(first))

    return mean_of_lists(term, labels, where, scores)


@references.add("mw", "soft_margin_loss", Inputs("several", cosines=True), note="(s_p − s_n) / 0.05 of all queries")
def soft_margin_of_the_batch(scores, labels, where):
    differences = (scores[(labels > 0) & where][:, None] - scores[(labels == 0) & where]) / 0.05
    return F.soft_margin_loss(differences, torch.ones_like(differences))


@references.add("hinge", "margin_ranking_loss", Inputs("grades"), margin=0.7, note="mean of each list, then of lists")
def margin_ranking(scores, labels, where):
    def term(first, second):
        return F.margin_ranking_loss(first, second, torch.ones_like(first), margin=0.7)

    return mean_of_lists(term, labels, where, scores)


def triplet_margin(relevant, others):
    """Return torch's mean over triplets, of distances that are minus the scores."""
    anchors = torch.zeros_like(relevant)
    function = {"distance_function": lambda anchor, other: anchor - other, "margin": 0.7}
    return F.triplet_margin_with_distance_loss(anchors, relevant, others, **function)


@references.add(
    "triplet", "triplet_margin_with_distance_loss", SEVERAL, margin=0.7, negatives="all", note="distance: −score"
)
def all_triplets(scores, labels, where):
    return mean_of_lists(triplet_margin, labels, where, scores)


@references.add(
    "triplet",
    "triplet_margin_with_distance_loss",
    SEVERAL,
    margin=0.7,
    note="distance: −score; of the worst relevant and the best other document",
)
def hardest_triplet(scores, labels, where):
    relevant, others = (labels > 0) & where, (labels == 0) & where
    worst = scores.masked_fill(~relevant, torch.inf).amin(-1)
    return triplet_margin(worst, masked(scores, others).amax(-1))


@references.add(
    "energy_hinge",
    "triplet_margin_with_distance_loss",
    SEVERAL,
    margin=0.7,
    note="distance: −score; of each relevant and the best other document; mean of each list",
)
def triplets_of_the_hardest(scores, labels, where):
    means = []
    for row, relevant, valid in zip(scores, labels > 0, where, strict=True):
        ours = row[relevant & valid]
        means.append(triplet_margin(ours, row[~relevant & valid].max().expand_as(ours)))
    return torch.stack(means).mean()


@references.add(
    "margin_mse", "mse_loss", Inputs("teacher", masked=False), note="of the differences to the first column"
)
def mse_of_margins(scores, labels, where):
    return F.mse_loss(scores[:, :1] - scores[:, 1:], labels[:, :1] - labels[:, 1:])


@references.add(
    "kl_div",
    "kl_div",
    Inputs("teacher", masked=False),
    temperature=1.0,
    teacher_temperature=2.0,
    note="both softmaxes at 2; batchmean × 2²",
)
def divergence(scores, labels, where):
    return F.kl_div((scores / 2).log_softmax(-1), (labels / 2).softmax(-1), reduction="batchmean") * 4


@references.add(
    "soft_alignment",
    "kl_div",
    Inputs("teacher", masked=False),
    temperature=1.0,
    teacher_temperature=1.0,
    note="mean of both directions",
)
def half_jeffreys(scores, labels, where):
    p, q = scores.log_softmax(-1), labels.log_softmax(-1)
    both = [F.kl_div(*pair, reduction="batchmean", log_target=True) for pair in ((p, q), (q, p))]
    return sum(both) / 2


@references.add(
    "soft_alignment",
    "kl_div",
    Inputs("teacher", masked=False),
    temperature=1.0,
    teacher_temperature=1.0,
    divergence="jensen_shannon",
    note="mean of those of both from their mixture",
)
def jensen_shannon(scores, labels, where):
    p, q = scores.softmax(-1), labels.softmax(-1)
    mixture = ((p + q) / 2).log()
    return (F.kl_div(mixture, p, reduction="batchmean") + F.kl_div(mixture, q, reduction="batchmean")) / 2


@pytest.mark.parametrize("reference", references.all, ids=str)
def test_as_in_torch(reference, agreement):
    agreement(reference.compare())
