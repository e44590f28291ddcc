"""Vectors in, rows out: nearest-neighbour indexes, and the one module that publishes files."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from indexes.faiss_index import FaissIndex
    from indexes.neighbors import Neighbors, VectorIndex, topk
    from indexes.storage import StorageError

__all__ = ["FaissIndex", "Neighbors", "StorageError", "VectorIndex", "topk"]

_MODULES = {
    "FaissIndex": "faiss_index",
    "Neighbors": "neighbors",
    "StorageError": "storage",
    "VectorIndex": "neighbors",
    "topk": "neighbors",
}


def __getattr__(name: str) -> Any:
    """Import what is asked for only then: faiss takes longer to import than everything else here together."""
    if name not in _MODULES:
        raise AttributeError(f"module 'indexes' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"indexes.{_MODULES[name]}"), name)
