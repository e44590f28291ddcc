import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieval.measures import parse_measure
from retrieval.ranked_lists import RankedLists, ranked_lists
from retrieval.trec import ranked

DOCS = "abcde"
NAMES = [
    "nDCG@2", "nDCG", "nDCG(dcg='exp-log2')@3", "nDCG(gains={1:5,3:0})@3", "nDCG(judged_only=True)@2",
    "AP", "AP(rel=2)@3", "RR", "RR@2", "P@2", "R@3", "Success@1", "Judged@2", "Judged", "RR(judged_only=True)@2",
]  # fmt: skip

few_scores = st.sampled_from([0.0, 1.0, 1.0 + 1e-9, 2.0])
run_lists = st.dictionaries(st.sampled_from(DOCS), few_scores, max_size=5)
judgements = st.dictionaries(st.sampled_from(DOCS + "xyz"), st.integers(-1, 3), max_size=5)


def lists_of(scores, grades, ties="trec"):
    return RankedLists.build(["q"], {"q": grades}, {"q": scores}, ties)


def all_orders(scores):
    """Every ranking in which equal float32 scores stand in some order, as distinct scores."""
    groups = {}
    for doc_id, score in scores.items():
        groups.setdefault(np.float32(score), []).append(doc_id)
    parts = [list(itertools.permutations(groups[score])) for score in sorted(groups, reverse=True)]
    for choice in itertools.product(*parts):
        order = [doc_id for part in choice for doc_id in part]
        yield {doc_id: float(-rank) for rank, doc_id in enumerate(order)}


@given(run_lists, judgements)
def test_rows_are_the_ranking_with_its_grades(scores, grades):
    lists = lists_of(scores, grades)
    order = [doc_id for doc_id, _ in ranked(scores)]
    assert lists.labels[0].tolist() == [grades.get(doc_id, 0) for doc_id in order]
    assert lists.judged[0].tolist() == [doc_id in grades for doc_id in order]
    assert lists.scores[0].tolist() == [float(np.float32(scores[doc_id])) for doc_id in order]
    assert sorted(lists.pool[0].tolist()) == sorted(grades.values())


@pytest.mark.parametrize("name", NAMES)
@given(scores=run_lists, grades=judgements)
def test_bounds_are_those_of_all_orders_of_equal_scores(name, scores, grades):
    measure = parse_measure(name)
    lists = lists_of(scores, grades)
    values = lists.values(measure)
    bounds = lists.bounds(measure, values)
    possible = [float(lists_of(order, grades).values(measure)[0]) for order in all_orders(scores)]
    assert bounds.optimistic[0] == pytest.approx(max(possible), abs=1e-12)
    assert bounds.pessimistic[0] == pytest.approx(min(possible), abs=1e-12)
    assert bounds.pessimistic[0] <= values[0] <= bounds.optimistic[0]
    if measure.k is None:
        assert bounds.at_cutoff[0] == (max(possible) > min(possible) + 1e-12)
    elif not measure.judged_only:
        falling = [score for _, score in ranked(scores)]
        at_cutoff = len(falling) > measure.k and np.float32(falling[measure.k - 1]) == np.float32(falling[measure.k])
        assert bounds.at_cutoff[0] == at_cutoff


@given(st.lists(st.tuples(run_lists, judgements), min_size=1, max_size=5))
def test_blocks_and_neighbours_never_change_a_value(rows):
    qrels = {str(i): grades for i, (_, grades) in enumerate(rows)}
    run = {str(i): scores for i, (scores, _) in enumerate(rows)}
    together = RankedLists.build(list(qrels), qrels, run)
    for name in NAMES:
        measure = parse_measure(name)
        values = together.values(measure)
        bounds = together.bounds(measure, values)
        for i, (scores, grades) in enumerate(rows):
            alone = lists_of(scores, grades)
            assert alone.values(measure).tolist() == [values[i]], name
            assert [part[0] for part in alone.bounds(measure, alone.values(measure))] == [part[i] for part in bounds]


def test_large_runs_come_in_blocks(monkeypatch):
    monkeypatch.setattr("retrieval.ranked_lists._BLOCK", 10)
    qrels = {f"q{i}": {"a": 1} for i in range(7)}
    run = {f"q{i}": dict.fromkeys(DOCS, 1.0) for i in range(0, 7, 2)}
    assert [len(lists) for lists in ranked_lists(list(qrels), qrels, run)] == [2, 2, 2, 1]
    assert [len(lists) for lists in ranked_lists(list(qrels), qrels, {})] == [7]
    assert list(ranked_lists([], qrels, run)) == []


def test_file_rank_follows_the_run():
    lists = lists_of({"b": 1.0, "a": 1.0, "c": 1.0}, {"a": 1, "b": 2, "c": 3}, "file-rank")
    assert lists.labels.tolist() == [[2, 1, 3]]
    assert lists_of({"b": 1.0, "a": 1.0, "c": 1.0}, {"a": 1, "b": 2, "c": 3}).labels.tolist() == [[3, 2, 1]]


def test_a_measure_of_ir_measures_is_not_computed_here():
    with pytest.raises(ValueError, match="Bpref"):
        lists_of({"a": 1.0}, {"a": 1}).values(parse_measure("Bpref"))
