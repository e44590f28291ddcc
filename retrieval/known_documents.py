"""The documents of a run that a corpus has."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal, TypeAlias

from retrieval.errors import InputError

if TYPE_CHECKING:
    from retrieval.corpus import Corpus

log = logging.getLogger(__name__)

OnError: TypeAlias = Literal["fail", "skip"]


def known_documents(
    run: Mapping[str, Mapping[str, float]], corpus: Corpus, on_error: OnError = "fail"
) -> dict[str, Mapping[str, float]]:
    """Return a run whose documents all stand in the corpus.

    Args:
        run: query id → document id → score.
        corpus: the documents.
        on_error: "skip" leaves the others out and counts them in a warning.

    Raises:
        InputError: the run has a document that the corpus lacks; query and document are named.
    """
    if on_error not in ("fail", "skip"):
        raise InputError(f"on_error must be 'fail' or 'skip', got {on_error!r}")
    kept: dict[str, Mapping[str, float]] = dict(run)
    n_unknown = 0
    for query_id, found in run.items():
        unknown = [doc_id for doc_id in found if doc_id not in corpus]
        if unknown and on_error == "fail":
            message = f"query {query_id!r} of the run has document {unknown[0]!r}, which is not in the corpus"
            raise InputError(message, path=corpus.source, kind="unknown document")
        if unknown:
            n_unknown += len(unknown)
            kept[query_id] = {doc_id: score for doc_id, score in found.items() if doc_id in corpus}
    if n_unknown:
        log.warning("%d documents of the run are not in the corpus and are left out", n_unknown)
    return kept
