"""Publishing files and folders: reader, crash and full disk meet the old state or the new one, never a mix.

Everything is written to a hidden temporary sibling, fsynced, read back, renamed, and the directory fsynced.
A folder that can be replaced keeps each state in a sub-folder of its own:

    scifact.index/
        CURRENT           "v000002 <checksum of its manifest>", replaced in one step
        v000002/
            manifest.json     format, kind, created_by, size and sha256 of every file, checksum over itself
            index.faiss …
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar, cast

from indexes import disk
from indexes.disk import StorageError, fsync_directory, hash_folder, locked, remove_stale, sha256_file
from indexes.manifest import (
    MANIFEST,
    Verify,
    check_files,
    check_keys,
    compare,
    complete,
    read_manifest,
    read_small,
    rendered,
)

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

__all__ = [
    "Artifact",
    "StorageError",
    "check_folder",
    "check_target",
    "fsync_directory",
    "hash_folder",
    "locked",
    "open_folder",
    "publish_plain",
    "publishing",
    "read_folder",
    "remove_folder",
    "remove_stale",
    "sha256_file",
    "write_json",
    "write_lines",
    "write_text",
    "writing",
]

CURRENT = "CURRENT"

_VERSION = re.compile(r"v[0-9]{6,9}")
_POINTER = re.compile(rb"(v[0-9]{6,9}) [0-9a-f]{64}\n")
_ATTEMPTS = 100  # of a reader that is overtaken by one publication after the other

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Artifact:
    """One verified version of a published folder: where its files lie, and what its manifest says."""

    path: Path
    manifest: dict[str, Any]


class _Sink(io.RawIOBase):
    """Writes to a descriptor and remembers size and hash of what it was given."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor, self.size, self.sha256, self.discarding = descriptor, 0, hashlib.sha256(), False

    def writable(self) -> bool:
        return True

    def write(self, data: ReadableBuffer, /) -> int:
        view = memoryview(data).cast("B")
        if self.discarding:
            return len(view)
        written = disk.system.write(self.descriptor, view)
        self.sha256.update(view[:written])
        self.size += written
        return written


@contextmanager
def writing(path: str | Path, *, overwrite: bool = True) -> Iterator[BinaryIO]:
    """Yield a binary file (write only, no seeking) whose bytes become `path` when the block ends well.

    The bytes go to a hidden sibling, are fsynced, read back (size and sha256), and renamed over `path`. After
    an exception, a full disk or a kill, `path` is what it was. Missing parent folders are made. Of two
    writers the last one wins whole.

    Raises:
        StorageError: `path` is no regular file, exists while `overwrite` is False, or reads back differently.
        OSError: the system refused (disk full, no permission); the error carries a file name.
    """
    target = Path(path)
    _refuse_file(target, overwrite=overwrite)
    with disk.naming(target):
        disk.make_folder(target.parent)
        with disk.temporary_sibling(target, folder=False) as (temporary, descriptor):
            sink = _Sink(descriptor)
            file = io.BufferedWriter(sink, buffer_size=1 << 20)
            try:
                yield cast(BinaryIO, file)
                file.close()
            except BaseException:
                sink.discarding = True  # what is still buffered goes nowhere, now or when `file` is collected
                raise
            disk.system.fsync(descriptor)
            written = {"size": sink.size, "sha256": sink.sha256.hexdigest()}
            compare(target, written, disk.describe(temporary), "the disk did not keep what was written to it")
            _refuse_file(target, overwrite=overwrite)
            disk.system.replace(temporary, target)
            fsync_directory(target.parent)


def write_text(path: str | Path, text: str, *, overwrite: bool = True) -> None:
    """Publish `text` as UTF-8, exactly as given, through `writing`."""
    with writing(path, overwrite=overwrite) as file:
        file.write(text.encode("utf-8"))


def write_json(path: str | Path, value: Any, *, overwrite: bool = True) -> None:
    """Publish `value` as indented UTF-8 JSON through `writing`; NaN and infinity are refused (ValueError)."""
    write_text(path, json.dumps(value, ensure_ascii=False, indent=2, allow_nan=False) + "\n", overwrite=overwrite)


def write_lines(path: str | Path, lines: Iterable[str], *, overwrite: bool = True) -> None:
    """Publish `lines` as UTF-8 through `writing`, a line feed after each; one inside a line is refused."""
    with writing(path, overwrite=overwrite) as file:
        for number, line in enumerate(lines, start=1):
            if "\n" in line:
                raise ValueError(f"{path}: line {number} would hold a line feed: {line[:80]!r}")
            file.write(line.encode("utf-8") + b"\n")


