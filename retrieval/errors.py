"""The one exception that callers may want to catch: what the user gave cannot be used."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from types import ModuleType


class InputError(ValueError):
    """Bad input: one line that says what was got, what was wanted, where, and the likely fix.

    The command line prints it as it is and ends with status 2. `kind` is a short name that all errors of
    one sort share, so that a report can group them; `reason` is the message without the place.
    """

    def __init__(
        self,
        message: str,
        *,
        path: str | Path | None = None,
        line: int | None = None,
        kind: str = "bad input",
    ) -> None:
        where = "" if path is None else f"{path}: " if line is None else f"{path}:{line}: "
        super().__init__(where + message)
        self.reason, self.path, self.line, self.kind = message, path, line, kind


def fail(error: InputError) -> None:
    """Raise `error`: what readers do with a defect unless they are given a function that collects them."""
    raise error


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return "; did you mean 'x'?" for the nearest of `known`, or the whole list when nothing is near."""
    known = sorted(known)
    near = get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(known)}"


def require(module: str, extra: str) -> ModuleType:
    """Import an optional dependency, or say which extra installs it."""
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module.split(".")[0]:  # a broken install of the module itself: let it surface
            raise
        raise InputError(f"{module} is not installed; run: pip install 'rankwright[{extra}]'") from error
