"""Damaged and forged embeddings are refused in one line, and nothing in them is run or allocated."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from stub_encoder import StubEncoder
from tiny_files import documents

from indexes.storage import StorageError, open_folder, publishing
from retrieval.collection import Collection
from retrieval.embeddings import encode_collection, load_array, load_embeddings, read_ids
from retrieval.errors import InputError

N = len(documents())


@pytest.fixture
def collection(tiny_collection) -> Collection:
    return Collection.load(tiny_collection)


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


# --- damage ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def published(collection, tmp_path) -> Path:
    encode_collection(StubEncoder(), collection, tmp_path / "d")
    return tmp_path / "d"


@pytest.mark.parametrize("name", ["embeddings.npy", "ids.txt", "manifest.json"])
@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(path.read_bytes()[:-1]),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes() + b"\0"),
        lambda path: flip(path, 100),
        lambda path: flip(path, -2),
        Path.unlink,
        lambda path: (path.unlink(), path.mkdir()),
        lambda path: (path.unlink(), path.symlink_to("/etc/hostname")),
    ],
    ids=["cut", "empty", "grown", "flipped", "flipped at the end", "missing", "folder", "link"],
)
def test_damage_is_refused_in_one_line_that_names_the_file(published, name, damage):
    damage(open_folder(published, kind="embeddings").path / name)
    with pytest.raises(StorageError) as caught:
        load_embeddings(published)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_no_folder_of_embeddings_is_refused(published, tmp_path):
    with publishing(tmp_path / "other", {"kind": "index"}) as folder:
        (folder / "ids.txt").touch()
    for place, expected in (
        (tmp_path / "nowhere", "no such folder"),
        (tmp_path / "other", "is of kind 'index', wanted 'embeddings'"),
        (published / "CURRENT", "is a file; wanted a folder"),
        (tmp_path, "CURRENT: is missing"),
    ):
        with pytest.raises(StorageError, match=expected):
            load_embeddings(place)


def forged(folder: Path, array: bytes, ids: str = "a\nb\n") -> Path:
    """A folder whose manifest is in order, with another array in it."""
    with publishing(folder, {"kind": "embeddings", "side": "document", "model": {"dim": 2}}) as temporary:
        (temporary / "embeddings.npy").write_bytes(array)
        (temporary / "ids.txt").write_text(ids)
    return folder


def npy(array, shape=None) -> bytes:
    import io

    file = io.BytesIO()
    header = np.lib.format.header_data_from_array_1_0(array) | ({"shape": shape} if shape else {})
    np.lib.format.write_array_header_1_0(file, header)
    return file.getvalue() + array.tobytes()


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (npy(np.zeros((3, 2), np.float32)), r"holds float32 \(3, 2\), wanted float32 \(2, 2\)"),
        (npy(np.zeros((2, 3), np.float32)), r"holds float32 \(2, 3\), wanted float32 \(2, 2\)"),
        (npy(np.zeros((2, 2), np.float64)), r"holds float64 \(2, 2\), wanted float32"),
        (npy(np.zeros(4, np.float32)), r"holds float32 \(4,\)"),
        (npy(np.zeros((2, 2), np.float32), shape=(10**12, 384)), "is no array that can be read"),
        (pickle.dumps([1, 2]), "is no array that can be read"),
        (b"", "is no array that can be read"),
        (npy(np.zeros((2, 2), np.float32))[:40], "is no array that can be read"),
    ],
)
def test_a_forged_array_is_neither_unpickled_nor_allocated(tmp_path, array, expected):
    with pytest.raises(InputError, match=expected) as caught:
        load_embeddings(forged(tmp_path / "d", array))
    assert "embeddings.npy" in str(caught.value)


def test_an_array_of_objects_is_not_unpickled(tmp_path):
    np.save(tmp_path / "objects.npy", np.array([{}, []], dtype=object), allow_pickle=True)
    with pytest.raises(InputError, match="is no array that can be read"):
        load_array(tmp_path / "objects.npy", np.float32, (2,))


def test_size_verification_is_quick_and_sees_only_sizes(published):
    path = open_folder(published, kind="embeddings").path / "embeddings.npy"
    flip(path, -2)
    assert len(load_embeddings(published, verify="size").ids) == N
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(StorageError, match="size"):
        load_embeddings(published, verify="size")


def test_ids_are_one_to_a_line(tmp_path):
    (tmp_path / "ids.txt").write_bytes("a\n\nÜ\n".encode())
    assert list(read_ids(tmp_path / "ids.txt")) == ["a", "", "Ü"]
