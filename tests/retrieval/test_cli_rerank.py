"""The verbs rerank, fuse, features and label as a user types them: what they print, write and refuse."""

import os
from pathlib import Path

import pytest
from stub_reranker import StubReranker

from retrieval.bm25 import BM25Searcher
from retrieval.cli.main import main
from retrieval.collection import Collection
from retrieval.features import FeatureExtractor, FeatureReranker
from retrieval.fusion import fuse
from retrieval.labelling import label
from retrieval.reranking import rerank
from retrieval.rows import read_rows
from retrieval.svmlight import read_svmlight
from retrieval.trec import read_run, write_run


@pytest.fixture
def cli(capfd, tmp_path, monkeypatch):
    """Run a command in an empty folder; returns (exit status, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments) -> tuple[int, str, str]:
        status = main([str(argument) for argument in arguments])
        return (status, *capfd.readouterr())

    return run


@pytest.fixture(scope="module")
def collection(tiny_collection):
    return Collection.load(tiny_collection)


@pytest.fixture(scope="module")
def runs(tmp_path_factory, collection) -> Path:
    """A folder with the BM25 runs train.run, test.run (12 queries each in test), both.run and short.run."""
    folder = tmp_path_factory.mktemp("runs")
    searcher = BM25Searcher.build(collection.corpus)
    found = {split: searcher.run(collection.queries(split), k=20) for split in ("train", "test")}
    for split, run in found.items():
        write_run(folder / f"{split}.run", run)
    write_run(folder / "both.run", found["train"] | found["test"])
    write_run(folder / "short.run", searcher.run(collection.queries("test"), k=3))
    (folder / "empty.run").touch()
    (folder / "strange.run").write_text("q-saddle-0 Q0 nothing 1 1.0 x\n")
    (folder / "foreign.run").write_text("42 Q0 otter-0 1 1.0 x\n")
    (folder / "twice.run").write_text("q-saddle-0 Q0 otter-0 1 1.0 x\nq-saddle-0 Q0 otter-0 2 0.5 x\n")
    return folder


@pytest.fixture
def stub(monkeypatch):
    """What `--model` and `--reranker` load; it can be told to stop at a query."""
    reranker = StubReranker()
    monkeypatch.setattr("retrieval.reranking.load_reranker", lambda *args, **settings: reranker)
    return reranker


def one_error(result, expected: str) -> None:
    status, out, err = result
    assert (status, out) == (2, "")
    assert err.startswith("error: ")
    assert len(err.splitlines()) == 1
    assert expected in err


# --- fuse ------------------------------------------------------------------------------------------------------------


def test_fuse(cli, runs):
    fused = fuse([read_run(runs / "test.run"), read_run(runs / "short.run")])
    status, out, err = cli("fuse", runs / "test.run", runs / "short.run", "--out", "f.run", "--tag", "mine")
    assert (status, out, err) == (0, "", "f.run: 12 queries of 2 runs, fused by rrf\n")
    assert read_run("f.run") == fused
    assert {line.split()[-1] for line in Path("f.run").read_text().splitlines()} == {"mine"}
    settings = ["--method", "combsum", "--weights", "0.3,0.7", "--norm", "zscore", "--k", 5, "--overwrite", "--quiet"]
    assert cli("fuse", runs / "test.run", runs / "short.run", "--out", "f.run", *settings) == (0, "", "")
    again = fuse(
        [read_run(runs / "test.run"), read_run(runs / "short.run")],
        "combsum",
        weights=[0.3, 0.7],
        norm="zscore",
        k=5,
    )
    assert read_run("f.run") == again


# --- rerank ----------------------------------------------------------------------------------------------------------


def test_rerank(cli, runs, collection, stub):
    arguments = ["--model", "m", "--data", collection.path, "--k", 10, "--out", "r.run"]
    status, out, err = cli("rerank", "--run", runs / "both.run", "--split", "test", *arguments)
    assert (status, out) == (0, "")
    assert err.splitlines() == [
        "36 of the run's 48 queries are not in split test",
        "r.run: 12 queries, the first 10 documents of each reranked",
    ]
    queries = collection.queries("test")
    expected = rerank(read_run(runs / "test.run"), StubReranker(), queries, collection.corpus, k=10)
    assert read_run("r.run") == expected
    assert os.listdir() == ["r.run"]
    without = cli("rerank", "--run", runs / "test.run", *arguments, "--overwrite", "--quiet")
    assert without == (0, "", "")
    assert read_run("r.run") == expected


def test_rerank_with_queries_of_a_file(cli, runs, collection, stub):
    Path("q.tsv").write_text("mine\tan otter\n")
    Path("mine.run").write_text("mine Q0 lemon-0 1 2.0 x\nmine Q0 otter-0 2 1.0 x\n")
    rerank = ["rerank", "--run", "mine.run", "--model", "m", "--data", collection.path, "--out", "r.run"]
    one_error(cli(*rerank), "query 'mine' of the run has no text")
    assert cli(*rerank, "--queries", "q.tsv")[0] == 0
    assert list(read_run("r.run")["mine"]) == ["otter-0", "lemon-0"]


def test_an_interrupted_command_goes_on(cli, runs, collection, stub, monkeypatch):
    monkeypatch.setattr("retrieval.reranking.PAIRS_PER_BLOCK", 40)
    queries = collection.queries("test")
    command = ["rerank", "--run", runs / "test.run", "--model", "m", "--data", collection.path, "--out", "r.run"]
    Path("r.run").write_text("old\n")
    stub.fail_at = list(queries.values())[5]
    status, _, err = cli(*command, "--overwrite")
    assert (status, Path("r.run").read_text()) == (130, "old\n")
    assert "go on with --resume instead of --overwrite" in err
    stub.fail_at, before = None, list(stub.seen)
    assert 1 < len(before) <= 5
    status, _, err = cli(*command, "--resume")
    assert status == 0
    assert f"{len(before)} of 12 queries are scored already" in err
    assert sorted(stub.seen) == sorted(queries.values())
    assert read_run("r.run") == rerank(read_run(runs / "test.run"), StubReranker(), queries, collection.corpus)
    said = "warning: r.run is complete; nothing to do (whether it has these settings was not looked at)\n"
    assert cli(*command, "--resume") == (0, "", said)
    assert sorted(os.listdir()) == ["r.run"]


@pytest.mark.parametrize("stopped", ["retrieval.trec.read_run", "retrieval.collection.Collection.load", "scoring"])
def test_an_old_result_is_not_taken_for_one_that_was_never_begun(cli, runs, collection, stub, monkeypatch, stopped):
    command = ["rerank", "--run", runs / "test.run", "--model", "m", "--data", collection.path, "--out", "r.run"]
    Path("r.run").write_text("old\n")
    with monkeypatch.context() as patched:
        if stopped == "scoring":
            patched.setattr(stub, "fail_at", next(iter(collection.queries("test").values())))
        else:
            patched.setattr(stopped, interrupted)
        assert cli(*command, "--overwrite")[0] == 130
    assert Path("r.run").read_text() == "old\n"
    status, _, err = cli(*command, "--resume")
    assert (status, err) == (0, "r.run: 12 queries, the first 100 documents of each reranked\n")
    assert sorted(os.listdir()) == ["r.run"]


def interrupted(*_):
    raise KeyboardInterrupt


def test_rerank_with_a_model(cli, runs, collection, tiny_model):
    pytest.importorskip("sentence_transformers", reason="needs the train extra")
    from retrieval.cross_encoder import CrossEncoder

    CrossEncoder.load(tiny_model, precision="fp32", device="cpu").save(Path("saved"))
    arguments = ["--model", "saved", "--data", collection.path, "--k", 5, "--precision", "fp32", "--device", "cpu"]
    status, _, err = cli("rerank", "--run", runs / "test.run", *arguments, "--out", "r.run")
    assert status == 0, err
    old, new = read_run(runs / "test.run"), read_run("r.run")
    assert all(set(list(new[q])[:5]) == set(list(old[q])[:5]) and list(new[q])[5:] == list(old[q])[5:] for q in old)


# --- features --------------------------------------------------------------------------------------------------------


def test_features_and_the_ranker_that_is_served_with_them(cli, runs, collection, stub):
    data = ["--data", collection.path]
    files = ["--out", "train.svm", "--dev-out", "dev.svm"]
    status, out, err = cli(
        "features", "--run", runs / "train.run", *data, "--split", "train", "--reranker", "m", "--k", 8, *files
    )
    assert (status, out) == (0, "")
    train, dev = read_svmlight("train.svm"), read_svmlight("dev.svm")
    assert set(train.query_ids).isdisjoint(dev.query_ids)
    assert set(train.query_ids) | set(dev.query_ids) == set(collection.queries("train"))
    assert train.names == dev.names == FeatureExtractor(collection.corpus, reranker=stub).names
    assert max(train.labels) == 3
    assert err.splitlines()[0].startswith(f"train.svm: {len(train)} queries, {len(train.labels)} documents, 10 feat")

    pytest.importorskip("torch", reason="needs the train extra")
    import torch

    from rankers.feature_scorers import FeatureScorer
    from retrieval.feature_normalisation import Normalisation
    from retrieval.feature_ranker import FeatureRanker

    torch.manual_seed(0)
    scorer = FeatureScorer(features=10)
    normalisation = Normalisation.fit(train.features)
    ranker = FeatureRanker("linear", train.numbers, train.names, normalisation, scorer, {"features": 10})
    ranker.save("ranker")
    served = ["rerank", "--run", runs / "test.run", "--model", "ranker", "--features", "train.svm", *data, "--k", 8]
    status, _, err = cli(*served, "--out", "r.run")
    assert status == 0, err
    extractor = FeatureExtractor(collection.corpus, reranker=StubReranker())
    queries = collection.queries("test")
    expected = rerank(read_run(runs / "test.run"), FeatureReranker(ranker, extractor), queries, collection.corpus, k=8)
    assert {q: list(docs) for q, docs in read_run("r.run").items()} == {q: list(docs) for q, docs in expected.items()}
    stub.known["max_length"] = 7
    one_error(cli(*served, "--out", "r2.run"), "train.svm.recipe.json: the features were made with 'reranker(model ")


def test_features_of_a_run_with_unknown_documents(cli, runs, collection, tmp_path):
    lines = (runs / "test.run").read_text()
    (tmp_path / "more.run").write_text(lines.replace("q-saddle-0 Q0 ", "q-saddle-0 Q0 no-"))
    arguments = ["features", "--run", "more.run", "--data", collection.path, "--split", "test", "--out", "some.svm"]
    status, _, err = cli(*arguments)
    assert status == 2
    assert "which is not in the corpus" in err
    status, _, err = cli(*arguments, "--on-error", "skip")
    assert status == 0, err
    assert "q-saddle-0" not in read_svmlight(Path("some.svm")).query_ids  # all its documents are unknown
    assert len(read_svmlight(Path("some.svm"))) == 11


def test_near_equal_queries_stay_on_one_side(cli, runs, collection):
    """The carving is that of `retrieval.splits`: a query's side follows from its text and its id alone."""
    from retrieval.splits import carve_dev

    files = ["--out", "train.svm", "--dev-out", "dev.svm"]
    assert cli("features", "--run", runs / "train.run", "--data", collection.path, "--split", "train", *files)[0] == 0
    _, dev = carve_dev(collection.qrels("train"), collection.queries("train"))
    assert set(read_svmlight("dev.svm").query_ids) == set(dev)


