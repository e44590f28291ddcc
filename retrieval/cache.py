"""Where things that can be made again lie on the user's machine: unpacked files and fetched collections."""

from __future__ import annotations

import gzip
import logging
import os
import zlib
from pathlib import Path

from indexes.storage import sha256_file, writing
from retrieval.errors import InputError
from retrieval.textfiles import open_bytes

log = logging.getLogger(__name__)

_BLOCK = 1 << 20


def cache_folder() -> Path:
    """Return $RANKWRIGHT_CACHE, or rankwright in the user's cache folder (~/.cache); it may not exist yet."""
    if chosen := os.environ.get("RANKWRIGHT_CACHE"):
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "rankwright"


def unpacked(path: Path) -> Path:
    """Return `path`, or for a .gz file its unpacked copy in the cache, made on first use.

    Random access needs this: finding a byte in gzip data means unpacking all that is before it. The copy is
    named by the hash of the compressed bytes, so another file with the same name never meets an old copy.

    Raises:
        InputError: the gzip data is cut off or fails its checksum; nothing is left in the cache then.
    """
    if path.suffix != ".gz":
        return path
    with open_bytes(path):  # says what is wrong with a missing or empty file
        pass
    copy = cache_folder() / "unpacked" / f"{sha256_file(path)}{Path(path.stem).suffix}"
    if copy.is_file():
        return copy
    log.info("%s is compressed; unpacking it once to %s", path, copy)
    with writing(copy) as target, open_bytes(path) as source:
        try:
            while block := source.read(_BLOCK):
                target.write(block)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            message = f"the gzip data is damaged or cut off ({error}); fetch the file again"
            raise InputError(message, path=path, kind="gzip") from error
    return copy
