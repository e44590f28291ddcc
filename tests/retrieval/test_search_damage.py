"""No answer from a damaged or mixed index, and nothing built from what cannot be right."""

import os
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from beir_folder import jsonl, make_collection
from stub_encoder import StubEncoder
from tiny_files import documents

from indexes import FaissIndex, StorageError
from indexes.storage import open_folder, publishing
from retrieval.collection import Collection
from retrieval.embeddings import encode_collection
from retrieval.errors import InputError
from retrieval.search import Searcher, build_index

N = len(documents())


@pytest.fixture(scope="session")
def collection(tiny_collection) -> Collection:
    return Collection.load(tiny_collection)


@pytest.fixture
def index(tmp_path, stub_index) -> Path:
    """A copy of the index that a test may break."""
    return Path(shutil.copytree(stub_index, tmp_path / "index"))


def files(folder: Path) -> Path:
    return open_folder(folder, kind="index").path


# --- damage ----------------------------------------------------------------------------------------------------------


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("name", ["index.faiss", "ids.txt", "offsets.npy", "manifest.json"])
@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes() + b"\0"),
        lambda path: flip(path, -3),
        lambda path: flip(path, 40),
        Path.unlink,
        lambda path: (path.unlink(), os.mkfifo(path)),
    ],
    ids=["cut", "empty", "grown", "flipped at the end", "flipped", "missing", "pipe"],
)
def test_damage_is_refused_in_one_line_that_names_the_file(index, name, damage):
    damage(files(index) / name)
    with pytest.raises(StorageError) as caught:
        Searcher.load(index)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_every_flipped_bit_is_found(index):
    """Plain faiss reads nearly all of them without a word."""
    path = files(index) / "index.faiss"
    whole = path.read_bytes()
    for place in np.random.default_rng(0).integers(0, len(whole), 60).tolist():
        flip(path, place)
        with pytest.raises(StorageError, match="altered"):
            Searcher.load(index)
        path.write_bytes(whole)
    Searcher.load(index)


@pytest.mark.parametrize("name", ["index.faiss", "ids.txt", "offsets.npy"])
def test_files_of_another_valid_index_are_refused(index, tmp_path, name):
    other = Collection.load(make_collection(tmp_path / "c", [*documents()[1:], documents()[0]], {}, {}))
    build_index(tmp_path / "other", encoder=StubEncoder(), collection=other)
    shutil.copy(files(tmp_path / "other") / name, files(index) / name)
    with pytest.raises(StorageError, match="it was altered; build it again"):
        Searcher.load(index)


def test_a_file_too_many_is_refused(index):
    (files(index) / "index2.faiss").write_bytes(b"more")
    with pytest.raises(StorageError, match=r"index2\.faiss: is not in the manifest"):
        Searcher.load(index)


@pytest.mark.parametrize("text", ["", "v000001", "v000009 " + "0" * 64 + "\n", "../../etc\n"])
def test_another_current_is_refused(index, text):
    (index / "CURRENT").write_text(text)
    with pytest.raises(StorageError):
        Searcher.load(index)


def test_ids_that_do_not_match_the_vectors_are_refused(tmp_path):
    """A folder whose manifest is in order, but one id is missing."""
    index = FaissIndex(2)
    index.add(np.eye(2, dtype=np.float32))
    manifest = {"kind": "index", "model": {"dim": 2}}
    with publishing(tmp_path / "i", manifest) as folder:
        manifest["index"] = index.write(folder)
        (folder / "ids.txt").write_text("only\n")
    with pytest.raises(InputError, match="1 ids for 2 vectors; build the index again"):
        Searcher.load(tmp_path / "i")


def test_size_verification_sees_only_sizes(index):
    path = files(index) / "ids.txt"
    path.write_bytes(path.read_bytes().replace(b"otter-0", b"attic-0"))
    assert "attic-0" in Searcher.load(index, verify="size").ids
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(StorageError):
        Searcher.load(index, verify="size")


def test_what_is_no_index_is_refused(tmp_path, collection):
    encode_collection(StubEncoder(), collection, tmp_path / "d")
    with pytest.raises(StorageError, match="is of kind 'embeddings', wanted 'index'"):
        Searcher.load(tmp_path / "d")
    with pytest.raises(StorageError, match="no such folder"):
        Searcher.load(tmp_path / "nowhere")


# --- building: refused before the long part --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, "an index is built from --model and --data, or from --embeddings"),
        ({"encoder": True}, "an index is built from --model and --data, or from --embeddings"),
        ({"collection": True}, "an index is built from --model and --data, or from --embeddings"),
        ({"encoder": True, "collection": True, "embeddings": "d"}, "an index is built from --model and --data, or"),
        ({"embeddings": "d", "store_text": True}, "--store-text needs --data"),
        ({"embeddings": "nowhere"}, "nowhere: no such folder"),
        ({"encoder": True, "collection": True, "factory": "Flatt"}, "factory 'Flatt' with 16 dimensions"),
        ({"encoder": True, "collection": True, "factory": "IDMap,Flat"}, "rows are the ids here; leave IDMap out"),
        ({"encoder": True, "collection": True, "search_parameters": {"nprobe": 3}}, "search parameter 'nprobe'"),
        ({"encoder": True, "collection": True, "factory": "IVF99,Flat"}, "training 'IVF99,Flat' on 60 vectors"),
    ],
)
def test_impossible_settings_leave_nothing_behind(tmp_path, monkeypatch, collection, settings, expected):
    monkeypatch.chdir(tmp_path)
    encoder = StubEncoder()
    given_ = {"encoder": encoder, "collection": collection}
    with pytest.raises(ValueError, match=expected):
        build_index("i", **{name: given_.get(name, value) for name, value in settings.items()})
    assert os.listdir() == []
    assert not encoder.seen or "IVF99" in expected  # too few vectors for so many centroids shows only in training


