"""The `rankwright` command: a map of verbs, each a module of this package that is imported only when used."""

from __future__ import annotations

from retrieval.cli.main import main

__all__ = ["main"]
