"""Features of candidates by hand, the file that carries them, and a ranker that is served with the same ones."""

import json
import math

import numpy as np
import pytest
from beir_folder import make_collection
from stub_encoder import StubEncoder
from stub_reranker import StubReranker, shared

from indexes.storage import write_json
from retrieval import features
from retrieval.bm25 import BM25Searcher
from retrieval.collection import Collection
from retrieval.errors import InputError
from retrieval.features import FeatureExtractor, FeatureReranker, feature_lists, load_extractor, recipe_path
from retrieval.pipeline import Pipeline
from retrieval.reranking import RunReranker, rerank
from retrieval.svmlight import read_svmlight, write_svmlight

DOCUMENTS = [
    {"_id": "d1", "title": "Cats' sleep", "text": "CATS sleep, most of the day."},
    {"_id": "d2", "title": "", "text": "dogs bark"},
    {"_id": "d3", "title": "Birds", "text": "can fly"},
]
QUERIES = {"q1": "Do cats sleep?", "q2": "…", "q3": "birds"}
QRELS = {"train": {"q1": {"d1": 2, "d2": -1}, "q3": {"d3": 1}}}
RUN = {"q1": {"d1": 3.0, "d2": 1.5}, "q2": {"d3": 0.5}, "q3": {}}
NAMES = [
    *("run_rank", "run_score", "bm25(k1=0.9,b=0.4)", "query_words", "title_words", "document_words"),
    *("query_in_title", "query_in_document", "title_in_query"),
]


@pytest.fixture(scope="module")
def collection(tmp_path_factory):
    return Collection.load(make_collection(tmp_path_factory.mktemp("three") / "c", DOCUMENTS, QUERIES, QRELS))


@pytest.fixture(scope="module")
def extractor(collection):
    return FeatureExtractor(collection.corpus)


class StubRanker:
    """The weighted sum of the features it was trained on; a missing one counts 0."""

    def __init__(self, weights, names=None, numbers=None):
        self.weights = np.array(weights, dtype=np.float32)
        self.names = names
        self.numbers = np.arange(1, len(weights) + 1) if numbers is None else np.array(numbers)

    def score(self, lists):
        return [np.nan_to_num(own) @ self.weights for own in lists]

    def fingerprint(self):
        return {"weights": self.weights.tolist()}


def test_every_feature_by_hand(collection, extractor):
    assert extractor.names == NAMES
    first, second, third = extractor.features(QUERIES, RUN)
    bm25 = dict(BM25Searcher.build(collection.corpus).search("Do cats sleep?", 3))
    # q1 has 3 words; cats, sleep of them are in title and text of d1, whose title they are; d2 shares none
    assert first == pytest.approx(
        np.array([[1, 3, bm25["d1"], 3, 2, 8, 2 / 3, 2 / 3, 1], [2, 1.5, 0, 3, 0, 2, 0, 0, math.nan]]), nan_ok=True
    )
    # q2 has no word: no share of it, and none of the title is in it
    assert second == pytest.approx(np.array([[1, 0.5, 0, 0, 1, 3, math.nan, math.nan, 0]]), nan_ok=True)
    assert third.shape == (0, 9)
    assert first.dtype == np.float32


def test_models_add_a_feature_each(collection):
    extractor = FeatureExtractor(collection.corpus, encoder=Documents(), reranker=StubReranker())
    found = extractor.features(QUERIES, RUN)
    query, documents = StubEncoder().encode_query(["Do cats sleep?"])[0], StubEncoder().encode_query(TEXTS[:2])
    assert found[0][:, 9] == pytest.approx(documents @ query, abs=1e-6)
    assert found[0][:, 10].tolist() == [shared("Do cats sleep?", text) for text in TEXTS[:2]]
    assert [own.shape for own in found] == [(2, 11), (1, 11), (0, 11)]
    assert [name.split("(")[0] for name in extractor.names[9:]] == ["cosine", "reranker"]


TEXTS = [f"{record['title']} {record['text']}".strip() for record in DOCUMENTS]


