"""The walls of the house: which package may import which, and how long a file may grow."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = {"retrieval": {"rankers", "indexes"}, "rankers": set(), "indexes": set()}
SOURCES = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]


def imported_modules(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return names


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_one_way(path):
    package = path.relative_to(ROOT).parts[0]
    ours = {name.split(".")[0] for name in imported_modules(path)} & set(PACKAGES)
    assert ours <= PACKAGES[package] | {package}


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_file_is_too_long_and_no_name_says_nothing(path):
    assert len(path.read_text().splitlines()) <= 400
    assert path.stem not in {"utils", "util", "common", "helpers", "misc"}


def test_only_storage_publishes_files():
    publishing = re.compile(r"os\.(replace|rename)\(|\.rename\(|\.replace\(.*Path|\.write_text\(|\.write_bytes\(")
    offenders = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in SOURCES
        if path.name != "storage.py"
        for number, line in enumerate(path.read_text().splitlines(), start=1)
        if publishing.search(line)
    ]
    assert offenders == []


def test_tests_are_not_shorter_than_the_source():
    def lines(paths):
        return sum(len(path.read_text().splitlines()) for path in paths)

    assert lines((ROOT / "tests").rglob("*.py")) >= lines(SOURCES)
