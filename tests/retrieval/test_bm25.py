import json
import math
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieval.bm25 import STOP_WORDS, BM25Searcher
from retrieval.corpus import Corpus
from retrieval.errors import InputError

TEXTS = {
    "d1": "cats chase mice",
    "d2": "dogs chase cats and cats flee",
    "d3": "mice eat cheese",
    "d4": "the of and",
    "d5": "",
}


class Texts:
    """The part of a corpus that BM25 needs, from a dict."""

    def __init__(self, texts):
        self.ids, self._texts = list(texts), list(texts.values())

    def __len__(self):
        return len(self.ids)

    def text(self, row):
        return self._texts[row]


def reference(texts, query, k1=0.9, b=0.4):
    """BM25 in Lucene's variant over words that the stemmer leaves as they are, by the formula."""
    terms = {name: [w for w in text.lower().split() if w not in STOP_WORDS] for name, text in texts.items()}
    mean = sum(map(len, terms.values())) / len(terms)
    scores = dict.fromkeys(texts, 0.0)
    for term in query.lower().split():
        holders = sum(term in words for words in terms.values())
        idf = math.log(1 + (len(texts) - holders + 0.5) / (holders + 0.5))
        for name, words in terms.items():
            tf = Counter(words)[term]
            scores[name] += idf * tf / (tf + k1 * (1 - b + b * len(words) / mean)) if tf else 0
    return {name: score for name, score in scores.items() if score > 0}


@pytest.fixture
def searcher():
    return BM25Searcher.build(Texts(TEXTS))


def test_a_score_by_hand(searcher):
    # Terms: 3, 5, 3, 0, 0 ("and" is a stop word), mean 11 / 5. "dog" stands in one of 5 documents, once.
    idf = math.log(1 + (5 - 1 + 0.5) / (1 + 0.5))
    score = idf * 1 / (1 + 0.9 * (1 - 0.4 + 0.4 * 5 / (11 / 5)))
    assert searcher.search("dog", k=10) == [("d2", pytest.approx(score, rel=1e-6))]


def test_words_are_stemmed_lowered_and_stopped(searcher):
    assert searcher.search("The CHASING of a cat!", k=10) == searcher.search("chase cats", k=10)
    assert [doc_id for doc_id, _ in searcher.search("chase cats", k=10)] == ["d2", "d1"]


def test_a_repeated_term_counts_as_often(searcher):
    once, twice = dict(searcher.search("mice", k=5)), dict(searcher.search("mice mouse mice", k=5))
    assert twice == {doc_id: pytest.approx(2 * score) for doc_id, score in once.items()}


@pytest.mark.parametrize("query", ["", "the of", "unicorn", "x", "…"])
def test_queries_without_a_known_word_find_nothing(searcher, query):
    assert searcher.search(query, k=3) == []
    assert searcher.run({"q": query}, k=3) == {"q": {}}


def test_documents_without_a_term_are_not_returned(searcher):
    assert set(searcher.run({"q": "cheese"}, k=100)["q"]) == {"d3"}


def test_a_run_keeps_its_queries_and_their_order(searcher):
    queries = {"b": "cats", "a": "unicorn", "c": "mice"}
    run = searcher.run(queries, k=1)
    assert list(run) == ["b", "a", "c"]
    assert {query_id: len(found) for query_id, found in run.items()} == {"b": 1, "a": 0, "c": 1}
    assert all(type(score) is float for found in run.values() for score in found.values())
    assert run["b"] == dict(searcher.search("cats", k=1))


def test_ties_at_k_go_to_the_larger_id_whatever_the_row():
    texts = {name: "same text" for name in ["b", "é", "a", "z", "B", "10", "9"]} | {"best": "same"}
    found = BM25Searcher.build(Texts(texts)).search("same", k=4)
    # best first; then by falling UTF-8 bytes: é (0xc3), z, b
    assert [doc_id for doc_id, _ in found] == ["best", "é", "z", "b"]
    everything = BM25Searcher.build(Texts(texts)).search("same", k=99)
    assert [doc_id for doc_id, _ in everything] == ["best", "é", "z", "b", "a", "B", "9", "10"]


VOCABULARY = ["cat", "dog", "fish", "bird", "the"]  # the stemmer leaves them alone, and "the" is a stop word
DOCUMENTS = st.lists(st.lists(st.sampled_from(VOCABULARY), max_size=6).map(" ".join), min_size=1, max_size=8)
SETTINGS = st.tuples(st.sampled_from([0.0, 0.9, 2.0]), st.sampled_from([0.0, 0.4, 1.0]))


@given(DOCUMENTS, st.lists(st.sampled_from(VOCABULARY), max_size=4).map(" ".join), SETTINGS)
def test_equals_the_formula(texts, query, settings):
    k1, b = settings
    texts = {f"d{number}": text for number, text in enumerate(texts)}
    got = dict(BM25Searcher.build(Texts(texts), k1=k1, b=b).search(query, k=len(texts)))
    wanted = reference(texts, query, k1, b) if any(words.split() for words in texts.values()) else {}
    assert got == {doc_id: pytest.approx(score, rel=1e-5) for doc_id, score in wanted.items()}


