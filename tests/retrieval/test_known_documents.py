"""The documents of a run that a corpus has."""

import pytest
from beir_folder import make_collection

from retrieval.collection import Collection
from retrieval.errors import InputError
from retrieval.known_documents import known_documents

RUN = {"q1": {"d9": 3.0, "d1": 2.0, "d8": 1.0}, "q2": {"d2": 1.0}, "q3": {"d7": 1.0}, "q4": {}}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return Collection.load(make_collection(tmp_path_factory.mktemp("small") / "c")).corpus


def test_the_first_stranger_is_named(corpus):
    with pytest.raises(InputError) as caught:
        known_documents(RUN, corpus)
    assert str(caught.value).endswith(
        "corpus.jsonl: query 'q1' of the run has document 'd9', which is not in the corpus"
    )


def test_strangers_are_left_out_and_counted(corpus, caplog):
    assert known_documents(RUN, corpus, "skip") == {"q1": {"d1": 2.0}, "q2": {"d2": 1.0}, "q3": {}, "q4": {}}
    assert caplog.messages == ["3 documents of the run are not in the corpus and are left out"]
    assert len(RUN["q1"]) == 3  # the given run is not changed


def test_a_run_without_strangers_is_returned_as_it_is(corpus, caplog):
    assert known_documents({"q2": {"d2": 1.0}}, corpus) == {"q2": {"d2": 1.0}}
    assert caplog.messages == []


def test_another_way_with_errors_is_refused(corpus):
    with pytest.raises(InputError, match="on_error must be 'fail' or 'skip', got 'ignore'"):
        known_documents({}, corpus, "ignore")
