"""Refusing an output file that could not be written, before anything is read or computed."""

from __future__ import annotations

from pathlib import Path

from retrieval.errors import InputError


def check_file_target(out: str, *, overwrite: bool, tag: str = "tag") -> None:
    """Refuse a place where no file can be written, or a tag that a run cannot carry.

    Raises:
        StorageError: `out` exists and `overwrite` is False, or its place is not writable.
        InputError: it is a folder; or the tag is empty or holds a blank.
    """
    from indexes.storage import check_target
    from retrieval.trec import check_id

    check_id(tag, "tag")
    check_target(out, overwrite=overwrite)
    if Path(out).is_dir():
        raise InputError("is a folder; wanted the name of a file", path=out)
