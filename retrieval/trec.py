"""Qrels and runs: reading, writing, and the one rule by which a run is ordered.

A run is ordered by falling score as float32, and among equal scores by falling document id, byte by byte: the
rule of trec_eval (and so of pytrec_eval, Pyserini, Anserini). The rank column of a file is never used.
"""

from __future__ import annotations

import logging
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from retrieval.errors import InputError, fail
from retrieval.textfiles import decode, numbered_bytes, publish_lines

log = logging.getLogger(__name__)

Qrels: TypeAlias = dict[str, dict[str, int]]  # query id → document id → grade
Run: TypeAlias = dict[str, dict[str, float]]  # query id → document id → score
Ties = Literal["trec", "file-rank"]
Report: TypeAlias = Callable[[InputError], None]

_BEIR_HEADER = [b"query-id", b"corpus-id", b"score"]
_TOO_LARGE = 2.0**128 - 2.0**103  # from here on a float64 becomes infinity as float32
_HUGE_RANK = 2**62
_LARGEST_GRADE = 2**31 - 1


def rank_order(doc_ids: Sequence[str], scores: NDArray[np.float32], ties: Ties = "trec") -> NDArray[np.int64]:
    """Return the places of a query's documents, best first.

    Args:
        doc_ids: (n,) in the order in which they were given.
        scores: (n,) float32, finite. A float64 score must be rounded first: trec_eval ties what float32 ties.
        ties: "trec" orders equal scores by falling document id; "file-rank" leaves them as they were given.

    Returns:
        (n,) int64, a permutation of 0 … n − 1.
    """
    if ties not in get_args(Ties):
        raise InputError(f"ties must be 'trec' or 'file-rank', got {ties!r}")
    order = np.argsort(-scores, kind="stable")
    ordered = scores[order]
    same = ordered[1:] == ordered[:-1]
    if ties == "trec" and same.any():
        is_tied = np.append(same, False) | np.append(False, same)
        # Python compares strings by code point, which is the order of their UTF-8 bytes.
        by_id = np.array(sorted(order[is_tied].tolist(), key=doc_ids.__getitem__, reverse=True))
        order[is_tied] = by_id[np.argsort(-scores[by_id], kind="stable")]
    return order


def score_array(scores: Mapping[str, float], query_id: str | None = None) -> NDArray[np.float32]:
    """Return one query's scores as float32, in the order of the mapping.

    Raises:
        InputError: an id is not a string, or a score is not a number, is nan, or does not fit float32.
    """
    where = "" if query_id is None else f"query {query_id!r}, "
    if not scores:
        return np.zeros(0, dtype=np.float32)
    for kind in set(map(type, scores)):
        if not issubclass(kind, str):
            bad = next(doc_id for doc_id in scores if type(doc_id) is kind)
            raise InputError(f"{where}document {bad!r}: ids must be str, got {kind.__name__}; use str({bad!r})")
    try:
        values = np.array(list(scores.values()))
    except ValueError:  # lists of unequal lengths
        values = np.zeros(0, dtype=object)
    if values.ndim != 1 or values.dtype.kind not in "biuf":
        bad = next((d for d, score in scores.items() if not np.isscalar(score) or isinstance(score, str)), "")
        raise InputError(f"{where}document {bad!r}: score {scores.get(bad)!r} is not a number")
    with np.errstate(over="ignore"):
        singles = values.astype(np.float32)
    if not np.isfinite(singles).all():
        bad = list(scores)[int(np.argmin(np.isfinite(singles)))]
        raise InputError(f"{where}document {bad!r}: score {scores[bad]!r} is not a finite float32 number")
    return singles


def ranked(scores: Mapping[str, float], *, ties: Ties = "trec") -> list[tuple[str, float]]:
    """Return one query's (document id, score) pairs, best first, by the rule of this module.

    Raises:
        InputError: a score is nan or infinite as float32.
    """
    doc_ids = list(scores)
    places = rank_order(doc_ids, score_array(scores), ties)
    return [(doc_ids[place], scores[doc_ids[place]]) for place in places.tolist()]


def numbered_qrels(path: str | Path, report: Report = fail) -> Iterator[tuple[int, str, str, int]]:
    """Yield (line number, query id, document id, grade) for each judgement of a file.

    Two layouts are recognised by the first line: BEIR's, three columns between tabs under the header
    `query-id corpus-id score`, in which ids may hold spaces; and TREC's, four columns between blanks (query,
    iteration, document, grade). A byte order mark, CRLF and blank lines are accepted, `.gz` too.

    Args:
        path: the file.
        report: called with each defect; the line is left out when it returns.

    Raises:
        InputError: with file and line, at a wrong number of columns or a grade that is not an integer.
    """
    path = Path(path)
    is_beir: bool | None = None
    for number, _, raw in numbered_bytes(path):
        if not raw.strip():
            continue
        if is_beir is None:
            is_beir = [name.strip() for name in raw.lower().split(b"\t")] == _BEIR_HEADER
            if is_beir:
                continue
        try:
            yield number, *_judgement(raw, is_beir, path, number)
        except InputError as error:
            report(error)


