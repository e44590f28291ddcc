"""Feature files of learning to rank: SVMlight with query ids, as LETOR, MSLR-WEB and LightGBM's examples have them.

    grade qid:ID number:value number:value … # comment
    2 qid:301 1:0.5 3:-1.25 # FT911-3032

A grade is a number >= 0: LETOR's are whole, a fraction is read too. Feature numbers are whole, >= 1 and ascend in a
line; a feature that a line leaves out is missing there, which is not 0. Lines of a query lie together. A comment is the
document's id (LETOR's `#docid = GX001 inc = 1` too). Lines that hold nothing but a comment are passed over, except
those that name a feature, `# feature 3: bm25`, as `write_svmlight` writes them. UTF-8, `.gz` too.
"""

from __future__ import annotations

import logging
import re
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from operator import lt
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from retrieval.errors import InputError
from retrieval.textfiles import decode, numbered_bytes, publish_lines

logger = logging.getLogger(__name__)

_WANTED = "wanted 'grade qid:ID 1:0.5 2:0.7 … # document id'"
_TOO_LARGE = 2.0**128 - 2.0**103  # from here on a float64 becomes infinity as float32
_LARGEST_NUMBER = 2**31 - 1
_LONGEST_NUMBER = 100  # digits
_BLOCK = 1 << 16  # documents whose places are computed at once
_DOCID = re.compile(r"docid\s*=\s*(\S+)")
_NAMED = re.compile(r"#\s*feature\s+(\d+)\s*:\s*(\S.*)")


@dataclass(frozen=True)
class FeatureLists:
    """The documents of queries as feature vectors, with grades; rows lie query by query.

    Attributes:
        query_ids: one per list, in file order.
        sizes: (queries,) documents of each list.
        labels: (rows,) grades.
        features: (rows, features); nan = missing in the file.
        doc_ids: (rows,) or None where a line has none, or a query has one twice.
        numbers: (features,) the feature numbers of the file, ascending.
        names: (features,) what the file calls them, "" where it does not; None where it names none.

    """

    query_ids: list[str]
    sizes: NDArray[np.int64]
    labels: NDArray[np.float32]
    features: NDArray[np.float32]
    doc_ids: list[str] | None
    numbers: NDArray[np.int64]
    names: list[str] | None = None

    def __len__(self) -> int:
        return len(self.query_ids)

    def slices(self) -> list[slice]:
        """Return where the rows of each query lie."""
        ends = np.cumsum(self.sizes).tolist()
        return [slice(end - size, end) for end, size in zip(ends, self.sizes.tolist(), strict=True)]

    def split_features(self) -> list[NDArray[np.float32]]:
        """Return a (docs, features) view for each query."""
        return [self.features[rows] for rows in self.slices()]

    def split_labels(self) -> list[NDArray[np.float32]]:
        """Return a (docs,) view for each query."""
        return [self.labels[rows] for rows in self.slices()]

    def query_of(self, row: int) -> str:
        """Return the id of the query that a row belongs to."""
        return self.query_ids[int(np.searchsorted(np.cumsum(self.sizes), row, side="right"))]

    def select(self, queries: Sequence[int]) -> Self:
        """Return the lists at these places, in this order."""
        slices = self.slices()
        rows = np.concatenate([np.zeros(0, np.int64), *(np.arange(slices[q].start, slices[q].stop) for q in queries)])
        return replace(
            self,
            query_ids=[self.query_ids[q] for q in queries],
            sizes=self.sizes[list(queries)],
            labels=self.labels[rows],
            features=self.features[rows],
            doc_ids=None if self.doc_ids is None else [self.doc_ids[row] for row in rows.tolist()],
        )

    def check_names(
        self,
        numbers: NDArray[np.int64],
        names: Sequence[str] | None,
        *,
        path: str | Path | None = None,
        trained_on: str | Path = "training",
    ) -> None:
        """Refuse lists in which a feature has another name than in training, with its number and both names.

        Names that are missing here or there are not compared; `path` and `trained_on` say where each was read.
        """
        known = {number: name for number, name in zip(numbers.tolist(), names or (), strict=False) if name}
        for number, name in zip(self.numbers.tolist(), self.names or (), strict=False):
            if name and known.get(number, name) != name:
                message = f"feature {number} is {name!r} here and {known[number]!r} in {trained_on}"
                raise InputError(f"{message}; a number must mean one feature", path=path)

    def align(self, numbers: NDArray[np.int64]) -> Self:
        """Return the lists with these feature numbers as columns: what is lacking is nan, what is new is left out."""
        places = np.searchsorted(self.numbers, numbers).clip(0, max(len(self.numbers) - 1, 0))
        known = self.numbers[places] == numbers if len(self.numbers) else np.zeros(len(numbers), dtype=bool)
        features = np.full((len(self.labels), len(numbers)), np.nan, dtype=np.float32)
        features[:, known] = self.features[:, places[known]]
        names = self.names
        if names is not None:
            names = [names[place] if there else "" for place, there in zip(places.tolist(), known, strict=True)]
        return replace(self, features=features, numbers=numbers, names=names)


