"""A corpus of any size in little memory: where each document starts, which id it has, and nothing else."""

from __future__ import annotations

import json
import logging
import os
import weakref
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from indexes.storage import sha256_file
from retrieval.cache import unpacked
from retrieval.errors import InputError, fail
from retrieval.ids import IdTable
from retrieval.progress import progress
from retrieval.textfiles import decode, numbered_bytes, parse_object

log = logging.getLogger(__name__)

# The most that `Corpus.text` returns: beyond any model's input, while a tokenizer needs many times its input.
MAX_CHARACTERS = 1_000_000

# Names that other tools give to the two fields, for the hint when ours is missing.
_ALIASES = {
    "_id": ("id", "docid", "doc_id", "query_id", "qid"),
    "text": ("contents", "body", "passage", "document", "query"),
}


@dataclass(frozen=True, slots=True)
class Document:
    """One document; `title` is "" when there is none."""

    doc_id: str
    title: str
    text: str

    @property
    def full_text(self) -> str:
        """What models read: title + " " + text, without space around it."""
        return f"{self.title} {self.text}".strip()


class Corpus:
    """The documents of a `corpus.jsonl`, read from the file when asked for.

    Holds 8 bytes per document for its place, about 12 for its id and the id itself: 10⁷ documents need about
    0.3 GB. Rows count documents from 0 in file order. Threads and forked processes may read at once.

    Args:
        path: the plain JSONL file that is read.
        offsets: (n,) int64, where each document's line starts.
        ids: the documents' ids, by row.
        source: what the user named, for messages; differs from `path` when that was compressed.
    """

    def __init__(self, path: Path, offsets: NDArray[np.int64], ids: IdTable, *, source: Path | None = None) -> None:
        if len(offsets) != len(ids):
            raise ValueError(f"got {len(offsets)} offsets and {len(ids)} ids; wanted one of each per document")
        self.path, self.offsets, self.ids, self.source = path, offsets, ids, source or path

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        report: Callable[[InputError], None] = fail,
        visit: Callable[[int, Document], None] | None = None,
    ) -> Corpus:
        """Scan a JSONL file with `_id`, `text` and perhaps `title`; a .gz is unpacked once into the cache.

        Empty documents are kept, since an id must not vanish, and counted in the log.

        Args:
            path: corpus.jsonl or corpus.jsonl.gz.
            report: called with each defect; a defective line is left out when it returns.
            visit: called with (line number, document) for every document that can be read.

        Raises:
            InputError: the first defect, with file and line (of a duplicate id both lines), unless `report`
                takes it.
        """
        source = Path(path)
        plain = unpacked(source)
        offsets = array("q")
        n_empty = n_long = 0

        def ids() -> Iterator[str]:
            nonlocal n_empty, n_long
            lines = read_documents(plain, source, report)
            for number, offset, document in progress(lines, unit="docs", label=f"reading {source.name}"):
                offsets.append(offset)
                n_empty += not document.full_text
                n_long += len(document.title) + len(document.text) >= MAX_CHARACTERS
                if visit:
                    visit(number, document)
                yield document.doc_id

        table = IdTable.build(ids())
        places = np.frombuffer(offsets, dtype=np.int64) if offsets else np.zeros(0, dtype=np.int64)
        corpus = cls(plain, places, table, source=source)
        _report_duplicates(corpus, report)
        if n_empty:
            log.warning("%s: %d of %d documents are empty; they are kept", source, n_empty, len(corpus))
        if n_long:
            message = "%s: of %d documents only the first %d characters are used"
            log.warning(message, source, n_long, MAX_CHARACTERS)
        return corpus

    def __len__(self) -> int:
        return len(self.offsets)

    def __contains__(self, doc_id: object) -> bool:
        return doc_id in self.ids

    def __iter__(self) -> Iterator[Document]:
        return (self.document(row) for row in range(len(self)))

    def row(self, doc_id: str) -> int:
        """Return the row of a document.

        Raises:
            InputError: there is none with this id.
        """
        row = self.ids.find(doc_id)
        if row is None:
            raise InputError(f"no document has the id {doc_id!r}", path=self.source, kind="unknown document")
        return row

    def document(self, row: int) -> Document:
        """Read one document.

        Raises:
            IndexError: the row is outside the corpus.
            InputError: the file is no longer what it was when the corpus was loaded.
        """
        row = range(len(self))[row]
        start = int(self.offsets[row])
        end = int(self.offsets[row + 1]) if row + 1 < len(self) else self._size
        raw = os.pread(self._descriptor, end - start, start)
        line = raw[: raw.find(b"\n") + 1] or raw  # lines that were blank or left out may follow it
        try:
            document = parse_document(line, self.source, row + 1)
        except InputError:
            document = None
        if document is None or document.doc_id != self.ids[row]:
            message = f"document {self.ids[row]!r} is not at byte {start} now: the file changed; load it again"
            raise InputError(message, path=self.path, kind="changed file")
        return document

    def text(self, row: int) -> str:
        """Return what models read of a document: title + " " + text, at most `MAX_CHARACTERS` of it."""
        return self.document(row).full_text[:MAX_CHARACTERS]

    def texts(self, rows: Iterable[int]) -> list[str]:
        """Return `text` of every row given."""
        return [self.text(int(row)) for row in rows]

    @cached_property
    def sha256(self) -> str:
        """The sha256 of the plain file's bytes, as hex; the same for a compressed copy of it."""
        return sha256_file(self.path)

    @cached_property
    def _descriptor(self) -> int:
        descriptor = os.open(self.path, os.O_RDONLY)
        weakref.finalize(self, os.close, descriptor)
        return descriptor

    @cached_property
    def _size(self) -> int:
        return os.fstat(self._descriptor).st_size