class Documents(StubEncoder):
    """The stub, with vectors of documents that are not of unit length, and a count of what it encodes."""

    def encode_document(self, texts):
        self.seen += texts
        return 3 * self._vectors(list(texts))


def test_a_document_is_encoded_once_while_there_is_room(collection, monkeypatch):
    extractor = FeatureExtractor(collection.corpus, encoder=Documents())
    before = extractor.features(QUERIES, {"q1": {"d1": 1.0, "d2": 0.5}, "q3": {"d1": 1.0}})
    assert extractor.encoder.seen == TEXTS[:2]
    extractor.features(QUERIES, {"q1": {"d3": 1.0, "d2": 0.5}})
    assert extractor.encoder.seen == TEXTS
    monkeypatch.setattr(features, "_VECTORS_KEPT", 1)
    assert extractor.features(QUERIES, {"q1": {"d1": 1.0, "d2": 0.5}})[0] == pytest.approx(before[0], nan_ok=True)
    assert len(extractor._vectors) == 2


def test_names_know_what_decides_the_models(collection):
    def name(**changes):
        return FeatureExtractor(collection.corpus, reranker=StubReranker(**changes)).names[-1]

    assert name() == name(source="moved") == name(precision="bf16")
    others = [name(sign=-1), name(max_length=64), name(pooling="mean"), name(pooling="first"), name(strategy="sort")]
    assert len({name(), *others}) == 6


def test_lists_of_a_split_have_grades_and_ids(extractor, tmp_path):
    lists = feature_lists({**RUN, "q3": {"d3": 1.0, "d1": 0.5}}, extractor, QUERIES, QRELS["train"])
    assert (lists.query_ids, lists.sizes.tolist()) == (["q1", "q3"], [2, 2])
    assert lists.labels.tolist() == [2, 0, 1, 0]
    assert lists.doc_ids == ["d1", "d2", "d3", "d1"]
    path = tmp_path / "train.svm"
    write_svmlight(path, lists)
    again = read_svmlight(path)
    assert (again.names, again.doc_ids, again.numbers.tolist()) == (NAMES, lists.doc_ids, list(range(1, 10)))
    np.testing.assert_array_equal(again.features, lists.features)


def test_lists_take_the_best_k(extractor):
    lists = feature_lists({"q1": {"d1": 0.1, "d2": 0.9}}, extractor, QUERIES, QRELS["train"], k=1)
    assert lists.doc_ids == ["d2"]


# --- serving ---------------------------------------------------------------------------------------------------------


def test_a_ranker_is_served_with_its_features(collection, extractor):
    ranker = StubRanker([-1.0, 5.0], [NAMES[0], NAMES[7]], numbers=[1, 8])
    reranker = FeatureReranker(ranker, extractor)
    assert isinstance(reranker, RunReranker)
    found = rerank({"q1": {"d2": 2.0, "d1": 1.0}}, reranker, QUERIES, collection.corpus)
    assert found == {"q1": {"d1": pytest.approx(-2 + 5 * 2 / 3), "d2": -1.0}}
    assert reranker.fingerprint()["corpus_sha256"] == collection.corpus.sha256


def test_a_ranker_serves_in_a_pipeline(collection, extractor):
    """Live candidates get the features that the same run gets in a file."""
    bm25 = BM25Searcher.build(collection.corpus)
    ranker = StubRanker([0.5, -1.0, 0.25, 0, 0, -0.125, 0, 2.0, 0], NAMES)
    pipeline = Pipeline(bm25, FeatureReranker(ranker, extractor))
    run = bm25.run({"q": "do birds or cats sleep?"}, 100)
    lists = feature_lists(run, extractor, {"q": "do birds or cats sleep?"}, {"q": {}})
    expected = dict(zip(lists.doc_ids, ranker.score(lists.split_features())[0].tolist(), strict=True))
    assert len(expected) == 2
    assert {hit.doc_id: hit.score for hit in pipeline.search("do birds or cats sleep?")} == pytest.approx(expected)


