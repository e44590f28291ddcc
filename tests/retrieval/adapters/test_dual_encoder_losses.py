"""Our losses of a sentence-transformers dual encoder have the value of a hand-built matrix."""

import pytest
import torch
from adapter_rows import (
    DOCUMENTS,
    QUERIES,
    SETTINGS,
    TEACHERS,
    close,
    cosines,
    counting,
    entry_of,
    taught,
    tokenised,
    vectors,
)
from torch import nn
from torch.nn.functional import normalize

from rankers.losses import RankingLoss, build
from retrieval import InputError, SentenceTransformerLoss

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(("name", "settings"), SETTINGS)
def test_it_is_the_loss_of_the_similarity_matrix(encoder, name, settings):
    columns = QUERIES[:4], DOCUMENTS[:4], DOCUMENTS[4:8], DOCUMENTS[8:12]
    loss = SentenceTransformerLoss(encoder, name, **settings)
    scores = cosines(encoder, columns[0], DOCUMENTS)
    value = loss(tokenised(encoder, *columns), None)
    close(value, build(name, **settings)(scores, torch.eye(4, 12)))
    value.backward()
    gradients = [parameter.grad for parameter in encoder.parameters() if parameter.grad is not None]
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert any(gradient.abs().max() > 0 for gradient in gradients)


def test_a_built_loss_is_taken_as_it_is(encoder):
    built = build("softmax_ce", temperature=0.3)
    loss = SentenceTransformerLoss(encoder, built)
    assert loss.ranking_loss is built
    columns = tokenised(encoder, QUERIES[:3], DOCUMENTS[:3])
    close(loss(columns, None), built(cosines(encoder, QUERIES[:3], DOCUMENTS[:3]), torch.eye(3)))


def test_the_similarity_is_the_models(encoder):
    encoder.similarity_fn_name = "dot"
    loss = SentenceTransformerLoss(encoder, "infonce", temperature=10)
    scores = vectors(encoder, QUERIES[:3]) @ vectors(encoder, DOCUMENTS[:3]).T
    assert scores.abs().max() > 1.5
    close(loss(tokenised(encoder, QUERIES[:3], DOCUMENTS[:3])), build("infonce", temperature=10)(scores, torch.eye(3)))
    assert loss.get_config_dict()["similarity"] == "dot"


def test_a_duplicate_text_is_no_negative(encoder):
    """Three rows of two documents: the third brings the first again, and the last negative is a positive."""
    documents, negatives = [DOCUMENTS[0], DOCUMENTS[1], DOCUMENTS[0]], [DOCUMENTS[2], DOCUMENTS[3], DOCUMENTS[1]]
    value = SentenceTransformerLoss(encoder, "infonce")(tokenised(encoder, QUERIES[:3], documents, negatives))
    where = torch.tensor([[1, 1, 0, 1, 1, 0], [1, 1, 0, 1, 1, 0], [0, 1, 1, 1, 1, 0]]) > 0
    scores = cosines(encoder, QUERIES[:3], documents + negatives)
    close(value, build("infonce")(scores, torch.eye(3, 6), where))
    assert not torch.isclose(value, build("infonce")(scores, torch.eye(3, 6)), rtol=1e-3)


def test_a_query_that_comes_twice_has_both_positives(encoder):
    queries = [QUERIES[0], QUERIES[0], QUERIES[2]]
    scores = cosines(encoder, queries, DOCUMENTS[:3])
    columns = tokenised(encoder, queries, DOCUMENTS[:3])
    both = torch.tensor([[1.0, 1, 0], [1, 1, 0], [0, 0, 1]])
    close(SentenceTransformerLoss(encoder, "softmax_ce")(columns), build("softmax_ce")(scores, both))
    where = (both == 0) | (torch.eye(3) == 1)
    where_columns = torch.tensor([[1, 0, 1], [0, 1, 0], [1, 1, 1]]) > 0  # one row a query: the labelled, or the first
    wanted = build("infonce", symmetric=True)(scores, torch.eye(3), where, where_columns=where_columns)
    close(SentenceTransformerLoss(encoder, "infonce", symmetric=True)(columns), wanted)


def test_a_label_grades_the_document(encoder):
    labels = torch.tensor([1.0, 0.5, 0.0])
    value = SentenceTransformerLoss(encoder, "bixse")(tokenised(encoder, QUERIES[:3], DOCUMENTS[:3]), labels)
    close(value, build("bixse")(cosines(encoder, QUERIES[:3], DOCUMENTS[:3]), labels.diag()))


def test_a_list_grades_all_documents_of_a_row(encoder):
    labels = torch.tensor([[2, 1], [3, 0]])
    columns = tokenised(encoder, QUERIES[:2], DOCUMENTS[:2], DOCUMENTS[2:4])
    value = SentenceTransformerLoss(encoder, "softmax_ce")(columns, labels)
    wanted = torch.tensor([[2.0, 0, 1, 0], [0, 3, 0, 0]])
    close(value, build("softmax_ce")(cosines(encoder, QUERIES[:2], DOCUMENTS[:4]), wanted))


def test_a_teacher_scores_a_rows_own_documents(encoder):
    loss = SentenceTransformerLoss(encoder, RankingLoss(entry_of(taught, labels="teacher", unchanged_by="none")))
    columns = [QUERIES[:2], DOCUMENTS[:2], [DOCUMENTS[2], DOCUMENTS[1]]]  # row 2 brings a text twice
    scores = cosines(encoder, QUERIES[:2], DOCUMENTS[:3])
    labels = torch.tensor([[2.0, -1.0], [0.5, 0.5]])
    errors = torch.stack([scores[0, 0] - 2, scores[0, 2] + 1, scores[1, 1] - 0.5])
    close(loss(tokenised(encoder, *columns), labels), (errors**2).mean())
    close(loss(tokenised(encoder, *columns[:2]), labels[:, 0]), ((scores.diag() - labels[:, 0]) ** 2).mean())


