"""What the benchmarks' cells train on and measure: drawn lists, topics, split folders, scraps, hashes."""

import json
import math

import pytest

from benchmarks import data, quality, side_by_side, topics
from benchmarks.cells import Options
from benchmarks.judged_lists import write_judged_lists
from indexes.storage import write_lines
from retrieval.collection import Collection
from retrieval.rows import read_rows
from retrieval.splits import fingerprint


@pytest.fixture
def options(tmp_path) -> Options:
    return Options(shared=tmp_path / "shared", results=tmp_path / "results", build=tmp_path / "build")


def beir(folder, documents, queries, splits) -> Collection:
    write_lines(
        folder / "corpus.jsonl",
        (json.dumps({"_id": d, "title": title, "text": f"text of {d}"}) for d, title in documents.items()),
    )
    write_lines(folder / "queries.jsonl", (json.dumps({"_id": q, "text": text}) for q, text in queries.items()))
    for split, qrels in splits.items():
        lines = [f"{q}\t{d}\t{grade}" for q, judged in qrels.items() for d, grade in judged.items()]
        write_lines(folder / "qrels" / f"{split}.tsv", ["query-id\tcorpus-id\tscore", *lines])
    return Collection(folder)


@pytest.fixture
def judged(tmp_path) -> Collection:
    documents = {f"d{i}": f"topic {i % 3}" for i in range(30)}
    grades = {
        "q1": {f"d{i}": 1 + i % 3 for i in range(20)},
        "q2": {f"d{i}": 1 + i % 2 for i in range(12)},
        "q3": {"d1": 3, "d2": 1},
    }
    queries = {"q1": "first question", "q2": "second question", "q3": "third question"}
    return beir(tmp_path / "judged", documents, queries, {"train": grades, "test": {"q1": {"d29": 1}}})


def drawn(collection, tmp_path, *, seed=0, positive_from=1):
    path = tmp_path / "rows.jsonl"
    n_empty = write_judged_lists(collection, path, size=8, seed=seed, positive_from=positive_from)
    rows, dialect = read_rows(path, collection)
    assert dialect == "rankwright"
    return {row.query_id: row for row in rows}, n_empty


def test_lists_hold_the_same_documents_whatever_counts_as_relevant(judged, tmp_path):
    graded, n_empty = drawn(judged, tmp_path)
    assert n_empty == 0
    assert {q: len(row.positive_ids) for q, row in graded.items()} == {"q1": 8, "q2": 8, "q3": 2}
    assert all(not row.negative_ids for row in graded.values())
    strict, n_empty = drawn(judged, tmp_path, positive_from=3)
    assert n_empty == 1  # q2 has no grade 3
    assert set(strict) == {"q1", "q3"}
    for query_id, row in strict.items():
        assert {*row.positive_ids, *row.negative_ids} == set(graded[query_id].positive_ids)
        assert set(row.positive_labels) == {3.0}
    qrels = judged.qrels("train")
    assert all(qrels["q1"][d] < 3 for d in strict["q1"].negative_ids)


def test_lists_are_drawn_by_the_seed(judged, tmp_path):
    first, again, other = (drawn(judged, tmp_path, seed=seed)[0]["q1"].positive_ids for seed in (0, 0, 1))
    assert first == again
    assert set(first) != set(other)


def test_mistakes_by_hand(judged):
    run = {"a": {"d0": 1.0, "d1": 0.5}, "b": {"d3": 1.0}, "c": {"d4": 1.0}}
    qrels = {"a": {"d0": 1}, "b": {"d0": 1}, "c": {"d0": 1}, "missing": {"d0": 1}}
    assert topics.mistakes(judged, qrels, run) == {"queries": 4, "first_is_wrong": 2, "of_the_same_topic": 1}


def test_own_topic_negatives_by_hand(tmp_path):
    documents = {"d0": "Flu", "d1": "flu", "d2": "Gout", "d3": "Mumps"}
    qrels = {f"q{i}": {f"d{i}": 1} for i in range(4)}
    collection = beir(tmp_path / "c", documents, {f"q{i}": f"question {i}" for i in range(4)}, {"train": qrels})
    # one batch of all: the two about flu have one negative of their topic each
    assert topics.own_topic_negatives(collection, 4, seed=0) == {"mean": 0.5, "queries_with_one": 0.5}


def test_a_split_folder_is_written_once_and_again_when_it_changed(judged, tmp_path):
    folder, splits = tmp_path / "splits", {"train": {"q1": {"d1": 1}}, "test": {"q2": {"d2": 2}}}
    assert data.split_folder(judged, splits, folder) == fingerprint(splits)
    assert Collection(folder).qrels("train") == splits["train"]
    stamp = (folder / "split.json").stat().st_mtime_ns
    data.split_folder(judged, splits, folder)
    assert (folder / "split.json").stat().st_mtime_ns == stamp
    data.split_folder(judged, {**splits, "test": {"q3": {"d1": 1}}}, folder)
    assert Collection(folder).qrels("test") == {"q3": {"d1": 1}}


def test_the_data_hash_sees_texts_and_judgements(judged):
    before = data.data_hash(judged)
    assert data.data_hash(Collection(judged.path)) == before
    path = judged.qrels_path("train")
    path.write_text(path.read_text().replace("q3\td1\t3", "q3\td1\t2"))
    changed = data.data_hash(Collection(judged.path))
    assert changed != before
    path = judged.corpus_path
    path.write_text(path.read_text().replace("text of d9", "text of D9"))
    assert data.data_hash(Collection(judged.path)) not in (before, changed)


def test_a_scrap_is_a_small_collection_of_the_same_splits(tmp_path):
    documents = {f"d{i}": f"topic {i}" for i in range(500)}
    queries = {f"q{i}": f"question {i}" for i in range(100)}
    qrels = {
        "train": {f"q{i}": {f"d{499 - i}": 1} for i in range(60)},
        "test": {f"q{i}": {"d7": 1} for i in range(60, 99)},
    }
    beir(tmp_path / "shared" / "data" / "some", documents, queries, qrels)
    options = Options(shared=tmp_path / "shared", results=tmp_path, build=tmp_path / "build", tiny=True)
    scrap = data.collection("some", options)
    assert scrap.splits == ["test", "train"]
    assert len(scrap.qrels("train")) == len(scrap.qrels("test")) == data.SCRAP_QUERIES
    assert len(scrap.corpus) == data.SCRAP_DOCUMENTS + data.SCRAP_QUERIES
    assert scrap.queries("train")["q0"] == "question 0"
    whole = data.collection("some", Options(shared=tmp_path / "shared", results=tmp_path, build=tmp_path, tiny=False))
    assert len(whole.corpus) == 500


def test_pairs_are_title_and_text(judged, tmp_path):
    rows, _ = read_rows(side_by_side.write_pairs(judged, tmp_path / "pairs.jsonl"), judged)
    assert len(rows) == 30
    assert (rows[0].query, rows[0].positives) == ("topic 0", ("text of d0",))


def test_bm25_cells_measure_every_query(judged, tmp_path):
    settings = {"method": "BM25", "split": "train", "measures": ["nDCG@10", "R@100"]}
    found, run = quality.work(settings, tmp_path / "work", judged.path)
    assert set(run) == {"q1", "q2", "q3"}
    assert (found["documents"], found["queries"]) == (30, 3)
    for measure in settings["measures"]:
        assert found["mean"][measure] == pytest.approx(math.fsum(found["per_query"][measure].values()) / 3, abs=1e-5)
