import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from retrieval import pydocs
from retrieval.errors import InputError
from retrieval.public_objects import PublicObject
from retrieval.pydocs import installed_versions, pydocs_folder

ROOT = Path(__file__).resolve().parents[2]
FILES = ["corpus.jsonl", "queries.jsonl", "qrels/train.tsv", "qrels/dev.tsv", "qrels/test.tsv"]
DOC = "A good summary.\n\nIt takes several arguments and returns one new array of the same shape and type."


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache, and a quick builder that counts its calls."""
    calls = []

    def objects(packages):
        calls.append(list(packages))
        return [PublicObject("lib.f", (), DOC)]

    monkeypatch.setenv("RANKWRIGHT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(pydocs, "public_objects", objects)
    return calls


def test_the_first_use_builds_and_the_second_does_not(cache, tmp_path, caplog):
    caplog.set_level("INFO", logger="retrieval")
    folder = pydocs_folder()
    assert folder.parent == tmp_path / "cache"
    assert f"numpy-{version('numpy')}" in folder.name
    assert "+" not in folder.name
    assert cache == [["numpy", "scipy", "sklearn", "torch"]]
    assert "building the pydocs collection" in caplog.text
    caplog.clear()
    assert pydocs_folder() == folder
    assert len(cache) == 1
    assert caplog.text == ""


def test_other_versions_are_another_folder(cache, monkeypatch):
    first = pydocs_folder()
    numbers = installed_versions()
    monkeypatch.setattr(pydocs, "installed_versions", lambda: numbers | {"numpy": "9.9"})
    assert pydocs_folder() != first
    monkeypatch.setattr(pydocs, "BUILDER", pydocs.BUILDER + 1)
    assert pydocs_folder().name.startswith(f"pydocs-{pydocs.BUILDER}-")
    assert len(cache) == 3


def test_two_builders_at_once_agree(cache, monkeypatch):
    quick = pydocs.public_objects
    inner = []

    def interrupted(packages):
        if not inner:  # while this process builds, another one publishes
            inner.append(True)
            inner.append(pydocs_folder())
        return quick(packages)

    monkeypatch.setattr(pydocs, "public_objects", interrupted)
    assert pydocs_folder() == inner[1]


@pytest.mark.parametrize("name", FILES)
def test_a_changed_file_in_the_cache_is_refused(cache, name):
    folder = pydocs_folder()
    path = folder / name
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(InputError, match=f"{name}: sha256 is .* was built; remove the folder"):
        pydocs_folder()


@pytest.mark.parametrize("damage", ["missing about", "missing corpus", "empty about", "about of another kind"])
def test_a_damaged_cache_is_refused(cache, damage):
    folder = pydocs_folder()
    if damage.startswith("missing"):
        (folder / {"about": "about.json", "corpus": "corpus.jsonl"}[damage.split()[1]]).unlink()
    else:
        (folder / "about.json").write_text("" if damage == "empty about" else "[]")
    with pytest.raises(InputError, match=r"cannot be read .*; remove the folder"):
        pydocs_folder()


def test_a_failed_build_leaves_nothing(cache, monkeypatch, tmp_path):
    def fails(packages):
        raise KeyboardInterrupt

    monkeypatch.setattr(pydocs, "public_objects", fails)
    with pytest.raises(KeyboardInterrupt):
        pydocs_folder()
    monkeypatch.setattr(pydocs, "_files", lambda collection: iter([("corpus.jsonl", ["a"]), ("no/such/deep", ["b"])]))
    monkeypatch.setattr(pydocs, "public_objects", lambda packages: [])
    with pytest.raises(FileNotFoundError, match="no/such"):
        pydocs_folder()
    assert not any(path.is_file() for path in (tmp_path / "cache").rglob("*"))


@pytest.mark.parametrize("distribution", ["numpy", "scikit-learn", "torch", "docstring_parser"])
def test_a_missing_package_is_one_clear_line(distribution, monkeypatch):
    def look_up(name):
        if name == distribution:
            raise pydocs.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(pydocs, "version", look_up)
    with pytest.raises(InputError, match=rf"{distribution} is not installed; run: pip install 'rankwright\[demo\]'"):
        pydocs_folder()


def test_python_without_docstrings_is_refused(tmp_path):
    code = "import sys, retrieval.pydocs as p; p.build_pydocs(sys.argv[1])"
    command = [sys.executable, "-OO", "-c", code, str(tmp_path / "out")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1
    assert "runs without docstrings" in done.stderr.splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_importing_the_module_loads_none_of_the_packages():
    code = "import sys, retrieval.pydocs; print({'torch', 'scipy', 'sklearn', 'datasketch'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
