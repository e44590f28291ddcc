"""Mining by hand on a few documents: who is found, with which rank and score, what is left out and counted."""

import errno
import json
import logging
import os
from dataclasses import replace

import pytest
from beir_folder import make_collection
from spoken_vectors import WORDS, SpokenVectors
from stub_encoder import StubEncoder
from stub_reranker import StubReranker, shared

from retrieval.collection import Collection
from retrieval.embedding_store import EmbeddingStore
from retrieval.errors import InputError
from retrieval.mining import mine, row_lines
from retrieval.negatives import NegativeRules
from retrieval.rows import TrainingRow, read_rows

ALL = NegativeRules(num_negatives=100)


# a query "1 0" scores a document by its first number
DOCUMENTS = [
    {"_id": "best", "text": "0.9 0 unjudged and above the positives"},
    {"_id": "good", "text": "0.8 0 relevant"},
    {"_id": "near", "text": "0.78 0 within five percent of good"},
    {"_id": "copy", "text": "0.8 0 relevant"},
    {"_id": "a", "text": "0.7 0 far"},
    {"_id": "b", "text": "0.7 0 far too"},
    {"_id": "poor", "text": "0.5 0 relevant and low"},
    {"_id": "low", "text": "0.1 0 last"},
]
QUERIES = {"q": "1 0", "r": "0 1 apple", "s": "1 0 dev"}
OTHER = TrainingRow(query_id="other", query="1 0 other", positive_ids=("good",))
QRELS = {"train": {"q": {"good": 2, "poor": 1, "a": 0}}, "dev": {"s": {"best": 1}}}


@pytest.fixture
def collection(tmp_path):
    return Collection.load(make_collection(tmp_path / "c", DOCUMENTS, QUERIES, QRELS))


@pytest.fixture
def store(tmp_path):
    return EmbeddingStore(tmp_path / "store")


@pytest.fixture
def mined(collection, store):
    def go(rules=ALL, encoder=None, **settings):
        return mine(collection, encoder or SpokenVectors(), rules=rules, store=store, **settings)

    return go


def test_every_permitted_document_with_rank_and_score(mined):
    found = mined()
    (row,) = found.rows
    assert (row.query_id, row.query, row.positive_ids, row.positive_labels) == ("q", "1 0", ("good", "poor"), (2, 1))
    assert row.positive_scores == pytest.approx((0.8, 0.5))
    # relevant documents and the copy of one take no rank; of equal scores the first in the corpus comes first
    assert row.negative_ids == ("best", "near", "a", "b", "low")
    assert row.negative_ranks == (1, 2, 3, 4, 5)
    assert row.negative_scores == pytest.approx((0.9, 0.78, 0.7, 0.7, 0.1))
    assert row.negative_labels == ()
    assert found.removed == {"relevant": 2, "same_text": 1}
    assert (found.full, found.fewer, found.none, found.candidates) == (0, 1, 0, 5)


def test_judgements_of_other_splits_are_not_read(mined):
    assert "best" in mined().rows[0].negative_ids  # relevant for a dev query with another text


@pytest.mark.parametrize(
    ("rules", "expected", "removed"),
    [
        # 0.5: the lowest positive's score counts; "a" is judged not relevant, and no limit is for it
        ({"relative_margin": 0.05}, ["a", "low"], {"relative_margin": 3}),
        ({"relative_margin": 0.05, "margin_from": "highest"}, ["a", "b", "low"], {"relative_margin": 2}),
        ({"absolute_margin": 0.0, "margin_from": "mean"}, ["a", "low"], {"absolute_margin": 3}),
        ({"max_score": 0.65, "first_rank": 2, "last_rank": 4}, ["a"], {"max_score": 2}),
    ],
)
def test_margins_are_measured_from_the_positives_of_the_row(mined, rules, expected, removed):
    found = mined(NegativeRules(**rules))
    assert list(found.rows[0].negative_ids) == expected
    assert {name: count for name, count in found.removed.items() if name not in ("relevant", "same_text")} == removed


def test_the_default_has_a_margin_where_a_model_scores(mined):
    assert mined(None).removed["relative_margin"] == 3
    assert "relative_margin" not in mined(None, candidates=["bm25"]).removed


