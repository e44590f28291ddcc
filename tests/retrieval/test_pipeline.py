"""A first stage and a second one, joined: what comes out, at which depth, and in what time."""

import pytest
from beir_folder import QUERIES, make_collection
from stub_encoder import StubEncoder
from stub_reranker import StubReranker

from retrieval.bm25 import BM25Searcher
from retrieval.collection import Collection
from retrieval.errors import InputError
from retrieval.fusion import fuse
from retrieval.pipeline import Hybrid, Pipeline, corpus_of
from retrieval.reranking import rerank
from retrieval.search import Searcher, build_index


@pytest.fixture(scope="module")
def corpus(tiny_collection):
    return Collection.load(tiny_collection).corpus


@pytest.fixture(scope="module")
def queries(tiny_collection):
    return Collection.load(tiny_collection).queries("test")


@pytest.fixture(scope="module")
def bm25(corpus):
    return BM25Searcher.build(corpus)


@pytest.fixture(scope="module")
def dense(stub_index):
    return Searcher.load(stub_index, encoder=StubEncoder())


class Fixed:
    """A first stage that always finds the same documents."""

    def __init__(self, *doc_ids):
        self.scores = {doc_id: 1.0 - place for place, doc_id in enumerate(doc_ids)}
        self.asked = []

    def run(self, queries, k):
        self.asked.append(k)
        return {query_id: dict(list(self.scores.items())[:k]) for query_id in queries}


def test_it_reranks_what_the_first_stage_finds(dense, corpus, queries):
    found = Pipeline(dense, StubReranker(), depth=5).run(queries, k=8)
    assert found == rerank(dense.run(queries, k=8), StubReranker(), queries, corpus, k=5)
    assert {len(docs) for docs in found.values()} == {8}


def test_fewer_than_the_depth_are_cut_after_reranking(dense, corpus, queries):
    found = Pipeline(dense, StubReranker(), depth=20).run(queries, k=3)
    whole = rerank(dense.run(queries, k=20), StubReranker(), queries, corpus, k=20)
    assert found == {query_id: dict(list(docs.items())[:3]) for query_id, docs in whole.items()}


def test_a_text_is_searched_as_a_run_is(dense, queries):
    pipeline = Pipeline(dense, StubReranker(), depth=10)
    query_id, text = next(iter(queries.items()))
    hits = pipeline.search(text, k=4)
    assert [(hit.doc_id, hit.score) for hit in hits] == list(pipeline.run({query_id: text}, k=4)[query_id].items())
    assert hits[0].text == pipeline.corpus.document(pipeline.corpus.row(hits[0].doc_id)).text


def test_without_a_reranker_it_is_the_first_stage(bm25, queries):
    pipeline = Pipeline(bm25)
    assert pipeline.run(queries, k=5) == bm25.run(queries, k=5)
    assert set(pipeline.timings) == {"retrieve"}


def test_every_stage_is_timed(dense):
    pipeline = Pipeline(dense, StubReranker())
    assert pipeline.timings == {}
    pipeline.search("an otter")
    assert set(pipeline.timings) == {"retrieve", "rerank", "texts"}
    assert all(seconds >= 0 for seconds in pipeline.timings.values())


def test_hybrid_first_stages(bm25, dense, queries):
    both = [bm25.run(queries, 7), dense.run(queries, 7)]
    assert Hybrid([bm25, dense]).run(queries, 7) == fuse(both, k=7)
    weighted = Hybrid([bm25, dense], "combsum", weights=[0.3, 0.7])
    assert weighted.run(queries, 7) == fuse(both, "combsum", weights=[0.3, 0.7], k=7)
    pipeline = Pipeline(weighted, StubReranker(), depth=7)
    assert set(pipeline.run(queries, 7)) == set(queries)


def test_a_pipeline_is_a_first_stage(bm25, queries, corpus):
    inner = Pipeline(bm25, StubReranker(), depth=10)
    outer = Pipeline(inner, StubReranker(sign=-1), depth=2)
    expected = rerank(inner.run(queries, 100), StubReranker(sign=-1), queries, corpus, k=2)
    assert outer.run(queries, 100) == expected


def test_the_corpus_comes_from_the_first_stage_or_is_given(bm25, dense, corpus):
    assert corpus_of(bm25) is corpus
    assert corpus_of(dense).sha256 == corpus.sha256
    assert corpus_of(Hybrid([Fixed(), bm25])) is corpus
    assert corpus_of(Fixed()) is None
    assert corpus_of(Hybrid([Fixed(), Fixed()])) is None
    assert corpus_of(Pipeline(Fixed(), corpus=corpus)) is corpus
    hits = Pipeline(Fixed("otter-0"), StubReranker(), corpus=corpus).search("otter")
    assert (hits[0].doc_id, hits[0].score, hits[0].title) == ("otter-0", 1.0, "otter")
    assert Pipeline(Fixed("otter-0")).search("otter")[0].text is None


def test_the_first_stage_is_asked_for_what_is_needed(corpus):
    stage = Fixed("otter-0", "otter-1")
    pipeline = Pipeline(stage, StubReranker(), corpus=corpus, depth=30)
    pipeline.run({"q": "otter"}, k=5)
    pipeline.run({"q": "otter"}, k=50)
    assert stage.asked == [30, 50]
    assert pipeline.run({}, k=5) == {}


def test_an_index_without_texts_needs_the_corpus(tmp_path):
    collection = Collection.load(make_collection(tmp_path / "c"))
    build_index(tmp_path / "i", encoder=StubEncoder(), collection=collection)
    collection.corpus_path.unlink()
    searcher = Searcher.load(tmp_path / "i", encoder=StubEncoder())
    with pytest.raises(InputError, match=r"the first stage has no texts for the reranker; give corpus="):
        Pipeline(searcher, StubReranker())


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"depth": 0}, "depth must be at least 1, got 0"),
        ({"reranker": StubReranker()}, "the first stage has no texts for the reranker"),
    ],
)
def test_what_cannot_be_a_pipeline(arguments, expected):
    with pytest.raises(InputError, match=expected):
        Pipeline(Fixed("d1"), **arguments)


def test_bad_calls(corpus):
    pipeline = Pipeline(Fixed("d1"), StubReranker(), corpus=corpus)
    with pytest.raises(InputError, match="k must be at least 1, got 0"):
        pipeline.run(QUERIES, k=0)
    with pytest.raises(InputError, match="document 'd1', which is not in the corpus"):
        pipeline.search("cats")
    with pytest.raises(InputError, match="got 1 run; wanted two or more"):
        Hybrid([Fixed()])
    with pytest.raises(InputError, match="got 1 weights for 2 runs"):
        Hybrid([Fixed(), Fixed()], weights=[1])
