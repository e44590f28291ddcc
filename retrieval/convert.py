"""Qrels, runs, training rows and collections from one format into another, saying what the new one cannot hold."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from indexes.storage import check_target
from retrieval.collection import Collection
from retrieval.corpus import shown
from retrieval.dialects import DIALECTS, recognise
from retrieval.errors import InputError, did_you_mean
from retrieval.row_formats import WRITERS
from retrieval.rows import read_rows
from retrieval.textfiles import decode, numbered_lines, open_bytes, parse_json, publish_lines
from retrieval.trec import Qrels, Run, check_id, check_ids, ranked, read_qrels, read_run, write_run

# Kind of file → names of its formats. A name that several kinds have may be followed by the kind: trec-run.
FORMATS: dict[str, tuple[str, ...]] = {
    "qrels": ("beir", "trec", "json"),
    "run": ("trec", "json", "msmarco"),
    "rows": tuple(DIALECTS),
    "collection": ("beir", "irds"),
}


@dataclass(frozen=True, slots=True)
class Conversion:
    """What was done: kind of file, formats, records written, what the new format cannot hold, and what to know."""

    kind: str
    source_format: str
    target_format: str
    records: int
    lost: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def convert(
    source: str | Path,
    target: str | Path,
    target_format: str,
    source_format: str | None = None,
    *,
    data: str | Path | None = None,
    on_error: Literal["fail", "skip"] = "fail",
    overwrite: bool = False,
) -> Conversion:
    """Read `source`, and write it to `target` in another format, in one step.

    Args:
        source: a file, or `irds:ID` or `pydocs` for a collection.
        target: the new file (compressed if it ends in .gz) or folder.
        target_format: a name in `FORMATS`, with or without the kind behind it.
        source_format: likewise; recognised from the file when left out.
        data: the collection that has the texts of training rows which hold ids alone.
        on_error: what to do with defective training rows, see `read_rows`.
        overwrite: replace an existing file (never a folder).

    Raises:
        InputError: the source is defective, or cannot be put into that format.
        StorageError: the target exists.
    """
    kind, read_as, write_as = resolve(source, source_format, target_format)
    target = Path(target)
    check_target(target, overwrite=overwrite and kind != "collection")
    if kind == "qrels":
        return _qrels(Path(source), target, read_as, write_as)
    if kind == "run":
        return _run(Path(source), target, read_as, write_as)
    if kind == "rows":
        return _rows(Path(source), target, read_as, write_as, data, on_error)
    return _collection(source, target, write_as)


def resolve(source: str | Path, source_format: str | None, target_format: str) -> tuple[str, str, str]:
    """Return (kind, format to read, format to write), from the names given and a look at the source.

    Raises:
        InputError: a name is unknown, the formats are of different kinds, or the kind cannot be told.
    """
    targets = _named(target_format)
    sources = _named(source_format) if source_format else recognised(source)
    fitting = [(kind, read, write) for kind, read in sources for other, write in targets if kind == other]
    if not fitting:
        read, write = (" or ".join(f"{kind} ({name})" for kind, name in side) for side in (sources, targets))
        raise InputError(f"{source}: {read} cannot become {write}; both must be of one kind")
    if len(fitting) > 1 and source_format:
        seen = {kind for kind, _ in recognised(source)}
        fitting = [choice for choice in fitting if choice[0] in seen] or fitting
    if len(fitting) > 1:
        names = " or ".join(f"--from {read}-{kind}" for kind, read, _ in fitting)
        raise InputError(f"{source}: could be {' or '.join(kind for kind, _, _ in fitting)}; say {names}")
    return fitting[0]


def recognised(source: str | Path) -> list[tuple[str, str]]:
    """Return the (kind, format) that a source may have, from its name and its first line.

    Raises:
        InputError: it has none that we know.
    """
    path = Path(source)
    if str(source).startswith("irds:"):
        return [("collection", "irds")]
    if path.is_dir():
        return [("collection", "beir")]
    number, first = next(numbered_lines(path), (0, ""))
    if not first:
        raise InputError("is empty, so its format cannot be told; give --from", path=path)
    try:
        value = json.loads(first)
    except (ValueError, RecursionError):
        value = None  # no JSON, or one document over many lines
    if [name.strip() for name in first.lower().split("\t")] == ["query-id", "corpus-id", "score"]:
        return [("qrels", "beir")]
    columns = first.split()
    found = {3: ("run", "msmarco"), 4: ("qrels", "trec"), 6: ("run", "trec")}.get(len(columns))
    if value is None and found and (columns[0][0] not in "{[" or (columns[3:4] and columns[3].lstrip("-").isdecimal())):
        return [found]
    if first.lstrip()[0] not in "{[":
        message = f"got {len(columns)} columns; wanted 3 or 6 (a run), 4 or a header (qrels), or JSON"
        raise InputError(message, path=path, line=number)
    return _recognised_json(path, value, number)


def _recognised_json(path: Path, value: Any, number: int) -> list[tuple[str, str]]:
    """Tell rows from tables by the first line's value, which is None if that line is no whole document."""
    is_table = isinstance(value, dict) and all(isinstance(inner, dict) for inner in value.values())
    if value is not None and not is_table:
        try:
            return [("rows", recognise(value))]
        except InputError as error:
            raise InputError(error.reason, path=path, line=number, kind=error.kind) from None
    table = _read_json(path)
    whole = all(isinstance(score, int) for scores in table.values() for score in scores.values())
    return [("run", "json"), ("qrels", "json")] if whole else [("run", "json")]