def test_a_row_without_negatives_stays_and_is_counted(mined, caplog, tmp_path):
    with caplog.at_level(logging.INFO):
        found = mined(NegativeRules(max_score=0.05), rows=[OTHER])
    assert (found.none, found.rows[0].negative_ids) == (1, ())
    assert "1 rows: 0 with 7 negatives, 0 with fewer, 1 with none" in caplog.messages
    assert "max_score: 6 of the 6 candidates in the windows removed (100.0 %)" in caplog.messages
    assert "1 of 1 rows have no negative" in caplog.text
    (line,) = row_lines(found.rows)
    assert json.loads(line)["negative_ids"] == []


def test_the_warning_says_when_several_positives_are_the_cause(mined, caplog):
    mined(NegativeRules(absolute_margin=0.5), rows=[replace(OTHER, positive_ids=("good", "poor"))])
    assert "margins are measured from the lowest of several positives" in caplog.text


def test_negatives_that_are_all_judged_not_relevant_keep_their_labels(mined):
    (row,) = mined(NegativeRules(max_score=0.05)).rows
    assert (row.negative_ids, row.negative_scores, row.negative_labels) == (("a",), pytest.approx((0.7,)), (0.0,))
    (mixed,) = mined(NegativeRules(max_score=0.15)).rows
    assert (mixed.negative_ids, mixed.negative_labels) == (("a", "low"), ())


def test_labels_of_given_rows_are_judgements(mined):
    row = replace(OTHER, negative_ids=("best",), negative_labels=(0.0,))
    (found,) = mined(NegativeRules(relative_margin=0.5), rows=[row]).rows
    assert (found.negative_ids, found.negative_labels) == (("best", "low"), ())


def warnings(caplog):
    return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]


# --- further judgements ----------------------------------------------------------------------------------------------


def test_further_judgements_forbid_and_make_no_positives(mined, caplog):
    first = {"q": {"best": 1, "near": 0}, "r": {"low": 2}}
    found = mined(further_qrels=[first, {"q": {"near": 1, "gone": 1}}])
    assert found.rows[0].positive_ids == ("good", "poor")
    assert found.rows[0].negative_ids == ("a", "b", "low")  # "near": the higher of two grades counts
    assert not warnings(caplog)


def test_further_judgements_know_a_query_by_its_text(mined):
    row = TrainingRow(query_id="text:1", query="1 0 dev", positive_ids=("low",))
    assert "best" not in mined(rows=[row], further_qrels=[QRELS["dev"]]).rows[0].negative_ids


def test_judgements_of_other_queries_are_warned_of(mined, caplog):
    assert len(mined(further_qrels=[{"q": {"best": 1}}, {"nobody": {"best": 1}}]).rows[0].negative_ids) == 4
    assert warnings(caplog) == ["further judgements no. 2 say nothing about the 1 queries to mine for"]


# --- a reranker ------------------------------------------------------------------------------------------------------


@pytest.fixture
def fruit(tmp_path):
    queries = {"q": "1 0 apple"}
    return Collection.load(make_collection(tmp_path / "f", WORDS, queries, {"train": {"q": {"good": 1}}}))


def test_a_rerankers_scores_decide_and_are_written(fruit, store):
    reranker = StubReranker()
    rules = NegativeRules(first_rank=2, last_rank=3, absolute_margin=0.5)
    (row,) = mine(fruit, SpokenVectors(), rules=rules, reranker=reranker, store=store).rows
    texts = {document["_id"]: document["text"] for document in WORDS}
    assert row.positive_scores == (shared("1 0 apple", texts["good"]),) == (2.0,)
    # in the window are w3 (2 shared words, above 2 - 0.5) and w4 (1 shared word)
    assert (row.negative_ids, row.negative_scores, row.negative_ranks) == (("w4",), (1.0,), (3,))
    assert reranker.seen == ["1 0 apple"]


def test_the_rerankers_order_is_that_of_the_row_and_ties_keep_the_old_one(fruit, store):
    (row,) = mine(fruit, SpokenVectors(), rules=ALL, reranker=StubReranker(sign=-1), store=store).rows
    assert row.negative_ids == ("w1", "w4", "w3", "w2")  # -1 -1 -2 -2
    assert row.negative_ranks == (1, 3, 2, 4)


