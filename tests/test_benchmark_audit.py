"""The experiment on the audit: what it hides, who scores whom, and how far off the estimates are."""

import numpy as np
import pytest

from benchmarks import audit
from retrieval.auditing import Audit, BandAudit
from retrieval.false_negatives import Band, MixtureShare
from retrieval.rows import TrainingRow

QRELS = {"q1": {"a": 1, "b": 2, "c": 1, "d": 0, "e": 3}, "q2": {"a": 1}, "q3": {"b": 0}}


def test_half_of_the_relevant_is_hidden_and_the_rest_keeps_its_grades():
    drawn = set()
    for seed in range(20):
        visible, hidden = audit.hide_half(QRELS, seed)
        assert set(visible) == {"q1", "q2"}  # q3 has nothing relevant to begin with
        assert set(visible["q1"]) | hidden["q1"] == {"a", "b", "c", "e"}
        assert not set(visible["q1"]) & hidden["q1"]
        assert len(hidden["q1"]) == 2
        assert visible["q1"].items() <= QRELS["q1"].items()
        assert (visible["q2"], hidden["q2"]) == ({"a": 1}, set())  # of an odd number the larger part stays
        drawn |= {frozenset(hidden["q1"])}
    assert len(drawn) > 3
    reversed_qrels = {q: dict(reversed(grades.items())) for q, grades in reversed(QRELS.items())}
    assert audit.hide_half(QRELS, 1)[1] == audit.hide_half(reversed_qrels, 1)[1]


def test_every_query_is_scored_by_the_model_of_its_fold():
    class Constant:
        def __init__(self, value):
            self.value = value

        def score_run(self, queries, candidates):
            return [np.full(len(found), self.value) for found in candidates.values()]

        def fingerprint(self):
            return {"value": self.value}

    both = audit.ByFold([Constant(0.0), Constant(1.0)], {"q1": 1, "q2": 0, "q3": 1})
    found = both.score_run({}, {"q1": {"a": 1.0}, "q2": {"a": 1.0, "b": 0.5}, "q3": {"c": 1.0}})
    assert [scores.tolist() for scores in found] == [[1], [0, 0], [1]]
    assert [s.tolist() for s in both.score_run({}, {"q2": {"a": 1.0}})] == [[0]]
    assert both.fingerprint() == {"folds": [{"value": 0.0}, {"value": 1.0}]}


def test_the_truth_is_the_share_of_hidden_documents_in_the_band():
    share = MixtureShare(0.5, 0.25, 1.0, 40, True, 0.9, False)
    bands = tuple(
        BandAudit(band=band, negatives=3, scores=share, likeness=None, near=None, judged=0, known=None)
        for band in audit.BANDS
    )
    made = Audit(queries=2, negatives=4, outside=0, scored_by="rows", bands=bands, doubtful=())
    rows = [
        TrainingRow(query_id="q1", query="a", negative_ids=("h", "n", "m"), negative_ranks=(1, 2, 12)),
        TrainingRow(query_id="q2", query="b", negative_ids=("h",), negative_ranks=(10,)),
    ]
    first, second, third = audit.compared({"miner": made}, rows, {"q1": {"h", "m"}, "q2": set()})
    assert (first["band"], first["negatives"], first["truth"]) == ("1-10", 3, pytest.approx(1 / 3, abs=1e-6))
    assert (second["negatives"], second["truth"]) == (1, 1.0)
    assert (third["negatives"], third["truth"]) == (0, 0.0)
    assert first["estimates"]["likeness"] is None
    assert first["estimates"]["miner"]["high"] == 1.0
    assert audit.BANDS[0] == Band(1, 10)


def test_errors_by_hand():
    def estimate(value, *, is_bound):
        return {"value": value, "low": 0, "high": 1, "is_bound": is_bound}

    bands = [
        {"truth": 0.2, "estimates": dict.fromkeys(audit.METHODS) | {"likeness": estimate(0.3, is_bound=False)}},
        {"truth": 0.1, "estimates": dict.fromkeys(audit.METHODS) | {"likeness": estimate(0.5, is_bound=True)}},
    ]
    every, firm, count = audit._errors(bands)
    assert every == ["mean absolute error, points", "25.0", "–", "–", "–", "–"]
    assert firm[1] == "10.0"
    assert count[1:3] == ["1 of 2", "0 of 2"]
    near = {**estimate(0.0, is_bound=False), "is_bound": None}
    columns = audit._errors([{**band, "estimates": band["estimates"] | {"near": near}} for band in bands])
    assert [row[-1] for row in columns] == ["15.0", "–", "–"]  # a lower bound by what it is
    line = audit._line("1-10", [{"negatives": 1_000, **bands[0]}, {"negatives": 1_000, **bands[1]}])
    assert line[:4] == ["1-10", "1,000", "15.0 %", "40.0 % [0.0, 100.0], 2/2"]