def read_svmlight(path: str | Path) -> FeatureLists:
    """Read a feature file; see the module for its form.

    Raises:
        InputError: with file and line, at a line that breaks a rule; a query whose lines do not lie together; with the
            file, where it holds no line.

    """
    reader = _Reader(Path(path))
    for number, _, raw in numbered_bytes(reader.path):
        reader.add(number, raw)
    return reader.lists()


def write_svmlight(path: str | Path, lists: FeatureLists, names: Sequence[str] | None = None) -> None:
    """Write a feature file that `read_svmlight` reads back to the same lists; `.gz` by its name.

    Args:
        path: the file, published in one step.
        lists: a feature that is nan is left out of its line.
        names: (features,) of the features; None: those of the lists. A feature with a name is read back even where no
            line has it; a column without a name that is nan everywhere leaves no trace in the file.

    Raises:
        InputError: an id or a name that a line cannot hold, a grade or value that is not finite.

    """
    path, names = Path(path), lists.names if names is None else list(names)
    if names is not None and len(names) != len(lists.numbers):
        raise InputError(f"got {len(names)} names for {len(lists.numbers)} features", path=path)
    _check_written(path, lists, names or [])
    publish_lines(path, _lines(lists, names or []))


def _lines(lists: FeatureLists, names: Sequence[str]) -> Iterator[str]:
    yield from (f"# feature {number}: {name}" for number, name in zip(lists.numbers, names, strict=False) if name)
    for query_id, rows in zip(lists.query_ids, lists.slices(), strict=True):
        for row in range(rows.start, rows.stop):
            values = lists.features[row]
            there = np.flatnonzero(~np.isnan(values))
            # Of a float32, numpy writes the shortest decimal number that is read back to it.
            pairs = [f"{lists.numbers[place]}:{values[place]!s}" for place in there]
            comment = [] if lists.doc_ids is None else [f"# {lists.doc_ids[row]}"]
            grade = float(lists.labels[row])
            shown = str(int(grade)) if grade.is_integer() else str(lists.labels[row])
            yield " ".join([shown, f"qid:{query_id}", *pairs, *comment])


def _check_written(path: Path, lists: FeatureLists, names: Sequence[str]) -> None:
    for query_id in lists.query_ids:
        if not query_id or "#" in query_id or len(query_id.split()) != 1:
            raise InputError(
                f"query id {query_id!r} holds a blank or '#', or nothing; SVMlight cannot hold it", path=path
            )
    for doc_id in lists.doc_ids or ():
        if doc_id != doc_id.strip() or not doc_id or doc_id.splitlines() != [doc_id] or _DOCID.search(doc_id):
            raise InputError(f"document id {doc_id!r} cannot be a comment of SVMlight and be read back", path=path)
    for name in names:
        if name != name.strip() or len(name.splitlines()) > 1:
            raise InputError(f"feature name {name!r} must be one line without blanks around it", path=path)
    if not np.isfinite(lists.labels).all() or (lists.labels < 0).any():
        raise InputError("a grade is not a finite number >= 0", path=path)
    if np.isinf(lists.features).any():
        raise InputError("a feature is infinite; nan stands for one that is missing", path=path)