def test_documents_below_k_need_not_be_known(cli, runs, collection):
    lines = "q-saddle-0 Q0 otter-0 1 2.0 x\nq-saddle-0 Q0 nothing 2 1.0 x\n"
    Path("deep.run").write_text(lines)
    features = ["features", "--run", "deep.run", "--data", collection.path, "--split", "test", "--out", "f.svm"]
    one_error(cli(*features, "--k", 2), "document 'nothing', which is not in the corpus")
    assert cli(*features, "--k", 1)[0] == 0
    assert read_svmlight("f.svm").doc_ids == ["otter-0"]


# --- label -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "settings"),
    [
        (["--as", "margin"], {"kind": "margin"}),
        (["--as", "soft", "--temperature", "2"], {"kind": "soft", "temperature": 2.0}),
        (["--as", "soft", "--probability", "softmax"], {"kind": "soft", "probability": "softmax"}),
        (["--as", "graded", "--quantiles", "0.5,0.9"], {"kind": "graded", "quantiles": [0.5, 0.9]}),
        (["--as", "graded", "--thresholds=-1,2"], {"kind": "graded", "thresholds": [-1, 2]}),
    ],
)
def test_label(cli, runs, collection, arguments, settings):
    command = ["label", "--run", runs / "both.run", "--data", collection.path, "--k", 5, "--out", "rows.jsonl"]
    status, out, err = cli(*command, *arguments)
    assert (status, out) == (0, ""), err
    queries, qrels = collection.queries("train"), collection.qrels("train")
    expected = label(
        read_run(runs / "both.run"), settings.pop("kind"), qrels, queries, collection.corpus, k=5, **settings
    )
    assert read_rows("rows.jsonl", collection)[0] == expected
    assert f"rows.jsonl: {len(expected)} rows" in err
    assert not {row.query_id for row in expected} & set(collection.queries("test"))


