"""An index on the disk: what it holds, and that no damage to it goes unnoticed."""

import os
import random
import struct

import faiss
import pytest
from index_kinds import DIM, built, normal, same

from indexes import FaissIndex, StorageError, storage
from indexes.faiss_index import FILE


@pytest.fixture
def folder(memory_path):
    built("ivf l2", normal(300)).save(memory_path / "x")
    return memory_path / "x"


def refused(folder, **options):
    with pytest.raises(StorageError) as caught:
        FaissIndex.load(folder, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def files(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_the_manifest_holds_the_settings(folder):
    manifest = storage.open_folder(folder, kind="index").manifest
    assert manifest["index"] == {
        "engine": "faiss",
        "engine_version": faiss.__version__,
        "factory": "IVF16,Flat",
        "metric": "l2",
        "dim": DIM,
        "rows": 300,
        "search_parameters": {"nprobe": 16},
    }
    assert list(manifest["files"]) == [FILE]


def test_saving_again_needs_overwrite(folder):
    with pytest.raises(StorageError, match="exists already"):
        built("flat ip", normal(20)).save(folder)
    assert len(FaissIndex.load(folder)) == 300
    built("flat ip", normal(20)).save(folder, overwrite=True)
    assert len(FaissIndex.load(folder)) == 20


@pytest.mark.parametrize("kind", ["flat ip", "hnsw l2", "sq8", "refined"])
def test_random_bit_flips_in_every_file_are_found(kind, memory_path):
    built(kind, normal(200)).save(memory_path / "x")
    choose = random.Random(0)
    for path in files(memory_path / "x"):
        clean = path.read_bytes()
        for number in range(80):
            bit = choose.randrange(8 * min(len(clean), 256 if number % 2 else len(clean)))
            damaged = bytearray(clean)
            damaged[bit // 8] ^= 1 << bit % 8
            path.write_bytes(damaged)
            assert path.name in refused(memory_path / "x") or path.name == "CURRENT"
        path.write_bytes(clean)
    assert len(FaissIndex.load(memory_path / "x")) == 200


def test_truncation_anywhere_is_found_by_its_size_alone(folder):
    (path,) = folder.rglob(FILE)
    clean = path.read_bytes()
    choose = random.Random(0)
    cuts = [len(clean) * percent // 100 for percent in range(0, 100, 3)]
    for cut in [*cuts, *(choose.randrange(len(clean)) for _ in range(60))]:
        path.write_bytes(clean[:cut])
        for verify in ("full", "size"):
            assert f"{FILE}: size {cut}, expected {len(clean)}" in refused(folder, verify=verify)


def test_other_damage_to_the_file_is_found(folder, tmp_path):
    (path,) = folder.rglob(FILE)
    clean = path.read_bytes()
    for damaged in (clean + b"\0", clean[:4096] + bytes(4096) + clean[8192:], clean[::-1], clean[4096:] + clean[:4096]):
        path.write_bytes(damaged)
        assert FILE in refused(folder)
    path.unlink()
    assert f"{FILE}: is missing" in refused(folder)
    os.mkfifo(path)
    assert f"{FILE}: is a pipe" in refused(folder)


def test_the_file_of_another_valid_index_is_refused(folder, memory_path):
    for number, (kind, count) in enumerate([("ivf l2", 301), ("ivf ip", 300), ("flat l2", 300)]):
        other = memory_path / str(number)
        built(kind, normal(count, seed=1)).save(other)
        (path,) = folder.rglob(FILE)
        path.write_bytes(next(other.rglob(FILE)).read_bytes())
        assert FILE in refused(folder)


def forged(folder, change, *, header=None):
    """Publish the same file under other settings, or with another header, all checksums right."""
    artifact = storage.open_folder(folder, kind="index")
    manifest = {"kind": "index", "index": {**artifact.manifest["index"]}}
    change(manifest)
    data = (artifact.path / FILE).read_bytes()
    with storage.publishing(folder, manifest, overwrite=True) as directory:
        (directory / FILE).write_bytes(data if header is None else header + data[len(header) :])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dim": 17}, "index.faiss: dimensions 16, the manifest says 17"),
        ({"rows": 299}, "index.faiss: vectors 300, the manifest says 299"),
        ({"metric": "ip"}, "index.faiss: metric 1, the manifest says 0"),
        ({"metric": "cosine"}, "index.faiss: cannot be read (metric must be 'ip' or 'l2', got 'cosine'"),
        ({"engine": "annoy"}, "the manifest's index has engine 'annoy', wanted 'faiss'"),
        ({"dim": None}, "index.faiss: cannot be read"),
        ({"search_parameters": {"efSearch": 3}}, "index.faiss: cannot be read (search parameter 'efSearch'"),
        ({"search_parameters": 3}, "index.faiss: cannot be read"),
    ],
)
def test_a_file_that_is_not_what_the_manifest_says_is_refused(folder, settings, message):
    forged(folder, lambda manifest: manifest["index"].update(settings))
    assert message in refused(folder)


def test_a_manifest_without_an_index_is_refused(folder):
    forged(folder, lambda manifest: manifest.pop("index"))
    assert "the manifest's index has engine None, wanted 'faiss'" in refused(folder)


def test_another_kind_of_folder_is_refused(tmp_path):
    with storage.publishing(tmp_path / "x", {"kind": "embeddings"}) as directory:
        (directory / FILE).write_bytes(b"")
    assert "x: is of kind 'embeddings', wanted 'index'" in refused(tmp_path / "x")


def test_files_that_are_no_index_are_refused(folder):
    for data in (b"", b"IwFl", b"\x80\x04pickle" * 100, bytes(5000)):
        with storage.publishing(
            folder, {"kind": "index", "index": FaissIndex(DIM).write(folder.parent)}, overwrite=True
        ) as directory:
            (directory / FILE).write_bytes(data)
        assert FILE in refused(folder)


def test_a_header_that_asks_for_terabytes_is_refused_before_they_are_allocated(memory_path):
    index = FaissIndex(DIM)
    index.add(normal(50))
    index.save(memory_path / "x")
    (path,) = (memory_path / "x").rglob(FILE)
    head = bytearray(path.read_bytes()[:45])
    head[8:16] = struct.pack("<q", 10**12)
    forged(memory_path / "x", lambda manifest: None, header=bytes(head))
    assert "vectors 1000000000000, the manifest says 50" in refused(memory_path / "x")
    head[37:45] = struct.pack("<Q", DIM * 10**12)  # and now the length of the data, with a manifest that agrees
    forged(memory_path / "x", lambda manifest: manifest["index"].update(rows=10**12), header=bytes(head))
    assert f"{FILE}: cannot be read" in refused(memory_path / "x")


def test_a_pickle_is_never_loaded(memory_path):
    canary = memory_path / "canary"
    payload = b"cposix\nsystem\n(S'touch " + str(canary).encode() + b"'\ntR."
    with storage.publishing(
        memory_path / "x", {"kind": "index", "index": FaissIndex(DIM).write(memory_path)}
    ) as directory:
        (directory / FILE).write_bytes(payload)
    refused(memory_path / "x")
    assert not canary.exists()


def test_a_full_disk_is_an_error_and_no_empty_file(memory_path, monkeypatch):
    built("flat ip", normal(20)).save(memory_path / "x")

    def full(descriptor, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("indexes.disk.system.write", full, raising=False)
    with pytest.raises(OSError, match=rf"No space left on device: '.*{FILE}'"):
        built("flat ip", normal(30)).save(memory_path / "x", overwrite=True)
    monkeypatch.undo()
    assert len(FaissIndex.load(memory_path / "x")) == 20


def test_an_index_can_share_its_folder_with_other_files(memory_path):
    index = built("sq8", normal(100))
    manifest = {"kind": "index", "model": "minilm"}
    with storage.publishing(memory_path / "x", manifest) as directory:
        manifest["index"] = index.write(directory)
        storage.write_lines(directory / "ids", map(str, range(100)))

    def read(artifact):
        ids = (artifact.path / "ids").read_text().split()
        return FaissIndex.read(artifact.path, artifact.manifest["index"]), ids

    loaded, ids = storage.read_folder(memory_path / "x", read, kind="index")
    same(loaded.search(normal(3), 5), index.search(normal(3), 5))
    assert len(ids) == len(loaded) == 100
    assert len(FaissIndex.load(memory_path / "x")) == 100
