"""Kept answers of searches: the same as a search, searched once, replaced by deeper ones, and checked when read."""

import numpy as np
import pytest
from stub_encoder import StubEncoder

from indexes import FaissIndex
from indexes.storage import StorageError
from retrieval import stored_neighbors as module
from retrieval.embedding_store import EmbeddingStore
from retrieval.stored_neighbors import stored_neighbors

DOCUMENTS = [f"red apple {number} {'pear' * (number % 3)}" for number in range(50)]
QUERIES = [f"apple {number}" for number in range(11)]


def embedded(store, side, texts, **fingerprint):
    return EmbeddingStore(store).embed(StubEncoder(**fingerprint), side, texts, lambda some: [texts[i] for i in some])


class Searches:
    """Makes indexes and counts how often."""

    def __init__(self, documents) -> None:
        self.documents, self.made = documents, 0

    def __call__(self) -> FaissIndex:
        self.made += 1
        index = FaissIndex(self.documents.dim)
        index.add(self.documents.rows())
        return index


@pytest.fixture
def asked(tmp_path):
    """Ask for neighbors and return (neighbors, whether something was searched)."""

    def ask(k, queries=QUERIES, documents=DOCUMENTS, **fingerprint):
        found = (
            embedded(tmp_path, "query", queries, **fingerprint),
            embedded(tmp_path, "document", documents, **fingerprint),
        )
        searches = Searches(found[1])
        return stored_neighbors(tmp_path, *found, k, searches), bool(searches.made)

    return ask


@pytest.mark.parametrize("block", [3, 4_096])
def test_the_answer_is_that_of_a_search_with_all_ties(asked, monkeypatch, block):
    monkeypatch.setattr(module, "_BLOCK", block)
    encoder = StubEncoder()
    index = FaissIndex(encoder.dim)
    index.add(encoder.encode_query(DOCUMENTS))
    expected = index.search(encoder.encode_query(QUERIES), 7, ties=True)
    for is_new in (True, False):
        found, searched = asked(7)
        assert searched == is_new
        assert np.array_equal(found.rows, expected.rows)
        assert np.allclose(found.scores, expected.scores, atol=1e-6)


def test_a_deep_answer_serves_every_smaller_depth_and_replaces_what_was_there(asked):
    assert [asked(k)[1] for k in (5, 20, 5, 20, 21)] == [True, True, False, False, True]
    assert asked(9)[0].rows.shape[1] >= 21


def test_more_than_there_are_is_all_of_them(asked):
    assert [asked(k)[1] for k in (50, 80, 1_000)] == [True, False, False]


@pytest.mark.parametrize(
    "change",
    [
        {"queries": QUERIES[::-1]},
        {"documents": DOCUMENTS[::-1]},
        {"documents": [*DOCUMENTS, "new"]},
        {"weights_sha256": "1" * 64},
    ],
)
def test_another_search_has_an_answer_of_its_own(asked, change):
    asked(5)
    assert asked(5, **change)[1]
    assert not asked(5)[1]


@pytest.mark.parametrize("name", ["rows.npy", "scores.npy"])
def test_damage_is_named_with_what_to_do(asked, tmp_path, name):
    asked(5)
    (path,) = (tmp_path / "neighbors").glob(f"*/v*/{name}")
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    with pytest.raises(StorageError, match=rf"{name}.*delete .*neighbors.*, and the search is done again"):
        asked(5)
