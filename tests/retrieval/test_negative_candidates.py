"""Where negatives come from: the lists of model and BM25, how they are joined, and what is searched past."""

import pytest
from beir_folder import make_collection
from spoken_vectors import WORDS, SpokenVectors

from retrieval.bm25 import BM25Searcher
from retrieval.collection import Collection
from retrieval.embedding_store import EmbeddingStore
from retrieval.mining import mine
from retrieval.negatives import NegativeRules

ALL = NegativeRules(num_negatives=100)


@pytest.fixture
def store(tmp_path):
    return EmbeddingStore(tmp_path / "store")


@pytest.fixture
def fruit(tmp_path):
    queries = {"q": "1 0 apple"}
    return Collection.load(make_collection(tmp_path / "f", WORDS, queries, {"train": {"q": {"good": 1}}}))


def test_bm25_alone_needs_no_model(fruit, store):
    (row,) = mine(fruit, candidates=["bm25"], rules=ALL, store=store).rows
    searcher = BM25Searcher.build(fruit.corpus)
    scores = searcher.scores("1 0 apple").tolist()
    assert row.negative_ids == ("w2", "w3")
    assert row.negative_scores == (scores[1], scores[2])
    assert row.positive_scores == (scores[4],)


def test_both_sources_give_the_better_rank_and_the_models_score(fruit, store):
    (row,) = mine(fruit, SpokenVectors(), candidates=["dense", "bm25"], rules=ALL, store=store).rows
    # the model: w1 w3 w4 w2; BM25: w2 w3
    assert row.negative_ids == ("w1", "w2", "w3", "w4")
    assert row.negative_ranks == (1, 1, 2, 3)
    assert row.negative_scores == pytest.approx((0.9, 0.2, 0.8, 0.7))
    assert row.positive_scores == pytest.approx((0.6,))
    narrow = mine(fruit, SpokenVectors(), candidates=["dense", "bm25"], rules=NegativeRules(last_rank=1), store=store)
    assert narrow.rows[0].negative_ids == ("w1", "w2")


def test_a_text_that_both_sources_find_under_two_ids_comes_once(tmp_path, store):
    documents = [*WORDS, {"_id": "w2-copy", "text": WORDS[1]["text"]}]
    folder = make_collection(tmp_path / "f", documents, {"q": "1 0 apple"}, {"train": {"q": {"good": 1}}})
    found = mine(Collection.load(folder), SpokenVectors(), candidates=["dense", "bm25"], rules=ALL, store=store)
    assert sum(doc_id.startswith("w2") for doc_id in found.rows[0].negative_ids) == 1


# --- what is left out or searched past ------------------------------------------------------------------------------


def test_a_forbidden_document_is_searched_past(tmp_path, store, monkeypatch):
    """More forbidden documents on top than are fetched at first."""
    monkeypatch.setattr("retrieval.negative_candidates._SPARE", 1)
    documents = [{"_id": f"d{n:02d}", "text": f"{1 - n / 100:.2f} 0 text {n}"} for n in range(40)]
    relevant = {f"d{n:02d}": 1 for n in range(30)}
    folder = make_collection(
        tmp_path / "deep", documents, {"q": "1 0", "r": "1 0 other"}, {"train": {"q": relevant, "r": {"d00": 1}}}
    )
    found = mine(Collection.load(folder), SpokenVectors(), rules=NegativeRules(last_rank=3), store=store)
    assert [row.negative_ids for row in found.rows] == [("d30", "d31", "d32"), ("d01", "d02", "d03")]
    assert found.removed == {"relevant": 31, "same_text": 0}


def test_a_document_with_the_vector_of_a_positive_is_a_copy_of_it(tmp_path, store):
    """Texts that differ beyond what the model reads."""
    documents = [*WORDS, {"_id": "twin", "text": "0.6 0 apple tart"}, {"_id": "even", "text": "0.6 0.1 apple"}]
    folder = make_collection(tmp_path / "t", documents, {"q": "1 0 apple"}, {"train": {"q": {"good": 1}}})
    for sources in (["dense"], ["dense", "bm25"]):
        found = mine(Collection.load(folder), SpokenVectors(), candidates=sources, rules=ALL, store=store)
        assert set(found.rows[0].negative_ids) == {"w1", "w2", "w3", "w4", "even"}
        assert found.removed["same_text"] == 1
    # BM25 compares texts alone
    (row,) = mine(Collection.load(folder), candidates=["bm25"], rules=ALL, store=store).rows
    assert "twin" in row.negative_ids


def test_a_query_whose_vector_is_zero_has_no_dense_candidates_and_is_told(tmp_path, store, caplog):
    qrels = {"train": {"q": {"good": 1}, "empty": {"good": 1}}}
    folder = make_collection(tmp_path / "z", WORDS, {"q": "1 0 apple", "empty": "0 0 apple"}, qrels)
    found = mine(Collection.load(folder), SpokenVectors(), rules=ALL, store=store)
    assert {row.query_id: len(row.negative_ids) for row in found.rows} == {"q": 4, "empty": 0}
    assert found.none == 1
    assert "1 of 2 queries have a zero vector and no dense candidates (first: empty)" in caplog.messages


def test_a_deeper_search_is_made_in_parts(tmp_path, store, monkeypatch):
    monkeypatch.setattr("retrieval.negative_candidates._LARGEST_ANSWER", 1)
    monkeypatch.setattr("retrieval.negative_candidates._LEAST_DEPTH", 1)
    monkeypatch.setattr("retrieval.negative_candidates._SPARE", 1)
    documents = [{"_id": f"d{n:02d}", "text": f"{1 - n / 100:.2f} 0 text {n}"} for n in range(40)]
    few = {f"d{n:02d}": 1 for n in range(10)}
    queries, qrels = {"q": "1 0", "r": "1 0 r", "s": "1 0 s"}, {"q": few, "r": {"d00": 1}, "s": few}
    found = mine(
        Collection.load(make_collection(tmp_path / "p", documents, queries, {"train": qrels})),
        SpokenVectors(),
        rules=NegativeRules(last_rank=2),
        store=store,
    )
    assert [row.negative_ids for row in found.rows] == [("d10", "d11"), ("d01", "d02"), ("d10", "d11")]
