import hashlib
import math

import numpy as np
import pytest
from beir_folder import make_collection

from retrieval.bm25 import BM25Searcher
from retrieval.collection import Collection
from retrieval.encoder import Encoder
from retrieval.validation import MEASURE, DevSet, full_score, make_dev_set

N = 200


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Query word w stands in documents w, w + 1, …, w + 59: BM25 finds 60 and 50 are taken."""
    documents = [
        {"_id": f"d{i}", "text": " ".join(f"w{i - j}x" for j in range(60) if i >= j) or "none"} for i in range(N)
    ]
    return Collection(make_collection(tmp_path_factory.mktemp("validation") / "c", documents)).corpus


def hash_order(queries):
    return sorted(queries, key=lambda q: hashlib.sha256(q.encode()).hexdigest())


QUERIES = {f"q{i}": f"w{i}x" for i in (0, 40, 80, 120)}
QRELS = {q: {f"d{i}": 1, f"d{(i + 100) % N}": 0, "gone": 2} for q, i in zip(QUERIES, (0, 40, 80, 120), strict=True)}


def needed(corpus, query_id) -> set[int]:
    """Judged documents of the corpus and BM25's best fifty."""
    top = BM25Searcher.build(corpus).run({query_id: QUERIES[query_id]}, 50)[query_id]
    assert len(top) == 50
    return {corpus.row(d) for d in [*top, *QRELS[query_id]] if d in corpus}


def dev_set(corpus, pool_size, seed=0, qrels=None):
    return make_dev_set(QUERIES, qrels or QRELS, corpus, pool_size=pool_size, seed=seed)


def test_queries_are_taken_in_hash_order_until_the_next_would_not_fit(corpus):
    order = hash_order(QUERIES)
    assert order != list(QUERIES)
    sizes, rows = [], set()
    for query_id in order:
        rows |= needed(corpus, query_id)
        sizes.append(len(rows))
    for taken in range(1, 5):
        for pool_size in {sizes[taken - 1], (sizes[taken] if taken < 4 else N) - 1}:
            found = dev_set(corpus, pool_size)
            assert list(found.queries) == order[:taken]
            assert found.qrels == {q: QRELS[q] for q in order[:taken]}  # what is not in the corpus still counts
            assert set.union(*(needed(corpus, q) for q in order[:taken])) <= set(found.rows.tolist())
            assert len(found.rows) == pool_size


def test_the_first_query_is_always_taken(corpus):
    found = dev_set(corpus, 10)
    assert list(found.queries) == hash_order(QUERIES)[:1]
    assert set(found.rows.tolist()) == needed(corpus, hash_order(QUERIES)[0])


def test_what_is_left_of_the_pool_is_filled_by_the_seed(corpus):
    first, again, other = dev_set(corpus, 150), dev_set(corpus, 150), dev_set(corpus, 150, seed=1)
    np.testing.assert_array_equal(first.rows, again.rows)
    assert first.queries == other.queries
    assert set(first.rows.tolist()) != set(other.rows.tolist())
    for found in (first, other):
        assert len(set(found.rows.tolist())) == len(found.rows) == 150
        assert (np.diff(found.rows) > 0).all()


def test_a_pool_larger_than_the_corpus_is_the_corpus(corpus):
    np.testing.assert_array_equal(dev_set(corpus, 3_000).rows, np.arange(N))


def test_queries_without_a_relevant_document_are_passed_over(corpus):
    first = hash_order(QUERIES)[0]
    found = dev_set(corpus, 3_000, qrels={q: grades for q, grades in QRELS.items() if q != first} | {first: {"d1": 0}})
    assert set(found.queries) == set(QUERIES) - {first}


# --- the measure ------------------------------------------------------------------------------------------------------


class Fixed:
    """An encoder with known vectors: a document is what its id says, a query wants its own number."""

    document = "document"

    def __init__(self, corpus, dim):
        self.corpus, self.vectors = corpus, np.eye(dim, dtype=np.float32)

    def encode_query(self, texts):
        return np.stack([np.linspace(1, 0, len(self.vectors), dtype=np.float32) for _ in texts])

    def encode_blocks(self, blocks, side, *, total):
        assert side == "document"
        for texts in blocks:
            yield np.stack([self.vectors[int(text.split()[1])] for text in texts])


@pytest.fixture
def numbered(tmp_path):
    documents = [{"_id": f"n{i}", "text": f"number {i}"} for i in range(30)]
    return Collection(make_collection(tmp_path / "c", documents)).corpus


def test_the_measure_is_ndcg_at_10_over_the_pool(numbered):
    # documents rank by their number; of the pool 3, 5, 8, … document 5 is second
    queries, qrels = {"a": "x", "b": "y"}, {"a": {"n5": 3, "n29": 1}, "b": {"n3": 1, "n0": 2}}
    pool = np.array([3, 5, 8, 12, 13, 14, 15, 16, 17, 18, 19, 29])
    a = (3 / math.log2(3)) / (3 + 1 / math.log2(3))  # n29 is the twelfth of the pool
    b = 1 / (2 + 1 / math.log2(3))  # n0 is not in it
    found = DevSet(queries, qrels, pool).score(Fixed(numbered, 30), numbered)
    assert found == pytest.approx((a + b) / 2, abs=1e-9)
    assert MEASURE == "nDCG@10"


def test_the_full_measure_is_over_every_document(numbered):
    queries, qrels = {"a": "x"}, {"a": {"n5": 3, "n29": 1}}
    expected = (3 / math.log2(7)) / (3 + 1 / math.log2(3))
    assert full_score(Fixed(numbered, 30), numbered, queries, qrels) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("block", [1, 7, 1_000])
def test_blocks_change_nothing(tiny_model, tiny_collection, monkeypatch, block):
    collection = Collection(tiny_collection)
    encoder = Encoder.load(tiny_model, precision="fp32", device="cpu")
    queries, qrels = collection.queries("dev"), collection.qrels("dev")
    monkeypatch.setattr("retrieval.validation.BLOCK", block)
    found = full_score(encoder, collection.corpus, queries, qrels)
    vectors = encoder.encode_document(collection.corpus.texts(range(60)))
    scores = encoder.encode_query(list(queries.values())) @ vectors.T
    from retrieval.evaluation import evaluate

    ids = list(collection.corpus.ids)
    run = {q: dict(zip(ids, row.tolist(), strict=True)) for q, row in zip(queries, scores, strict=True)}
    assert found == pytest.approx(float(evaluate(qrels, run, [MEASURE])[MEASURE]), abs=1e-6)
