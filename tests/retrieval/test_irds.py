import json
import logging
from typing import NamedTuple

import pytest

from retrieval.cli.main import main
from retrieval.collection import Collection
from retrieval.errors import InputError
from retrieval.irds import fetch, irds_folder

ir_datasets = pytest.importorskip("ir_datasets", reason="needs the irds extra")


class Doc(NamedTuple):
    doc_id: str
    title: str
    body: str
    url: str

    def default_text(self):
        return f"{self.title} {self.body}"


class Docs(ir_datasets.formats.BaseDocs):
    def docs_iter(self):
        yield Doc("d1", "Cats", "Cats sleep.", "x")
        yield Doc("d2", "", "Dogs bark.", "y")
        yield Doc("d3", "Nothing", "", "z")

    def docs_cls(self):
        return Doc

    def docs_count(self):
        return 3


class Queries(ir_datasets.formats.BaseQueries):
    def __init__(self, queries):
        self.queries = queries

    def queries_iter(self):
        return (ir_datasets.formats.GenericQuery(*query) for query in self.queries.items())

    def queries_cls(self):
        return ir_datasets.formats.GenericQuery


class Qrels(ir_datasets.formats.BaseQrels):
    def __init__(self, qrels):
        self.qrels = qrels

    def qrels_iter(self):
        return (ir_datasets.formats.TrecQrel(query, doc, grade, "0") for query, doc, grade in self.qrels)

    def qrels_cls(self):
        return ir_datasets.formats.TrecQrel

    def qrels_defs(self):
        return {}


class Unreachable(Docs):
    def docs_iter(self):
        yield Doc("d1", "", "begun", "x")
        logging.getLogger("ir_datasets").warning("mirror 7 failed")
        raise RuntimeError("All download sources failed", ["long", "list"])


@pytest.fixture(scope="module", autouse=True)
def registered():
    """Five data sets that exist on this machine only; ir_datasets has none that need no download."""
    dataset, register = ir_datasets.datasets.base.Dataset, ir_datasets.registry.register
    train = dataset(Docs(), Queries({"q1": "why sleep"}), Qrels([("q1", "d1", 2), ("q1", "d2", 0), ("q1", "d1", 1)]))
    test = dataset(Docs(), Queries({"q2": "who barks"}), Qrels([("q2", "d2", 1)]))
    register("rwtiny", dataset(Docs()))
    register("rwtiny/train", train)
    register("rwtiny/v2/test", test)
    register("rwtiny-plain", dataset(Docs(), Queries({"q2": "who barks"}), Qrels([("q2", "d2", 1)])))
    register("rwtiny-far", dataset(Unreachable()))
    register("rwtiny-queries", dataset(Queries({"q1": "a"})))
    yield
    for name in [name for name in ir_datasets.registry._registered if name.startswith("rwtiny")]:
        del ir_datasets.registry._registered[name]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RANKWRIGHT_CACHE", str(tmp_path / "cache"))


def test_an_id_with_judgements_is_a_collection_with_one_split():
    collection = Collection.load("irds:rwtiny/train")
    assert (collection.name, collection.splits) == ("irds:rwtiny/train", ["train"])
    assert collection.queries("train") == {"q1": "why sleep"}
    assert collection.qrels("train") == {"q1": {"d1": 1, "d2": 0}}  # the later of two judgements, as qrels_dict does
    assert Collection.load("irds:rwtiny-plain").splits == ["test"]


def test_an_id_without_judgements_gathers_the_splits_below_it():
    collection = Collection.load("irds:rwtiny")
    assert collection.splits == ["train", "v2-test"]
    assert collection.queries() == {"q1": "why sleep", "q2": "who barks"}
    assert collection.queries("v2-test") == {"q2": "who barks"}


def test_titles_are_apart_from_texts_and_together_they_are_the_default_text():
    corpus = Collection.load("irds:rwtiny").corpus
    assert [(d.doc_id, d.title, d.text) for d in corpus] == [
        ("d1", "Cats", "Cats sleep."),
        ("d2", "", "Dogs bark."),
        ("d3", "Nothing", ""),
    ]
    assert corpus.texts(range(3)) == [doc.default_text().strip() for doc in Docs().docs_iter()]


def test_a_collection_is_fetched_once(monkeypatch):
    folder = irds_folder("rwtiny/train")
    monkeypatch.setattr(ir_datasets, "load", None)
    assert irds_folder("rwtiny/train") == folder


def test_what_cannot_be_fetched_is_one_line_and_leaves_nothing(tmp_path, capsys):
    with pytest.raises(InputError, match=r"irds:rwtiny-far cannot be fetched \(RuntimeError: All download") as caught:
        irds_folder("rwtiny-far")
    assert "needs the network" in str(caught.value)
    assert "list" not in str(caught.value)
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert "mirror 7" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("rwtiny/trian", "ir_datasets knows no 'rwtiny/trian'; did you mean 'rwtiny/train'"),
        ("§§§§", "`ir_datasets list` names all"),
        ("rwtiny-queries", "irds:rwtiny-queries has no documents"),
    ],
)
def test_wrong_ids_are_told(name, message):
    with pytest.raises(InputError, match=message):
        Collection.load(f"irds:{name}")


def test_a_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "ir_datasets", None)
    with pytest.raises(InputError, match=r"pip install 'rankwright\[irds\]'"):
        Collection.load("irds:rwtiny")


def test_convert_writes_a_folder_and_names_what_is_lost(tmp_path, capsys):
    assert main(["convert", "irds:rwtiny/train", str(tmp_path / "out"), "--to", "beir", "--json"]) == 0
    done = json.loads(capsys.readouterr().out)
    assert (done["kind"], done["records"]) == ("collection", 3)
    assert "body, url" in done["lost"][0]
    assert Collection(tmp_path / "out").qrels("train") == {"q1": {"d1": 1, "d2": 0}}
    assert main(["convert", "irds:rwtiny/train", str(tmp_path / "out"), "--to", "beir", "--overwrite"]) == 2
    assert "exists already" in capsys.readouterr().err


def test_fetching_into_an_existing_folder_is_refused(tmp_path):
    with pytest.raises(ValueError, match="exists already"):
        fetch("rwtiny", tmp_path)
