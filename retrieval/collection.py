"""A collection: documents, queries, and for each split who is relevant to what."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

from retrieval.corpus import Corpus, id_and_text
from retrieval.errors import InputError, did_you_mean, fail
from retrieval.textfiles import decode, numbered_bytes, numbered_lines, parse_object
from retrieval.trec import Qrels, read_qrels

log = logging.getLogger(__name__)

_WANTED = "wanted a BEIR folder (corpus.jsonl, queries.jsonl, qrels/SPLIT.tsv), irds:ID, or pydocs"


class Collection:
    """A BEIR folder: `corpus.jsonl`, `queries.jsonl` and `qrels/SPLIT.tsv`, any of them also as `.gz`.

    A folder with a corpus alone is a collection too; queries and splits are missed only when asked for.

    Args:
        path: the folder.
        name: for logs and tables; the folder's name when left out.
    """

    def __init__(self, path: str | Path, name: str | None = None) -> None:
        self.path = Path(path)
        self.name = name or self.path.resolve().name
        if not self.path.exists():
            raise InputError(f"no such folder; {_WANTED}", path=self.path)
        if not self.path.is_dir():
            raise InputError(f"is a file; {_WANTED}", path=self.path)
        self.corpus_path = self._required("corpus.jsonl")

    @classmethod
    def load(cls, source: str | Path) -> Collection:
        """Open a BEIR folder, `irds:ID` (fetched by ir_datasets, kept in the cache), or `pydocs`.

        Raises:
            InputError: there is no such collection, or it cannot be fetched. Files are read only when used.
        """
        if str(source) == "pydocs":
            from retrieval.pydocs import pydocs_folder

            return cls(pydocs_folder(), name="pydocs")
        if str(source).startswith("irds:"):
            from retrieval.irds import irds_folder

            return cls(irds_folder(str(source).removeprefix("irds:")), name=str(source))
        return cls(source)

    @cached_property
    def corpus(self) -> Corpus:
        """The documents; the file is scanned at first use."""
        return Corpus.load(self.corpus_path)

    @cached_property
    def splits(self) -> list[str]:
        """Names of the splits that have judgements, sorted."""
        return sorted(self._qrels_paths)

    def qrels_path(self, split: str) -> Path:
        """Return the file of a split's judgements.

        Raises:
            InputError: there is no such split; names the nearest.
        """
        if split not in self._qrels_paths:
            hint = did_you_mean(split, self.splits) if self.splits else "; it has no qrels/*.tsv"
            raise InputError(f"no split {split!r}{hint}", path=self.path, kind="unknown split")
        return self._qrels_paths[split]

    def qrels(self, split: str) -> Qrels:
        """Read the judgements of a split: query id → document id → grade. Each call reads anew."""
        return read_qrels(self.qrels_path(split))

    def queries(self, split: str | None = None) -> dict[str, str]:
        """Return query id → text, of the queries judged in `split` (in its order) or of all.

        Queries without text are left out with a warning: they cannot be searched and count as missing.

        Raises:
            InputError: there is no queries file, or the split judges a query that is not in it.
        """
        if split is None:
            wanted = self.query_texts
        else:
            qrels = self.qrels(split)
            unknown = [query_id for query_id in qrels if query_id not in self.query_texts]
            if unknown:
                raise unknown_query(unknown[0], self.qrels_path(split), self.queries_path, len(unknown) - 1)
            wanted = {query_id: self.query_texts[query_id] for query_id in qrels}
        queries = {query_id: text for query_id, text in wanted.items() if text.strip()}
        if len(queries) < len(wanted):
            n_empty = len(wanted) - len(queries)
            log.warning("%s: %d of %d queries are empty; they are not used", self.name, n_empty, len(wanted))
        return queries

    @property
    def queries_path(self) -> Path:
        """The queries file; an InputError when there is none."""
        return self._required("queries.jsonl")

    @cached_property
    def query_texts(self) -> dict[str, str]:
        """Query id → text of all queries, empty ones too; the file is read at first use."""
        return read_queries(self.queries_path)

    @cached_property
    def _qrels_paths(self) -> dict[str, Path]:
        paths: dict[str, Path] = {}
        for path in sorted((self.path / "qrels").glob("*.tsv*")):
            split, _, ending = path.name.rpartition(".tsv")
            if not split or split.startswith(".") or ending not in ("", ".gz"):
                continue
            if split in paths:
                raise InputError(f"{paths[split].name} and {path.name} both exist; remove one", path=path.parent)
            paths[split] = path
        return paths

    def _required(self, name: str) -> Path:
        plain, packed = self.path / name, self.path / f"{name}.gz"
        if plain.exists() and packed.exists():
            raise InputError(f"{plain.name} and {packed.name} both exist; remove one", path=self.path)
        if packed.exists():
            return packed
        if plain.exists() or plain.is_symlink():
            return plain
        others = sorted(other.name for other in self.path.glob(f"{Path(name).stem}*"))
        hint = f"; found {', '.join(others[:3])}" if others else ""
        raise InputError(f"has no {name} (or .gz){hint}; {_WANTED}", path=self.path, kind="missing file")


def read_queries(
    path: str | Path,
    report: Callable[[InputError], None] = fail,
    visit: Callable[[int, str, str], None] | None = None,
) -> dict[str, str]:
    """Read query id → text from BEIR's JSONL (`_id`, `text`) or, from a .tsv or .txt, id TAB text.

    Args:
        path: the file, perhaps with .gz behind it. Empty texts are kept.
        report: called with each defect; a defective line is left out when it returns.
        visit: called with (line number, query id, text) of every query that can be read.

    Raises:
        InputError: the first defect with file and line (of a duplicate id both lines), unless `report`
            takes it.
    """
    path = Path(path)
    is_tsv = path.name.removesuffix(".gz").endswith((".tsv", ".txt"))
    queries: dict[str, str] = {}
    lines: dict[str, int] = {}
    for number, _, raw in numbered_bytes(path):
        if not raw.strip():
            continue
        try:
            line = decode(raw, path, number)
            if is_tsv:
                query_id, text = _id_tab_text(line, path, number)
            else:
                query_id, text = id_and_text(parse_object(line, path, number), path, number)
            if query_id in queries:
                same = "the same text" if queries[query_id] == text else "another text"
                message = f"_id {query_id!r} stands on line {lines[query_id]} already, with {same}"
                raise InputError(message, path=path, line=number, kind="duplicate id")
        except InputError as error:
            report(error)
        else:
            queries[query_id], lines[query_id] = text, number
            if visit:
                visit(number, query_id, text)
    return queries


def unknown_query(query_id: str, qrels: Path, queries: Path, more: int = 0) -> InputError:
    """Return the error for a judged query that has no text, with the line of its first judgement."""
    line = next((number for number, text in numbered_lines(qrels) if query_id in text.split()), None)
    others = f" (and {more} more like it)" if more else ""
    message = f"query {query_id!r} is not in {queries.name}{others}; add it there or remove its judgements"
    return InputError(message, path=qrels, line=line, kind="unknown query")


def _id_tab_text(line: str, path: Path, number: int) -> tuple[str, str]:
    query_id, tab, text = line.rstrip("\r\n").partition("\t")
    if not tab or not query_id.strip():
        raise InputError("wanted a query id, a tab, and the query", path=path, line=number, kind="wrong columns")
    return query_id.strip(), text.strip()
