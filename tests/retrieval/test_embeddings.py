"""Embeddings as files: what is written comes back, and an interruption loses one part."""

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from beir_folder import make_collection
from stub_encoder import StubEncoder
from tiny_files import documents

from indexes.storage import StorageError, locked, open_folder
from retrieval import embeddings
from retrieval.collection import Collection
from retrieval.embeddings import encode_collection, load_embeddings
from retrieval.errors import InputError

N = len(documents())


@pytest.fixture
def collection(tiny_collection) -> Collection:
    return Collection.load(tiny_collection)


@pytest.fixture
def small_parts(monkeypatch):
    """16 texts per part, so that the tiny collection has four."""
    monkeypatch.setattr(embeddings, "PART", 16)


def parts_of(out: Path) -> list[str]:
    return sorted(path.name for path in out.with_name(f".{out.name}.parts").glob("part-*"))


def vectors_file(out: Path) -> bytes:
    return (open_folder(out, kind="embeddings").path / "embeddings.npy").read_bytes()


# --- round trip ------------------------------------------------------------------------------------------------------


def test_documents_come_back(collection, tmp_path):
    encoder = StubEncoder()
    encode_collection(encoder, collection, tmp_path / "d")
    found = load_embeddings(tmp_path / "d")
    expected = encoder.encode_query(collection.corpus.texts(range(N)))
    assert np.array_equal(found.vectors, expected)
    assert found.vectors.dtype == np.float32
    assert list(found.ids) == list(collection.corpus.ids)
    assert found.manifest["side"] == "document"
    assert found.manifest["model"] == encoder.fingerprint()
    assert found.manifest["data_sha256"] == collection.corpus.sha256
    assert found.manifest["rows"] == N
    assert sorted(os.listdir(tmp_path)) == ["d"]  # no parts are left


def test_the_files_are_plain(collection, tmp_path):
    encode_collection(StubEncoder(), collection, tmp_path / "d")
    folder = open_folder(tmp_path / "d", kind="embeddings").path
    assert sorted(os.listdir(folder)) == ["embeddings.npy", "ids.txt", "manifest.json"]
    assert np.load(folder / "embeddings.npy", allow_pickle=False).shape == (N, 16)
    assert (folder / "ids.txt").read_text(encoding="utf-8").splitlines() == list(collection.corpus.ids)


def test_queries_of_a_split_come_back(collection, tmp_path):
    encoder = StubEncoder()
    encode_collection(encoder, collection, tmp_path / "q", side="query", split="test")
    found = load_embeddings(tmp_path / "q")
    queries = collection.queries("test")
    assert list(found.ids) == list(queries)
    assert np.array_equal(found.vectors, encoder.encode_query(queries.values()))
    assert found.manifest["side"] == "query"


def test_queries_without_a_split_are_all_queries(collection, tmp_path):
    encode_collection(StubEncoder(), collection, tmp_path / "q", side="query")
    assert list(load_embeddings(tmp_path / "q").ids) == list(collection.queries())


def test_real_vectors_are_those_of_the_encoder(collection, tmp_path, tiny_model, small_parts):
    pytest.importorskip("sentence_transformers", reason="needs the train extra")
    from retrieval.encoder import Encoder

    encoder = Encoder.load(tiny_model, device="cpu", precision="fp32", query_max_length=8)
    encode_collection(encoder, collection, tmp_path / "d")
    encode_collection(encoder, collection, tmp_path / "q", side="query")
    texts, queries = collection.corpus.texts(range(N)), list(collection.queries().values())
    assert np.abs(load_embeddings(tmp_path / "d").vectors - encoder.encode_document(texts)).max() < 2e-6
    assert np.abs(load_embeddings(tmp_path / "q").vectors - encoder.encode_query(queries)).max() < 2e-6


@pytest.mark.parametrize("count", [0, 1, 15, 16, 17])
def test_any_number_of_documents(tmp_path, small_parts, count):
    folder = make_collection(tmp_path / "c", documents()[:count])
    encode_collection(StubEncoder(), Collection.load(folder), tmp_path / "d")
    assert load_embeddings(tmp_path / "d").vectors.shape == (count, 16)


def test_ids_and_texts_of_all_scripts(tmp_path):
    records = [{"_id": i, "text": f"text {i}"} for i in ("é", "e\u0301", "文書", "🤗", "שלום", "x" * 500)]
    encode_collection(StubEncoder(), Collection.load(make_collection(tmp_path / "c", records)), tmp_path / "d")
    assert list(load_embeddings(tmp_path / "d").ids) == [record["_id"] for record in records]


# --- interruption ----------------------------------------------------------------------------------------------------


def test_resume_encodes_only_what_is_missing(collection, tmp_path, small_parts):
    encode_collection(StubEncoder(), collection, tmp_path / "whole")
    texts = collection.corpus.texts(range(N))
    with pytest.raises(RuntimeError, match="stopped at"):
        encode_collection(StubEncoder(fail_at=texts[40]), collection, tmp_path / "d")
    assert not (tmp_path / "d").exists()
    assert len(parts_of(tmp_path / "d")) == 2
    again = StubEncoder()
    encode_collection(again, collection, tmp_path / "d", resume=True)
    assert again.seen == texts[32:]
    assert vectors_file(tmp_path / "d") == vectors_file(tmp_path / "whole")
    assert sorted(os.listdir(tmp_path)) == ["d", "whole"]