def read_documents(
    path: Path, source: Path, report: Callable[[InputError], None] = fail
) -> Iterator[tuple[int, int, Document]]:
    """Yield (line number, byte offset, document) for every line that is not blank; messages name `source`."""
    try:
        for number, offset, raw in numbered_bytes(path):
            if not raw.strip():
                continue
            try:
                document = parse_document(raw, source, number)
            except InputError as error:
                report(error)
            else:
                yield number, offset, document
    except InputError as error:  # damage that ends the reading, such as a line without end
        report(InputError(error.reason, path=source, line=error.line, kind=error.kind))


def parse_document(raw: bytes, path: Path, line: int) -> Document:
    """Parse one line of a corpus, or raise an InputError that names file, line and field."""
    record = parse_object(decode(raw, path, line), path, line)
    doc_id, text = id_and_text(record, path, line)
    title = record.get("title")
    if title is None:
        title = ""
    elif not isinstance(title, str):
        message = f'"title" is {shown(title)}; wanted a string, or no title'
        raise InputError(message, path=path, line=line, kind="wrong type")
    return Document(doc_id, title, text)


def id_and_text(record: dict[str, Any], path: Path, line: int) -> tuple[str, str]:
    """Return the strings `_id`, which is not empty, and `text`, or say with an InputError what is wrong."""
    for field, aliases in _ALIASES.items():
        if field not in record:
            near = next((name for name in aliases if name in record), None)
            hint = f'; is that "{near}"?' if near else ""
            raise InputError(f'there is no "{field}"{hint}', path=path, line=line, kind="missing field")
        if not isinstance(record[field], str):
            message = f'"{field}" is {shown(record[field])}; wanted a string'
            raise InputError(message, path=path, line=line, kind="wrong type")
    if not record["_id"]:
        raise InputError('"_id" is empty; every record needs one', path=path, line=line, kind="empty id")
    return record["_id"], record["text"]


def shown(value: Any) -> str:
    """Describe a JSON value in a message: its type, and the value as far as it is short."""
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else f"a list of {len(value)}"
    text = json.dumps(value, ensure_ascii=False)
    kind = "the string " if isinstance(value, str) else "" if isinstance(value, bool | None) else "the number "
    return f"{kind}{text if len(text) <= 40 else text[:39] + '…'}"


def _report_duplicates(corpus: Corpus, report: Callable[[InputError], None]) -> None:
    pairs = corpus.ids.duplicates()
    if not pairs:
        return
    # Line numbers are not kept for the sake of this case alone, so count the lines again.
    rows = {int(corpus.offsets[row]): row for pair in pairs for row in pair}
    lines = {rows[at]: number for number, at, _ in numbered_bytes(corpus.path) if at in rows}
    for first, later in pairs:
        text = "the same text" if corpus.document(first) == corpus.document(later) else "another text"
        message = f"_id {corpus.ids[later]!r} stands on line {lines[first]} already, with {text}"
        report(InputError(message, path=corpus.source, line=lines[later], kind="duplicate id"))
