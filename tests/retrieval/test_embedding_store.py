"""The store of embeddings: only new texts are encoded, whatever the ids; damage is named; stores can be merged."""

import json
import logging
import os
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
from beir_folder import make_collection
from hypothesis import given, settings
from hypothesis import strategies as st
from stub_encoder import StubEncoder

from indexes.storage import StorageError, locked, open_folder
from retrieval import embedding_store
from retrieval.collection import Collection
from retrieval.embedding_store import EmbeddingStore, text_digests, vector_key
from retrieval.errors import InputError

PLAIN_KEY = json.dumps(vector_key(StubEncoder().fingerprint(), "document"), sort_keys=True).encode()
TEXTS = [f"text number {number}" for number in range(40)]


@pytest.fixture
def small(monkeypatch):
    """4 texts per block, 8 per shard."""
    monkeypatch.setattr(embedding_store, "BLOCK", 4)
    monkeypatch.setattr(embedding_store, "SHARD", 8)


def embed(folder, texts=TEXTS, encoder=None, side="document"):
    encoder = encoder or StubEncoder()
    ids = [f"id-{number}" for number in range(len(texts))]
    return EmbeddingStore(folder).embed(encoder, side, ids, lambda some: [texts[i] for i in some])


def shards(folder) -> list[Path]:
    return sorted(path.parent for path in Path(folder).glob("*/*/CURRENT") if path.parent.parent.name != "corpora")


def expected(texts) -> np.ndarray:
    return StubEncoder().encode_query(texts)


# --- contents --------------------------------------------------------------------------------------------------------


def test_vectors_come_in_the_order_of_the_texts(small, tmp_path):
    first = embed(tmp_path)
    assert (len(first), first.dim, first.encoded, len(shards(tmp_path))) == (40, 16, 40, 5)
    assert np.array_equal(first.rows(), expected(TEXTS))
    turned = embed(tmp_path, TEXTS[::-1])
    assert turned.encoded == 0
    assert np.array_equal(turned.rows(), expected(TEXTS[::-1]))
    assert np.array_equal(turned.rows(np.array([39, 0, 39])), expected([TEXTS[0], TEXTS[39], TEXTS[0]]))
    assert np.array_equal(np.concatenate(list(turned.blocks(7))), turned.rows())
    assert turned.rows().dtype == np.float32


def test_only_new_texts_are_encoded_and_each_once(small, tmp_path):
    embed(tmp_path, TEXTS[:10])
    encoder = StubEncoder()
    mixed = ["new one", *TEXTS[5:15], "new one", "new two"]
    found = embed(tmp_path, mixed, encoder)
    assert encoder.seen == ["new one", *TEXTS[10:15], "new two"]
    assert found.encoded == 7
    assert np.array_equal(found.rows(), expected(mixed))


@settings(max_examples=15)
@given(st.lists(st.lists(st.sampled_from(TEXTS), max_size=12), max_size=4))
def test_whatever_was_asked_before_the_answer_is_the_same(tmp_path_factory, calls):
    folder = tmp_path_factory.mktemp("store")
    known: set[str] = set()
    for texts in calls:
        encoder = StubEncoder()
        assert np.array_equal(embed(folder, texts, encoder).rows(), expected(texts))
        assert encoder.seen == [text for text in dict.fromkeys(texts) if text not in known]
        known |= set(texts)


def test_nothing_is_a_matrix_without_rows(tmp_path):
    assert embed(tmp_path, []).rows().shape == (0, 16)


@pytest.mark.parametrize(
    "change",
    [
        {"weights_sha256": "1" * 64},
        {"modules": ["Other"]},
        {"document_prompt": "passage: "},
        {"document_max_length": 64},
        {"precision": "bf16"},
        {"similarity": "dot"},
    ],
)
def test_what_decides_a_vector_has_a_folder_of_its_own(tmp_path, change):
    embed(tmp_path, TEXTS[:3])
    assert embed(tmp_path, TEXTS[:3], StubEncoder(**change)).encoded == 3


@pytest.mark.parametrize("change", [{"source": "elsewhere"}, {"query_prompt": "q: "}, {"query_max_length": 9}])
def test_what_does_not_decide_it_has_not(tmp_path, change):
    embed(tmp_path, TEXTS[:3])
    assert embed(tmp_path, TEXTS[:3], StubEncoder(**change)).encoded == 0


def test_the_sides_are_apart(tmp_path):
    embed(tmp_path, TEXTS[:3])
    assert embed(tmp_path, TEXTS[:3], side="query").encoded == 3
    assert vector_key(StubEncoder().fingerprint(), "query")["max_length"] == 64


