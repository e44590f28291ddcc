"""The verbs encode, index and search as a user types them: what they print, write and refuse."""

import json
import os
import shutil
import sys
from pathlib import Path

import pytest
from beir_folder import make_collection
from stub_encoder import StubEncoder
from tiny_files import documents

from indexes.storage import open_folder
from retrieval.cli.main import main
from retrieval.collection import Collection
from retrieval.embeddings import encode_collection
from retrieval.search import Searcher, build_index
from retrieval.trec import read_run, run_lines

TEXT = "the otter needs fish crabs and mussels"


@pytest.fixture
def cli(capfd, tmp_path, monkeypatch):
    """Run a command in an empty folder; returns (exit status, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments) -> tuple[int, str, str]:
        status = main([str(argument) for argument in arguments])
        return (status, *capfd.readouterr())

    return run


@pytest.fixture(scope="module")
def stubs(tmp_path_factory, tiny_collection) -> Path:
    """An index, documents and queries of the stub: no model can be loaded for it, and none is needed."""
    folder = tmp_path_factory.mktemp("stub")
    collection = Collection.load(tiny_collection)
    build_index(folder / "index", encoder=StubEncoder(), collection=collection)
    encode_collection(StubEncoder(), collection, folder / "documents")
    encode_collection(StubEncoder(), collection, folder / "queries", side="query", split="test")
    return folder


@pytest.fixture
def no_model(monkeypatch):
    """Fail if anything heavy is begun."""

    def stop(*arguments, **settings):
        raise AssertionError("something was loaded before the settings were checked")

    monkeypatch.setattr("retrieval.encoder.Encoder.load", stop)
    monkeypatch.setattr("retrieval.search.Searcher.load", stop)
    monkeypatch.setattr("retrieval.bm25.BM25Searcher.build", stop)


def one_error(result, expected: str) -> None:
    status, out, err = result
    assert (status, out) == (2, "")
    assert err.startswith("error: ")
    assert len(err.splitlines()) == 1
    assert expected in err


# --- the whole way, with a real model --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def built(tmp_path_factory, tiny_model, tiny_collection) -> Path:
    """What encode and index write for the tiny model."""
    pytest.importorskip("sentence_transformers", reason="needs the train extra")
    folder = tmp_path_factory.mktemp("built")
    model = ["--model", tiny_model, "--data", str(tiny_collection), "--precision", "fp32", "--device", "cpu", "--quiet"]
    for arguments in (
        ["encode", *model, "--out", str(folder / "documents")],
        ["encode", *model, "--side", "query", "--split", "test", "--out", str(folder / "queries")],
        ["index", *model, "--out", str(folder / "index")],
        ["index", "--embeddings", str(folder / "documents"), "--out", str(folder / "bare")],
    ):
        assert main(arguments) == 0
    return folder


def test_by_hand(cli, built):
    status, out, err = cli("search", "--index", built / "index", TEXT, "--k", 2, "--device", "cpu")
    assert (status, err) == (0, "")
    first, text, *rest = out.splitlines()
    hits = Searcher.load(built / "index", device="cpu").search(TEXT, 2)
    assert first.split() == ["1", f"{hits[0].score:.4f}", hits[0].doc_id, *hits[0].title.split()]
    assert text.strip() == hits[0].text
    assert len(rest) == 2


def test_by_hand_as_json(cli, built):
    status, out, err = cli("search", "--index", built / "index", TEXT, "--k", 3, "--json", "--device", "cpu")
    assert (status, err) == (0, "")
    hits = Searcher.load(built / "index", device="cpu").search(TEXT, 3)
    assert json.loads(out) == [
        {"doc_id": hit.doc_id, "score": hit.score, "title": hit.title, "text": hit.text} for hit in hits
    ]


def test_ten_documents_by_hand_and_a_hundred_in_a_run(cli, built, tiny_collection):
    _, out, _ = cli("search", "--index", built / "index", TEXT, "--json")
    assert len(json.loads(out)) == 10
    _, out, _ = cli("search", "--index", built / "index", "--data", tiny_collection, "--split", "test", "--json")
    assert {len(found) for found in json.loads(out).values()} == {60}


def test_a_run_is_the_same_from_texts_and_from_embeddings_in_a_file_and_on_stdout(cli, built, tiny_collection):
    split = ["--data", tiny_collection, "--split", "test", "--k", 7]
    assert cli("search", "--index", built / "index", *split, "--out", "texts.run") == (0, "", "")
    stored = ["--embeddings", built / "queries", "--k", 7]
    assert cli("search", "--index", built / "index", *stored, "--out", "vectors.run") == (0, "", "")
    status, out, err = cli("search", "--index", built / "bare", *stored)
    assert (status, err) == (0, "")
    assert out == Path("texts.run").read_text() == Path("vectors.run").read_text()
    run = Searcher.load(built / "index", device="cpu").run(Collection.load(tiny_collection).queries("test"), 7)
    assert read_run("texts.run") == run
    assert out.splitlines() == [line for q, found in run.items() for line in run_lines(q, found, "rankwright")]


def test_queries_of_a_file(cli, built, caplog):
    Path("mine.tsv").write_text("q1\tan otter\nq2\t \nq3\ta glacier\n")
    Path("mine.jsonl").write_text('{"_id": "q1", "text": "an otter"}\n{"_id": "q3", "text": "a glacier"}\n')
    status, out, err = cli("search", "--index", built / "index", "--queries", "mine.tsv", "--k", 3, "--tag", "mine")
    assert (status, err) == (0, "warning: mine.tsv: 1 of 3 queries are empty and left out\n")
    assert [line.split()[0] for line in out.splitlines()] == ["q1"] * 3 + ["q3"] * 3
    assert {line.split()[-1] for line in out.splitlines()} == {"mine"}
    assert cli("search", "--index", built / "index", "--queries", "mine.jsonl", "--k", 3, "--tag", "mine") == (
        0,
        out,
        "",
    )


def test_a_moved_model_is_given_by_hand_and_another_is_refused(cli, built, tiny_model, tmp_path):
    copy = shutil.copytree(tiny_model, tmp_path / "copy")
    search = ["search", "--index", built / "index", TEXT, "--k", 1, "--json"]
    assert cli(*search, "--model", copy) == cli(*search)
    one_error(cli(*search, "--model", f"{tiny_model}-bert", "--device", "tpu"), "unknown device 'tpu'")
    settings = json.loads((Path(copy) / "1_Pooling" / "config.json").read_text())
    (Path(copy) / "1_Pooling" / "config.json").write_text(json.dumps(settings | {"pooling_mode": "cls"}))
    one_error(cli(*search, "--model", copy), "the index was built with modules [")


def test_settings_of_a_config_file(cli, built):
    Path("search.yaml").write_text(f"index: {built / 'index'}\nk: 2\njson: true\ndevice: cpu\n")
    status, out, _ = cli("search", "--config", "search.yaml", TEXT)
    assert (status, len(json.loads(out))) == (0, 2)
    assert len(json.loads(cli("search", "--config", "search.yaml", TEXT, "--set", "k=3")[1])) == 3
    assert len(json.loads(cli("search", "--config", "search.yaml", TEXT, "--set", "k=3", "--k", "4")[1])) == 4


def test_encode_goes_on_and_says_when_there_is_nothing_to_do(cli, built, tiny_model, tiny_collection):
    encode = ["encode", "--model", tiny_model, "--data", tiny_collection, "--precision", "fp32", "--device", "cpu"]
    assert cli(*encode, "--out", "d", "--resume") == (0, "", "")
    assert cli(*encode, "--out", "d", "--resume") == (0, "", "d is complete (60 rows); nothing to do\n")
    one_error(
        cli(*encode, "--out", "d", "--document-max-length", 8, "--resume"), "d: is complete, but of another model"
    )
    assert cli(*encode, "--out", "d", "--document-max-length", 8, "--overwrite") == (0, "", "")
    ours, theirs = (open_folder(place, kind="embeddings").manifest for place in ("d", built / "documents"))
    assert ours["data_sha256"] == theirs["data_sha256"]
    assert ours["model"]["document_max_length"] == 8


def test_an_index_of_any_factory_with_its_settings_and_texts(cli, tiny_model, tiny_collection):
    index = ["index", "--model", tiny_model, "--data", tiny_collection, "--device", "cpu", "--out", "i"]
    arguments = ["--factory", "IVF4,Flat", "--search-parameter", "nprobe=4", "--store-text"]
    status, out, err = cli(*index, *arguments)
    assert (status, out) == (0, "")
    assert "warning" not in err
    manifest = Searcher.load("i").manifest
    assert (manifest["index"]["factory"], manifest["index"]["search_parameters"]) == ("IVF4,Flat", {"nprobe": 4})
    assert manifest["corpus"]["stored"]


def test_prompts_and_lengths_belong_to_the_index(cli, tiny_model, tiny_collection):
    settings = ["--query-prompt", "query: ", "--query-max-length", 7, "--document-prompt", "", "--batch-tokens", 99]
    assert cli("index", "--model", tiny_model, "--data", tiny_collection, "--out", "i", *settings)[0] == 0
    known = Searcher.load("i").manifest["model"]
    assert (known["query_prompt"], known["query_max_length"], known["document_prompt"]) == ("query: ", 7, "")
    assert cli("search", "--index", "i", TEXT)[0] == 0


# --- BM25, self matches ----------------------------------------------------------------------------------------------


def test_bm25_by_hand_and_in_a_run(cli, tiny_collection):
    status, out, err = cli("search", "--bm25", "--data", tiny_collection, TEXT, "--k", 1)
    assert (status, err) == (0, "")
    assert out.splitlines()[0].endswith("otter-2  What the otter needs")
    status, out, err = cli("search", "--bm25", "--data", tiny_collection, "--split", "test", "--k", 5)
    assert (status, err) == (0, "")
    assert len({line.split()[0] for line in out.splitlines()}) == 12
    Path("one.tsv").write_text("x\tzzz\ny\totter\n")
    _, out, _ = cli("search", "--bm25", "--data", tiny_collection, "--queries", "one.tsv", "--json")
    assert json.loads(out)["x"] == {}
    assert set(json.loads(out)["y"]) == {f"otter-{form}" for form in range(4)}


@pytest.mark.parametrize("arguments", [["--bm25"], ["--index", "i"]])
def test_self_matches_are_left_out_only_when_asked(cli, tmp_path, monkeypatch, arguments):
    """A collection whose queries are its own documents; k documents remain."""
    texts = {record["_id"]: f"{record['title']} {record['text']}".strip() for record in documents()}
    folder = make_collection(tmp_path / "c", documents(), texts, {"test": {i: {i: 1} for i in texts}})
    monkeypatch.setattr("retrieval.encoder.Encoder.load", lambda *args, **settings: StubEncoder())
    build_index("i", encoder=StubEncoder(), collection=Collection.load(folder))
    search = ["search", *arguments, "--data", folder, "--split", "test", "--k", 3, "--json"]
    with_self, without = (json.loads(cli(*search, *more)[1]) for more in ([], ["--exclude-self"]))
    assert sum(i in found for i, found in with_self.items()) > 55
    assert not any(i in found for i, found in without.items())
    for i, found in without.items():
        others = [doc_id for doc_id in with_self[i] if doc_id != i]
        assert list(found)[: len(others)] == others
        assert len(found) == 3 or arguments == ["--bm25"]


# --- refused, each in one line, before anything is loaded ------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("", "give one of --index DIR and --bm25"),
        ("text", "give one of --index DIR and --bm25"),
        ("--index i --bm25 --data c text", "give one of --index DIR and --bm25"),
        ("--bm25 text", "--bm25 needs --data"),
        ("--bm25 --data c --embeddings q", "--bm25 takes texts, not --embeddings"),
        ("--index i", 'got nothing to search for; wanted one of "text"'),
        ("--index i --data c", "got nothing to search for"),
        ("--index i text --queries f", "got text and queries; wanted one of"),
        ("--index i text --embeddings q", "got text and embeddings"),
        ("--index i --queries f --embeddings q", "got queries and embeddings"),
        ("--index i text --data c --split test", "got text and split"),
        ("--index i --split test", "--split needs --data"),
        ("--index i text --k 0", "--k must be >= 1, got 0"),
        ("--index i text --k -3", "--k must be >= 1, got -3"),
        ("--index i text --k two", "argument --k: invalid int value: 'two'"),
        ("--index i text more", "unknown argument 'more'"),
        ("--index i text --data c", "--data has no meaning for this search by text"),
        ("--index i --queries f --data c", "--data has no meaning for this search by queries"),
        ("--index i text --out r", "--out has no meaning for this search by text"),
        ("--index i text --exclude-self", "--exclude-self has no meaning for this search by text"),
        ("--index i --embeddings q --model m", "--model has no meaning for this search by embeddings"),
        ("--bm25 --data c text --model m", "--model has no meaning for BM25 by text"),
        ("--index i --queries f --tag two\twords", "tag 'two\\twords' holds U+0009"),
        ("--index i text --verify none", "argument --verify: invalid choice: 'none'"),
        ("--index i text --indx j", "unknown flag '--indx'; did you mean '--index'?"),
        ("--index i --queries f --out folder", "folder: exists already"),
        ("--index i --queries f --out folder --overwrite", "folder: is a folder; a run is a file"),
        ("--index i --queries f --out taken", "taken: exists already; choose another place or ask for --overwrite"),
        ("--index i --queries f --out taken/r", "taken is a file"),
    ],
)
def test_searches_that_cannot_be_meant(cli, no_model, arguments, expected):
    Path("folder").mkdir()
    Path("taken").touch()
    one_error(cli("search", *arguments.split(" ")) if arguments else cli("search"), expected)
    assert sorted(os.listdir()) == ["folder", "taken"]


@pytest.mark.parametrize("text", ["", "  ", "\n"])
def test_an_empty_text_is_refused(cli, no_model, text):
    one_error(cli("search", "--index", "i", text), "the text to search for is empty")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("index --out i", "an index is built from --model and --data, or from --embeddings"),
        ("index --out i --model m", "--model needs --data"),
        ("index --out i --model m --data {c} --embeddings d", "an index is built from --model and --data, or from"),
        ("index --out i --embeddings d --store-text", "--store-text needs --data"),
        ("index --model m --data {c}", "the following arguments are required: --out"),
        ("index --out taken --model m --data {c}", "taken: is a file; wanted a folder"),
        ("index --out i --model m --data nowhere", "nowhere: no such folder; wanted a BEIR folder"),
        ("index --out i --embeddings nowhere", "nowhere: no such folder"),
        ("index --out i --embeddings {d} --factory Flatt", "factory 'Flatt' with 16 dimensions"),
        (
            "index --out i --embeddings {d} --search-parameter nprobe",
            "--search-parameter got 'nprobe'; wanted NAME=NUM",
        ),
        ("index --out i --embeddings {d} --search-parameter nprobe=x", "--search-parameter got 'nprobe=x'"),
        ("index --out i --embeddings {d} --search-parameter nprobe=2", "search parameter 'nprobe'"),
        ("index --out i --embeddings {q}", "holds query embeddings; an index takes those of documents"),
        ("index --out i --embeddings {i}", "is of kind 'index', wanted 'embeddings'"),
        ("encode --model m --out d", "the following arguments are required: --data"),
        ("encode --model m --data {c} --out taken", "taken: is a file; wanted a folder"),
        ("encode --model m --data nowhere --out d", "nowhere: no such folder"),
        ("encode --model m --data {c} --out d --side title", "argument --side: invalid choice: 'title'"),
        ("encode --modle m --data {c} --out d", "unknown flag '--modle'; did you mean '--model'?"),
        ("search --index {d} --embeddings {q}", "is of kind 'embeddings', wanted 'index'"),
        ("search --index {i} --embeddings {d}", "holds embeddings of documents; a search takes those of queries"),
        ("search --index nowhere --embeddings {q}", "nowhere: no such folder"),
        ("search --index {i} --embeddings nowhere", "nowhere: no such folder"),
        ("search --index {i} --queries nowhere", "nowhere: no such file"),
        ("search --index {i} --data {c} --split tset", "no split 'tset'; did you mean 'test'?"),
        ("search --bm25 --data {c} --split tset", "no split 'tset'; did you mean 'test'?"),
        ("search --index {i} text", "--model stub: no such folder, and nothing from the hub"),
    ],
)
def test_each_mistake_is_one_line(cli, stubs, tiny_collection, arguments, expected):
    pytest.importorskip("sentence_transformers", reason="needs the train extra")
    Path("taken").touch()
    places = {
        "c": tiny_collection,
        "d": stubs / "documents",
        "q": stubs / "queries",
        "i": stubs / "index",
    }
    one_error(cli(*arguments.format(**places).split()), expected)
    assert os.listdir() == ["taken"]


def test_a_model_without_the_extra_is_refused_in_one_line(cli, stubs, tiny_collection, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    missing = "torch is not installed; run: pip install 'rankwright[train]'"
    one_error(cli("search", "--index", stubs / "index", "text"), missing)
    one_error(cli("encode", "--model", "m", "--data", tiny_collection, "--out", "d"), missing)
    one_error(cli("index", "--model", "m", "--data", tiny_collection, "--out", "d"), missing)


def test_a_run_is_replaced_only_when_asked(cli, stubs):
    search = ["search", "--index", stubs / "index", "--embeddings", stubs / "queries", "--out", "r"]
    assert cli(*search)[0] == 0
    before = Path("r").read_bytes()
    one_error(cli(*search, "--k", 1), "r: exists already; choose another place or ask for --overwrite")
    assert Path("r").read_bytes() == before
    assert cli(*search, "--k", 1, "--overwrite") == (0, "", "")
    assert len(Path("r").read_text().splitlines()) == 12


def test_a_run_may_be_compressed(cli, stubs):
    search = ["search", "--index", stubs / "index", "--embeddings", stubs / "queries", "--k", 4]
    cli(*search, "--out", "r.gz")
    cli(*search, "--out", "r")
    assert Path("r.gz").read_bytes()[:2] == b"\x1f\x8b"
    assert read_run("r.gz") == read_run("r")
