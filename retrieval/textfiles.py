"""UTF-8 text line by line, `.gz` too: read so that every defect is told with file and line, and written."""

from __future__ import annotations

import codecs
import gzip
import json
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any, cast

from indexes.storage import write_lines, writing
from retrieval.errors import InputError, fail

MAX_LINE_BYTES = 1 << 28  # a file without line ends must not fill the memory before anyone can say so

# A whole pair, or (group 1) the escape of a half that no pair has claimed.
_SURROGATES = re.compile(r"\\u[dD][89aAbB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(\\u[dD][89a-fA-F])")


def open_bytes(path: Path) -> IO[bytes]:
    """Open a plain or gzip file for reading; a missing file, a folder, or an empty .gz is an InputError."""
    if path.is_dir():
        raise InputError("is a folder; wanted a file", path=path)
    if not path.exists():
        dangling = " (the link leads nowhere)" if path.is_symlink() else ""
        raise InputError(f"no such file{dangling}", path=path)
    if not path.is_file():
        raise InputError("is not a regular file (a pipe or a device?); wanted a file", path=path)
    if path.suffix != ".gz":
        return path.open("rb")
    if path.stat().st_size == 0:  # gzip itself reads nothing at all as an empty text
        raise InputError("is 0 bytes, which is no gzip file; fetch the file again", path=path, kind="gzip")
    return cast(IO[bytes], gzip.open(path, "rb"))


def numbered_lines(path: Path, report: Callable[[InputError], None] = fail) -> Iterator[tuple[int, str]]:
    """Yield (line number from 1, text without line end) for every line that is not blank.

    A byte order mark, CRLF, blank lines and a missing final newline are accepted.

    Args:
        path: a UTF-8 text file, gzip when it ends in .gz.
        report: what to do with a line that is not UTF-8; it is skipped when this returns.

    Raises:
        InputError: with file, line and byte at invalid UTF-8; with the file at damaged gzip data.
    """
    for number, _, raw in numbered_bytes(path):
        try:
            text = decode(raw, path, number).rstrip("\r\n")
        except InputError as error:
            report(error)
            continue
        if text.strip():
            yield number, text


def numbered_bytes(path: Path) -> Iterator[tuple[int, int, bytes]]:
    """Yield (line number from 1, offset of the line in the uncompressed bytes, raw line) for every line.

    Raises:
        InputError: truncated or corrupt gzip data, UTF-16, or a line of more than `MAX_LINE_BYTES`.
    """
    offset, number = 0, 0
    with open_bytes(path) as file:
        while True:
            try:
                raw = file.readline(MAX_LINE_BYTES + 1)
            except (EOFError, zlib.error, gzip.BadGzipFile) as error:
                message = f"the gzip data is damaged or cut off ({error}); fetch the file again"
                raise InputError(message, path=path, kind="gzip") from error
            if not raw:
                return
            number += 1
            if len(raw) > MAX_LINE_BYTES:
                message = f"the line is longer than {MAX_LINE_BYTES >> 20} MiB; wanted one record per line"
                raise InputError(message, path=path, line=number, kind="long line")
            if number == 1 and raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
                message = "is UTF-16; wanted UTF-8: iconv -f UTF-16 -t UTF-8"
                raise InputError(message, path=path, line=1, kind="not UTF-8")
            size = len(raw)
            if number == 1 and raw.startswith(codecs.BOM_UTF8):
                yield number, offset + len(codecs.BOM_UTF8), raw[len(codecs.BOM_UTF8) :]
            else:
                yield number, offset, raw
            offset += size


def publish_lines(path: Path, lines: Iterable[str]) -> None:
    """Write lines, in one step; compressed if the name ends in .gz, equal lines then giving equal bytes."""
    if path.suffix != ".gz":
        write_lines(path, lines)
        return
    with writing(path) as file, gzip.GzipFile("", "wb", fileobj=file, mtime=0) as packed:
        packed.writelines(f"{line}\n".encode() for line in lines)


def decode(raw: bytes, path: Path, line: int) -> str:
    """Decode one line, or raise an InputError that names file, line and byte."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        byte = raw[error.start]
        message = f"byte {error.start + 1} of the line is not UTF-8 (0x{byte:02x}); convert the file to UTF-8"
        raise InputError(message, path=path, line=line, kind="not UTF-8") from None


def parse_object(text: str, path: Path, line: int) -> dict[str, Any]:
    """Parse one JSONL line into an object, or raise an InputError that names file, line and column."""
    value = parse_json(text, path, line)
    if not isinstance(value, dict):
        message = f'got a JSON {type(value).__name__}; wanted an object like {{"_id": …}}'
        raise InputError(message, path=path, line=line, kind="not an object")
    return value


def parse_json(text: str, path: Path, line: int) -> Any:
    """Parse one JSON line, or raise an InputError that names file, line and column."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        column = min(getattr(error, "pos", 0), len(text.rstrip())) + 1
        reason = getattr(error, "msg", str(error))
        message = f"column {column} is not JSON: {reason}"
        raise InputError(message, path=path, line=line, kind="not JSON") from None
    lone = [match.start() + 1 for match in _SURROGATES.finditer(text) if match[1]] if "\\u" in text else []
    if lone and has_lone_surrogate(json.dumps(value, ensure_ascii=False)):  # not so for an escaped backslash
        message = f"column {lone[0]} holds half a surrogate pair (such as \\ud800), no character; remove it"
        raise InputError(message, path=path, line=line, kind="lone surrogate")
    return value


def has_lone_surrogate(text: str) -> bool:
    r"""Whether the text holds half a surrogate pair (``\ud800`` in JSON), which no UTF-8 file can store."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return True
    return False
