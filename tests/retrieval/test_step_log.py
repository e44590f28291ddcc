"""What the log tells of a step beside its loss, by hand; and the warning that comes of it."""

import logging
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from training_runs import settings

from rankers.engine import RowTargets
from retrieval.objective import build_loss
from retrieval.step_log import StepLog
from retrieval.train_config import TrainConfig
from retrieval.training import DualEncoderTask

SCORES = torch.tensor([[0.9, 0.1, 0.3], [0.2, 0.4, 0.6]])
LABELS = torch.tensor([[1.0, 0, 0], [0, 2, 0]])
WHERE = torch.tensor([[True, True, True], [False, True, True]])


def batch(row_query=(0, 1), positive_columns=((0,), (1,)), is_valid=True):
    return SimpleNamespace(
        row_query=np.array(row_query), positive_columns=positive_columns, targets=SimpleNamespace(is_valid=is_valid)
    )


def seen(log, one, scores=SCORES, labels=LABELS, where=WHERE, documents=None):
    watch = log.watch(one)
    documents = torch.eye(3) if documents is None else documents
    watch.embedded(documents[: len(scores)], documents)
    watch.scored(0, scores, RowTargets(labels, where))
    return log.values()


def test_by_hand():
    found = seen(StepLog(3), batch())
    assert found["masked_share"] == pytest.approx(1 / 6)
    assert found["negatives_per_query"] == 1.5
    assert found["chance_loss"] == pytest.approx(math.log(2.5))
    assert found["positive_score"] == pytest.approx((0.9 + 0.4) / 2)
    assert found["negative_score"] == pytest.approx((0.1 + 0.3 + 0.6) / 3)
    assert found["accuracy"] == 0.5  # the second row's negative is above its positive
    assert found["score_std"] == pytest.approx((np.std([0.9, 0.1, 0.3]) + np.std([0.4, 0.6])) / 2)
    assert found["document_cosine"] == pytest.approx(0, abs=1e-9)


def test_a_teacher_s_labels_are_no_relevance():
    """All labelled documents are a row's own; its positives are those that it drew."""
    labels = torch.tensor([[3.0, -1, 2], [0, 2, 5]])
    found = seen(StepLog(3), batch(is_valid=False), labels=labels)
    assert found["positive_score"] == pytest.approx((0.9 + 0.4) / 2)
    assert found["accuracy"] == 0.5


def test_what_a_row_drew_is_no_negative_even_below_the_grade():
    found = seen(StepLog(3), batch(positive_columns=((0, 1), (1,))))
    assert found["negatives_per_query"] == 1.0


def test_columns_beyond_the_embedding_are_not_looked_at():
    documents = torch.tensor([[1.0, 0, 7], [0, 1, 7]])
    assert seen(StepLog(2), batch(), documents=documents)["document_cosine"] == pytest.approx(0, abs=1e-9)


def test_a_later_block_changes_nothing_and_a_model_that_is_broken_says_nothing_of_embeddings():
    log = StepLog(3)
    first = seen(log, batch())
    log._seen.scored(2, SCORES * 5, RowTargets(LABELS, WHERE))
    assert log.values() == first
    found = seen(StepLog(3), batch(), documents=torch.full((3, 3), torch.nan))
    assert "document_cosine" not in found
    assert "masked_share" in found


def test_nothing_is_told_before_a_step():
    assert StepLog(3).values() == {}
    assert StepLog(3).documents == 0


@pytest.mark.parametrize(("loss", "margin"), [("triplet", True), ("0.5*triplet", True), ("infonce", False)])
def test_a_collapse_is_warned_of_once_when_it_is_seen_twice_in_a_row(
    tiny_model, tiny_collection, tmp_path, monkeypatch, caplog, loss, margin
):
    config = TrainConfig.from_dict(settings(tiny_model, tiny_collection, tmp_path / "none", loss=loss))
    task = DualEncoderTask(config, build_loss(config))
    sound, collapsed = ({"document_cosine": c, "effective_rank": 9.0} for c in (0.2, 0.999))
    monkeypatch.setattr(StepLog, "documents", 64)
    told = []
    for values in (collapsed, sound, collapsed, collapsed, collapsed):
        monkeypatch.setattr(StepLog, "values", lambda self, values=values: dict(values))
        caplog.clear()
        with caplog.at_level(logging.WARNING, logger="retrieval"):
            task.observed(0.1 if loss.startswith("0.5") else 0.2)
        told.append("the embeddings have collapsed" in caplog.text)
        if told[-1]:
            assert ("stuck at its margin" in caplog.text) == margin
    assert told == [False, False, False, True, False]