def read_qrels(path: str | Path, report: Report = fail) -> Qrels:
    """Read relevance judgements, see `numbered_qrels` for the layouts.

    A judgement that is repeated with the same grade is accepted, and counted in a warning; with another grade
    it is refused, since every choice would be arbitrary.

    Raises:
        InputError: as `numbered_qrels`, and for a contradiction, or a file without any judgement.
    """
    path = Path(path)
    qrels: Qrels = {}
    lines: dict[str, array[int]] = {}
    repeats = 0
    for number, query_id, doc_id, grade in numbered_qrels(path, report):
        grades = qrels.setdefault(query_id, {})
        if doc_id not in grades:
            grades[doc_id] = grade
            lines.setdefault(query_id, array("q")).append(number)
        elif grades[doc_id] == grade:
            repeats += 1
        else:
            first = lines[query_id][list(grades).index(doc_id)]
            message = (
                f"query {query_id!r}, document {doc_id!r}: grade {grade}, "
                f"but {grades[doc_id]} on line {first}; keep one"
            )
            report(InputError(message, path=path, line=number, kind="contradictory judgement"))
    if repeats:
        log.warning("%s: %s judgements are repeated with the same grade; each counts once", path, f"{repeats:,}")
    if not qrels:
        report(InputError("holds no judgement", path=path, kind="empty"))
    return qrels


def _judgement(raw: bytes, is_beir: bool, path: Path, number: int) -> tuple[str, str, int]:
    columns = raw.rstrip(b"\r\n").split(b"\t") if is_beir else raw.split()
    wanted = 3 if is_beir else 4
    if len(columns) != wanted:
        layout = "3 between tabs (query-id, corpus-id, score)" if is_beir else "4 (query 0 document grade)"
        hints = {
            3: "; BEIR's three columns need the header line query-id<TAB>corpus-id<TAB>score",
            6: "; is this a run? the qrels come first",
        }
        hint = "" if is_beir else hints.get(len(columns), "")
        message = f"got {len(columns)} columns, wanted {layout}{hint}"
        raise InputError(message, path=path, line=number, kind="wrong columns")
    decode(raw, path, number)  # names the byte of the line
    query_id, doc_id = columns[0].decode(), columns[-2].decode()
    if not query_id or not doc_id:
        raise InputError("an id is empty", path=path, line=number, kind="empty id")
    grade = _integer(columns[-1])
    if grade is None or abs(grade) > _LARGEST_GRADE:
        message = f"grade {columns[-1].decode()!r} is not an integer like 0, 1, 2; round it or map it to grades"
        raise InputError(message, path=path, line=number, kind="grade")
    return query_id, doc_id, grade


def _integer(text: bytes) -> int | None:
    try:
        return None if b"_" in text else int(text)
    except ValueError:
        return None


def read_run(path: str | Path, report: Report = fail) -> Run:
    """Read a run in TREC's six columns: query, Q0, document, rank, score, tag.

    Scores alone give the order. A rank column that contradicts them is counted in a warning.

    Args:
        path: the file, `.gz` too; a byte order mark, CRLF and blank lines are accepted. An empty file
            is a run that answers nothing.
        report: called with each defect; the line is left out when it returns.

    Raises:
        InputError: with file and line, at a wrong number of columns, a rank that is not an integer, a score
            that is text, nan, infinite or beyond float32, or a document that a query has twice.
    """
    path = Path(path)
    run: Run = {}
    ranks: dict[str, array[int]] = {}
    lines: dict[str, array[int]] = {}
    previous = None
    for number, _, raw in numbered_bytes(path):
        columns = raw.split()  # of bytes: at ASCII blanks only, as in C; ids may hold any other character
        try:
            query, _, document, rank_text, score_text, _ = columns
            doc_id, rank, score = document.decode(), int(rank_text), float(score_text)
            # nan fails this, too; and Python would read 1_0 as ten.
            is_good = -_TOO_LARGE < score < _TOO_LARGE and b"_" not in score_text
            if query != previous:  # lines of a query mostly stand together
                query_id = query.decode()
                scores = run.setdefault(query_id, {})
                query_ranks, query_lines = (table.setdefault(query_id, array("q")) for table in (ranks, lines))
                previous = query
        except ValueError:
            is_good = False
        if not is_good:
            if columns:
                report(_bad_line(raw, path, number))
        elif doc_id in scores:
            first = query_lines[list(scores).index(doc_id)]
            message = f"query {query_id!r} has document {doc_id!r} already on line {first}; keep one"
            report(InputError(message, path=path, line=number, kind="duplicate document"))
        else:
            scores[doc_id] = score
            query_lines.append(number)
            query_ranks.append(rank if -_HUGE_RANK < rank < _HUGE_RANK else _HUGE_RANK)
    _warn_of_ranks(path, run, ranks)
    return run