# --- refused, each in one line ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("fuse {r}/test.run --out f", "got 1 run; wanted two or more to fuse"),
        ("fuse --out f", "the following arguments are required: RUN"),
        ("fuse {r}/test.run {r}/short.run", "the following arguments are required: --out"),
        ("fuse {r}/test.run nowhere.run --out f", "nowhere.run: no such file"),
        ("fuse {r}/test.run {r}/twice.run --out f", "twice.run:2: query 'q-saddle-0' has document 'otter-0' already"),
        ("fuse a b --out f --weights 1", "got 1 weights for 2 runs; wanted one each"),
        ("fuse a b --out f --weights 1,x", "--weights got 'x'; wanted numbers between commas"),
        ("fuse a b --out f --norm minmax", "rrf fuses ranks and takes no norm"),
        ("fuse a b --out f --method rff", "argument --method: invalid choice: 'rff'"),
        ("fuse a b --out f --k 0", "k must be at least 1, got 0"),
        ("fuse a b --out taken", "taken: exists already; choose another place or ask for --overwrite"),
        ("fuse a b --out folder --overwrite", "folder: is a folder; wanted the name of a file"),
        ("rerank --run {r}/test.run --model m --data {c}", "the following arguments are required: --out"),
        ("rerank --run {r}/test.run --model m --data {c} --out r --k 0", "--k must be >= 1, got 0"),
        ("rerank --run nowhere --model m --data {c} --out r", "nowhere: no such file"),
        ("rerank --run {r}/test.run --model m --data nowhere --out r", "nowhere: no such folder"),
        ("rerank --run {r}/test.run --model m --data {c} --out taken", "taken: exists already"),
        ("rerank --run {r}/test.run --model m --data {c} --out r --split tset", "no split 'tset'; did you mean 'test'"),
        (
            "rerank --run {r}/train.run --model m --data {c} --out r --split test",
            "has no query of split 'test' of tiny",
        ),
        ("rerank --run {r}/empty.run --model m --data {c} --out r", "empty.run: holds no document to rerank"),
        ("rerank --run {r}/strange.run --model m --data {c} --out r", "document 'nothing', which is not in the corpus"),
        ("rerank --run {r}/foreign.run --model m --data {c} --out r", "query '42' of the run has no text"),
        ("rerank --run {r}/twice.run --model m --data {c} --out r", "twice.run:2: query 'q-saddle-0' has document"),
        (
            "rerank --run a --model m --data c --out r --resume --overwrite",
            "--resume and --overwrite exclude each other",
        ),
        ("rerank --run a --model m --data c --out r --split s --queries q", "got --split and --queries; wanted one"),
        (
            "rerank --run a --model m --data c --out r --fetures f",
            "unknown flag '--fetures'; did you mean '--features'",
        ),
        (
            "rerank --run {r}/test.run --model nowhere/x/y --data {c} --out r --features f",
            "nowhere/x/y: no such folder",
        ),
        ("features --run {r}/test.run --data {c} --out f", "the following arguments are required: --split"),
        ("features --run {r}/test.run --data {c} --split test --out f --k 0", "--k must be >= 1, got 0"),
        ("features --run {r}/test.run --data {c} --split train --out f", "has no query of split 'train' of tiny"),
        (
            "features --run {r}/strange.run --data {c} --split test --out f",
            "document 'nothing', which is not in the corpus",
        ),
        ("features --run a --data c --split s --out f --dev-out ./f", "--out and --dev-out are both f"),
        ("features --run a --data c --split s --out taken", "taken: exists already"),
        ("label --run {r}/train.run --data {c} --out l", "the following arguments are required: --as"),
        ("label --run {r}/train.run --data {c} --out l --as hard", "argument --as: invalid choice: 'hard'"),
        ("label --run {r}/test.run --data {c} --out l --as soft", "none of the 12 queries of the run is judged in the"),
        ("label --run a --data c --out l --as soft --quantiles 0.5", "--quantiles has no meaning for --as soft"),
        ("label --run a --data c --out l --as margin --temperature 2", "--temperature has no meaning for --as margin"),
        ("label --run a --data c --out l --as graded --quantiles a,b", "--quantiles got 'a,b'; wanted numbers between"),
        (
            "label --run a --data c --out l --as graded --quantiles 0.9,0.1",
            "quantiles must be one or more rising numbers",
        ),
        ("label --run a --data c --out l --as soft --temperature 0", "temperature must be above 0, got 0"),
        ("label --run a --data c --out l --as soft --k 0", "k must be at least 1, got 0"),
        ("label --run a --data c --out taken --as soft", "taken: exists already"),
    ],
)
def test_each_mistake_is_one_line(cli, runs, collection, stub, arguments, expected):
    Path("taken").touch()
    Path("folder").mkdir()
    one_error(cli(*arguments.format(r=runs, c=collection.path).split()), expected)
    assert sorted(os.listdir()) == ["folder", "taken"]