def test_without_resume_everything_is_encoded_again(collection, tmp_path, small_parts):
    texts = collection.corpus.texts(range(N))
    with pytest.raises(RuntimeError):
        encode_collection(StubEncoder(fail_at=texts[40]), collection, tmp_path / "d")
    again = StubEncoder()
    encode_collection(again, collection, tmp_path / "d")
    assert again.seen == texts


def test_resume_without_parts_begins_at_the_start(collection, tmp_path):
    encode_collection(encoder := StubEncoder(), collection, tmp_path / "d", resume=True)
    assert len(encoder.seen) == N


KILLED = """
import sys, time
from pathlib import Path
sys.path.insert(0, {tests!r})
from retrieval import embeddings
from retrieval.collection import Collection
from stub_encoder import StubEncoder

class Slow(StubEncoder):
    def encode_blocks(self, blocks, side, **settings):
        for found in super().encode_blocks(blocks, side, **settings):
            time.sleep(0.05)
            yield found

embeddings.PART = 4
embeddings.encode_collection(Slow(), Collection.load({collection!r}), Path({out!r}), resume=True)
"""


def test_a_kill_at_any_moment_loses_at_most_a_part(collection, tiny_collection, tmp_path, monkeypatch):
    monkeypatch.setattr(embeddings, "PART", 4)
    encode_collection(StubEncoder(), collection, tmp_path / "whole")
    out = tmp_path / "d"
    code = KILLED.format(tests=str(Path(__file__).parent), collection=str(tiny_collection), out=str(out))
    for wanted in (3, 8):
        process = subprocess.Popen([sys.executable, "-c", code])
        deadline = time.monotonic() + 60
        while len(parts_of(out)) < wanted and time.monotonic() < deadline:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        assert not out.exists()
        assert wanted <= len(parts_of(out)) < 15
    kept = len(parts_of(out))
    again = StubEncoder()
    encode_collection(again, collection, out, resume=True)
    assert len(again.seen) == N - 4 * kept
    assert vectors_file(out) == vectors_file(tmp_path / "whole")
    assert sorted(os.listdir(tmp_path)) == ["d", "whole"]  # nothing of the dead processes is left


def interrupted(collection, out, **settings) -> None:
    with pytest.raises(RuntimeError):
        encode_collection(StubEncoder(fail_at=collection.corpus.text(40), **settings), collection, out)


def test_parts_of_another_model_are_refused_and_never_mixed_in(collection, tmp_path, small_parts):
    interrupted(collection, tmp_path / "d", weights_sha256="1" * 64)
    with pytest.raises(InputError, match=r"\.d\.parts: parts of another model or other data lie here; run without"):
        encode_collection(StubEncoder(), collection, tmp_path / "d", resume=True)
    interrupted(collection, tmp_path / "d")  # another model begins without resume, beside the old parts
    again = StubEncoder()
    encode_collection(again, collection, tmp_path / "d", resume=True)
    assert len(again.seen) == N - 32
    assert np.array_equal(
        load_embeddings(tmp_path / "d").vectors[:32], again.encode_query(collection.corpus.texts(range(32)))
    )


def test_parts_of_other_data_are_refused(collection, tmp_path, small_parts):
    interrupted(collection, tmp_path / "d")
    other = Collection.load(make_collection(tmp_path / "c", documents()[1:]))
    with pytest.raises(InputError, match="parts of another model or other data"):
        encode_collection(StubEncoder(), other, tmp_path / "d", resume=True)


@pytest.mark.parametrize("damage", [lambda data: data[:-1], lambda data: b"", lambda data: b"junk", pickle.dumps])
def test_a_damaged_part_is_encoded_again(collection, tmp_path, small_parts, damage):
    interrupted(collection, tmp_path / "d")
    part = tmp_path / ".d.parts" / parts_of(tmp_path / "d")[0]
    part.write_bytes(damage(part.read_bytes()))
    again = StubEncoder()
    encode_collection(again, collection, tmp_path / "d", resume=True)
    assert len(again.seen) == N - 16
    assert np.array_equal(
        load_embeddings(tmp_path / "d").vectors, again.encode_query(collection.corpus.texts(range(N)))
    )


def test_two_processes_do_not_write_the_same_parts(collection, tmp_path):
    with (
        locked(tmp_path / ".d.parts"),
        pytest.raises(StorageError, match=rf"in use by process {os.getpid()} on"),
    ):
        encode_collection(StubEncoder(), collection, tmp_path / "d")


def test_resuming_what_is_complete_does_nothing(collection, tmp_path, caplog):
    encode_collection(StubEncoder(), collection, tmp_path / "d")
    before = vectors_file(tmp_path / "d")
    with caplog.at_level("INFO"):
        encode_collection(again := StubEncoder(), collection, tmp_path / "d", resume=True)
    assert again.seen == []
    assert f"is complete ({N} rows); nothing to do" in caplog.text
    assert vectors_file(tmp_path / "d") == before


