"""The `pydocs` collection: finding a function or class of numpy, scipy, scikit-learn or torch by what it does.

It is built on the user's machine from the docstrings of the installed packages, as a BEIR folder:

    corpus.jsonl            a document per public object: qualified name as title, docstring without summary as text
    queries.jsonl           a query per summary: the first sentence of the docstring
    qrels/{train,dev,test}.tsv   the object itself 3, the objects in its "See Also" 1
    about.json              versions, counts, sha256 of each file

The same versions give the same bytes, whatever the hash seed, the imports before, the version of Python (3.11 to 3.13
were compared) or the build of torch (CPU or CUDA); only scipy's experimental switch SCIPY_ARRAY_API changes some names.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from indexes.storage import StorageError, publish_plain
from retrieval.cache import cache_folder
from retrieval.docstrings import Docstring, parse_docstring, words
from retrieval.errors import InputError, require
from retrieval.near_duplicates import Groups, near_duplicate_groups
from retrieval.progress import progress
from retrieval.public_objects import PublicObject, public_objects

BUILDER = 1  # raised when the same packages would give other bytes
SOURCES = {"numpy": "numpy", "scipy": "scipy", "sklearn": "scikit-learn", "torch": "torch"}  # module → distribution
PARSER = "docstring_parser"  # its version matters to the bytes too

SELF, SEE_ALSO = 3, 1  # grades
MIN_BODY_WORDS = 10  # less is a stub, such as "See torch.abs()": no document
QUERY_WORDS = range(2, 41)  # "Beta function" is a query, "Members" is not; beyond 40 no sentence end was found
CONTAINED_WORDS = 4  # a summary this long must not even be a part of a sentence; a shorter one is a mere term
SPLITS = {"train": 0.7, "dev": 0.8, "test": 1.0}  # cumulative shares

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Pydocs:
    """The collection in memory: texts by id in id order, qrels by split, and what was counted on the way."""

    documents: dict[str, str]
    queries: dict[str, str]
    qrels: dict[str, dict[str, dict[str, int]]]
    counts: dict[str, int]


def pydocs_folder() -> Path:
    """Return the cached collection for the installed versions, building it on first use (about 15 seconds).

    It lies in `retrieval.cache.cache_folder()`, under a name that holds the versions.

    Raises:
        InputError: if a package is missing, or the cached files are not what was built.
    """
    versions = installed_versions()
    numbers = (f"{name}-{number}" for name, number in versions.items())
    folder = cache_folder() / "-".join(["pydocs", str(BUILDER), *numbers])
    if not folder.exists():
        names = ", ".join(f"{name} {number}" for name, number in versions.items() if name != PARSER)
        log.info("building the pydocs collection from %s (once; it is kept in %s)", names, folder)
        try:
            build_pydocs(folder)
        except StorageError:
            if not folder.exists():
                raise
            # Another process was faster; what it published is checked below.
    _check_cached(folder)
    return folder


def build_pydocs(folder: str | Path) -> dict[str, Any]:
    """Write the collection as a BEIR folder, which must not exist, and return what its about.json says.

    Raises:
        InputError: if a package is missing, or Python runs without docstrings (-OO).
        StorageError: if `folder` exists.
    """
    versions = installed_versions()
    if build_pydocs.__doc__ is None:
        raise InputError("Python runs without docstrings (-OO or PYTHONOPTIMIZE=2), and pydocs is made of them")
    require("datasketch", "demo")  # now, not after ten seconds
    collection = make_pydocs(public_objects(SOURCES))
    with publish_plain(Path(folder)) as temporary:
        files = {name: _write(temporary / name, lines) for name, lines in _files(collection)}
        about = {
            "name": "pydocs",
            "builder": BUILDER,
            "versions": versions,
            "counts": collection.counts,
            "sha256": files,
        }
        _write(temporary / "about.json", [json.dumps(about, indent=2)])
    return about


def installed_versions() -> dict[str, str]:
    """Return the public versions ("2.13.0", not "2.13.0+cpu") of what the bytes depend on.

    Raises:
        InputError: naming the missing package and the extra that installs it.
    """
    versions = {}
    for distribution in (*SOURCES.values(), PARSER):
        try:
            versions[distribution] = version(distribution).partition("+")[0]
        except PackageNotFoundError:
            raise InputError(
                f"pydocs is made from the documentation of {', '.join(SOURCES.values())}, and {distribution} "
                "is not installed; run: pip install 'rankwright[demo]'"
            ) from None
    return versions


def make_pydocs(objects: Sequence[PublicObject]) -> Pydocs:
    """Make documents, queries and qrels from `objects`, which must be ordered by name.

    - A sentence that equals any object's summary is removed from every document; a sentence that contains the
      summary of its own or a near-duplicate object (from 4 words on) is removed too.
    - An object with fewer than 10 words of body left is no document.
    - Objects whose summaries are the same but for case and punctuation share one query; each of them has grade 3.
    - A query goes to train, dev or test by the hash of its group: objects whose docstrings are near-duplicates
      (Jaccard of word trigrams ≥ 0.8) or whose summaries have the same words.
    """
    parsed = [parse_docstring(entry.doc) for entry in progress(objects, unit="docstrings", label="reading")]
    groups = _groups(parsed)
    bodies = _bodies(parsed, groups)
    documents = {
        entry.name: body
        for entry, body in zip(objects, bodies, strict=True)
        if len(words(body).split()) >= MIN_BODY_WORDS
    }
    counts = Counter(objects=len(objects), aliases=sum(len(entry.aliases) for entry in objects))
    counts.update(documents=len(documents), without_body=len(objects) - len(documents))
    related = _related(objects, parsed, documents, counts)
    askers: dict[str, list[int]] = {}
    for row, entry in enumerate(objects):
        if entry.name in documents:
            if len(words(parsed[row].summary).split()) in QUERY_WORDS:
                askers.setdefault(_question(parsed[row].summary), []).append(row)
            else:
                counts["without_query"] += 1
    queries: dict[str, str] = {}
    qrels: dict[str, dict[str, dict[str, int]]] = {split: {} for split in SPLITS}
    for rows in askers.values():
        query_id = f"q:{objects[rows[0]].name}"
        queries[query_id] = parsed[rows[0]].summary
        grades = {other: SEE_ALSO for row in rows for other in related[row]}
        grades |= {objects[row].name: SELF for row in rows}
        qrels[split_of(objects[groups.find(rows[0])].name)][query_id] = dict(sorted(grades.items()))
    counts.update(queries=len(queries), shared_queries=sum(len(rows) > 1 for rows in askers.values()))
    counts.update({f"{split}_queries": len(judged) for split, judged in qrels.items()})
    return Pydocs(documents, queries, qrels, dict(counts))


def split_of(group: str) -> str:
    """Return the split of a group of objects by the hash of its name: 70 % train, 10 % dev, 20 % test."""
    share = int.from_bytes(hashlib.sha256(group.encode("utf-8")).digest()[:8], "big") / 2**64
    return next(split for split, limit in SPLITS.items() if share < limit)


def _question(summary: str) -> str:
    """Return what makes a summary the same question: its words and operators ("x < y" is not "x > y")."""
    return " ".join(re.findall(r"\w+|[^\w\s.,:;'\"()\[\]{}-]+", summary.casefold()))


def _groups(parsed: Sequence[Docstring]) -> Groups:
    """Join the rows whose docstrings are near-duplicates, and those whose summaries have the same words."""
    groups = Groups(len(parsed))
    texts = [" ".join([entry.summary, *(said for paragraph in entry.body for said in paragraph)]) for entry in parsed]
    for row, other in enumerate(near_duplicate_groups(texts, threshold=0.8)):
        groups.join(row, other)
    first: dict[str, int] = {}
    for row, entry in enumerate(parsed):
        if entry.summary:
            groups.join(row, first.setdefault(words(entry.summary), row))
    return groups


def _bodies(parsed: Sequence[Docstring], groups: Groups) -> list[str]:
    """Return each object's text, a line per paragraph, without the sentences that would give a query away."""
    said_by_all = {words(entry.summary) for entry in parsed}
    said_by_group: dict[int, set[str]] = {}
    for row, entry in enumerate(parsed):
        key = words(entry.summary)
        if len(key.split()) >= CONTAINED_WORDS:
            said_by_group.setdefault(groups.find(row), set()).add(f" {key} ")

    def kept(sentence: str, row: int) -> bool:
        key = words(sentence)
        contained = (summary in f" {key} " for summary in said_by_group.get(groups.find(row), ()))
        return key not in said_by_all and not any(contained)

    bodies = []
    for row, entry in enumerate(parsed):
        paragraphs = (" ".join(said for said in paragraph if kept(said, row)) for paragraph in entry.body)
        bodies.append("\n".join(filter(None, paragraphs)))
    return bodies


