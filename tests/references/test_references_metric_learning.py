"""PyTorch Metric Learning, whose losses take pairs or triplets of a similarity matrix: here, of our scores."""

import pytest
from reference_cases import Inputs, Library, References, torch, with_torch

pytestmark = pytest.mark.slow

library = Library("pytorch_metric_learning")
losses, miners = (Library(f"pytorch_metric_learning.{name}") for name in ("losses", "miners"))
distances, reducers = (Library(f"pytorch_metric_learning.{name}") for name in ("distances", "reducers"))

SEVERAL = Inputs("several")
COSINES = Inputs("several", cosines=True)
references = References("pytorch-metric-learning", with_torch)


def as_given():
    """Return a similarity of (queries, documents) that is the queries' own rows: our scores stand for embeddings."""

    class AsGiven(distances.CosineSimilarity):
        def forward(self, queries, documents=None):
            return queries.clone()  # miners write into it

    return AsGiven()


def entries(chosen):
    """Return the rows and columns of what is chosen."""
    return tuple(chosen.nonzero().T)


def call(loss, scores, pairs):
    """Return the loss of entries of the scores; classes of rows and columns are given only because they must be."""
    documents = scores.detach().T
    return loss(scores, torch.arange(len(scores)), pairs, documents, torch.arange(len(documents)))


def pairs_of(labels, where):
    """Return the relevant and the other valid entries, as the library writes pairs."""
    return *entries((labels > 0) & where), *entries((labels == 0) & where)


def mean_by_row(found, rows, queries):
    """Return the mean over rows of the means of their terms."""
    sums = torch.zeros(queries, dtype=found.dtype).index_add(0, rows, found)
    return (sums / torch.bincount(rows, minlength=queries)).mean()


@references.add("infonce", "NTXentLoss", Inputs("one", cosines=True), note="temperature=0.05")
def ntxent(scores, labels, where):
    return call(losses.NTXentLoss(temperature=0.05, distance=as_given()), scores, pairs_of(labels, where))


@references.add(
    "decoupled_softmax",
    "NTXentLoss",
    COSINES,
    note="temperature=0.05; mean of each row, then of rows, in place of that of all pairs",
)
def ntxent_of_several(scores, labels, where):
    loss = losses.NTXentLoss(temperature=0.05, distance=as_given(), reducer=reducers.DoNothingReducer())
    found = call(loss, scores, pairs_of(labels, where))["loss"]
    return mean_by_row(found["losses"], found["indices"][0], len(scores))


@references.add("infonce", "SupConLoss", COSINES, note="temperature=0.05; several relevant documents")
def supcon(scores, labels, where):
    return call(losses.SupConLoss(temperature=0.05, distance=as_given()), scores, pairs_of(labels, where))


@references.add(
    "infonce",
    "NTXentLoss",
    COSINES,
    differs="leaves other relevant documents out of the denominator: with several of them it is `decoupled_softmax`",
)
def ntxent_is_not_infonce(scores, labels, where):
    return ntxent(scores, labels, where)


@references.add("multi_similarity", "MultiSimilarityLoss", COSINES)
def multi_similarity(scores, labels, where):
    return call(losses.MultiSimilarityLoss(distance=as_given()), scores, pairs_of(labels, where))


@references.add(
    "multi_similarity",
    "MultiSimilarityLoss with MultiSimilarityMiner",
    Inputs("one", cosines=True, masked=False),
    mining=0.1,
    note="the miner knows classes only, so one relevant document of each query",
)
def mined_multi_similarity(scores, labels, where):
    # A document has a class of its own and the queries have those of their relevant documents.
    queries, documents = labels.argmax(-1), torch.arange(scores.shape[1])
    stand_ins = scores.detach().T
    mined = miners.MultiSimilarityMiner(epsilon=0.1, distance=as_given())(scores, queries, stand_ins, documents)
    return call(losses.MultiSimilarityLoss(distance=as_given()), scores, mined)


@references.add("circle", "CircleLoss", COSINES)
@references.add(
    "circle", "CircleLoss", COSINES, self_paced=False, differs="it has the self-paced form only, not the unified loss"
)
def circle(scores, labels, where):
    return call(losses.CircleLoss(distance=as_given(), reducer=reducers.MeanReducer()), scores, pairs_of(labels, where))


def triplets(labels, where):
    """Return all triplets of a query, a relevant and another document."""
    relevant, others = (labels > 0) & where, (labels == 0) & where
    return entries(relevant[:, :, None] & others[:, None, :])


def triplet_losses(scores, chosen, **settings):
    """Return the loss of each triplet."""
    loss = losses.TripletMarginLoss(distance=as_given(), reducer=reducers.DoNothingReducer(), **settings)
    return call(loss, scores, chosen)["loss"]["losses"]


@references.add(
    "triplet",
    "TripletMarginLoss",
    COSINES,
    negatives="all",
    note="margin=0.2; mean of each row, then of rows, in place of that above 0",
)
def triplet(scores, labels, where):
    chosen = triplets(labels, where)
    return mean_by_row(triplet_losses(scores, chosen, margin=0.2), chosen[0], len(scores))


@references.add(
    "triplet",
    "TripletMarginLoss",
    COSINES,
    negatives="all",
    differs="divides by the triplets above 0 (AvgNonZeroReducer); here by all, so that fewer of them are less",
)
def triplet_above_zero(scores, labels, where):
    return call(losses.TripletMarginLoss(margin=0.2, distance=as_given()), scores, triplets(labels, where))


@references.add(
    "triplet",
    "TripletMarginLoss with BatchHardMiner",
    Inputs("several", cosines=True, masked=False),
    note="margin=0.2; mean of all rows in place of those above 0",
)
def hardest_triplet(scores, labels, where):
    # The miner knows classes only: one query at a time, whose relevant documents have its class.
    found = []
    for row, classes in zip(scores, labels.long(), strict=True):
        one, stand_ins = row[None], row.detach()[:, None]
        mined = miners.BatchHardMiner(distance=as_given())(one, torch.ones(1), stand_ins, classes)
        found.append(triplet_losses(one, mined, margin=0.2))
    return torch.cat(found).mean()


@references.add(
    "ranknet",
    "TripletMarginLoss(smooth_loss=True)",
    SEVERAL,
    temperature=1.0,
    note="margin=0; mean of each row, then of rows; 0/1 labels",
)
def smooth_triplet(scores, labels, where):
    chosen = triplets(labels, where)
    return mean_by_row(triplet_losses(scores, chosen, margin=0.0, smooth_loss=True), chosen[0], len(scores))


@pytest.mark.parametrize("reference", references.all, ids=str)
def test_as_in_pytorch_metric_learning(reference, agreement):
    agreement(reference.compare())
