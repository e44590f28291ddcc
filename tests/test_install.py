"""The wheel: built, installed with the pinned versions in an environment of its own, and used from elsewhere."""

import json
import os
import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.promise]

ROOT = Path(__file__).resolve().parents[1]
# What must not come along: the checkout, and settings of whoever runs the tests.
FOREIGN = {"PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "HF_HOME"}


def run(*command, cwd: Path, check: bool = True) -> subprocess.CompletedProcess:
    environment = {name: value for name, value in os.environ.items() if name not in FOREIGN}
    ended = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    if check:
        assert ended.returncode == 0, f"{command}\n{ended.stdout}\n{ended.stderr}"
    return ended


@pytest.fixture(scope="session")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--wheel", "--outdir", folder, ROOT, cwd=folder)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="session")
def installed(wheel, tmp_path_factory) -> Path:
    """The programs of a fresh environment with the wheel in it, and none of the extras."""
    folder = tmp_path_factory.mktemp("elsewhere") / "venv"
    run(sys.executable, "-m", "venv", folder, cwd=folder.parent)
    programs = folder / ("Scripts" if sys.platform == "win32" else "bin")
    pip = [programs / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    run(*pip, "-c", ROOT / "constraints.txt", wheel, cwd=folder.parent)
    return programs


@pytest.fixture(scope="session")
def stored(tmp_path_factory) -> Path:
    """A collection, and embeddings of its documents and test queries, as another machine would send them."""
    sys.path.insert(0, str(ROOT / "tests" / "retrieval"))
    from stub_encoder import StubEncoder
    from tiny_files import make_tiny_collection

    from retrieval.collection import Collection
    from retrieval.embeddings import encode_collection

    folder = tmp_path_factory.mktemp("stored")
    collection = Collection.load(make_tiny_collection(folder / "c"))
    encode_collection(StubEncoder(), collection, folder / "documents")
    encode_collection(StubEncoder(), collection, folder / "queries", side="query", split="test")
    return folder


def test_the_wheel_holds_the_packages_their_types_and_the_licence(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        info = next(name for name in names if name.endswith(".dist-info/METADATA"))
        metadata = Parser().parsestr(archive.read(info).decode("utf-8"))
    top = {name.partition("/")[0] for name in names}
    assert {name for name in top if not name.endswith(".dist-info")} == {"retrieval", "rankers", "indexes"}
    for package in ("retrieval", "rankers", "indexes"):
        assert f"{package}/py.typed" in names
        sources = {str(path.relative_to(ROOT)) for path in (ROOT / package).rglob("*.py")}
        assert sources == {name for name in names if name.startswith(f"{package}/") and name.endswith(".py")}
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert metadata["Name"] == "rankwright"
    assert metadata["License-Expression"] == "Apache-2.0"
    assert "make demo" in metadata.get_payload()  # the README


def test_the_wheel_names_no_machine(wheel):
    home = str(Path.home())
    places = [str(ROOT), str(ROOT.parent), str(wheel.parent)] + ([home] if len(home) > 5 else [])
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            data = archive.read(name)
            assert not [place for place in places if f"{place}/".encode() in data], name


def test_the_base_install_has_no_torch_and_is_used_from_elsewhere(installed, tmp_path):
    code = (
        "import json, retrieval, rankers, indexes; from importlib.util import find_spec; "
        "print(json.dumps([[m.__file__ for m in (retrieval, rankers, indexes)], "
        "[n for n in ('torch', 'transformers', 'sentence_transformers', 'sklearn', 'ir_datasets') if find_spec(n)]]))"
    )
    places, extras = json.loads(run(installed / "python", "-c", code, cwd=tmp_path).stdout)
    assert all(str(installed.parent) in place for place in places)
    assert extras == []


def test_every_version_is_the_pinned_one(installed, tmp_path):
    frozen = run(installed / "python", "-m", "pip", "freeze", "--exclude", "rankwright", cwd=tmp_path).stdout
    pins = {line.lower() for line in (ROOT / "constraints.txt").read_text().splitlines() if line and line[0] != "#"}
    assert [
        line
        for line in frozen.splitlines()
        if line.lower().replace("-", "_") not in {p.replace("-", "_") for p in pins}
    ] == []


def test_the_version_and_the_map_of_verbs(installed, tmp_path, wheel):
    version = wheel.name.split("-")[1]
    assert run(installed / "rankwright", "--version", cwd=tmp_path).stdout == f"rankwright {version}\n"
    assert "search an index or BM25" in run(installed / "rankwright", cwd=tmp_path).stdout


def test_given_vectors_are_indexed_searched_converted_and_measured(installed, stored, tmp_path):
    def rankwright(*arguments) -> str:
        ended = run(installed / "rankwright", *arguments, cwd=tmp_path)
        assert ended.stderr == ""
        return ended.stdout

    collection = stored / "c"
    rankwright("index", "--embeddings", stored / "documents", "--data", collection, "--out", "i")
    rankwright("search", "--index", "i", "--embeddings", stored / "queries", "--k", "10", "--out", "dense.run")
    rankwright("search", "--bm25", "--data", collection, "--split", "test", "--k", "10", "--out", "bm25.run")
    assert len((tmp_path / "dense.run").read_text().splitlines()) == 120
    for name in ("dense", "bm25"):
        found = json.loads(rankwright("evaluate", f"{collection}:test", f"{name}.run", "nDCG@10", "RR@10", "--json"))
        assert 0.1 < found["measures"]["nDCG@10"]["value"] < 1
        assert (found["n"], found["missing"]) == (12, 0)
    run(installed / "rankwright", "convert", "dense.run", "dense.json", "--to", "json", cwd=tmp_path)
    assert len(json.loads((tmp_path / "dense.json").read_text())) == 12
    (index,) = tmp_path.glob("i/*/index.faiss")
    code = f"import faiss; print(faiss.read_index({str(index)!r}).ntotal)"
    assert run(installed / "python", "-c", code, cwd=tmp_path).stdout == "60\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "--model", "m", "--data", "{c}", "--out", "o"],
        ["encode", "--model", "m", "--data", "{c}", "--out", "o"],
        ["index", "--model", "m", "--data", "{c}", "--out", "o"],
    ],
)
def test_what_needs_an_extra_says_which_in_one_line(installed, stored, tmp_path, arguments):
    arguments = [argument.format(c=stored / "c") for argument in arguments]
    ended = run(installed / "rankwright", *arguments, cwd=tmp_path, check=False)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == "error: torch is not installed; run: pip install 'rankwright[train]'\n"
    assert list(tmp_path.iterdir()) == []