def test_an_index_is_not_replaced_by_accident(index, collection):
    with pytest.raises(StorageError, match="exists already; choose another place or ask for --overwrite"):
        build_index(index, encoder=(encoder := StubEncoder()), collection=collection)
    assert encoder.seen == []
    build_index(index, encoder=StubEncoder(dim=8), collection=collection, overwrite=True)
    assert Searcher.load(index).index.dim == 8


def test_a_vector_that_is_not_finite_names_its_document_and_leaves_the_old_index(index, collection):
    encoder = StubEncoder(poison=collection.corpus.text(37))
    with pytest.raises(ValueError, match=rf"\({collection.corpus.ids[37]}\): component 3 is nan"):
        build_index(index, encoder=encoder, collection=collection, overwrite=True)
    assert len(Searcher.load(index).ids) == N


def test_embeddings_of_another_corpus_are_refused_with_both_hashes(tmp_path, collection):
    encode_collection(StubEncoder(), collection, tmp_path / "d")
    other = Collection.load(make_collection(tmp_path / "c", documents()[1:], {}, {}))
    with pytest.raises(InputError) as caught:
        build_index(tmp_path / "i", embeddings=tmp_path / "d", collection=other)
    assert collection.corpus.sha256 in str(caught.value)
    assert other.corpus.sha256 in str(caught.value)


def test_a_second_builder_is_turned_away_at_once(tmp_path, collection):
    class Nested(StubEncoder):
        def encode_blocks(self, *arguments, **settings):
            with pytest.raises(StorageError, match=rf"in use by process {os.getpid()} on .*; wait until it has ended"):
                build_index(tmp_path / "i", encoder=(second := StubEncoder()), collection=collection)
            assert second.seen == []
            return super().encode_blocks(*arguments, **settings)

    build_index(tmp_path / "i", encoder=Nested(), collection=collection)
    assert len(Searcher.load(tmp_path / "i").ids) == N


def test_what_a_killed_builder_left_is_not_in_the_way(tmp_path, collection, stub_index):
    """A folder with a lock that nobody holds, a half-written version and no CURRENT."""
    shutil.copytree(files(stub_index), tmp_path / "i" / "v000001")
    (tmp_path / "i" / "v000001" / "ids.txt").unlink()
    (tmp_path / "i" / ".lock").write_text("process 1 on elsewhere\n")
    (tmp_path / "i" / ".v000002.tmp-1-00000000").mkdir()
    build_index(tmp_path / "i", encoder=StubEncoder(), collection=collection)
    assert len(Searcher.load(tmp_path / "i").ids) == N
    assert sorted(os.listdir(tmp_path / "i")) == ["CURRENT", "v000001"]


def test_a_folder_of_something_else_is_never_touched(tmp_path, collection):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(StorageError, match=r"notes: holds other things \(mine.txt\)"):
            build_index(
                tmp_path / "notes", encoder=(encoder := StubEncoder()), collection=collection, overwrite=overwrite
            )
        assert encoder.seen == []
    assert os.listdir(tmp_path / "notes") == ["mine.txt"]


def test_embeddings_of_queries_are_no_documents(tmp_path, collection):
    encode_collection(StubEncoder(), collection, tmp_path / "q", side="query")
    with pytest.raises(InputError, match="holds query embeddings; an index takes those of documents"):
        build_index(tmp_path / "i", embeddings=tmp_path / "q")


def test_readers_see_the_old_index_or_the_new_one_and_never_a_mix(tmp_path, collection):
    few = Collection.load(make_collection(tmp_path / "few", documents()[:3], {}, {}))
    encoder, text = StubEncoder(), "the glacier is a slow river"
    for number, corpus in enumerate((collection, few)):
        build_index(tmp_path / str(number), encoder=encoder, collection=corpus, store_text=True)
    expected = [Searcher.load(tmp_path / name, encoder=encoder).search(text, k=9) for name in "01"]
    build_index(tmp_path / "i", encoder=encoder, collection=collection, store_text=True)
    done = threading.Event()

    def read() -> set[int]:
        seen = set()
        while not done.is_set() or len(seen) == 0:
            seen.add(expected.index(Searcher.load(tmp_path / "i", encoder=encoder).search(text, k=9)))
        return seen

    with ThreadPoolExecutor(3) as pool:
        readers = [pool.submit(read) for _ in range(3)]
        try:
            for number in range(25):
                corpus = (few, collection)[number % 2]
                build_index(tmp_path / "i", encoder=encoder, collection=corpus, store_text=True, overwrite=True)
        finally:
            done.set()
        assert set.union(*(reader.result() for reader in readers)) == {0, 1}


def test_ids_that_no_run_can_carry_are_refused(tmp_path):
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "corpus.jsonl").write_text(jsonl([{"_id": "a b", "text": "x"}]))
    with pytest.raises(InputError, match=r"document id of row 0 'a b' holds U\+0020"):
        build_index(tmp_path / "i", encoder=(encoder := StubEncoder()), collection=Collection.load(tmp_path / "c"))
    assert encoder.seen == []


def test_the_manifest_says_what_the_index_is(stub_index, collection):
    manifest = Searcher.load(stub_index).manifest
    assert manifest["kind"] == "index"
    assert manifest["documents"] == N
    assert manifest["model"] == StubEncoder().fingerprint()
    assert manifest["corpus"] == {
        "path": str(collection.corpus.path.resolve()),
        "sha256": collection.corpus.sha256,
        "stored": False,
    }
    assert manifest["index"]["rows"] == N
    assert set(manifest["files"]) == {"index.faiss", "ids.txt", "offsets.npy"}
