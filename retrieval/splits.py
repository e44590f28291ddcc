"""Splits of queries by a rule that needs no random numbers: the hash of the id, near-equal queries together."""

from __future__ import annotations

import hashlib
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

from indexes.storage import check_target, publish_plain, write_json, write_lines
from retrieval.collection import Collection
from retrieval.errors import InputError
from retrieval.near_duplicates import Groups, jaccard, shingles
from retrieval.trec import Qrels

NEAR = 0.8  # Jaccard similarity of two queries' words from which they stay together


def carve_dev(qrels: Qrels, queries: Mapping[str, str], *, fraction: float = 0.2) -> tuple[Qrels, Qrels]:
    """Divide the judgements of a training split into training and dev.

    A group of near-equal queries (`query_groups`) goes to dev if its lowest query id hashes below `fraction`:

        sha256(query_id) / 2²⁵⁶ < fraction

    so that a query's side depends on nothing but its group. Neither side is left empty: if the rule would do that,
    the group with the lowest hash goes to dev, or the one with the highest to training.

    Args:
        qrels: query id → document id → grade.
        queries: query id → text; a query without text is a group of its own.
        fraction: in (0, 1).

    Returns:
        The judgements for training and those for dev, in the order of `qrels`; every query is in one of them.

    Raises:
        InputError: all queries are near-equal, or there is one only, so that nothing can be divided.
    """
    if not 0 < fraction < 1:
        raise InputError(f"the fraction for dev must be between 0 and 1, got {fraction}")
    groups = query_groups({query_id: queries.get(query_id, "") for query_id in qrels})
    if len(groups) < 2:
        raise InputError(f"{len(qrels)} near-equal queries cannot be divided into training and dev")
    groups.sort(key=_group_hash)
    n_dev = sum(_group_hash(group) < fraction for group in groups)
    n_dev = min(max(n_dev, 1), len(groups) - 1)
    dev = {query_id for group in groups[:n_dev] for query_id in group}
    return _only(qrels, set(qrels) - dev), _only(qrels, dev)


def relevant_documents(qrels: Qrels) -> dict[str, set[str]]:
    """Return query id → documents of a grade above 0, for every query."""
    return {query_id: {doc_id for doc_id, grade in judged.items() if grade > 0} for query_id, judged in qrels.items()}


def of_seen_documents(trained: Mapping[str, Iterable[str]], evaluated: Mapping[str, Iterable[str]]) -> set[str]:
    """Return the queries that share a relevant document with a training query.

    That is no leak by itself: users ask new questions about known documents. But what a model gains on these queries
    says little of what it gains on documents that it was never shown.

    Args:
        trained: query id → relevant documents, of the training queries.
        evaluated: the same of the queries to be evaluated.

    """
    seen = {document for documents in trained.values() for document in documents}
    return {query_id for query_id, documents in evaluated.items() if not seen.isdisjoint(documents)}


def folds(qrels: Qrels, queries: Mapping[str, str], *, n: int = 5) -> list[dict[str, Qrels]]:
    """Divide the judgements of one split for cross-validation.

    Groups of near-equal queries, in the order of their hashes, go to the fold that has the fewest queries so far.
    Each fold is the test split once; of the rest a fifth is dev (`carve_dev`), and the remainder is training.

    Returns:
        n times {"train": …, "dev": …, "test": …}; the test splits part the queries.

    Raises:
        InputError: there are fewer groups than folds, or n is below 2.
    """
    groups = query_groups({query_id: queries.get(query_id, "") for query_id in qrels})
    if n < 2 or len(groups) < n:
        raise InputError(f"{len(groups)} groups of near-equal queries cannot be divided into {n} folds")
    parts: list[set[str]] = [set() for _ in range(n)]
    for group in sorted(groups, key=_group_hash):
        min(parts, key=len).update(group)
    result: list[dict[str, Qrels]] = []
    for part in parts:
        train, dev = carve_dev(_only(qrels, set(qrels) - part), queries)
        result.append({"train": train, "dev": dev, "test": _only(qrels, part)})
    return result