class _Reader:
    """Takes one line after the other."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.query_ids: list[str] = []
        self.docs: set[str] = set()  # of the query that is being read
        self.first_line: dict[str, int] = {}  # of each query
        self.sizes: list[int] = []
        self.labels = array("f")
        self.comments: list[str] | None = []
        self.numbers, self.values, self.widths = array("i"), array("f"), array("i")
        self.names: dict[int, str] = {}

    def add(self, line: int, raw: bytes) -> None:
        body, sharp, _ = raw.partition(b"#")
        tokens = body.split()
        if not tokens:
            if sharp and (named := _NAMED.fullmatch(decode(raw, self.path, line).strip())):
                self.names[self._number(named[1].encode(), line)] = named[2]
            return
        if len(tokens) < 2 or not tokens[1].startswith(b"qid:") or len(tokens[1]) == 4:
            got = decode(tokens[1], self.path, line) if len(tokens) > 1 else "nothing"
            raise self._bad(f"got {_short(got)} behind the grade, where qid:ID must stand; {_WANTED}", line)
        self.labels.append(self._grade(tokens[0], line))
        self._query(decode(tokens[1][4:], self.path, line), line)
        self._pairs(tokens[2:], line)
        comment = decode(raw, self.path, line).partition("#")[2].strip() if sharp else ""
        if self.comments is not None:
            self._comment(comment, line)

    def lists(self) -> FeatureLists:
        """Return what all lines held."""
        if not self.labels:
            raise InputError(f"holds no document; {_WANTED}", path=self.path, kind="empty")
        found = np.frombuffer(self.numbers, dtype=np.intc)
        numbers = np.unique(np.concatenate([found, np.array(sorted(self.names), dtype=np.intc)]))
        features = np.full((len(self.labels), len(numbers)), np.nan, dtype=np.float32)
        values, widths = np.frombuffer(self.values, dtype=np.float32), np.frombuffer(self.widths, dtype=np.intc)
        ends = np.cumsum(widths, dtype=np.int64)
        for start in range(0, len(widths), _BLOCK):
            own = widths[start : start + _BLOCK]
            pairs = slice(ends[start] - own[0], ends[start + len(own) - 1])
            rows = np.repeat(np.arange(start, start + len(own)), own)
            features[rows, np.searchsorted(numbers, found[pairs])] = values[pairs]
        return FeatureLists(
            query_ids=self.query_ids,
            sizes=np.array(self.sizes, dtype=np.int64),
            labels=np.array(self.labels, dtype=np.float32),
            features=features,
            doc_ids=self.comments,
            numbers=numbers.astype(np.int64),
            names=[self.names.get(number, "") for number in numbers.tolist()] if self.names else None,
        )

    def _grade(self, token: bytes, line: int) -> float:
        grade = _number(token)
        if grade is None or not -_TOO_LARGE < grade < _TOO_LARGE:
            shown = _short(decode(token, self.path, line))
            raise self._bad(f"grade {shown} is not a finite number; {_WANTED}", line)
        if grade < 0:
            shown = _short(decode(token, self.path, line))
            raise self._bad(f"grade {shown} is negative; wanted 0 for what is not relevant, and more for better", line)
        return grade

    def _query(self, query_id: str, line: int) -> None:
        if self.query_ids and self.query_ids[-1] == query_id:
            self.sizes[-1] += 1
        elif query_id in self.first_line:
            first = self.first_line[query_id]
            message = f"query {query_id!r} comes back; its other lines begin at line {first}; put the lines together"
            raise self._bad(message, line)
        else:
            self.first_line[query_id] = line
            self.query_ids.append(query_id)
            self.sizes.append(1)
            self.docs = set()

    def _pairs(self, tokens: list[bytes], line: int) -> None:
        parts = [token.partition(b":") for token in tokens]
        try:
            if b"_" in b"".join(tokens):  # Python takes 1_000 for a number
                raise ValueError
            numbers, values = [int(number) for number, _, _ in parts], [float(value) for _, _, value in parts]
        except ValueError:
            self._refuse_pairs(tokens, line)
            raise AssertionError("a pair was refused and none is bad") from None
        ascending = all(map(lt, numbers, numbers[1:]))
        if numbers and not (ascending and numbers[0] >= 1 and numbers[-1] <= _LARGEST_NUMBER):
            self._refuse_numbers(numbers, line)
        if not all(-_TOO_LARGE < value < _TOO_LARGE for value in values):
            self._refuse_pairs(tokens, line)
        self.numbers.extend(numbers)
        self.values.extend(values)
        self.widths.append(len(numbers))

    def _refuse_pairs(self, tokens: list[bytes], line: int) -> None:
        """Name the first token that is no pair of numbers."""
        for token in tokens:
            number, colon, value = token.partition(b":")
            shown = _short(decode(token, self.path, line))
            if not colon or not number or not value:
                raise self._bad(f"{shown} is no feature; wanted number:value, such as 3:0.5", line)
            if number == b"qid":
                raise self._bad(f"{shown} is a second query id", line)
            self._number(number, line)
            found = _number(value)
            if found is None:
                raise self._bad(f"the value of feature {shown} is no number", line)
            if not -_TOO_LARGE < found < _TOO_LARGE:
                hint = "leave the feature out where it is missing" if found != found else "wanted a float32"
                raise self._bad(f"the value of feature {shown} is not finite; {hint}", line)

    def _refuse_numbers(self, numbers: list[int], line: int) -> None:
        """Name the first feature number that is out of place."""
        for before, number in zip([0, *numbers], numbers, strict=False):
            self._number(str(number).encode(), line)
            if number == before:
                raise self._bad(f"feature {number} stands twice", line)
            if number < before:
                raise self._bad(f"feature {number} stands behind {before}; feature numbers must ascend", line)

    def _number(self, token: bytes, line: int) -> int:
        if not token.isdigit():
            shown = _short(decode(token, self.path, line))
            raise self._bad(f"feature number {shown} is no whole number >= 1", line)
        number = int(token) if len(token) <= _LONGEST_NUMBER else 0  # Python refuses thousands of digits
        if not 1 <= number <= _LARGEST_NUMBER:
            shown = token.decode() if len(token) <= 40 else f"{token[:40].decode()}…"
            raise self._bad(f"feature number {shown} must be 1 to {_LARGEST_NUMBER}", line)
        return number

    def _comment(self, text: str, line: int) -> None:
        """Take a document's id; the first line without one, or a query with one twice, ends that for the file."""
        assert self.comments is not None
        docid = _DOCID.search(text)
        doc_id = docid[1] if docid else text
        if not doc_id or doc_id in self.docs:
            if self.comments:
                problem = f"{doc_id!r} stands twice in query {self.query_ids[-1]!r}" if doc_id else "there is none"
                logger.warning("%s:%d: %s: comments are not taken for document ids", self.path, line, problem)
            self.comments = None
            return
        self.docs.add(doc_id)
        self.comments.append(doc_id)

    def _bad(self, message: str, line: int) -> InputError:
        return InputError(message, path=self.path, line=line, kind="SVMlight")


def _number(token: bytes) -> float | None:
    try:
        return None if b"_" in token else float(token)
    except ValueError:
        return None


def _short(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:40] + "…")