@contextmanager
def publishing(folder: str | Path, manifest: Mapping[str, Any], *, overwrite: bool = False) -> Iterator[Path]:
    """Yield an empty folder to fill; when the block ends well it is what `open_folder(folder)` finds.

    Args:
        folder: made when missing. A folder with other contents is refused, whatever `overwrite` says.
        manifest: JSON values, `kind` among them. Read when the block ends, so that what is only known then
            can still be put in. `format`, `created_by`, `files` and `checksum` are ours.
        overwrite: replace a published version; it stays readable until the new one is complete.

    Raises:
        StorageError: something is in the way, another process is publishing here, or a link was put in.
        OSError: the system refused; what was published before is intact.
    """
    target = Path(folder)
    check_keys(manifest)
    _refuse_folder(target, overwrite=overwrite)
    is_new = not target.exists()
    try:
        with disk.naming(target), locked(target):
            _refuse_folder(target, overwrite=overwrite)  # again: now nobody else can publish here
            with suppress(StorageError):  # behind a damaged CURRENT nothing is thrown away yet
                _remove_versions(target, keep=_pointed_version(target))
            number = 1 + max((int(name[1:]) for name in _versions(target)), default=0)
            version = target / f"v{number:06d}"
            with disk.temporary_sibling(version, folder=True) as (temporary, _):
                yield temporary
                completed = _seal(temporary, manifest)
                disk.system.replace(temporary, version)
            fsync_directory(target)
            with writing(target / CURRENT) as file:
                file.write(_pointer(version.name, completed))
            _remove_versions(target, keep=version.name)
    except BaseException:
        if is_new:
            with suppress(OSError):
                disk.system.rmdir(target)  # works only while it is empty, that is, nothing was published
        raise


@contextmanager
def publish_plain(folder: str | Path) -> Iterator[Path]:
    """Yield an empty folder to fill; when the block ends well it is renamed to the new name `folder`.

    For folders that other tools read by their own rules (models, checkpoints): no manifest, no versions, and
    `folder` must not exist. Every file is fsynced and read back before the rename, so a folder with the final
    name is whole.
    """
    target = Path(folder)
    check_target(target)
    with disk.naming(target):
        disk.make_folder(target.parent)
        with disk.temporary_sibling(target, folder=True) as (temporary, _):
            yield temporary
            _settle(temporary)
            check_target(target)
            disk.system.replace(temporary, target)
            fsync_directory(target.parent)


def remove_folder(folder: str | Path) -> None:
    """Delete a folder, renamed to a hidden sibling first: a kill half-way leaves nothing under its name."""
    target = Path(folder)
    with disk.naming(target), disk.temporary_sibling(target, folder=True) as (temporary, _):
        disk.system.replace(target, temporary)  # a folder may replace an empty one
        fsync_directory(target.parent)


def open_folder(folder: str | Path, *, kind: str, verify: Verify = "full") -> Artifact:
    """Check what `publishing` wrote and return the current version.

    Args:
        folder: what was given to `publishing`.
        kind: what its manifest must call itself.
        verify: "full" reads and hashes every file (about 1 GB/s), "size" compares names, types, sizes.

    Raises:
        StorageError: a file is missing, extra, altered, cut off or no regular file; the manifest or CURRENT
            is damaged, of a newer format or of another kind. The message names the file and both values.
    """
    return read_folder(folder, lambda artifact: artifact, kind=kind, verify=verify)


def read_folder(folder: str | Path, read: Callable[[Artifact], T], *, kind: str, verify: Verify = "full") -> T:
    """Return `read(open_folder(…))`, begun again if it failed because a new version was published meanwhile.

    Publishing removes older versions, so a reader can lose its files between looking at CURRENT and opening
    them; what `read` has open when it returns stays readable.
    """
    if verify not in ("full", "size"):
        raise ValueError(f"verify must be 'full' or 'size', got {verify!r}")
    target = Path(folder)
    attempts = 0
    while True:
        pointer = _read_pointer(target)
        attempts += 1
        try:
            return read(_open_version(target, pointer, kind, verify))
        except Exception:
            if attempts == _ATTEMPTS or _read_pointer(target) == pointer:
                raise