def query_groups(queries: Mapping[str, str], *, near: float = NEAR) -> list[list[str]]:
    """Group the queries whose texts are equal or nearly so; each group and the list are in order of first id.

    Two queries are near-equal if their sets of words (lower case, punctuation ignored) have a Jaccard similarity
    of at least `near`, and groups are closed under that. Exact: a pair that similar shares one of the rarest
    |A| − ⌈near·|A|⌉ + 1 words of each (prefix filtering: Bayardo, Ma and Srikant 2007), so few pairs are compared.

    Args:
        queries: query id → text; those without a word are grouped if they are equal and not empty.
        near: in (0, 1].
    """
    ids = sorted(queries)
    words = [shingles(queries[query_id], 1) or {("", queries[query_id].strip() or query_id)} for query_id in ids]
    frequency = Counter(word for own in words for word in own)
    groups = Groups(len(ids))
    rows_of: defaultdict[tuple[str, ...], list[int]] = defaultdict(list)
    for row in sorted(range(len(ids)), key=lambda row: len(words[row])):  # a shorter one is found by a longer one
        own = words[row]
        prefix = len(own) - math.ceil(near * len(own) - 1e-9) + 1  # 0.8 * 35 is 28.000000000000004
        for word in sorted(own, key=lambda word: (frequency[word], word))[:prefix]:
            for other in rows_of[word]:
                if groups.find(other) != groups.find(row) and jaccard(own, words[other]) >= near:
                    groups.join(row, other)
            rows_of[word].append(row)
    members: defaultdict[int, list[str]] = defaultdict(list)
    for row, query_id in enumerate(ids):
        members[groups.find(row)].append(query_id)
    return list(members.values())


def write_split(collection: Collection, splits: Mapping[str, Qrels], folder: str | Path) -> Collection:
    """Make a collection folder with splits of its own, whose corpus and queries are links to the original's.

    The judgements appear in one step, after the links, so a folder with qrels/ is complete. `split.json` records
    where it comes from and `fingerprint(splits)`.

    Raises:
        StorageError: the folder has qrels already.
    """
    folder = Path(folder)
    check_target(folder / "qrels")
    folder.mkdir(parents=True, exist_ok=True)
    for path in (collection.corpus_path, collection.queries_path):
        link = folder / path.name
        link.unlink(missing_ok=True)
        link.symlink_to(path.resolve())
    sizes = {split: len(qrels) for split, qrels in splits.items()}
    record = {"collection": collection.name, "queries": sizes, "fingerprint": fingerprint(splits)}
    write_json(folder / "split.json", record)
    with publish_plain(folder / "qrels") as temporary:
        for split, qrels in splits.items():
            write_lines(temporary / f"{split}.tsv", ["query-id\tcorpus-id\tscore", *_qrels_lines(qrels)])
    return Collection(folder, name=f"{collection.name}/{folder.name}")


def fingerprint(splits: Mapping[str, Qrels]) -> str:
    """Return a sha256 over all judgements of all splits that does not depend on their order."""
    digest = hashlib.sha256()
    for split in sorted(splits):
        for line in sorted(_qrels_lines(splits[split])):
            digest.update(f"{split}\t{line}\n".encode())
    return digest.hexdigest()


def _qrels_lines(qrels: Qrels) -> list[str]:
    return [f"{query_id}\t{doc_id}\t{grade}" for query_id, grades in qrels.items() for doc_id, grade in grades.items()]


def _only(qrels: Qrels, query_ids: set[str]) -> Qrels:
    return {query_id: dict(grades) for query_id, grades in qrels.items() if query_id in query_ids}


def _group_hash(group: list[str]) -> float:
    digest = hashlib.sha256(min(group).encode("utf-8")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
