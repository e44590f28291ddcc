"""The losses of sentence-transformers: of a cross-encoder's scores, and of embeddings whose dot products are ours."""

from functools import cache

import pytest
from reference_cases import Inputs, References, difference, rows_with, torch, with_torch
from results_table import Result

pytest.importorskip("sentence_transformers", reason="needs the train extra")

from sentence_transformers import CrossEncoder, util
from sentence_transformers.cross_encoder import losses as of_scores
from sentence_transformers.sentence_transformer import losses as of_embeddings

from rankers.engine import WholeTargets, gradients
from rankers.losses import build

pytestmark = pytest.mark.slow

GRADES, TEACHER = Inputs("grades"), Inputs("teacher", masked=False)
references = References("sentence-transformers", with_torch)


@cache
def scores_as_model():
    """Return a cross-encoder whose texts are numbers of rows and columns, and whose scores are given."""

    class ScoresAsModel(CrossEncoder):
        num_labels, device = 1, torch.device("cpu")

        def __init__(self):
            torch.nn.Module.__init__(self)
            self.given = None

        def preprocess(self, pairs, **_):
            rows, columns = zip(*pairs, strict=True)
            return {"rows": torch.tensor([int(row) for row in rows]), "columns": torch.tensor([*map(int, columns)])}

        def forward(self, tokens):
            return {"scores": self.given[tokens["rows"], tokens["columns"]]}

    return ScoresAsModel()


def of_lists(loss, scores, labels, where):
    """Return a loss of (query, documents) lists."""
    loss.model.given = scores
    queries = [str(row) for row in range(len(scores))]
    documents = [[str(column) for column in valid.nonzero().ravel().tolist()] for valid in where]
    return loss([queries, documents], [row[valid] for row, valid in zip(labels, where, strict=True)])


def columns_as_documents(scores):
    """Return unit vectors, one for each column: the dot product of a row of scores with it is the score."""
    return torch.eye(scores.shape[1], dtype=scores.dtype)


@references.add("listnet", "ListNetLoss", GRADES, temperature=1.0)
def list_net(scores, labels, where):
    return of_lists(of_scores.ListNetLoss(scores_as_model()), scores, labels, where)


@references.add(
    "listnet",
    "ListNetLoss",
    Inputs("grades", empty=True),
    temperature=1.0,
    differs="a list without a grade > 0 has its scores pulled together there; here it is left out",
)
def list_net_of_nothing(scores, labels, where):
    return list_net(scores, labels, where)


@references.add(
    "listmle", "ListMLELoss", Inputs("order"), temperature=1.0, note="respect_input_order=False; no equal grades"
)
def list_mle(scores, labels, where):
    return of_lists(of_scores.ListMLELoss(scores_as_model(), respect_input_order=False), scores, labels, where)


def positions(power):
    """Return p-ListMLE's weights 2^(n - place + power) - 1, places from 1."""

    def weights(valid):
        places = valid.cumsum(-1)
        return (torch.exp2(places.amax(-1, keepdim=True) - places + power) - 1).masked_fill(~valid, 0)

    return of_scores.PListMLELambdaWeight(rank_discount_fn=weights)


@references.add(
    "p_listmle",
    "PListMLELoss(rank_discount_fn)",
    Inputs("order", masked=False),
    temperature=1.0,
    note="weights 2^(n − r + 1) − 1; × n: theirs sum to 1; no equal grades",
)
def p_list_mle(scores, labels, where):
    loss = of_scores.PListMLELoss(scores_as_model(), lambda_weight=positions(1), respect_input_order=False)
    return of_lists(loss, scores, labels, where) * scores.shape[1]


@references.add(
    "p_listmle",
    "PListMLELoss",
    Inputs("order", masked=False),
    temperature=1.0,
    differs="its weights are 2^(n − r) − 1, 0 for the last place; here 2^(n − r + 1) − 1",
)
def default_p_list_mle(scores, labels, where):
    loss = of_scores.PListMLELoss(scores_as_model(), respect_input_order=False)
    return of_lists(loss, scores, labels, where) * scores.shape[1]


