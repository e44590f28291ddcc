"""Reranking: the new order, the tail below it, and what survives an interruption."""

import numpy as np
import pytest
from beir_folder import DOCUMENTS, QUERIES, make_collection
from hypothesis import given
from hypothesis import strategies as st
from stub_reranker import StubReranker, shared

from retrieval import reranking
from retrieval.collection import Collection
from retrieval.errors import InputError
from retrieval.reranking import ByText, Reranker, RunReranker, load_reranker, merged, rerank
from retrieval.trec import ranked

RUN = {"q1": {"d4": 3.0, "d2": 2.5, "d1": 2.0, "d3": 1.0}, "q3": {"d1": 0.9, "d3": 0.8}}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return Collection.load(make_collection(tmp_path_factory.mktemp("small") / "c")).corpus


def test_the_stub_by_hand(corpus):
    # d1 "Cats Cats sleep most of the day", d3 "Birds Most birds can fly"
    assert shared("why do cats sleep", corpus.text(0)) == 2
    assert shared("can birds fly", corpus.text(2)) == 3


def test_the_best_are_reranked_and_the_tail_stays_below(corpus):
    found = rerank(RUN, StubReranker(), QUERIES, corpus, k=3)
    assert list(found) == ["q1", "q3"]
    # q1: d1 shares two words; d4 and d2 none, in their old order; d3 was not scored, 1 below the last of the three
    one_step = float(np.nextafter(np.float32(0), np.float32(-1)))
    assert found["q1"] == {"d1": 2.0, "d4": 0.0, "d2": one_step, "d3": -1.0}
    assert list(found["q1"]) == ["d1", "d4", "d2", "d3"]
    assert found["q3"] == {"d3": 3.0, "d1": 0.0}


def test_scores_of_the_reranker_are_kept_as_they_are(corpus):
    found = rerank(RUN, StubReranker(), {**QUERIES, "q1": "dogs sleep in the water"}, corpus, k=4)
    texts = {record["_id"]: f"{record.get('title', '')} {record['text']}" for record in DOCUMENTS}
    expected = {d: shared("dogs sleep in the water", text) for d, text in texts.items()}
    assert found["q1"] == pytest.approx(expected, abs=1e-6)


def test_queries_without_documents_stay_and_nothing_is_asked_for_them(corpus):
    reranker = StubReranker()
    assert rerank({"q1": {}, "q2": {"d2": 5.0}}, reranker, QUERIES, corpus) == {"q1": {}, "q2": {"d2": 1.0}}
    assert reranker.seen == [QUERIES["q2"]]
    assert rerank({}, reranker, QUERIES, corpus) == {}


@pytest.mark.parametrize("pairs", [1, 3, 10_000])
def test_blocks_change_nothing(corpus, monkeypatch, pairs):
    expected = rerank(RUN, StubReranker(), QUERIES, corpus, k=2)
    monkeypatch.setattr(reranking, "PAIRS_PER_BLOCK", pairs)
    assert rerank(RUN, StubReranker(), QUERIES, corpus, k=2) == expected


def test_a_reranker_of_runs_sees_ids_and_scores():
    class Reversed:
        def score_run(self, queries, candidates):
            return [-np.array(list(found.values()), dtype=np.float32) for found in candidates.values()]

        def fingerprint(self):
            return {}

    assert isinstance(Reversed(), RunReranker)
    assert isinstance(StubReranker(), Reranker)
    assert not isinstance(StubReranker(), RunReranker)
    assert list(rerank(RUN, Reversed(), QUERIES, k=3)["q1"]) == ["d1", "d2", "d4", "d3"]


# --- scores of the new order -----------------------------------------------------------------------------------------

FLOATS = st.floats(-(2.0**99), 2.0**99, width=32)
OLD = st.dictionaries(st.text("abcdefgh", min_size=1, max_size=2), FLOATS, min_size=1, max_size=9).map(ranked)


@given(OLD, st.data())
def test_every_tool_sees_the_new_order_and_then_the_old_tail(old, data):
    k = data.draw(st.integers(0, len(old)))
    scores = np.array(data.draw(st.lists(st.sampled_from([0.0, 1.0, -3.5, 1e-30]) | FLOATS, min_size=k, max_size=k)))
    found = merged(old, scores.astype(np.float32))
    best = sorted(range(k), key=lambda place: -np.float32(scores[place]))  # stable: ties keep the old order
    expected = [old[place][0] for place in best] + [doc_id for doc_id, _ in old[k:]]
    assert list(found) == expected
    assert [doc_id for doc_id, _ in ranked(found)] == expected
    falling = np.array(list(found.values()), dtype=np.float32)
    assert (falling[1:] < falling[:-1]).all()
    assert all(np.float32(score) == score for score in found.values())