def check_target(path: str | Path, *, overwrite: bool = False) -> None:
    """Raise StorageError if writing to `path` later must fail: it exists, or its place is not writable."""
    target = Path(path)
    if os.path.lexists(target) and not overwrite:
        raise StorageError(f"{target}: exists already; choose another place or ask for --overwrite")
    place = target if target.is_dir() else target.parent
    while not place.exists():
        place = place.parent
    if not place.is_dir():
        raise StorageError(f"{target}: cannot be made, because {place} is a file")
    if not os.access(place, os.W_OK | os.X_OK):
        raise StorageError(f"{target}: cannot be written, because {place} is not writable for this user")


def check_folder(folder: str | Path, *, overwrite: bool = False) -> None:
    """Raise StorageError if `publishing` to `folder` later must fail; what a killed one left is not in the way."""
    _refuse_folder(Path(folder), overwrite=overwrite)
    check_target(folder, overwrite=True)


def _refuse_file(target: Path, *, overwrite: bool) -> None:
    if target.exists() and not target.is_file():
        kind = "a folder" if target.is_dir() else "a pipe or a device"
        raise StorageError(f"{target}: is {kind}; wanted the name of a regular file")
    if os.path.lexists(target) and not overwrite:
        raise StorageError(f"{target}: exists already; choose another place or ask for --overwrite")


def _refuse_folder(target: Path, *, overwrite: bool) -> None:
    if not os.path.lexists(target):
        return
    if not target.is_dir():
        raise StorageError(f"{target}: is a file; wanted a folder")
    if os.path.lexists(target / CURRENT):
        if not overwrite:
            raise StorageError(f"{target}: exists already; choose another place or ask for --overwrite")
        return
    strange = [name for name in disk.system.listdir(target) if name[0] != "." and not _VERSION.fullmatch(name)]
    if strange:
        raise StorageError(f"{target}: holds other things ({min(strange)}); choose an empty or a new folder")


def _versions(folder: Path) -> list[str]:
    return [name for name in disk.system.listdir(folder) if _VERSION.fullmatch(name)]


def _pointed_version(folder: Path) -> str | None:
    if not os.path.lexists(folder / CURRENT):
        return None
    return _read_pointer(folder).split()[0].decode()


def _remove_versions(folder: Path, *, keep: str | None) -> None:
    with suppress(OSError):
        remove_stale(folder)
        for name in _versions(folder):
            if name != keep:
                disk.remove(folder / name)


def _settle(folder: Path) -> dict[str, dict[str, Any]]:
    """Flush all files and names below `folder` to the disk, read every byte back, return sizes and hashes."""
    paths = disk.walk(folder)
    files = {name: disk.describe(path, sync=True) for name, path in paths.items()}
    for directory in sorted({folder, *(parent for name in paths for parent in (folder / name).parents)}):
        if directory.is_relative_to(folder):
            fsync_directory(directory)
    return files


def _seal(folder: Path, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Write the manifest of a filled folder and return it."""
    if os.path.lexists(folder / MANIFEST):
        raise ValueError(f"{folder / MANIFEST}: is written by storage; give that file another name")
    completed = complete(manifest, _settle(folder))
    write_text(folder / MANIFEST, rendered(completed))
    return completed


def _read_pointer(folder: Path) -> bytes:
    if not folder.is_dir():
        problem = "is a file; wanted a folder" if folder.exists() else "no such folder"
        raise StorageError(f"{folder}: {problem}")
    pointer = read_small(folder / CURRENT)
    if not _POINTER.fullmatch(pointer):
        raise StorageError(f"{folder / CURRENT}: expected 'vNNNNNN <64 hex digits>', got {pointer[:90]!r}")
    return pointer


def _open_version(folder: Path, pointer: bytes, kind: str, verify: Verify) -> Artifact:
    version = folder / pointer.split()[0].decode()
    if version.is_symlink() or not version.is_dir():
        raise StorageError(f"{version}: is no folder, but {CURRENT} beside it points to it; build it again")
    manifest = read_manifest(version / MANIFEST)
    if pointer != (expected := _pointer(version.name, manifest)):
        raise StorageError(f"{folder / CURRENT}: says {pointer!r}, expected {expected!r}; build it again")
    if manifest.get("kind") != kind:
        raise StorageError(f"{folder}: is of kind {manifest.get('kind')!r}, wanted {kind!r}")
    check_files(version, manifest.get("files"), verify)
    return Artifact(version, manifest)


def _pointer(version: str, manifest: Mapping[str, Any]) -> bytes:
    """Return the only bytes that CURRENT may hold for this version."""
    return f"{version} {manifest['checksum']}\n".encode()
