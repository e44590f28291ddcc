"""`manifest.json`: what a published version holds, and the checks that find every change to it.

format      number of the layout, FORMAT or smaller
kind        what the folder is ("index", …); other keys beside it are the writer's own
created_by  "rankwright VERSION"
files       {name: {"size": bytes, "sha256": hex}} of every other file of the version
checksum    sha256 of the manifest without this field, as JSON with sorted keys and no spaces
"""

from __future__ import annotations

import hashlib
import json
import stat
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from indexes import disk
from indexes.disk import StorageError

FORMAT = 1  # a reader refuses a larger one and keeps reading every smaller one
MANIFEST = "manifest.json"

_LARGEST = 1 << 26  # bytes; a manifest has a few lines per file, so more than this is damage or malice
_OURS = {"checksum", "created_by", "files", "format"}

Verify = Literal["full", "size"]


def check_keys(manifest: Mapping[str, Any]) -> None:
    """Raise ValueError unless a writer's manifest has a kind and leaves our own keys alone."""
    if not isinstance(manifest.get("kind"), str):
        raise ValueError(f"the manifest's kind must be a string, got {manifest.get('kind')!r}")
    if taken := sorted(_OURS & manifest.keys()):
        raise ValueError(f"the manifest may not set {', '.join(taken)}: storage fills that in")


def complete(manifest: Mapping[str, Any], files: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return the manifest to be written: the writer's keys, ours, and the checksum."""
    check_keys(manifest)
    ours = {"format": FORMAT, "created_by": f"rankwright {_our_version()}", "files": files}
    # Through JSON and back, so that the checksum is over what a reader will see (tuples are lists there).
    body: dict[str, Any] = json.loads(json.dumps({**manifest, **ours}, allow_nan=False))
    return {**body, "checksum": _checksum(body)}


def rendered(manifest: Mapping[str, Any]) -> str:
    """Return the one text of `manifest.json` for these values: any other byte in the file is damage."""
    return json.dumps(manifest, sort_keys=True, indent=1) + "\n"


def read_manifest(path: Path) -> dict[str, Any]:
    """Read and check a manifest, but not yet the files that it names.

    Raises:
        StorageError: it is missing, altered by as little as a bit, or of a newer format.
    """
    raw = read_small(path)
    try:
        manifest = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise StorageError(f"{path}: is damaged ({error}); build the folder again or copy it whole") from None
    if not isinstance(manifest, dict) or type(manifest.get("format")) is not int:
        raise StorageError(f"{path}: is damaged (no object with a format number); build the folder again")
    if manifest["format"] > FORMAT:
        raise StorageError(f"{path}: format {manifest['format']} > {FORMAT} supported; update rankwright")
    checksum = _checksum(manifest)
    if manifest.get("checksum") != checksum:
        raise StorageError(f"{path}: is altered: checksum {checksum}, expected {manifest.get('checksum')}")
    if raw != rendered(manifest).encode():
        raise StorageError(f"{path}: is altered: same values, other bytes; build the folder again")
    return manifest


def check_files(folder: Path, expected: Any, verify: Verify) -> None:
    """Raise StorageError unless `folder` holds exactly the files that its manifest expects.

    Names, types and sizes are always compared; contents only with verify="full".
    """
    _check_entries(folder / MANIFEST, expected)
    found = disk.walk(folder)
    if extra := sorted(found.keys() - expected.keys() - {MANIFEST}):
        raise StorageError(f"{folder / extra[0]}: is not in the manifest; remove it or build the folder again")
    for name, entry in expected.items():
        path = folder / name
        if name not in found:
            problem = "is a folder" if path.is_dir() else "is missing"
            raise StorageError(f"{path}: {problem}; expected a file of {entry['size']} bytes; build it again")
        size = {"size": disk.system.lstat(path).st_size}
        compare(path, entry, size, "it is cut off, grown or another file; build it again")
        if verify == "full":
            compare(path, entry, disk.describe(path), "it was altered; build it again")


def _check_entries(path: Path, files: Any) -> None:
    """Refuse what only a forged manifest has: the checksum is no signature."""
    if not isinstance(files, dict):
        raise StorageError(f"{path}: files must be an object, got {type(files).__name__}")
    for name, entry in files.items():
        pure = PurePosixPath(name)
        if pure.is_absolute() or ".." in pure.parts or str(pure) != name or "\\" in name or name == ".":
            raise StorageError(f"{path}: file name {name!r} is no plain name inside the folder")
        if not isinstance(entry, dict) or entry.keys() != {"size", "sha256"}:
            raise StorageError(f"{path}: the entry of {name!r} must have size and sha256, got {entry!r}")


def compare(path: Path, expected: Mapping[str, Any], got: Mapping[str, Any], meaning: str) -> None:
    """Raise StorageError at the first key of `got` (size, sha256) that differs from `expected`."""
    for key, value in got.items():
        if expected[key] != value:
            raise StorageError(f"{path}: {key} {value}, expected {expected[key]}: {meaning}")


def read_small(path: Path) -> bytes:
    """Read a regular file of at most 64 MiB; anything else is a StorageError."""
    try:
        status = disk.system.lstat(path)
    except FileNotFoundError:
        raise StorageError(f"{path}: is missing; build the folder again or copy it whole") from None
    if not stat.S_ISREG(status.st_mode):
        raise StorageError(f"{path}: is no regular file; build the folder again")
    if status.st_size > _LARGEST:
        raise StorageError(f"{path}: has {status.st_size} bytes, expected at most {_LARGEST}; build it again")
    return path.read_bytes()


def _checksum(manifest: Mapping[str, Any]) -> str:
    body = {key: value for key, value in manifest.items() if key != "checksum"}
    return hashlib.sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _our_version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("rankwright")
    except PackageNotFoundError:  # the source tree, not installed
        return "unknown"
