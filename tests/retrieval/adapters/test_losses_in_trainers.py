"""Two steps of every loss in sentence-transformers' own trainers, on real rows."""

import numpy as np
import pytest
import torch
from adapter_rows import (
    DOCUMENTS,
    NEGATIVES,
    QUERIES,
    vectors,
)
from sentence_transformers import SentenceTransformer
from torch import nn

from rankers.losses import LOSSES
from retrieval import CrossEncoderLoss, SentenceTransformerLoss

pytestmark = pytest.mark.usefixtures("one_thread")


def weights(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def train(trainer):
    """Train, and see that every weight that may move is finite and that most did move."""
    before = weights(trainer.model)
    trained = trainer.train()
    assert trained.global_step == 2
    assert np.isfinite(trained.training_loss)
    after = weights(trainer.model)
    assert all(value.isfinite().all() for value in after.values())
    moved = [name for name in after if not torch.equal(after[name], before[name])]
    assert len(moved) > len(after) / 2


def labels_of(kind, documents):
    """Labels of each query's documents, its own first."""
    one = {"binary": [1], "probability": [1.0, 0.25], "grade": [3, 1], "teacher": [4.5, -0.5, 1.0]}[kind]
    rows = [(one + [0] * documents)[:documents] for _ in QUERIES]
    return [[value + place % 2 for value in row] if kind == "teacher" else row for place, row in enumerate(rows)]


FAST = {"infonce", *{entry.labels: name for name, entry in LOSSES.items()}.values()}  # and one of each kind of labels
every_loss = pytest.mark.parametrize(
    "name", [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in LOSSES]
)


@every_loss
def test_every_loss_trains_a_dual_encoder(name, encoder, trainer_of):
    columns = {"query": QUERIES, "document": DOCUMENTS, "second": NEGATIVES, "third": DOCUMENTS[::-1]}
    if LOSSES[name].labels != "binary":
        columns["label"] = labels_of(LOSSES[name].labels, 3)
    train(trainer_of(SentenceTransformerLoss(encoder, name), columns))


@every_loss
def test_every_loss_trains_a_cross_encoder(name, cross_encoder, trainer_of):
    """Lists of 12 documents, more than any loss cuts off; one is shorter."""
    lists = [DOCUMENTS[place:] + DOCUMENTS[:place] for place in range(len(DOCUMENTS))]
    labels = labels_of(LOSSES[name].labels, len(DOCUMENTS))
    lists[3], labels[3] = lists[3][:2], labels[3][:2]
    train(trainer_of(CrossEncoderLoss(cross_encoder, name), {"query": QUERIES, "docs": lists, "labels": labels}))


def test_columns_train_a_cross_encoder(cross_encoder, trainer_of):
    loss = CrossEncoderLoss(cross_encoder, "infonce", mini_batch_size=5)
    train(trainer_of(loss, {"anchor": QUERIES, "positive": DOCUMENTS, "negative": NEGATIVES}))


def test_a_learned_temperature_is_trained(encoder, cross_encoder, trainer_of):
    columns = {"anchor": QUERIES, "positive": DOCUMENTS, "negative": NEGATIVES}
    for make, model in ((SentenceTransformerLoss, encoder), (CrossEncoderLoss, cross_encoder)):
        heat = nn.Parameter(torch.tensor(0.5))
        train(trainer_of(make(model, "infonce", temperature=heat), columns))
        assert heat.isfinite()
        assert 0 < abs(float(heat.detach()) - 0.5) < 0.01


def test_evaluation_and_the_saved_model_card(encoder, trainer_of, tmp_path):
    loss = SentenceTransformerLoss(encoder, "sl_at_k", k=20)
    trainer = trainer_of(loss, {"anchor": QUERIES, "positive": DOCUMENTS}, prompts={"anchor": "find: "})
    train(trainer)
    measured = trainer.evaluate(trainer.train_dataset)
    assert np.isfinite(measured["eval_loss"])
    encoder.save(str(tmp_path / "saved"))
    card = (tmp_path / "saved" / "README.md").read_text()
    for text in (
        "SentenceTransformerLoss",
        '"loss": "sl_at_k"',
        '"k": 20',
        "@misc{rankwright_sl_at_k",
        "arXiv:2508.05673",
    ):
        assert text in card
    reloaded = SentenceTransformer(str(tmp_path / "saved"), device="cpu")
    assert torch.equal(vectors(reloaded, QUERIES), vectors(encoder.eval(), QUERIES))