@pytest.mark.parametrize(
    ("names", "numbers", "expected"),
    [
        (None, [1], "the ranker's training file named no feature"),
        (["run_score"], [1], "feature 1 of the ranker is 'run_score', of these candidates it is 'run_rank'"),
        (["cosine(model x)"], [10], "feature 10 of the ranker is 'cosine(model x)', of these candidates it is 'none'"),
        ([""], [2], "feature 2 of the ranker is '', of these candidates it is 'run_score'"),
    ],
)
def test_a_ranker_of_other_features_is_refused(extractor, names, numbers, expected):
    with pytest.raises(InputError) as caught:
        FeatureReranker(StubRanker([1.0], names, numbers), extractor)
    assert expected in str(caught.value)


def test_a_recipe_makes_the_extractor_again(collection, tmp_path, monkeypatch):
    loaded = {}

    def load(source, **settings):
        loaded.update(source=source, **settings)
        return StubReranker(sign=-1) if source == "other" else StubReranker(max_length=64)

    monkeypatch.setattr("retrieval.reranking.load_reranker", load)
    made = FeatureExtractor(collection.corpus, reranker=StubReranker(max_length=64))
    write_json(recipe_path(tmp_path / "f.svm"), made.recipe())
    again = load_extractor(tmp_path / "f.svm", collection, device="cpu")
    assert again.names == made.names
    assert loaded == {
        "source": "stub",
        "query_max_length": None,
        "max_length": 64,
        "precision": "auto",
        "device": "cpu",
    }
    changed = made.recipe() | {"reranker": {"source": "other"}}
    write_json(recipe_path(tmp_path / "f.svm"), changed)
    with pytest.raises(InputError, match=r"made with 'reranker\(model \w{12}\)', now it is 'reranker\(model \w{12}\)'"):
        load_extractor(tmp_path / "f.svm", collection)


def test_a_recipe_keeps_the_tournament_of_a_pairwise_model(collection, tmp_path, monkeypatch):
    tournament = {"strategy": "sort", "top": 3, "budget": None}
    loaded = {}

    def load(source, **settings):
        loaded.update(settings)
        return StubReranker(**{name: settings[name] for name in tournament})

    monkeypatch.setattr("retrieval.reranking.load_reranker", load)
    made = FeatureExtractor(collection.corpus, reranker=StubReranker(**tournament))
    write_json(recipe_path(tmp_path / "f.svm"), made.recipe())
    assert load_extractor(tmp_path / "f.svm", collection).names == made.names
    assert tournament.items() <= loaded.items()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, "f.svm.recipe.json: no such file; it lies beside the file that `rankwright features` wrote"),
        ("{", "is damaged (JSONDecodeError"),
        ("[]", "is damaged (TypeError"),
        ("{}", "is damaged (KeyError: 'format')"),
        ('{"format": 1, "names": []}', "is damaged (KeyError: 'dense')"),
        ('{"format": 2}', "is of format 2, this version reads 1"),
    ],
)
def test_a_recipe_that_cannot_be_read(collection, tmp_path, text, expected):
    if text is not None:
        recipe_path(tmp_path / "f.svm").write_text(text)
    with pytest.raises(InputError) as caught:
        load_extractor(tmp_path / "f.svm", collection)
    assert expected in str(caught.value)


def test_the_recipe_is_json(extractor):
    assert json.loads(json.dumps(extractor.recipe())) == extractor.recipe()
    assert extractor.recipe() == {"format": 1, "names": NAMES, "dense": None, "reranker": None}


@pytest.mark.parametrize(
    ("run", "settings", "expected"),
    [
        (RUN, {"k": 0}, "k must be at least 1, got 0"),
        ({"q1": {}, "x": {"d1": 1.0}}, {}, "none of the 2 queries of the run has documents and judgements"),
        ({"q1": {"d9": 1.0}}, {}, "no document has the id 'd9'"),
    ],
)
def test_bad_runs(extractor, run, settings, expected):
    with pytest.raises(InputError, match=expected):
        feature_lists(run, extractor, QUERIES, QRELS["train"], **settings)