def _named(name: str) -> list[tuple[str, str]]:
    choices = {
        spelling: [(kind, fmt) for kind in FORMATS for fmt in FORMATS[kind] if spelling in (fmt, f"{fmt}-{kind}")]
        for kind in FORMATS
        for fmt in FORMATS[kind]
        for spelling in (fmt, f"{fmt}-{kind}")
    }
    if name not in choices:
        raise InputError(f"unknown format {name!r}{did_you_mean(name, choices)}")
    return choices[name]


def _qrels(source: Path, target: Path, read_as: str, write_as: str) -> Conversion:
    qrels: Qrels = _read_json(source, whole=True) if read_as == "json" else read_qrels(source)
    pairs = [(query, doc, grade) for query, grades in qrels.items() for doc, grade in grades.items()]
    if write_as == "json":
        publish_lines(target, [json.dumps(qrels, ensure_ascii=False)])
    elif write_as == "trec":
        check_ids(qrels)
        publish_lines(target, (f"{query} 0 {doc} {grade}" for query, doc, grade in pairs))
    else:
        for text in (text for query, doc, _ in pairs for text in (query, doc)):
            if not text or set(text) & set("\t\r\n"):
                raise InputError(f"the id {text!r} is empty or holds a tab or line end, which BEIR's columns cannot")
        lines = (f"{query}\t{doc}\t{grade}" for query, doc, grade in pairs)
        publish_lines(target, ["query-id\tcorpus-id\tscore", *lines])
    lost = ["the iteration column"] if read_as == "trec" != write_as else []
    return Conversion("qrels", read_as, write_as, len(pairs), lost)


def _run(source: Path, target: Path, read_as: str, write_as: str) -> Conversion:
    readers: dict[str, Callable[[Path], Run]] = {"trec": read_run, "json": _read_json, "msmarco": _read_msmarco}
    run = readers[read_as](source)
    lost = ["the tag"] if read_as == "trec" else []
    notes = ["the file has no scores; minus the rank was written"] if read_as == "msmarco" != write_as else []
    if write_as == "trec":
        write_run(target, run)
    elif write_as == "json":
        publish_lines(target, [json.dumps({query: dict(ranked(run[query])) for query in run}, ensure_ascii=False)])
    else:
        publish_lines(target, _msmarco_lines(run))
        lost.append("the scores")
    return Conversion("run", read_as, write_as, sum(map(len, run.values())), lost, notes)


