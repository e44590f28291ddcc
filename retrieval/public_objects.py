"""The public functions and classes of installed packages, each once, under one name, with its docstring.

Nothing here depends on the order of imports, on the hash seed or on what the process imported before: every public
module is imported first, only then are names read, and names decide the order.
"""

from __future__ import annotations

import contextlib
import inspect
import logging
import pkgutil
import re
import types
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from retrieval.progress import progress

_TESTS = {"tests", "test", "conftest", "setup"}

# Trees that document no interface, and names that are there, or described, according to the machine.
_SKIPPED = re.compile(
    r"""
    numpy\.(core|distutils|f2py|matlib)      # old names and build tools; distutils goes with Python 3.12
    | numpy\.(dtypes|typing)                 # made at import, from the C types of the platform
    | numpy\.(ma\.testutils|testing\.(overrides|print_coercion_tables|jiffies|memusage))
    | scipy\.special\.cython_special         # typed twins of scipy.special: one line each
    | sklearn\.externals
    | sklearn\.utils\.(estimator_checks|fixes)
    | torch\.(contrib|quantization)          # old name of torch.ao.quantization
    | torch\.nn\.(intrinsic|qat|quantizable|quantized)   # old names of torch.ao.nn.*
    | torch\.distributed\.(elastic|flight_recorder|run|launch)  # command-line tools; some need packages of their own
    | torch\.fx\.(experimental|passes)       # the compiler's inside
    | torch\.utils\.(hipify|tensorboard|viz|benchmark\.(examples|utils)|model_dump|collect_env)
    """,
    re.VERBOSE,
)


@dataclass(frozen=True, slots=True)
class PublicObject:
    """A function or class: its canonical name, every other public name, and its docstring as it stands."""

    name: str
    aliases: tuple[str, ...]
    doc: str


def public_objects(packages: Iterable[str]) -> list[PublicObject]:
    """Return every documented public function and class of `packages`, ordered by name.

    Public is a name without a leading underscore, bound in a module none of whose parts has one. It is taken from
    the module's ``__all__``; a module without one contributes what it defines itself. Callable objects with a
    docstring of their own count as functions (ufuncs, ``scipy.stats.norm``). An object belongs to the package whose
    code defines it. Of its names the shortest is canonical; among equally short ones the first in code point order.

    Left out: tests, private and build modules, old names of modules that moved, modules that cannot be imported
    here, exact copies of an inherited docstring, and numpy's scalar types, whose names and texts follow the C types
    of the platform.

    Args:
        packages: top-level module names; an object that two of them define belongs to the first.

    Raises:
        ModuleNotFoundError: if a package is not installed.
    """
    packages = list(packages)
    modules: list[types.ModuleType] = []
    with _silence():
        for package in progress(packages, unit="packages", label="importing"):
            modules += _public_modules(import_module(package))
        found: dict[int, tuple[Any, set[str]]] = {}  # by id, of values that are kept
        for module in modules:
            for name, value in _public_names(module):
                if _is_documented(value):
                    found.setdefault(id(value), (value, set()))[1].add(f"{module.__name__}.{name}")
    objects = []
    for value, names in found.values():
        owner = _top(getattr(value, "__module__", None)) or min(map(_top, names), key=packages.index)
        own = sorted((name for name in names if _top(name) == owner), key=lambda name: (len(name), name))
        if own:
            objects.append(PublicObject(own[0], tuple(own[1:]), value.__doc__))
    return sorted(objects, key=lambda entry: entry.name)


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Keep quiet about deprecated names, absent GPUs and missing optional packages."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


def _public_modules(package: types.ModuleType) -> list[types.ModuleType]:
    """Import and return `package` and its public submodules; one that cannot be imported is left out."""
    modules, pending = [], [package]
    while pending:
        module = pending.pop()
        modules.append(module)
        for child in pkgutil.iter_modules(getattr(module, "__path__", ())):
            if child.name.startswith("_") or child.name in _TESTS or _is_skipped(module, child.name):
                continue
            # What a module raises at import is its own choice: a missing optional package, a wrong platform.
            with contextlib.suppress(Exception, SystemExit):
                pending.append(import_module(f"{module.__name__}.{child.name}"))
    return modules


def _public_names(module: types.ModuleType) -> Iterator[tuple[str, Any]]:
    """Yield (name, value) of what `module` offers; names that it computes on access are old ones and left out."""
    listed = getattr(module, "__all__", None)
    for name, value in list(vars(module).items()):
        if name.startswith("_") or isinstance(value, types.ModuleType) or _is_skipped(module, name):
            continue
        home = getattr(value, "__module__", None)
        defined = isinstance(home, str) and f"{home}.".startswith(f"{module.__name__}.")
        if defined or inspect.isbuiltin(value) if listed is None else name in listed:
            yield name, value


def _is_documented(value: Any) -> bool:
    """Whether `value` is a function, class or callable object with a docstring that was written for it."""
    doc = getattr(value, "__doc__", None)
    if not callable(value) or not isinstance(doc, str) or not doc.strip():
        return False
    if inspect.isclass(value):
        parents = value.__mro__[1:]
        return not any(parent.__doc__ == doc or _full_name(parent) == "numpy.generic" for parent in parents)
    return inspect.isroutine(value) or doc != type(value).__doc__


def _top(name: Any) -> str:
    """Return the package of a dotted name; "" for the missing ``__module__`` of some C functions."""
    return name.partition(".")[0] if isinstance(name, str) else ""


def _is_skipped(module: types.ModuleType, name: str) -> bool:
    return _SKIPPED.fullmatch(f"{module.__name__}.{name}") is not None


def _full_name(value: type) -> str:
    return f"{value.__module__}.{value.__name__}"
