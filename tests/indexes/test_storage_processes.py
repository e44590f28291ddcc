"""Other writers, readers at the same time, kills and what they leave."""

import mmap
import os
import random
import signal
import socket
import time

import pytest
from published_folders import NEW, OLD, hidden, publish, published, run, start

from indexes import storage
from indexes.storage import StorageError


def test_left_overs_of_the_dead_go_and_those_of_the_living_stay(tmp_path):
    (tmp_path / ".file.tmp-1-00000000").write_text("from another container, whose process 1 is not ours")
    (tmp_path / ".file.tmp-99999999-0000000a").mkdir()
    (tmp_path / ".file.tmp-99999999-0000000a" / "x").write_text("x")
    (tmp_path / ".other.tmp-99999999-0000000b").write_text("another target")
    (tmp_path / ".file.tmp-mine").write_text("not one of ours")
    with storage.writing(tmp_path / "file") as first:  # still in progress when the second begins
        first.write(b"first")
        storage.write_text(tmp_path / "file", "second")
        assert (tmp_path / "file").read_text() == "second"
    assert (tmp_path / "file").read_text() == "first"
    assert sorted(os.listdir(tmp_path)) == [".file.tmp-mine", ".other.tmp-99999999-0000000b", "file"]
    storage.remove_stale(tmp_path)
    assert sorted(os.listdir(tmp_path)) == [".file.tmp-mine", "file"]


HOLDER = """
    import sys, time
    from indexes import storage
    with storage.locked(sys.argv[1]):
        print("locked", flush=True)
        time.sleep(60)
"""


def test_a_second_writer_is_told_who_the_first_is_and_a_dead_one_does_not_matter(tmp_path):
    publish(tmp_path / "x", OLD)
    with start(HOLDER, tmp_path / "x") as holder:
        try:
            assert holder.stdout.readline() == "locked\n"
            with pytest.raises(StorageError, match=f"in use by process {holder.pid} on {socket.gethostname()}"):
                publish(tmp_path / "x", NEW)
            with pytest.raises(StorageError, match="in use by"), storage.locked(tmp_path / "x"):
                pass
            assert published(tmp_path / "x") == OLD  # readers do not wait
        finally:
            holder.send_signal(signal.SIGKILL)
    publish(tmp_path / "x", NEW)
    assert published(tmp_path / "x") == NEW
    assert hidden(tmp_path) == []


def test_the_lock_is_one_per_folder_and_is_given_back(tmp_path):
    with storage.locked(tmp_path / "a"), storage.locked(tmp_path / "b"):
        with pytest.raises(StorageError, match=f"in use by process {os.getpid()} "), storage.locked(tmp_path / "a"):
            pass
        assert os.listdir(tmp_path / "a") == [".lock"]
    with pytest.raises(RuntimeError), storage.locked(tmp_path / "a"):
        raise RuntimeError
    with storage.locked(tmp_path / "a"):
        pass
    assert os.listdir(tmp_path / "a") == []


WRITER = """
    import sys
    from indexes import storage
    folder, count = sys.argv[1], int(sys.argv[2])
    print("started", flush=True)
    for number in range(1, count + 1):
        with storage.publishing(folder, {"kind": "test", "number": number}, overwrite=True) as directory:
            for name in ("a.txt", "b.txt"):
                (directory / name).write_text(str(number) * 1000)
        storage.write_text(folder + ".txt", str(number) * 1000)
"""


def same_number(artifact):
    number = str(artifact.manifest["number"]) * 1000
    assert (artifact.path / "a.txt").read_text() == (artifact.path / "b.txt").read_text() == number
    return artifact.manifest["number"]


def test_kill_9_at_random_moments_leaves_the_old_or_the_new_version(memory_path):
    folder, choose = memory_path / "x", random.Random(1)
    publish(folder, {"a.txt": "0" * 1000, "b.txt": "0" * 1000}, number=0)
    for _ in range(36):
        with start(WRITER, folder, 100_000) as writer:
            writer.stdout.readline()
            time.sleep(choose.uniform(0, 0.03))
            writer.send_signal(signal.SIGKILL)
        storage.read_folder(folder, same_number, kind="test")
        if (text := memory_path / "x.txt").exists():
            assert len(set(text.read_text())) <= 10
            assert len(text.read_text()) % 1000 == 0
    publish(folder, OLD)
    assert hidden(folder) == []
    assert len(os.listdir(folder)) == 2


def test_readers_see_the_old_or_the_new_version_and_never_a_mix(memory_path):
    folder = memory_path / "x"
    publish(folder, {"a.txt": "0" * 1000, "b.txt": "0" * 1000}, number=0)
    seen = []
    with start(WRITER, folder, 400) as writer:
        writer.stdout.readline()
        while writer.poll() is None:
            seen.append(storage.read_folder(folder, same_number, kind="test"))
    seen.append(storage.read_folder(folder, same_number, kind="test"))
    assert seen == sorted(seen)
    assert seen[-1] == 400
    assert len(set(seen)) > 5


def test_a_reader_whose_version_vanishes_begins_again(tmp_path):
    publish(tmp_path / "x", OLD)
    attempts = []

    def read(artifact):
        attempts.append(artifact.path.name)
        if len(attempts) == 1:
            publish(tmp_path / "x", NEW)
        return (artifact.path / "a.txt").read_text()

    assert storage.read_folder(tmp_path / "x", read, kind="test") == "new a"
    assert attempts == ["v000001", "v000002"]


def test_a_failure_of_the_reader_itself_is_not_repeated(tmp_path):
    publish(tmp_path / "x", OLD)
    attempts = []

    def read(artifact):
        attempts.append(artifact)
        raise KeyError("bug")

    with pytest.raises(KeyError, match="bug"):
        storage.read_folder(tmp_path / "x", read, kind="test")
    assert len(attempts) == 1


def test_a_mapped_file_outlives_its_version(tmp_path):
    publish(tmp_path / "x", OLD)
    with (storage.open_folder(tmp_path / "x", kind="test").path / "a.txt").open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    publish(tmp_path / "x", NEW)
    assert not (tmp_path / "x" / "v000001").exists()
    assert mapped[:] == b"old a"


def test_importing_storage_needs_no_numpy_and_no_faiss():
    result = run("import sys, indexes.storage; print(sorted({'numpy', 'faiss', 'torch'} & set(sys.modules)))")
    assert result.stdout == "[]\n", result.stderr