def _rows(
    source: Path,
    target: Path,
    read_as: str,
    write_as: str,
    data: str | Path | None,
    on_error: Literal["fail", "skip"],
) -> Conversion:
    collection = Collection.load(data) if data else None
    rows, dialect = read_rows(source, collection, on_error=on_error)
    if dialect != read_as:
        raise InputError(f"looks like rows of {dialect}, not of {read_as}; leave --from out", path=source)
    written = WRITERS[write_as](rows, collection.corpus if collection else None)
    counts: Counter[str] = Counter()
    publish_lines(target, _dumped(written.lines, counts))
    lost = [*_ignored_keys(source, dialect), *written.lost]
    return Conversion("rows", read_as, write_as, counts["lines"], lost, written.notes)


def _collection(source: str | Path, target: Path, write_as: str) -> Conversion:
    if not str(source).startswith("irds:"):
        raise InputError("is a BEIR folder already; nothing to convert", path=source)
    if write_as != "beir":
        raise InputError(f"{source}: a collection can be written as beir alone, got {write_as!r}")
    from retrieval.irds import fetch

    lost = fetch(str(source).removeprefix("irds:"), target)
    return Conversion("collection", "irds", "beir", len(Collection(target).corpus), lost)


def _read_json(path: Path, *, whole: bool = False) -> dict[str, dict[str, Any]]:
    """Read {"query": {"document": number}}, as BEIR and pytrec_eval have it."""
    with open_bytes(path) as file:
        text = decode(file.read().removeprefix(b"\xef\xbb\xbf"), path, 1)
    try:
        table = json.loads(text)
    except ValueError as error:
        line, column = getattr(error, "lineno", 1), getattr(error, "colno", 1)
        message = f"column {column} is not JSON: {getattr(error, 'msg', error)}"
        raise InputError(message, path=path, line=line, kind="not JSON") from None
    if not isinstance(table, dict) or not table:
        raise InputError(f'got {shown(table)}; wanted {{"query": {{"document": score}}}}', path=path)
    for query, scores in table.items():
        if not isinstance(scores, dict):
            raise InputError(f"query {query!r} has {shown(scores)}; wanted an object of documents", path=path)
        for doc, score in scores.items():
            good = isinstance(score, int) or (not whole and isinstance(score, float) and math.isfinite(score))
            if not good or isinstance(score, bool):
                wanted = "an integer grade" if whole else "a finite score"
                raise InputError(f"query {query!r}, document {doc!r}: got {shown(score)}; wanted {wanted}", path=path)
    return table


def _read_msmarco(path: Path) -> Run:
    """Read query, document, rank in three columns; the score is minus the rank, which orders alike."""
    run: Run = {}
    for number, text in numbered_lines(path):
        columns = text.split()
        if len(columns) != 3 or not columns[2].isdecimal():
            message = f"got {text[:60]!r}; wanted three columns: query, document, rank"
            raise InputError(message, path=path, line=number, kind="wrong columns")
        query, doc, rank = columns
        if doc in run.setdefault(query, {}):
            message = f"query {query!r} has document {doc!r} a second time; keep one line of it"
            raise InputError(message, path=path, line=number, kind="duplicate document")
        run[query][doc] = -float(rank)
    return run


def _msmarco_lines(run: Run) -> Iterator[str]:
    for query, scores in run.items():
        check_id(query, "query id")
        for rank, (doc, _) in enumerate(ranked(scores), start=1):
            check_id(doc, "document id")
            yield f"{query}\t{doc}\t{rank}"


def _ignored_keys(path: Path, dialect: str) -> list[str]:
    """Name the keys of a rows file that have no place in our rows, with how many rows have them."""
    used = DIALECTS[dialect].keys
    counts: Counter[str] = Counter()
    for number, text in numbered_lines(path, lambda error: None):
        try:
            value = parse_json(text, path, number)
        except InputError:  # reported before
            continue
        if isinstance(value, dict):
            counts.update(key for key in value if key not in used and not key.startswith("negative"))
    return [f"{key} of {n} rows" for key, n in counts.items()]


def _dumped(lines: Iterable[Mapping[str, Any]], counts: Counter[str]) -> Iterator[str]:
    for line in lines:
        counts["lines"] += 1
        yield json.dumps(line, ensure_ascii=False)