def _related(
    objects: Sequence[PublicObject], parsed: Sequence[Docstring], documents: dict[str, str], counts: Counter[str]
) -> list[list[str]]:
    """Return the documents that each object's "See Also" names; count the names that lead to none."""
    canonical = {name: entry.name for entry in objects for name in (entry.name, *entry.aliases)}
    related = []
    for entry, docstring in zip(objects, parsed, strict=True):
        found = [
            next((canonical[c] for c in _candidates(name, entry) if c in canonical), "") for name in docstring.see_also
        ]
        counts["see_also"] += len(found)
        counts["see_also_unresolved"] += sum(name not in documents for name in found)
        related.append([name for name in found if name in documents and name != entry.name])
    return related


def _candidates(name: str, entry: PublicObject) -> Iterator[str]:
    """Yield what `name` may mean beside `entry`: a name relative to a module that holds it, or an absolute one."""
    for known in (entry.name, *entry.aliases):
        module = known.rpartition(".")[0]
        while module:
            yield f"{module}.{name}"
            module = module.rpartition(".")[0]
    yield name
    yield re.sub(r"^np\.", "numpy.", name)


def _files(collection: Pydocs) -> Iterator[tuple[str, Iterable[str]]]:
    """Yield (file name, lines) of the BEIR folder."""
    yield (
        "corpus.jsonl",
        (_json({"_id": name, "title": name, "text": text}) for name, text in collection.documents.items()),
    )
    yield "queries.jsonl", (_json({"_id": name, "text": text}) for name, text in sorted(collection.queries.items()))
    for split, judged in collection.qrels.items():
        rows = (
            f"{query}\t{name}\t{grade}" for query, grades in sorted(judged.items()) for name, grade in grades.items()
        )
        yield f"qrels/{split}.tsv", ["query-id\tcorpus-id\tscore", *rows]


def _json(value: dict[str, str]) -> str:
    return json.dumps(value, ensure_ascii=False)


def _write(path: Path, lines: Iterable[str]) -> str:
    """Write `lines` below the folder being published and return the sha256 of the file."""
    data = "".join(f"{line}\n" for line in lines).encode("utf-8")
    path.parent.mkdir(exist_ok=True)
    with path.open("wb") as file:
        file.write(data)
    return hashlib.sha256(data).hexdigest()


def _check_cached(folder: Path) -> None:
    """Refuse a cached folder whose files are not those that were built."""
    try:
        about = json.loads((folder / "about.json").read_bytes())
        wanted = about["sha256"]
        got = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in wanted}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"the cached collection cannot be read ({error}); remove the folder", path=folder) from error
    for name in wanted:
        if got[name] != wanted[name]:
            raise InputError(
                f"sha256 is {got[name][:12]}…, but {wanted[name][:12]}… was built; remove the folder {folder}",
                path=folder / name,
            )