def test_the_tail_keeps_its_distances():
    old = [("a", 10.0), ("b", 8.0), ("c", 7.5), ("d", 5.0)]
    assert merged(old, np.array([0.25, 0.5], dtype=np.float32)) == {"b": 0.5, "a": 0.25, "c": -0.25, "d": -2.75}
    assert merged(old, np.zeros(0, dtype=np.float32)) == dict(old)


def test_no_number_is_left_below():
    lowest = np.finfo(np.float32).min
    with pytest.raises(InputError, match=r"query 'q': scores reach the end of float32; there is no room below -3\.4"):
        merged([("a", 1.0), ("b", 0.0)], np.array([lowest], dtype=np.float32), "q")


# --- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("run", "reranker", "settings", "expected"),
    [
        (RUN, StubReranker(), {"k": 0}, "k must be at least 1, got 0"),
        (RUN, StubReranker(), {"on_error": "ignore"}, "on_error must be 'fail' or 'skip', got 'ignore'"),
        (
            {"q1": {"d1": 1.0, "d9": 0.5}},
            StubReranker(),
            {},
            "query 'q1' of the run has document 'd9', which is not in the corpus",
        ),
        ({"x": {"d1": 1.0}, "y": {}}, StubReranker(), {}, "query 'x' of the run (and 1 more like it) has no text"),
        (RUN, StubReranker(wrong=[]), {}, "the reranker gave scores of 0 queries for 2"),
        (RUN, StubReranker(wrong=[np.zeros(3), np.zeros(2)]), {}, "query 'q1': the reranker gave scores of shape (3,)"),
        (
            RUN,
            StubReranker(wrong=[np.zeros(4), np.array([0, np.nan])]),
            {},
            "query 'q3', document 'd3': the reranker's score is not a finite number",
        ),
        ({"q1": {"d1": float("nan")}}, StubReranker(), {}, "document 'd1': score nan is not a finite float32 number"),
    ],
)
def test_what_cannot_be_reranked(corpus, run, reranker, settings, expected):
    with pytest.raises(InputError) as caught:
        rerank(run, reranker, QUERIES, corpus, **settings)
    assert expected in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_unknown_ids_may_be_skipped(corpus, caplog):
    run = {"x": {"d1": 1.0}, "q1": {"d9": 3.0, "d2": 2.0, "d1": 1.0}}
    assert rerank(run, StubReranker(), QUERIES, corpus, on_error="skip", k=2) == {"q1": {"d1": 2.0, "d2": 0.0}}
    assert caplog.messages == [
        "1 queries of the run have no text and are left out (first: x)",
        "1 documents of the run are not in the corpus and are left out",
    ]


def test_texts_need_a_corpus():
    with pytest.raises(InputError, match="a reranker of texts needs the corpus"):
        rerank(RUN, StubReranker(), QUERIES)


def test_the_fingerprint_knows_the_texts(corpus):
    known = ByText(StubReranker(), corpus).fingerprint()
    assert known == {"reranker": StubReranker().fingerprint(), "corpus_sha256": corpus.sha256}


def test_an_encoder_without_an_output_layer_is_no_reranker(tiny_model):
    """Its scores would be chance: `rerank --model` with a dual encoder is the slip."""
    pytest.importorskip("sentence_transformers", reason="needs the train extra")
    with pytest.raises(InputError, match=r"without an output layer, whose scores would be chance.*train-reranker"):
        load_reranker(tiny_model, precision="fp32", device="cpu")


def test_a_real_cross_encoder_is_opened(tiny_model, corpus, tmp_path):
    pytest.importorskip("sentence_transformers", reason="needs the train extra")
    from retrieval.cross_encoder import CrossEncoder

    CrossEncoder.load(tiny_model, precision="fp32", device="cpu").save(tmp_path / "saved")
    reranker = load_reranker(tmp_path / "saved", precision="fp32", device="cpu", max_length=32)
    found = rerank(RUN, reranker, QUERIES, corpus, k=3)
    expected = reranker.score([QUERIES["q3"]], [corpus.texts([0, 2])])[0]
    assert found["q3"] == pytest.approx(dict(zip(["d1", "d3"], expected.tolist(), strict=True)), abs=1e-5)
    assert reranker.fingerprint()["max_length"] == 32


@pytest.mark.parametrize("inside", [".", "model"])
def test_a_ranker_of_features_is_no_reranker_of_texts(tmp_path, inside):
    (tmp_path / inside).mkdir(exist_ok=True)
    (tmp_path / inside / "CURRENT").touch()
    with pytest.raises(InputError, match="holds no reranker of texts; a ranker of features goes with --features"):
        load_reranker(tmp_path)