def test_an_interrupted_reranker_goes_on(collection, store, tmp_path, monkeypatch):
    monkeypatch.setattr("retrieval.reranking.PAIRS_PER_BLOCK", 1)
    rows = [TrainingRow(query_id=q, query=f"1 0 {q}", positives=(f"0.3 0 {q} says so",)) for q in ("x", "y")]
    settings = {"rows": rows, "rules": ALL}
    with pytest.raises(KeyboardInterrupt):
        mine(collection, SpokenVectors(), reranker=StubReranker(fail_at="1 0 y"), store=store, **settings)
    second = StubReranker()
    found = mine(collection, SpokenVectors(), reranker=second, store=store, **settings)
    assert second.seen == ["1 0 y"]
    new = EmbeddingStore(tmp_path / "new")
    assert found == mine(collection, SpokenVectors(), reranker=StubReranker(), store=new, **settings)


def test_a_document_may_be_called_like_a_place_in_a_list(tmp_path, store):
    text = "0.5 0 pear"
    documents = [{"_id": f"0. {text}", "text": "1 0 apple tree"}, {"_id": "0", "text": "0.9 0 apple"}]
    collection = Collection.load(make_collection(tmp_path / "c", documents, {"q": "1 0 apple"}, {}))
    rows = [TrainingRow(query_id="q", query="1 0 apple", positives=(text,))]
    (row,) = mine(collection, SpokenVectors(), rows=rows, rules=ALL, reranker=StubReranker(), store=store).rows
    assert row.positive_scores == (1.0,)
    assert dict(zip(row.negative_ids, row.negative_scores, strict=True)) == {f"0. {text}": 3.0, "0": 2.0}


# --- rows that are given ---------------------------------------------------------------------------------------------


def test_rows_keep_their_positives_and_lose_their_negatives(mined):
    row = TrainingRow(
        query_id="q",
        query="1 0",
        positive_ids=("poor",),
        positive_scores=(7.0,),
        negative_ids=("best",),
        negative_labels=(0.0,),
        negative_scores=(1.0,),
    )
    (found,) = mined(NegativeRules(num_negatives=1, first_rank=2), rows=[row]).rows
    assert (found.positive_ids, found.positive_scores) == (("poor",), pytest.approx((0.5,)))
    # "good" is not in the row, but the split judges it
    assert (found.negative_ids, found.negative_labels) == (("near",), ())


def test_positives_that_are_texts_are_scored_and_forbidden(mined):
    row = TrainingRow(query_id="text:1", query="1 0 asks", positives=("0.75 0 new", "0.7 0 far"))
    (found,) = mined(NegativeRules(absolute_margin=0.0), rows=[row]).rows
    assert found.positives == row.positives
    assert found.positive_scores == pytest.approx((0.75, 0.7))
    # "a" says what the second positive says, and "b" has its vector
    assert found.negative_ids == ("poor", "low")


def test_a_query_known_by_its_text_alone_has_the_splits_judgements(mined):
    row = TrainingRow(query_id="text:1", query="1 0", positive_ids=("low",))
    assert mined(rows=[row]).rows[0].negative_ids == ("best", "near", "a", "b")


def test_rows_do_not_need_a_split(tmp_path, store):
    collection = Collection.load(make_collection(tmp_path / "c", DOCUMENTS, QUERIES, {}))
    row = TrainingRow(query_id="q", query="1 0", positive_ids=("good",))
    assert mine(collection, SpokenVectors(), rows=[row], rules=ALL, store=store).rows[0].negative_ids[0] == "best"
    with pytest.raises(InputError, match="no split 'trian'"):
        mine(collection, SpokenVectors(), rows=[row], split="trian", store=store)