def test_stores_of_two_machines_become_one_by_copying(small, tmp_path):
    embed(tmp_path / "a", TEXTS[:20])
    embed(tmp_path / "b", TEXTS[12:])
    shutil.copytree(tmp_path / "a", tmp_path / "both")
    shutil.copytree(tmp_path / "b", tmp_path / "both", dirs_exist_ok=True)
    found = embed(tmp_path / "both")
    assert found.encoded == 0
    assert np.array_equal(found.rows(), expected(TEXTS))


def test_the_same_texts_give_the_same_files(small, tmp_path):
    for name in ("a", "b"):
        embed(tmp_path / name)
    one, other = ([path.relative_to(tmp_path / name) for path in shards(tmp_path / name)] for name in ("a", "b"))
    assert one == other


# --- interruptions and damage ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_finished_blocks_survive(small, tmp_path, error):
    class Stopping(StubEncoder):
        def encode_blocks(self, blocks, side, **settings):
            for number, vectors in enumerate(super().encode_blocks(blocks, side, **settings)):
                if number == 3:
                    raise error
                yield vectors

    with pytest.raises(error):
        embed(tmp_path, encoder=Stopping())
    assert len(shards(tmp_path)) == 2  # a whole one and the block that was begun
    encoder = StubEncoder()
    assert np.array_equal(embed(tmp_path, encoder=encoder).rows(), expected(TEXTS))
    assert encoder.seen == TEXTS[12:]


def test_a_vector_that_is_not_finite_is_refused_by_the_texts_id(small, tmp_path):
    with pytest.raises(ValueError, match=r"id-6\).*component 3 is nan"):
        embed(tmp_path, encoder=StubEncoder(poison=TEXTS[6]))
    assert embed(tmp_path, TEXTS[:4]).encoded == 0


@pytest.mark.parametrize("name", ["digests.npy", "vectors.npy", "manifest.json"])
def test_damage_is_named_with_what_to_do(small, tmp_path, name):
    embed(tmp_path)
    shard = shards(tmp_path)[2]
    path = open_folder(shard, kind=embedding_store.KIND).path / name
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    with pytest.raises(StorageError) as caught:
        embed(tmp_path)
    assert name in str(caught.value)
    assert f"delete {shard}, and its texts are encoded again" in str(caught.value)
    shutil.rmtree(shard)
    assert embed(tmp_path).encoded == 8


def test_a_shard_in_the_folder_of_other_settings_is_refused(small, tmp_path):
    embed(tmp_path, TEXTS[:4])
    embed(tmp_path, TEXTS[4:8], StubEncoder(document_prompt="p: "))
    one, other = shards(tmp_path)
    folders = {shard.parent: shard for shard in (one, other)}
    (mine,) = (folder for folder in folders if folder.name == embedding_store._name(PLAIN_KEY))
    stranger = next(shard for folder, shard in folders.items() if folder != mine)
    shutil.move(stranger, mine)
    with pytest.raises(StorageError, match="holds vectors of another model or other settings than its folder"):
        embed(tmp_path, TEXTS[:8])


def test_a_shard_that_was_never_finished_is_as_if_it_were_not_there(small, tmp_path):
    embed(tmp_path, TEXTS[:4])
    (shard,) = shards(tmp_path)
    os.unlink(shard / "CURRENT")
    found = embed(tmp_path, TEXTS[:4])
    assert found.encoded == 4
    assert np.array_equal(found.rows(), expected(TEXTS[:4]))


def test_where_everything_is_there_nothing_is_locked(tmp_path):
    embed(tmp_path, TEXTS[:4])
    with locked(shards(tmp_path)[0].parent):
        assert embed(tmp_path, TEXTS[:4]).encoded == 0


def test_a_second_process_waits_and_encodes_what_the_first_left(small, tmp_path, monkeypatch, caplog):
    """The first holds the lock, finishes two of the texts that the second wants, and lets go."""
    monkeypatch.setattr(embedding_store, "_POLL", 0.001)
    embed(tmp_path, TEXTS[:4])
    embed(tmp_path / "other", TEXTS[4:6])
    folder = shards(tmp_path)[0].parent
    holds, done = threading.Event(), threading.Event()

    def first():
        with locked(folder):
            holds.set()
            assert done.wait(60)
            shutil.copytree(tmp_path / "other" / folder.name, folder, dirs_exist_ok=True)

    class Log(logging.Handler):
        def emit(self, record):
            done.set()

    process = threading.Thread(target=first)
    process.start()
    assert holds.wait(60)
    monkeypatch.setattr(embedding_store.log, "handlers", [Log()])
    encoder = StubEncoder()
    with caplog.at_level(logging.INFO, logger="retrieval"):
        found = embed(tmp_path, TEXTS[:8], encoder)
    process.join()
    assert np.array_equal(found.rows(), expected(TEXTS[:8]))
    assert (found.encoded, encoder.seen) == (2, TEXTS[6:8])
    waiting = [message for message in caplog.messages if "waiting for its embeddings" in message]
    assert len(waiting) == 1
    assert f"in use by process {os.getpid()}" in waiting[0]