def weighted(scheme, scores, labels, where, **settings):
    """Return LambdaLoss per list in bits: it divides by the pairs of all lists."""
    loss = of_lists(of_scores.LambdaLoss(scores_as_model(), scheme, **settings), scores, labels, where)
    lower = labels[:, :, None] > labels[:, None, :]
    if isinstance(scheme, of_scores.NDCGLoss1Scheme):
        lower = torch.ones_like(lower)
    return loss * (lower & where[:, :, None] & where[:, None, :]).sum() / len(scores)


PER_LIST = "× pairs of all lists / lists"


@references.add("ranknet", "RankNetLoss", GRADES, temperature=1.0, list_weight="sum", note=f"{PER_LIST}; nats")
def rank_net(scores, labels, where):
    return weighted(None, scores, labels, where, reduction_log="natural")


@references.add(
    "lambdarank", "LambdaLoss(LambdaRankScheme)", GRADES, temperature=1.0, note=f"reduction_log=natural; {PER_LIST}"
)
def lambda_rank(scores, labels, where):
    return weighted(of_scores.LambdaRankScheme(), scores, labels, where, reduction_log="natural")


@references.add("ndcg_loss2", "LambdaLoss(NDCGLoss2Scheme)", GRADES, temperature=1.0, note=PER_LIST)
def ndcg_loss2(scores, labels, where):
    return weighted(of_scores.NDCGLoss2Scheme(), scores, labels, where)


@references.add(
    "ndcg_loss2pp",
    "LambdaLoss(NDCGLoss2PPScheme)",
    GRADES,
    temperature=1.0,
    note=f"reduction_log=natural; {PER_LIST}",
)
def ndcg_loss2pp(scores, labels, where):
    return weighted(of_scores.NDCGLoss2PPScheme(), scores, labels, where, reduction_log="natural")


@references.add(
    "ndcg_loss1",
    "LambdaLoss(NDCGLoss1Scheme)",
    GRADES,
    temperature=1.0,
    note=f"{PER_LIST}; − mean nDCG: it also counts a document with itself, log2(2) = 1 bit",
)
def ndcg_loss1(scores, labels, where):
    def dcg(values):
        ordered = labels.gather(1, values.masked_fill(~where, -torch.inf).argsort(descending=True))
        gains = torch.where(where.sum(-1, keepdim=True) >= places, torch.exp2(ordered) - 1, 0)
        return (gains / torch.log2(1 + places)).sum(-1)

    places = torch.arange(1, scores.shape[1] + 1)
    ndcg = dcg(scores.detach()) / dcg(labels)
    return weighted(of_scores.NDCGLoss1Scheme(), scores, labels, where) - ndcg.mean()


@references.add(
    "lambdaloss",
    "LambdaLoss(NDCGLoss2Scheme, k=3)",
    GRADES,
    temperature=1.0,
    k=3,
    differs="a pair that reaches below rank k is not raised, one below it is dropped; IDCG of the top k",
)
def lambda_loss_at_3(scores, labels, where):
    return weighted(of_scores.NDCGLoss2Scheme(), scores, labels, where, k=3)


@references.add(
    "point_ce", "BinaryCrossEntropyLoss", Inputs("fractions"), note="× documents / lists: the mean is over documents"
)
def binary_cross_entropy(scores, labels, where):
    loss = of_scores.BinaryCrossEntropyLoss(scores_as_model())
    loss.model.given = scores
    rows, columns = where.nonzero().T
    inputs = [[str(index) for index in indices.tolist()] for indices in (rows, columns)]
    return loss(inputs, labels[where]) * where.sum() / rows_with(labels, where)


@references.add("margin_mse", "CrossEncoder MarginMSELoss", TEACHER)
def cross_encoder_margin_mse(scores, labels, where):
    loss = of_scores.MarginMSELoss(scores_as_model())
    loss.model.given = scores.float()  # as it makes its labels: torch's mean squared error refuses to mix
    rows = [str(row) for row in range(len(scores))]
    return loss([rows, *([str(column)] * len(rows) for column in range(scores.shape[1]))], labels)


@references.add("margin_mse", "MarginMSELoss", TEACHER)
def margin_mse(scores, labels, where):
    loss = of_embeddings.MarginMSELoss(None)
    documents = [vector.expand_as(scores) for vector in columns_as_documents(scores)]
    return loss.compute_loss_from_embeddings([scores, *documents], labels)


