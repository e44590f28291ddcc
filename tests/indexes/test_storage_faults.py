"""Every operation fails or is the last one; the old state or the new one must be whole."""

import errno
import os
import stat

import pytest
from published_folders import NEW, OLD, hidden, publish, published, run

from indexes import disk, storage
from indexes.storage import StorageError


class Faulty:
    """Stands for `disk.system`; counts calls and makes the n-th fail.

    mode "once": only that call; "on": every later one too, as on a disk that is full; "kill": the process ends there.
    """

    def __init__(self, fail_at=0, mode="once", number=errno.ENOSPC):
        self.calls, self.fail_at, self.mode, self.number = [], fail_at, mode, number

    def __getattr__(self, name):
        real = getattr(disk.System, name)

        def call(*args, **options):
            self.calls.append(name)
            count = len(self.calls)
            if self.fail_at and (count == self.fail_at or (self.mode == "on" and count > self.fail_at)):
                if self.mode == "kill":
                    os._exit(77)
                if name == "close":  # a close that reports a failure has closed
                    real(*args)
                raise OSError(self.number, os.strerror(self.number))
            return real(*args, **options)

        return call


def faults(action):
    """Yield numbers of the calls that `action` makes when all goes well."""
    counting = Faulty()
    disk.system, before = counting, disk.system
    try:
        action()
    finally:
        disk.system = before
    return range(1, len(counting.calls) + 1), counting.calls


def with_fault(number, mode, code, action):
    """Run `action` with its n-th operation failing; return the error, which must be that one and name a file."""
    disk.system = Faulty(number, mode, code)
    error = None
    try:
        action()
    except OSError as caught:
        error = caught
    finally:
        disk.system = disk.System()
    assert error is None or (error.errno == code and error.filename)
    return error


@pytest.fixture
def _real_system():
    yield
    disk.system = disk.System()


@pytest.mark.usefixtures("_real_system")
@pytest.mark.parametrize("mode", ["once", "on"])
def test_writing_survives_a_fault_at_every_operation(memory_path, mode):
    numbers, calls = faults(lambda: storage.write_text(memory_path / "rehearsal", "new"))
    assert {"open", "write", "fsync", "read", "replace", "close"} <= set(calls)
    assert calls.count("fsync") == 2  # the file and its directory
    failures = 0
    for number in numbers:
        target = memory_path / f"{mode}{number}" / "file"
        target.parent.mkdir()
        target.write_text("old")
        error = with_fault(number, mode, errno.ENOSPC, lambda target=target: storage.write_text(target, "new"))
        assert target.read_text() in ({"old", "new"} if error else {"new"})
        assert not error or target.read_text() == "old" or "replace" in calls[:number]
        failures += bool(error)
        storage.write_text(target, "next")
        assert os.listdir(target.parent) == ["file"]
    assert failures >= 6


@pytest.mark.usefixtures("_real_system")
@pytest.mark.parametrize("mode", ["once", "on"])
@pytest.mark.parametrize("old", [None, OLD], ids=["first", "replacing"])
def test_publishing_survives_a_fault_at_every_operation(memory_path, mode, old):
    def prepared(name):
        if old:
            publish(memory_path / name, old)
        return memory_path / name

    rehearsal = prepared("rehearsal")
    numbers, calls = faults(lambda: publish(rehearsal, NEW))
    assert len(calls) > 40
    assert calls.count("fsync") >= 4 + 4 + 2  # files and manifest, directories, CURRENT
    failures = 0
    for number in numbers:
        folder = prepared(f"{mode}{number}")
        error = with_fault(number, mode, errno.EIO, lambda folder=folder: publish(folder, NEW))
        assert published(folder) in ([old, NEW] if error else [NEW])
        failures += bool(error)
        publish(folder, NEW)
        assert published(folder) == NEW
        assert hidden(folder) == []
        assert len(os.listdir(folder)) == 2  # CURRENT and one version
    assert failures >= 20


@pytest.mark.usefixtures("_real_system")
def test_an_fsync_that_fails_is_not_reported_as_saved(memory_path):
    _, calls = faults(lambda: publish(memory_path / "rehearsal", NEW))
    for number in [place for place, call in enumerate(calls, start=1) if call in ("fsync", "replace")]:
        disk.system = Faulty(number, number=errno.EIO)
        with pytest.raises(OSError, match="Input/output error"):
            publish(memory_path / str(number), NEW)


