"""Progress with rate and remaining time on stderr; silent when stderr is not a terminal or `quiet` is set."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any, TypeVar, overload

from tqdm import tqdm

T = TypeVar("T")
_quiet = False


def set_quiet(quiet: bool) -> None:
    """Turn every progress bar off (`--quiet`)."""
    global _quiet
    _quiet = quiet


@overload
def progress(items: Iterable[T], *, total: int | None = None, unit: str, label: str) -> tqdm[T]: ...
@overload
def progress(items: None = None, *, total: int | None = None, unit: str, label: str) -> tqdm[Any]: ...
def progress(
    items: Iterable[T] | None = None, *, total: int | None = None, unit: str, label: str
) -> tqdm[T] | tqdm[Any]:
    """Wrap `items` in a bar, or return a bar to `.update(n)`; `unit` is what is counted, such as "docs"."""
    hidden = _quiet or not sys.stderr.isatty()
    return tqdm(
        items, total=total, unit=f" {unit}", desc=label, disable=hidden, dynamic_ncols=True, leave=False, smoothing=0.1
    )
