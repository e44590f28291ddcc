"""Kept scores: each pair is scored once, whatever list it stands in; lists that are read as lists are kept as lists."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from stub_reranker import shared

from indexes.storage import StorageError
from retrieval import stored_scores as module
from retrieval.embedding_store import EmbeddingStore, text_digests
from retrieval.errors import InputError
from retrieval.stored_scores import pair_digests, stored_scores

QUERIES = {"a": "red fish", "b": "blue fish", "c": "red fish"}
LISTS = {"a": ["a red fish", "a blue fish", "a bird"], "b": ["a blue fish", "a red fish"], "c": ["a red fish", "fish"]}


class Words:
    """Scores by shared words, plus the length of the list where it reads lists; `seen` are the pairs it was asked."""

    def __init__(self, *, reads_lists=False, fail_at=None, wrong=None, **known):
        self.reads_lists, self.fail_at, self.wrong, self.known = reads_lists, fail_at, wrong, known
        self.seen = []

    def score_run(self, queries, candidates):
        if self.fail_at in candidates:
            raise KeyboardInterrupt
        self.seen += [(name, text) for name, found in candidates.items() for text in found]
        extra = {name: len(found) if self.reads_lists else 0 for name, found in candidates.items()}
        return [
            np.array([shared(queries[name], text) + extra[name] for text in found], dtype=np.float32)
            if self.wrong is None
            else np.full(len(found), self.wrong, dtype=np.float32)
            for name, found in candidates.items()
        ]

    def fingerprint(self):
        return {"source": "words", **self.known}


def scores(folder, reranker, lists):
    run = {name: {text: -float(place) for place, text in enumerate(texts)} for name, texts in lists.items()}
    digests = {name: text_digests(texts) for name, texts in lists.items()}
    reads = reranker.reads_lists
    found = stored_scores(EmbeddingStore(folder), reranker, QUERIES, run, digests, reads_lists=reads)
    assert {name: one.dtype for name, one in found.items()} == dict.fromkeys(lists, np.dtype(np.float32))
    return {name: one.tolist() for name, one in found.items()}


def test_scores_by_hand_and_nothing_is_scored_again(tmp_path):
    by_hand = {"a": [2.0, 1.0, 0.0], "b": [2.0, 1.0], "c": [2.0, 1.0]}
    assert scores(tmp_path, Words(), LISTS) == by_hand
    again = Words()
    assert scores(tmp_path, again, LISTS) == by_hand
    assert again.seen == []


def test_a_pair_is_known_by_its_texts_in_any_list(tmp_path):
    scores(tmp_path, Words(), {"a": LISTS["a"]})
    second = Words()
    assert scores(tmp_path, second, {"c": ["fish", "a bird", "a red fish"], "b": ["a bird"]}) == {
        "c": [1.0, 0.0, 2.0],
        "b": [0.0],
    }
    assert second.seen == [("c", "fish"), ("b", "a bird")]


def test_a_list_that_is_read_as_a_list_is_known_as_a_list(tmp_path):
    first = Words(reads_lists=True)
    assert scores(tmp_path, first, {"a": LISTS["a"]}) == {"a": [5.0, 4.0, 3.0]}
    second = Words(reads_lists=True)
    assert scores(tmp_path, second, {"a": LISTS["a"][:2], "c": LISTS["a"]}) == {"a": [4.0, 3.0], "c": [5.0, 4.0, 3.0]}
    assert second.seen == [("a", text) for text in LISTS["a"][:2]]


def test_another_reranker_has_its_own_scores(tmp_path):
    scores(tmp_path, Words(), LISTS)
    other = Words(precision="bf16")
    scores(tmp_path, other, LISTS)
    assert len(other.seen) == 7


def test_a_model_that_was_moved_has_its_scores_and_other_weights_have_not(tmp_path):
    for known, n_seen in (("a", "1"), 7), (("b", "1"), 0), (("b", "2"), 7):
        reranker = Words(source=known[0], weights_sha256=known[1])
        scores(tmp_path, reranker, LISTS)
        assert len(reranker.seen) == n_seen


@pytest.mark.parametrize("per_shard", [1, 100])
def test_what_was_scored_before_a_stop_is_kept(tmp_path, monkeypatch, per_shard):
    monkeypatch.setattr("retrieval.reranking.PAIRS_PER_BLOCK", 2)
    monkeypatch.setattr(module, "SHARD", per_shard)
    with pytest.raises(KeyboardInterrupt):
        scores(tmp_path, Words(fail_at="c"), LISTS)
    second = Words()
    assert scores(tmp_path, second, LISTS) == scores(tmp_path / "new", Words(), LISTS)
    # two words of a list for "c" are those of "a": "a red fish" is there already
    assert second.seen == [("c", "fish")]


def test_a_wrong_score_is_not_kept(tmp_path):
    with pytest.raises(InputError, match="query 'a', document 'a red fish': the reranker's score is not a finite"):
        scores(tmp_path, Words(wrong=np.nan), LISTS)
    second = Words()
    scores(tmp_path, second, LISTS)
    assert len(second.seen) == 7


def test_no_list_and_empty_lists(tmp_path):
    assert scores(tmp_path, Words(), {}) == {}
    assert scores(tmp_path, Words(), {"a": [], "b": ["fish"]}) == {"a": [], "b": [1.0]}


def test_a_damaged_shard_is_named(tmp_path):
    scores(tmp_path, Words(), LISTS)
    (vectors,) = tmp_path.glob("*/*/*/vectors.npy")
    vectors.write_bytes(vectors.read_bytes()[:-1] + b"x")
    with pytest.raises(StorageError, match=r"vectors\.npy.*or delete"):
        scores(tmp_path, Words(), LISTS)


def test_a_store_that_cannot_be_written_costs_time_alone(tmp_path, caplog):
    (tmp_path / "store").mkdir()
    store = EmbeddingStore(tmp_path / "store")
    (tmp_path / "store").rmdir()
    (tmp_path / "store").write_text("")
    run, digests = {"a": {"a red fish": 0.0}}, {"a": text_digests(["a red fish"])}
    found = stored_scores(store, Words(), QUERIES, run, digests, reads_lists=False)
    assert found["a"].tolist() == [2.0]
    assert "scores are not kept in" in caplog.text


@given(st.text(max_size=3), st.text(max_size=3), st.lists(st.text(max_size=3), min_size=1, max_size=4, unique=True))
def test_pairs_differ_where_their_texts_do(query, other, documents):
    digests = text_digests(documents)
    alone = pair_digests(query, digests, reads_lists=False)
    assert len({pair.tobytes() for pair in alone}) == len(documents)
    assert np.array_equal(alone[:1], pair_digests(query, digests[:1], reads_lists=False))
    assert (query == other) == np.array_equal(alone, pair_digests(other, digests, reads_lists=False))
    in_list = pair_digests(query, digests, reads_lists=True)
    turned = pair_digests(query, digests[::-1], reads_lists=True)[::-1]
    assert np.array_equal(in_list, turned) == (len(documents) == 1)