def _bad_line(raw: bytes, path: Path, number: int) -> InputError:
    """Say what is wrong with a line that does not parse."""
    try:
        decode(raw, path, number)
    except InputError as error:
        return error
    texts = [column.decode() for column in raw.split()]
    if len(texts) != 6:
        hint = {
            3: "; MS MARCO's runs have no scores: write minus the rank as the score, "
            'awk \'{print $1, "Q0", $2, $3, -$3, "run"}\'',
            4: "; are these qrels? the run comes second",
        }.get(len(texts), "; an id or the tag with a blank in it splits into several columns")
        message = f"got {len(texts)} columns, wanted 6 (query Q0 document rank score tag){hint}"
        return InputError(message, path=path, line=number, kind="wrong columns")
    rank, score = texts[3], texts[4]
    try:
        value = float(score) if "_" not in score else None
    except ValueError:
        value = None
    if value is None:
        return InputError(f"score {score!r} is not a number", path=path, line=number, kind="score")
    if not abs(value) < _TOO_LARGE:
        message = f"score {score!r} is not a finite float32 number"
        return InputError(message, path=path, line=number, kind="score")
    message = f"rank {rank!r} is not an integer; are the columns rank and score swapped?"
    return InputError(message, path=path, line=number, kind="rank")


def _warn_of_ranks(path: Path, run: Run, ranks: Mapping[str, Sequence[int]]) -> None:
    """Warn if sorting by the rank column would let a score rise."""
    n_wrong = 0
    for query_id, scores in run.items():
        values = np.fromiter(scores.values(), dtype=np.float32, count=len(scores))
        by_rank = values[np.lexsort((-values, np.array(ranks[query_id])))]
        n_wrong += bool((by_rank[1:] > by_rank[:-1]).any())
    if n_wrong:
        log.warning(
            "%s: in %s of %s queries the rank column contradicts the scores; the scores decide",
            path,
            f"{n_wrong:,}",
            f"{len(run):,}",
        )


def write_run(path: str | Path, run: Mapping[str, Mapping[str, float]], tag: str = "rankwright") -> None:
    """Write a run in TREC's six columns, ranked by the rule of this module; compressed if `path` ends in .gz.

    Scores are written as the shortest decimal that reads back as the same float64, so `read_run` returns an
    equal run and every tool sees the same order. A query without documents leaves no line.

    Raises:
        InputError: an id or the tag is empty or holds a blank, NUL or half a surrogate pair, which the format
            cannot carry; a score is not a finite float32 number. Nothing is written then.
    """
    check_id(tag, "tag")
    lines = (line for query_id, scores in run.items() for line in run_lines(query_id, scores, tag))
    publish_lines(Path(path), lines)


def check_id(text: Any, what: str) -> None:
    """Refuse an id that a line of a run cannot carry.

    Unicode's blanks count as well as ASCII's, since other readers split at them, and so does U+FEFF in front,
    which is a byte order mark at the start of a file.

    Raises:
        InputError: says which character it is.
    """
    if not isinstance(text, str):
        raise InputError(f"{what} {text!r} must be str, got {type(text).__name__}; use str({text!r})")
    if not text:
        raise InputError(f"a {what} is empty; a TREC run needs one in its column")
    if text.isprintable() and text.isascii() and " " not in text:  # the usual case, quickly
        return
    for character in text:
        if character.isspace() or character == "\0" or "\ud800" <= character <= "\udfff":
            raise InputError(f"{what} {text!r} holds U+{ord(character):04X}, which a TREC run cannot carry")
    if text[0] == "\ufeff":
        raise InputError(f"{what} {text!r} begins with U+FEFF, which a TREC run cannot carry")


def check_ids(table: Mapping[str, Iterable[str]]) -> None:
    """Refuse ids of a run, or of judgements, that a file of another tool can hold and a TREC file cannot."""
    for query_id, doc_ids in table.items():
        check_id(query_id, "query id")
        for doc_id in doc_ids:
            check_id(doc_id, "document id")


def run_lines(query_id: str, scores: Mapping[str, float], tag: str) -> Iterator[str]:
    """Yield the lines of one query, best first, without line ends; ranks start at 1.

    Raises:
        InputError: as `write_run`.
    """
    check_id(query_id, "query id")
    doc_ids = list(scores)
    order = rank_order(doc_ids, score_array(scores, query_id))
    for rank, place in enumerate(order.tolist(), start=1):
        doc_id = doc_ids[place]
        check_id(doc_id, "document id")
        yield f"{query_id} Q0 {doc_id} {rank} {float(scores[doc_id])!r} {tag}"