def test_ids_that_no_run_can_hold_are_refused_before_anything_is_scored(cli, collection, stub, tmp_path):
    (tmp_path / "blank.run").write_text("q-saddle-0 Q0 a\u00a0b 1 1.0 x\n", encoding="utf-8")
    status, _, err = cli("rerank", "--run", "blank.run", "--model", "M", "--data", collection.path, "--out", "out.run")
    assert (status, stub.seen) == (2, [])
    assert r"document id 'a\xa0b' holds U+00A0, which a TREC run cannot carry" in err


def test_unknown_documents_are_skipped_when_asked(cli, runs, collection, stub):
    command = ["rerank", "--run", runs / "strange.run", "--model", "m", "--data", collection.path, "--out", "r.run"]
    status, _, err = cli(*command, "--on-error", "skip")
    assert status == 0
    assert "warning: 1 documents of the run are not in the corpus and are left out" in err
    assert read_run("r.run") == {}


def test_settings_of_a_config_file(cli, runs, collection, stub):
    Path("rerank.yaml").write_text(f"run: {runs / 'test.run'}\nmodel: m\ndata: {collection.path}\nk: 2\n")
    assert cli("rerank", "--config", "rerank.yaml", "--out", "r.run", "--quiet") == (0, "", "")
    queries = collection.queries("test")
    assert read_run("r.run") == rerank(read_run(runs / "test.run"), StubReranker(), queries, collection.corpus, k=2)