@given(DOCUMENTS, st.lists(st.sampled_from(VOCABULARY), max_size=4).map(" ".join), st.integers(1, 9))
def test_top_k_is_the_head_of_the_whole_ranking(texts, query, k):
    searcher = BM25Searcher.build(Texts({f"d{number}": text for number, text in enumerate(texts)}))
    everything = searcher.search(query, k=100)
    assert searcher.search(query, k) == everything[:k]
    by_rule = sorted(everything, key=lambda hit: (np.float32(hit[1]), hit[0].encode()), reverse=True)
    assert everything == by_rule


@given(DOCUMENTS, st.randoms(use_true_random=False))
def test_the_order_of_the_documents_does_not_matter(texts, random):
    texts = {f"d{number}": text for number, text in enumerate(texts)}
    shuffled = list(texts.items())
    random.shuffle(shuffled)
    query = "cat fish"
    assert BM25Searcher.build(Texts(dict(shuffled))).search(query, 5) == BM25Searcher.build(Texts(texts)).search(
        query, 5
    )


@pytest.mark.parametrize("texts", [{}, {"a": ""}, {"a": "the", "b": " "}])
def test_corpora_without_a_word(texts):
    searcher = BM25Searcher.build(Texts(texts))
    assert searcher.search("cats", k=3) == []
    assert searcher.run({"q": "cats"}, k=3) == {"q": {}}


def test_a_single_document():
    assert [doc_id for doc_id, _ in BM25Searcher.build(Texts({"only": "cats"})).search("cat", k=5)] == ["only"]


def test_title_and_text_of_a_corpus_file_are_searched(tmp_path):
    path = tmp_path / "corpus.jsonl"
    records = [
        {"_id": "1", "title": "Zebra", "text": "an animal with stripes"},
        {"_id": "2", "text": "an animal without stripes"},
        {"_id": "3", "title": "日本語", "text": "ein Tier"},
    ]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    searcher = BM25Searcher.build(Corpus.load(path))
    assert [doc_id for doc_id, _ in searcher.search("zebras", k=3)] == ["1"]
    assert [doc_id for doc_id, _ in searcher.search("striped animals", k=3)] == ["2", "1"]
    assert [doc_id for doc_id, _ in searcher.search("日本語", k=3)] == ["3"]


@pytest.mark.parametrize("k", [0, -1])
def test_bad_k(searcher, k):
    with pytest.raises(InputError, match=f"k must be at least 1, got {k}"):
        searcher.search("cats", k)
    with pytest.raises(InputError, match=f"k must be at least 1, got {k}"):
        searcher.run({"q": "cats"}, k)


@pytest.mark.parametrize("settings", [{"k1": -1}, {"k1": math.nan}, {"k1": math.inf}, {"b": -0.1}, {"b": 1.5}])
def test_bad_settings(settings):
    with pytest.raises(InputError, match=next(iter(settings))):
        BM25Searcher.build(Texts(TEXTS), **settings)


def test_importing_the_module_loads_no_library():
    code = "import sys, retrieval.bm25; print(sorted({'bm25s', 'Stemmer', 'torch', 'scipy'} & set(sys.modules)))"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "[]"


def ndcg_at_10(qrels, run):
    """nDCG@10 with linear gain and trec_eval's order, without this project's code."""
    values = []
    for query_id, grades in qrels.items():
        order = sorted(run[query_id], key=lambda d: (np.float32(run[query_id][d]), d.encode()), reverse=True)
        gains = [max(grades.get(doc_id, 0), 0) for doc_id in order[:10]]
        ideal = sorted(grades.values(), reverse=True)[:10]
        values.append(
            sum(g / math.log2(i + 2) for i, g in enumerate(gains))
            / sum(g / math.log2(i + 2) for i, g in enumerate(ideal))
        )
    return sum(values) / len(values)


@pytest.mark.parametrize(("name", "known", "tolerance"), [("scifact", 0.679, 0.01), ("medquad", 0.641, 0.005)])
def test_known_figures(shared, name, known, tolerance):
    folder = shared / "data" / name
    qrels = {}
    for line in (folder / "qrels" / "test.tsv").read_text().splitlines()[1:]:
        query_id, doc_id, grade = line.split("\t")
        qrels.setdefault(query_id, {})[doc_id] = int(grade)
    records = map(json.loads, (folder / "queries.jsonl").read_text().splitlines())
    queries = {record["_id"]: record["text"] for record in records if record["_id"] in qrels}
    run = BM25Searcher.build(Corpus.load(folder / "corpus.jsonl")).run(queries, k=10)
    assert ndcg_at_10(qrels, run) == pytest.approx(known, abs=tolerance)