@pytest.mark.parametrize(
    ("encoder", "settings", "expected"),
    [
        (StubEncoder(query_prompt="q: "), {}, "is complete, but of another model"),
        (StubEncoder(), {"side": "query"}, "is complete, but of another side"),
    ],
)
def test_resuming_what_is_complete_and_different_is_refused(collection, tmp_path, encoder, settings, expected):
    encode_collection(StubEncoder(), collection, tmp_path / "d")
    with pytest.raises(InputError, match=expected):
        encode_collection(encoder, collection, tmp_path / "d", resume=True, **settings)


def test_the_key_of_parts_names_everything_that_decides_them(collection, tmp_path, small_parts):
    interrupted(collection, tmp_path / "d")
    key = json.loads((tmp_path / ".d.parts" / "key.json").read_text())
    assert key == {
        "side": "document",
        "model": StubEncoder().fingerprint(),
        "data_sha256": collection.corpus.sha256,
        "part": 16,
    }


# --- refused at once -------------------------------------------------------------------------------------------------


def test_what_exists_is_kept_unless_overwriting(collection, tmp_path):
    encode_collection(StubEncoder(), collection, tmp_path / "d")
    with pytest.raises(StorageError, match="exists already"):
        encode_collection(encoder := StubEncoder(dim=8), collection, tmp_path / "d")
    assert encoder.seen == []
    encode_collection(StubEncoder(dim=8), collection, tmp_path / "d", overwrite=True)
    assert load_embeddings(tmp_path / "d").vectors.shape == (N, 8)
    encode_collection(StubEncoder(dim=4), collection, tmp_path / "d", overwrite=True, resume=True)
    assert load_embeddings(tmp_path / "d").vectors.shape == (N, 4)


def test_what_was_open_stays_readable_when_it_is_replaced(collection, tmp_path):
    encode_collection(StubEncoder(), collection, tmp_path / "d")
    found = load_embeddings(tmp_path / "d")
    expected = np.array(found.vectors)
    encode_collection(StubEncoder(dim=8), collection, tmp_path / "d", overwrite=True)
    assert np.array_equal(found.vectors, expected)


def test_a_folder_of_something_else_is_never_touched(collection, tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("mine")
    for settings in ({}, {"overwrite": True}, {"resume": True}):
        with pytest.raises(StorageError, match=r"notes: holds other things \(mine.txt\)"):
            encode_collection(encoder := StubEncoder(), collection, tmp_path / "notes", **settings)
        assert encoder.seen == []
    assert os.listdir(tmp_path) == ["notes"]


def test_what_a_killed_publisher_left_is_not_in_the_way(collection, tmp_path):
    (tmp_path / "d" / "v000001").mkdir(parents=True)
    (tmp_path / "d" / ".lock").touch()
    encode_collection(StubEncoder(), collection, tmp_path / "d", resume=True)
    assert len(load_embeddings(tmp_path / "d").ids) == N


def test_documents_have_no_split(collection, tmp_path):
    with pytest.raises(InputError, match="split 'test' is of queries; it goes with --side query"):
        encode_collection(StubEncoder(), collection, tmp_path / "d", split="test")


def test_an_unknown_split_names_the_nearest(collection, tmp_path):
    with pytest.raises(InputError, match="no split 'tset'; did you mean 'test'"):
        encode_collection(StubEncoder(), collection, tmp_path / "q", side="query", split="tset")


def test_ids_that_no_run_can_carry_are_refused_before_the_long_part(tmp_path):
    records = [{"_id": "fine", "text": "a"}, {"_id": "two words", "text": "b"}]
    collection = Collection.load(make_collection(tmp_path / "c", records))
    with pytest.raises(InputError, match=r"document id of row 1 'two words' holds U\+0020"):
        encode_collection(encoder := StubEncoder(), collection, tmp_path / "d")
    assert encoder.seen == []
    assert not (tmp_path / "d").exists()


def test_a_vector_that_is_not_finite_names_its_document(collection, tmp_path, small_parts):
    encoder = StubEncoder(poison=collection.corpus.text(37))
    with pytest.raises(ValueError, match=rf"\({collection.corpus.ids[37]}\): component 3 is nan"):
        encode_collection(encoder, collection, tmp_path / "d")
    assert not (tmp_path / "d").exists()
    assert len(parts_of(tmp_path / "d")) == 2  # what was good before it is kept


def test_vectors_of_nothing_are_kept_and_counted(tmp_path, caplog):
    """An empty document stays where it is; its vector is zero, and it is found behind all that match."""
    records = [{"_id": "full", "text": "an otter"}, {"_id": "empty", "text": ""}, {"_id": "blank", "text": "  "}]
    encode_collection(StubEncoder(), Collection.load(make_collection(tmp_path / "c", records)), tmp_path / "d")
    assert not load_embeddings(tmp_path / "d").vectors[1:].any()
    assert "2 of 3 vectors are zero (first: empty)" in caplog.text
