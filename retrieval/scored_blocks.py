"""Scores of a long reranking as they come: blocks on disk, so that an interrupted run goes on and scores nothing twice.

The blocks lie in a hidden folder beside the result. Their names say what they were made from, so scores of another
reranker, run, text or depth are never taken for these.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from indexes.storage import locked, remove_folder, write_json
from retrieval.errors import InputError
from retrieval.trec import Run

log = logging.getLogger(__name__)


class ScoredBlocks:
    """The finished blocks of one result; made by `open_blocks`."""

    def __init__(self, folder: Path, *, resume: bool) -> None:
        self.folder, self.resume = folder, resume
        self._name, self._count = "", 0

    def begin(
        self, fingerprint: Mapping[str, Any], queries: Mapping[str, str], candidates: Run
    ) -> dict[str, NDArray[np.float32]]:
        """Say what is scored, and return the scores of the queries that an earlier run finished.

        Raises:
            InputError: with `resume`, blocks of something else lie here.
        """
        digest = hashlib.sha256(json.dumps(fingerprint, sort_keys=True).encode())
        for query_id, found in candidates.items():
            digest.update(json.dumps([query_id, queries[query_id], list(found.items())]).encode())
        self._name = digest.hexdigest()[:16]
        others = [path for path in self.folder.glob("*.json") if not path.name.startswith(self._name)]
        if self.resume and others:
            message = "scores of another reranker, run, text or k lie here; run without --resume, which deletes them"
            raise InputError(message, path=self.folder)
        scored: dict[str, NDArray[np.float32]] = {}
        for path in sorted(self.folder.glob("*.json")):
            if not self.resume:
                path.unlink()
                continue
            scored |= {query_id: np.array(s, dtype=np.float32) for query_id, s in _read(path).items()}
            self._count = int(path.stem.rpartition("-")[2]) + 1
        if scored:
            log.info("%d of %d queries are scored already", len(scored), sum(map(bool, candidates.values())))
        return scored

    def write(self, scores: Mapping[str, NDArray[np.float32]]) -> None:
        """Keep the scores of some queries."""
        values = {query_id: found.tolist() for query_id, found in scores.items()}
        write_json(self.folder / f"{self._name}-{self._count:06d}.json", values)
        self._count += 1


@contextmanager
def open_blocks(out: Path, *, resume: bool) -> Iterator[ScoredBlocks]:
    """Yield the finished blocks of the result `out`; they are deleted when the block ends well.

    Until then their folder stays, even empty, beside an older `out`: it says that the result is not this one's yet.

    Args:
        out: the file that is to be made.
        resume: take what an earlier run left; else it is deleted.

    Raises:
        StorageError: another process is at work on the same result.
    """
    folder = blocks_folder(out)
    with locked(folder):
        try:
            yield ScoredBlocks(folder, resume=resume)
        except BaseException:
            if not out.exists() and not any(folder.glob("*.json")):
                remove_folder(folder)
            raise
        remove_folder(folder)


def blocks_folder(out: Path) -> Path:
    """Return where the blocks of a result lie while it is made."""
    return out.parent / f".{out.name}.parts"


def _read(path: Path) -> dict[str, list[float]]:
    """Read one block; storage writes it whole or not at all, so a broken one was altered."""
    try:
        values: dict[str, list[float]] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"is damaged ({error}); delete it and --resume scores it again", path=path) from None
    return values