@pytest.mark.usefixtures("_real_system")
def test_publish_plain_and_remove_folder_survive_a_fault_at_every_operation(memory_path):
    def plain(folder):
        with storage.publish_plain(folder) as directory:
            for name in ("a", "b"):
                (directory / name).write_text(name)

    numbers, _ = faults(lambda: plain(memory_path / "rehearsal"))
    for number in numbers:
        folder = memory_path / str(number)
        error = with_fault(number, "once", errno.EIO, lambda folder=folder: plain(folder))
        assert error or folder.exists()
        if not folder.exists():
            plain(folder)
        assert sorted(os.listdir(folder)) == ["a", "b"]
    assert hidden(memory_path) == []

    numbers, _ = faults(lambda: storage.remove_folder(memory_path / "rehearsal"))
    for number in numbers:
        folder = memory_path / str(number)
        with_fault(number, "once", errno.EIO, lambda folder=folder: storage.remove_folder(folder))
        assert not folder.exists() or sorted(os.listdir(folder)) == ["a", "b"]
    storage.remove_stale(memory_path)
    assert hidden(memory_path) == []


@pytest.mark.parametrize("old", [None, OLD], ids=["first", "replacing"])
def test_publishing_survives_a_kill_at_every_operation(memory_path, old):
    if old:
        publish(memory_path / "rehearsal", old)
    numbers, calls = faults(lambda: publish(memory_path / "rehearsal", NEW))
    seen = set()
    for number in numbers:
        folder = memory_path / str(number)
        if old:
            publish(folder, old)
        child = os.fork()
        if not child:
            disk.system = Faulty(number, "kill")
            try:
                publish(folder, NEW)
            finally:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 77, calls[number - 1]
        state = published(folder)
        assert state in (old, NEW)
        seen.add(state == NEW)
        publish(folder, {"a.txt": "third"})  # the lock of the dead is free, its left-overs go
        assert published(folder) == {"a.txt": "third"}
        assert hidden(folder) == []
        assert len(os.listdir(folder)) == 2
    assert seen == {True, False}


@pytest.mark.usefixtures("_real_system")
@pytest.mark.parametrize("lie", ["nothing", "a bit", "half"])
def test_a_disk_that_does_not_keep_what_it_accepts_is_noticed(memory_path, lie):
    class Lying(disk.System):
        @staticmethod
        def write(descriptor, data):
            data = bytes(data)
            if lie == "a bit":
                os.write(descriptor, bytes([data[0] ^ 1]) + data[1:])
            if lie == "half":
                os.write(descriptor, data[: len(data) // 2])
            return len(data)

    storage.write_text(memory_path / "file", "old content")
    publish(memory_path / "folder", OLD)
    disk.system = Lying()
    with pytest.raises(StorageError, match=r"file: (size \d+, expected 11|sha256 \w+, expected \w+): the disk did not"):
        storage.write_text(memory_path / "file", "new content")
    with pytest.raises(StorageError, match="did not keep"):
        publish(memory_path / "folder", NEW)
    disk.system = disk.System()
    assert (memory_path / "file").read_text() == "old content"
    assert published(memory_path / "folder") == OLD


@pytest.mark.usefixtures("_real_system")
def test_short_writes_are_continued(memory_path):
    class Short(disk.System):
        @staticmethod
        def write(descriptor, data):
            return os.write(descriptor, bytes(data)[:7])

    disk.system = Short()
    storage.write_text(memory_path / "file", "x" * 1000)
    assert (memory_path / "file").read_text() == "x" * 1000


@pytest.mark.usefixtures("_real_system")
def test_a_file_system_that_syncs_no_directories_is_accepted(memory_path):
    class Refusing(disk.System):
        @staticmethod
        def fsync(descriptor):
            if stat.S_ISDIR(os.fstat(descriptor).st_mode):
                raise OSError(errno.EINVAL, "Invalid argument")
            os.fsync(descriptor)

    disk.system = Refusing()
    publish(memory_path / "x", NEW)
    assert published(memory_path / "x") == NEW


def test_a_file_size_limit_leaves_the_old_state(memory_path):
    publish(memory_path / "folder", OLD)
    storage.write_text(memory_path / "file", "old")
    result = run(
        """
        import resource, sys
        from indexes import storage
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        for attempt in (
            lambda: storage.write_text(sys.argv[1] + "/file", "x" * 200_000),
            lambda: publish(),
        ):
            def publish():
                with storage.publishing(sys.argv[1] + "/folder", {"kind": "test"}, overwrite=True) as directory:
                    storage.write_text(directory / "large", "x" * 200_000)
            try:
                attempt()
            except OSError as error:
                print(error)
        """,
        memory_path,
    )
    assert result.stdout.count("File too large") == 2, result
    assert (memory_path / "file").read_text() == "old"
    assert published(memory_path / "folder") == OLD
    assert hidden(memory_path) == []
