"""What `import retrieval` offers, how little it imports, and what works with the base install alone."""

import json
import subprocess
import sys
from importlib import import_module
from importlib.resources import files
from pathlib import Path

import pytest

import retrieval
from retrieval.errors import InputError, did_you_mean, fail, require

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]

# From API.md: what users import from the package, as far as it is built.
PROMISED = {"Collection", "Encoder", "Searcher", "train", "evaluate", "Hit", "Estimate"}
MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for package in ("retrieval", "rankers", "indexes")
    for path in (ROOT / package).rglob("*.py")
    if path.stem != "__init__"
)

NEED_TORCH = (
    *("rankers.losses", "rankers.lists", "rankers.engine", "rankers.processes", "rankers.random_state"),
    *(
        "retrieval.heads",
        "retrieval.head_training",
        "retrieval.bench_modes",
        "retrieval.loss_bench",
        "retrieval.selftest",
    ),
    *("rankers.pair_scorer", "rankers.set_encoder", "rankers.feature_scorers"),
    *("retrieval.cross_encoder_models", "retrieval.list_gradients", "retrieval.proxies", "retrieval.reranker_training"),
)
PRINT_MODULES = "import json; print(json.dumps([name for name in sys.modules if '.' not in name]))"


def in_new_process(code: str) -> str:
    code = f"import sys; sys.path.insert(0, {str(HERE)!r})\n{code}"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")
    return ended.stdout


def test_every_public_name_is_there():
    assert set(retrieval.__all__) >= PROMISED
    assert retrieval.__all__ == sorted(retrieval.__all__)
    assert set(retrieval.__all__) == set(retrieval._HOME)
    assert set(retrieval.__all__) <= set(dir(retrieval))
    for name, home in retrieval._HOME.items():
        value = getattr(retrieval, name)
        assert value is getattr(import_module(f"retrieval.{home}"), name)
        assert value.__module__ == f"retrieval.{home}"
        assert value.__doc__


def test_every_name_keeps_its_value_when_a_module_of_that_name_is_imported():
    """`retrieval.search` is a module; no public name may be hidden by one."""
    assert not {path.stem for path in (ROOT / "retrieval").glob("*.py")} & set(retrieval.__all__)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'retrieval' has no attribute 'Seracher'"):
        retrieval.Seracher
    with pytest.raises(ImportError, match="cannot import name 'Seracher'"):
        from retrieval import Seracher  # noqa: F401


def test_importing_the_package_imports_nothing_heavy():
    """Not a test of time, which depends on the machine: of what takes the time."""
    new = set(json.loads(in_new_process(f"import retrieval; {PRINT_MODULES}")))
    heavy = {
        "torch",
        "transformers",
        "sentence_transformers",
        "faiss",
        "scipy",
        "bm25s",
        "yaml",
        "numpy",
        "ir_measures",
    }
    assert not new & (heavy | {"Stemmer", "tqdm", "sklearn", "pandas", "huggingface_hub"})


def test_searching_and_measuring_import_no_model_library():
    code = f"from retrieval import Collection, Encoder, Searcher, evaluate; {PRINT_MODULES}"
    new = set(json.loads(in_new_process(code)))
    assert not new & {"torch", "transformers", "sentence_transformers", "sklearn", "huggingface_hub"}


def test_the_command_alone_imports_nothing_heavy():
    out = in_new_process(f"from retrieval.cli import main; main([]); {PRINT_MODULES}")
    assert "usage: rankwright VERB" in out
    new = set(json.loads(out.splitlines()[-1]))
    assert not new & {"torch", "transformers", "faiss", "scipy", "bm25s", "numpy"}


def test_every_module_can_be_imported_with_the_base_install():
    """All but those whose subject is tensors."""
    code = (
        "from importlib import import_module\nfrom blocked_imports import block_extras, EXTRAS\nblock_extras()\n"
        f"for name in {[m for m in MODULES if not m.startswith(NEED_TORCH)]!r}:\n"
        "    import_module(name)\nassert not EXTRAS & sys.modules.keys()"
    )
    in_new_process(code)


def test_the_base_install_measures_and_searches_by_words(tmp_path, tiny_collection):
    code = (
        "from blocked_imports import block_extras\nblock_extras()\n"
        "from retrieval import BM25Searcher, Collection, evaluate\n"
        f"c = Collection.load({str(tiny_collection)!r})\n"
        "run = BM25Searcher.build(c.corpus).run(c.queries('test'), k=10)\n"
        "print(round(float(evaluate(c.qrels('test'), run, ['nDCG@10'])['nDCG@10']), 1))"
    )
    assert 0 < float(in_new_process(code)) <= 1


@pytest.mark.parametrize("package", ["retrieval", "rankers", "indexes"])
def test_the_packages_are_typed(package):
    assert (files(package) / "py.typed").is_file()


# --- the one exception -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        ({}, "is wrong"),
        ({"path": "c.jsonl"}, "c.jsonl: is wrong"),
        ({"path": Path("c.jsonl"), "line": 7}, "c.jsonl:7: is wrong"),
        ({"line": 7}, "is wrong"),
    ],
)
def test_an_error_names_its_place(place, expected):
    error = InputError("is wrong", **place)
    assert str(error) == expected
    assert (error.reason, error.line, error.kind) == ("is wrong", place.get("line"), "bad input")
    with pytest.raises(InputError) as caught:
        fail(error)
    assert caught.value is error


def test_a_near_name_is_suggested_or_all_are_listed():
    assert did_you_mean("tset", ["train", "test"]) == "; did you mean 'test'?"
    assert did_you_mean("xyz", ["train", "test"]) == "; known: test, train"
    assert did_you_mean("x", iter([])) == "; known: "


def test_a_missing_package_names_its_extra_and_a_broken_one_does_not_hide(tmp_path, monkeypatch):
    assert require("json", "train") is json
    with pytest.raises(InputError, match=r"no_such_module is not installed; run: pip install 'rankwright\[train\]'"):
        require("no_such_module", "train")
    with pytest.raises(InputError, match=r"no_such\.module is not installed"):
        require("no_such.module", "train")
    (tmp_path / "broken_package.py").write_text("import needs_something_else\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="needs_something_else"):
        require("broken_package", "train")