# --- many queries ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampling", ["top", "random", "gumbel"])
def test_what_is_mined_is_allowed_reads_back_and_is_the_same_again(tiny_collection, tmp_path, store, sampling):
    collection = Collection.load(tiny_collection)
    qrels, corpus = collection.qrels("train"), collection.corpus
    rules = NegativeRules(num_negatives=5, last_rank=20, sampling=sampling, absolute_margin=0.0, margin_from="highest")
    found = mine(collection, StubEncoder(), rules=rules, store=store)
    assert found == mine(collection, StubEncoder(), rules=rules, store=EmbeddingStore(tmp_path / "another"))
    for row in found.rows:
        relevant = {doc_id for doc_id, grade in qrels[row.query_id].items() if grade > 0}
        texts = {corpus.text(corpus.row(doc_id)) for doc_id in relevant} | {row.query}
        assert not relevant & set(row.negative_ids)
        assert not texts & {corpus.text(corpus.row(doc_id)) for doc_id in row.negative_ids}
        for doc_id, score in zip(row.negative_ids, row.negative_scores, strict=True):
            assert score <= max(row.positive_scores) or qrels[row.query_id].get(doc_id) == 0
        assert all(1 <= rank <= 20 for rank in row.negative_ranks)
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(line + "\n" for line in row_lines(found.rows)))
    assert read_rows(path, collection) == (found.rows, "rankwright")
    if sampling != "top":
        other = mine(
            collection, StubEncoder(), rules=NegativeRules(sampling=sampling, num_negatives=5, seed=1), store=store
        )
        assert [row.negative_ids for row in other.rows] != [row.negative_ids for row in found.rows]


def test_a_second_mining_encodes_and_searches_nothing(tiny_collection, store, monkeypatch):
    collection = Collection.load(tiny_collection)
    mine(collection, StubEncoder(), store=store)
    encoder = StubEncoder()
    monkeypatch.setattr("indexes.faiss_index.FaissIndex.search", lambda *_, **__: pytest.fail("searched again"))
    mine(collection, encoder, rules=NegativeRules(first_rank=3, last_rank=30, num_negatives=2), store=store)
    assert encoder.seen == []


def test_a_complete_store_on_a_disk_that_takes_nothing_serves(tiny_collection, store, monkeypatch, caplog):
    collection = Collection.load(tiny_collection)
    first = mine(collection, StubEncoder(), store=store)
    wrote = []

    def refuse(path, flags=0, *rest):
        if flags & os.O_CREAT:
            wrote.append(path)
            raise OSError(errno.EROFS, "Read-only file system", str(path))
        return os.open(path, flags, *rest)

    monkeypatch.setattr("indexes.disk.system.open", refuse, raising=False)
    store = EmbeddingStore(store.folder)
    assert mine(collection, StubEncoder(), store=store) == first
    assert not wrote
    turned = mine(collection, StubEncoder(), rows=first.rows[::-1], store=store)  # another search, which is not kept
    assert [row.negative_ids for row in turned.rows[::-1]] == [row.negative_ids for row in first.rows]
    assert wrote
    assert "neighbors are not kept in" in caplog.text
    assert "Read-only file system" in caplog.text


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"candidates": ["dens"]}, "unknown candidates 'dens'; did you mean 'dense'?"),
        ({"candidates": []}, "got candidates from nowhere; wanted dense, bm25 or both, once"),
        ({"candidates": ["bm25", "bm25"]}, "got candidates bm25, bm25; wanted"),
        ({"encoder": None}, "dense candidates need a model (--model)"),
        (
            {"candidates": ["bm25"], "rules": NegativeRules(relative_margin=0.1)},
            "a margin compares a model's scores with the positive's, and BM25's are none",
        ),
        ({"split": "trian"}, "no split 'trian'; did you mean 'train'?"),
        ({"rows": []}, "got no training row to mine for"),
        ({"rows": [TrainingRow(query_id="q", query="1 0", positive_ids=("x",))]}, "no document has the id 'x'"),
    ],
)
def test_bad_input(collection, store, settings, expected):
    encoder = settings.pop("encoder", SpokenVectors())
    with pytest.raises(InputError) as caught:
        mine(collection, encoder, store=store, **settings)
    assert expected in str(caught.value)


def test_there_must_be_documents(tmp_path, store):
    collection = Collection.load(make_collection(tmp_path / "c", [], QUERIES, {"train": {"q": {"good": 1}}}))
    with pytest.raises(InputError, match="holds no document to mine from"):
        mine(collection, SpokenVectors(), store=store)