def test_waiting_can_be_stopped(tmp_path, monkeypatch):
    def stopped(seconds):
        raise KeyboardInterrupt

    embed(tmp_path, TEXTS[:4])
    monkeypatch.setattr(embedding_store.time, "sleep", stopped)
    with locked(shards(tmp_path)[0].parent), pytest.raises(KeyboardInterrupt):
        embed(tmp_path, TEXTS[:5])


def test_each_shard_is_opened_and_checked_once(small, tmp_path, monkeypatch):
    embed(tmp_path, TEXTS[:16])
    opened, open_shard = [], embedding_store._open_shard
    monkeypatch.setattr(
        embedding_store, "_open_shard", lambda folder, key: opened.append(folder) or open_shard(folder, key)
    )
    store = EmbeddingStore(tmp_path)
    for texts in ([], TEXTS[:20], TEXTS[:20], TEXTS[8:]):
        ids = [str(number) for number in range(len(texts))]
        store.embed(StubEncoder(), "document", ids, lambda some, texts=texts: [texts[i] for i in some])
    assert sorted(opened) == shards(tmp_path)
    assert len(opened) == 2 + 1 + 3


# --- digests of a corpus ---------------------------------------------------------------------------------------------


def test_a_corpus_is_read_once(tmp_path, monkeypatch):
    corpus = Collection.load(make_collection(tmp_path / "c")).corpus
    texts = corpus.texts(range(len(corpus)))
    store = EmbeddingStore(tmp_path / "store")
    assert np.array_equal(store.embed_corpus(StubEncoder(), corpus).rows(), expected(texts))
    monkeypatch.setattr("retrieval.corpus.Corpus.text", lambda *_: pytest.fail("read again"))
    assert np.array_equal(store.corpus_digests(corpus), text_digests(texts))
    assert store.embed_corpus(StubEncoder(), corpus).encoded == 0


def test_a_changed_corpus_is_read_again_and_only_its_new_text_encoded(tmp_path):
    documents = [{"_id": str(number), "text": text} for number, text in enumerate(TEXTS[:4])]
    store = EmbeddingStore(tmp_path / "store")
    for name, change, encoded in (("a", {}, 4), ("b", {"_id": "other"}, 0), ("c", {"text": "changed"}, 1)):
        documents[2] = documents[2] | change
        corpus = Collection.load(make_collection(tmp_path / name, documents)).corpus
        assert store.embed_corpus(StubEncoder(), corpus).encoded == encoded


def test_digests_that_cannot_be_kept_are_returned(tmp_path, caplog):
    corpus = Collection.load(make_collection(tmp_path / "c")).corpus
    expected, store = text_digests(corpus.texts(range(len(corpus)))), EmbeddingStore(tmp_path / "store")
    name = embedding_store._name(f"{corpus.sha256} {len(corpus)} title text".encode())
    with locked(tmp_path / "store" / "corpora" / name):
        assert np.array_equal(store.corpus_digests(corpus), expected)
    assert "hashes of texts are not kept in" in caplog.text
    assert "in use by process" in caplog.text


def test_damaged_digests_are_named_with_what_to_do(tmp_path):
    corpus = Collection.load(make_collection(tmp_path / "c")).corpus
    store = EmbeddingStore(tmp_path / "store")
    store.corpus_digests(corpus)
    (path,) = (tmp_path / "store" / "corpora").glob("*/v*/digests.npy")
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    with pytest.raises(StorageError, match=r"digests.npy.*delete .*corpora.*and the corpus is read again"):
        store.corpus_digests(corpus)


def test_a_file_is_no_store(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="file: is a file; wanted the folder of a store of embeddings"):
        EmbeddingStore(tmp_path / "file")


def test_the_default_store_lies_in_the_users_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RANKWRIGHT_CACHE", str(tmp_path))
    assert EmbeddingStore().folder == tmp_path / "embeddings"
