"""The disk as `indexes.storage` sees it: system calls in one table, locks that die with their holder, hashes.

Nothing here publishes. A temporary sibling of NAME is called ``.NAME.tmp-PID-RANDOM``; its writer holds an
flock on it, so whoever finds one that is not locked knows that it is left over (a process id could be from
another host or container, or used again).
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import secrets
import shutil
import socket
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

LOCK = ".lock"

_TEMPORARY = re.compile(r"\.(.+)\.tmp-[0-9]+-[0-9a-f]{8}", re.DOTALL)
_BLOCK = 1 << 20  # bytes hashed at a time


class StorageError(ValueError):
    """What is stored is damaged, of another kind, in use or in the way; one line names it and why."""


class System:
    """Every call with which the package touches the disk; tests put an object here whose n-th call fails."""

    open = staticmethod(os.open)
    read = staticmethod(os.read)
    write = staticmethod(os.write)
    fsync = staticmethod(os.fsync)
    close = staticmethod(os.close)
    truncate = staticmethod(os.ftruncate)
    lstat = staticmethod(os.lstat)
    listdir = staticmethod(os.listdir)
    mkdir = staticmethod(os.mkdir)
    replace = staticmethod(os.replace)
    unlink = staticmethod(os.unlink)
    rmdir = staticmethod(os.rmdir)
    rmtree = staticmethod(shutil.rmtree)


system = System()


@contextmanager
def temporary_sibling(target: Path, *, folder: bool) -> Iterator[tuple[Path, int]]:
    """Yield (path, descriptor) of a new hidden file or folder beside `target`, deleted at the end.

    What dead processes left beside the same target is removed first.
    """
    remove_stale(target.parent, target.name)
    path, descriptor = _create_sibling(target, folder=folder)
    try:
        yield path, descriptor
    finally:
        remove(path)
        system.close(descriptor)


def _create_sibling(target: Path, *, folder: bool) -> tuple[Path, int]:
    while True:
        path = target.with_name(f".{target.name}.tmp-{os.getpid()}-{secrets.token_hex(4)}")
        descriptor = -1
        try:
            if folder:
                system.mkdir(path)
            flags = os.O_RDONLY if folder else os.O_RDWR | os.O_CREAT | os.O_EXCL
            descriptor = system.open(path, flags, 0o666)
            if _try_lock(descriptor) is not False and _is_at(descriptor, path):
                return path, descriptor
        except BaseException:
            remove(path)
            if descriptor >= 0:
                system.close(descriptor)
            raise
        system.close(descriptor)  # between its creation and our lock someone took it for a left-over


def remove(path: Path) -> None:
    """Delete a file or a folder if it is there and can be deleted; left-overs do no harm."""
    with suppress(OSError):
        if stat.S_ISDIR(system.lstat(path).st_mode):
            system.rmtree(path)
        else:
            system.unlink(path)


def remove_stale(folder: str | Path, name: str | None = None) -> None:
    """Delete temporary siblings (of `name`, or all) in `folder` whose writer is dead; others stay."""
    with suppress(OSError):
        for entry in system.listdir(folder):
            match = _TEMPORARY.fullmatch(entry)
            if match and name in (None, match[1]):
                _remove_if_stale(Path(folder, entry))


def _remove_if_stale(path: Path) -> None:
    with suppress(OSError):
        descriptor = system.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            if _try_lock(descriptor):
                remove(path)
        finally:
            system.close(descriptor)


@contextmanager
def locked(folder: str | Path) -> Iterator[None]:
    """Hold `folder` (made when missing) against every other process; the holder's death releases it.

    `publishing` takes this lock itself. It is an flock on a hidden file in the folder; where the file system
    has no locks it protects nobody.

    Raises:
        StorageError: at once, when it is taken; names the process and the host.
    """
    target = Path(folder)
    make_folder(target)
    descriptor = _take_lock(target)
    try:
        yield
    finally:
        with suppress(OSError):
            system.unlink(target / LOCK)
        system.close(descriptor)


def _take_lock(folder: Path) -> int:
    path = folder / LOCK
    while True:
        descriptor = system.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        try:
            if _try_lock(descriptor) is False:
                holder = system.read(descriptor, 200).decode("utf-8", "replace").strip()
                raise StorageError(f"{folder}: in use by {holder or 'another process'}; wait until it has ended")
            if _is_at(descriptor, path):
                with suppress(OSError):  # the name is for the error of others; on a full disk it stays empty
                    system.truncate(descriptor, 0)
                    system.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
                return descriptor
        except BaseException:
            system.close(descriptor)
            raise
        system.close(descriptor)  # its last holder removed the file before we had the lock


def _try_lock(descriptor: int) -> bool | None:
    """Take the flock: True if we have it, False if another has it, None where there is no such thing."""
    if sys.platform == "win32":
        return None
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), system.lstat(path))
    except FileNotFoundError:
        return False


def make_folder(folder: Path) -> None:
    """Make `folder` and its missing parents, and make their names survive a power cut."""
    missing = []
    while not folder.exists():
        missing.append(folder)
        folder = folder.parent
    for new in reversed(missing):
        with suppress(FileExistsError):  # made by another process just now
            system.mkdir(new)
        fsync_directory(new.parent)


def fsync_directory(folder: str | Path) -> None:
    """Make the names in `folder` survive a power cut."""
    if sys.platform == "win32":  # has no such call
        return
    descriptor = system.open(folder, os.O_RDONLY)
    try:
        system.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # the file system does not sync directories
            raise
    finally:
        system.close(descriptor)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Give an OSError of the block that names no file (`write` knows only a number) the name `path`."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


def walk(folder: Path, prefix: str = "") -> dict[str, Path]:
    """Return {name relative to `folder`, with "/": path} of every file below it.

    Raises:
        StorageError: at anything but a file or a folder; links could lead out, reading a pipe never ends.
    """
    files: dict[str, Path] = {}
    for entry in sorted(system.listdir(folder)):
        path = folder / entry
        mode = system.lstat(path).st_mode
        if stat.S_ISDIR(mode):
            files.update(walk(path, f"{prefix}{entry}/"))
        elif stat.S_ISREG(mode):
            files[prefix + entry] = path
        else:
            kind = "a symbolic link" if stat.S_ISLNK(mode) else "a pipe, a socket or a device"
            raise StorageError(f"{path}: is {kind}; wanted a regular file")
    return files


def describe(path: Path, *, sync: bool = False) -> dict[str, Any]:
    """Read a file and return {"size": bytes, "sha256": hex}; `sync` flushes it to the disk first."""
    descriptor = system.open(path, os.O_RDONLY)
    try:
        if sync:
            system.fsync(descriptor)
        digest, size = hashlib.sha256(), 0
        while block := system.read(descriptor, _BLOCK):
            digest.update(block)
            size += len(block)
        return {"size": size, "sha256": digest.hexdigest()}
    finally:
        system.close(descriptor)


def sha256_file(path: str | Path) -> str:
    """Return the sha256 of a file's bytes as 64 hex digits."""
    return str(describe(Path(path))["sha256"])


def hash_folder(folder: str | Path) -> dict[str, dict[str, Any]]:
    """Return {name: {"size", "sha256"}} of every file below `folder`; StorageError at a link or a pipe."""
    return {name: describe(path) for name, path in walk(Path(folder)).items()}