@references.add(
    "kl_div",
    "DistillKLDivLoss",
    TEACHER,
    temperature=1.0,
    teacher_temperature=2.0,
    note="temperature=2",
)
def distill_kl_div(scores, labels, where):
    loss = of_embeddings.DistillKLDivLoss(None, similarity_fct=util.pairwise_dot_score, temperature=2.0)
    documents = [vector.expand_as(scores) for vector in columns_as_documents(scores)]
    return loss.compute_loss_from_embeddings([scores, *documents], labels)


@references.add(
    "triplet",
    "TripletLoss",
    Inputs("one", masked=False, shapes=((4, 2), (9, 2))),
    margin=5.0,
    note="triplet_margin=5; distance: −dot product",
)
def triplet(scores, labels, where):
    loss = of_embeddings.TripletLoss(None, lambda x, y: -util.pairwise_dot_score(x, y), triplet_margin=5)
    relevant, other = (columns_as_documents(scores)[labels.long()[:, order]] for order in (1, 0))
    return loss.compute_loss_from_embeddings([scores, relevant, other], None)


SQUARE = ((5, 5), (4, 12), (6, 18))  # each query's relevant document, then mined ones


def ranking_loss(scores, labels, **settings):
    """Return MultipleNegativesRankingLoss, whose relevant documents come in the order of the queries."""
    relevant = labels.argmax(-1)
    mined = [column for column in range(scores.shape[1]) if column not in relevant]
    documents = columns_as_documents(scores)[[*relevant.tolist(), *mined]].split(len(scores))
    loss = of_embeddings.MultipleNegativesRankingLoss(None, similarity_fct=util.dot_score, **settings)
    return loss.compute_loss_from_embeddings([scores, *documents], None)


DIAGONAL = Inputs("diagonal", cosines=True, masked=False, shapes=SQUARE)


@references.add("infonce", "MultipleNegativesRankingLoss", DIAGONAL, note="scale=20")
def multiple_negatives(scores, labels, where):
    return ranking_loss(scores, labels, scale=20.0)


@references.add(
    "infonce",
    "MultipleNegativesRankingLoss(hardness_mode='all_negatives')",
    DIAGONAL,
    hardness=5.0,
    note="scale=20, hardness_strength=5",
)
def hard_multiple_negatives(scores, labels, where):
    return ranking_loss(scores, labels, scale=20.0, hardness_mode="all_negatives", hardness_strength=5.0)


@references.add(
    "infonce",
    "MultipleNegativesRankingLoss(directions=both, partition_mode='per_direction')",
    DIAGONAL,
    symmetric=True,
    note="scale=20",
)
def symmetric_multiple_negatives(scores, labels, where):
    both = {"directions": ("query_to_doc", "doc_to_query"), "partition_mode": "per_direction"}
    return ranking_loss(scores, labels, scale=20.0, **both)


@pytest.mark.parametrize("reference", references.all, ids=str)
def test_as_in_sentence_transformers(reference, agreement):
    agreement(reference.compare())


def test_the_engine_in_row_blocks_as_their_cached_loss(agreement):
    random = torch.Generator().manual_seed(0)
    values, slopes = [], []
    for queries, docs, dim in ((6, 12, 8), (9, 9, 16)):
        sides = [torch.randn(size, dim, dtype=torch.float64, generator=random) for size in (queries, docs)]
        sides = [torch.nn.functional.normalize(side).requires_grad_() for side in sides]
        loss = of_embeddings.CachedMultipleNegativesRankingLoss(
            torch.nn.Sequential(torch.nn.Identity()), scale=20.0, similarity_fct=util.dot_score, mini_batch_size=4
        )
        value = loss.calculate_loss([[sides[0]], *([part] for part in sides[1].split(queries))], with_backward=True)
        q, d = (side.detach() for side in sides)
        targets = WholeTargets(torch.eye(queries, docs, dtype=torch.float64))
        ours = gradients(build("infonce"), q, d, targets, block=2 * docs)  # two rows at a time
        values.append(difference(ours.loss, value.item()))
        slopes += [
            difference(mine.numpy(), side.grad.numpy())
            for mine, side in zip((ours.queries, ours.documents), sides, strict=True)
        ]
    agreement(
        Result(
            "infonce",
            "sentence-transformers",
            "CachedMultipleNegativesRankingLoss",
            "6 × 12, 9 × 9",
            max(values),
            max(slopes),
            "scale=20; ours by the engine in row blocks; gradients of the embeddings",
            "",
        )
    )