@pytest.mark.parametrize("name", TEACHERS)
def test_every_loss_of_a_teacher_sees_each_rows_own_documents(name, encoder):
    columns, labels = (QUERIES[:3], DOCUMENTS[:3], DOCUMENTS[3:6]), torch.tensor([[4.5, -1], [2, 3], [0, -2]])
    scores = cosines(encoder, columns[0], DOCUMENTS[:6])
    own = torch.stack([scores.diag(), scores[:, 3:].diag()], dim=1)
    close(SentenceTransformerLoss(encoder, name)(tokenised(encoder, *columns), labels), build(name)(own, labels))


def test_labels_that_do_not_fit_are_refused(encoder):
    columns = tokenised(encoder, QUERIES[:2], DOCUMENTS[:2])
    teacher = SentenceTransformerLoss(encoder, RankingLoss(entry_of(taught, labels="teacher")))
    with pytest.raises(InputError, match="taught needs a column label: a teacher's scores, a list of 1 per row"):
        teacher(columns)
    with pytest.raises(InputError, match="taught compares a row's own documents, and each row has one"):
        teacher(columns, torch.ones(2))
    with pytest.raises(InputError, match="takes a number, or a list of 1, per row as labels, got 2 per row"):
        SentenceTransformerLoss(encoder, "infonce")(columns, torch.ones(2, 2))
    with pytest.raises(ValueError, match=r"labels\[0, 0\] is 0.7: binary labels are 0/1 or grades"):
        SentenceTransformerLoss(encoder, "infonce")(columns, torch.tensor([0.7, 1]))
    with pytest.raises(InputError, match=r"takes text columns \(query, document, …\), got 1"):
        SentenceTransformerLoss(encoder, "infonce")(columns[:1])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_similarities_are_in_full_precision(encoder, dtype):
    encoder.to(dtype)
    columns = tokenised(encoder, QUERIES[:4], DOCUMENTS[:4])
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        value = SentenceTransformerLoss(encoder, "infonce")(columns)
        embeddings = [encoder(dict(column))["sentence_embedding"] for column in columns]
    assert embeddings[0].dtype == dtype
    lifted = torch.float32 if dtype == torch.bfloat16 else dtype
    queries, documents = (normalize(vector.to(lifted)) for vector in embeddings)
    assert value.dtype == lifted
    assert torch.isclose(value, build("infonce")(queries @ documents.T, torch.eye(4)), rtol=1e-6)


def test_the_texts_are_read_before_the_model_changes_its_input(encoder):
    class Careless(nn.Module):
        def forward(self, features):
            made = encoder(dict(features))
            features["attention_mask"].zero_()
            return made

    columns = tokenised(encoder, QUERIES[:2], DOCUMENTS[:2])
    loss = SentenceTransformerLoss(encoder, "infonce")
    wanted = loss([dict(column) for column in columns])
    loss.model = Careless()
    close(loss(columns), wanted)
    assert not columns[0]["attention_mask"].any()


def test_it_can_be_wrapped_by_losses_of_the_library(encoder):
    from sentence_transformers.sentence_transformer.losses import MatryoshkaLoss

    wrapped = MatryoshkaLoss(encoder, SentenceTransformerLoss(encoder, "infonce"), [32, 8])
    queries, documents = vectors(encoder, QUERIES[:3]), vectors(encoder, DOCUMENTS[:3])
    cut = [normalize(queries[:, :dim]) @ normalize(documents[:, :dim]).T for dim in (32, 8)]
    wanted = sum(build("infonce")(scores, torch.eye(3)) for scores in cut)
    close(wrapped(tokenised(encoder, QUERIES[:3], DOCUMENTS[:3]), None), wanted)


def test_inputs_that_are_no_text_are_all_distinct(encoder):
    vector = torch.randn(3, 32)

    class Given(nn.Module):
        def forward(self, features):
            return features

    loss = SentenceTransformerLoss(encoder, "infonce")
    loss.model = Given()
    wanted = build("infonce")(normalize(vector) @ normalize(vector).T, torch.eye(3))
    close(loss([{"sentence_embedding": vector}, {"sentence_embedding": vector}]), wanted)


def test_a_state_follows_the_text_of_a_query(encoder):
    loss = SentenceTransformerLoss(encoder, RankingLoss(entry_of(counting, state={"seen": 1.0})))

    def seen(*queries):
        texts = [QUERIES[query] for query in queries]
        sums = cosines(encoder, texts, [DOCUMENTS[query] for query in queries]).diag().sum()
        value = loss(tokenised(encoder, texts, [DOCUMENTS[query] for query in queries]))
        return round(float((value / sums).detach()), 3)

    assert seen(0, 1) == 2  # first values
    assert seen(1, 2) == 3
    with torch.no_grad():
        assert seen(0, 1, 2) == seen(0, 1, 2) == 7  # evaluation counts for nothing
    assert seen(0) == 2


def test_an_estimated_threshold_is_each_querys_own(encoder):
    loss = SentenceTransformerLoss(encoder, "sl_at_k", k=1, quantile="estimated", beta_rate=0.5)
    columns = QUERIES[:3], DOCUMENTS[:3]
    scores, labels = cosines(encoder, *columns), torch.eye(3)
    state = {"beta": torch.zeros(3)}
    for _ in range(3):
        wanted, state = loss.ranking_loss(scores, labels, state=state)
        close(loss(tokenised(encoder, *columns)), wanted)
    assert state["beta"].abs().min() > 0
