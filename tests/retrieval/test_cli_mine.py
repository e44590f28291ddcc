"""The verb mine as a user types it: what it writes and says, how it goes on, and every mistake in one line."""

import json

import pytest
from stub_encoder import StubEncoder
from stub_reranker import StubReranker
from tiny_files import rows_file

from retrieval.cli.main import main
from retrieval.collection import Collection
from retrieval.embedding_store import EmbeddingStore
from retrieval.mining import mine, row_lines
from retrieval.negatives import NegativeRules
from retrieval.rows import read_rows


@pytest.fixture
def cli(capfd, tmp_path, monkeypatch, tiny_collection):
    """Mine from the tiny collection in an empty folder; returns (exit status, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments) -> tuple[int, str, str]:
        words = ["mine", "--data", tiny_collection, "--out", "rows.jsonl", "--store", "store", *arguments]
        status = main([str(word) for word in words])
        return (status, *capfd.readouterr())

    return run


@pytest.fixture
def stub(monkeypatch):
    """What --model and --reranker load."""
    encoder, reranker = StubEncoder(), StubReranker()
    monkeypatch.setattr("retrieval.cli.mine.encoder_of", lambda args: encoder)
    monkeypatch.setattr("retrieval.reranking.load_reranker", lambda *args, **settings: reranker)
    return encoder, reranker


@pytest.mark.parametrize(
    ("arguments", "rules", "settings"),
    [
        ((), NegativeRules(relative_margin=0.05), {}),
        (("--relative-margin", "none"), NegativeRules(), {}),
        (
            ("--relative-margin", "0.2", "--margin-from", "mean"),
            NegativeRules(relative_margin=0.2, margin_from="mean"),
            {},
        ),
        (("--absolute-margin", "0.1"), NegativeRules(absolute_margin=0.1), {}),
        (("--max-score", "0.4", "--num-negatives", 3), NegativeRules(max_score=0.4, num_negatives=3), {}),
        (
            ("--range", "10:20", "--sampling", "gumbel", "--temperature", "0.3", "--seed", 5, "--max-score", 2),
            NegativeRules(10, 20, sampling="gumbel", temperature=0.3, seed=5, max_score=2.0),
            {},
        ),
        (
            ("--candidates", "dense,bm25", "--split", "dev"),
            NegativeRules(relative_margin=0.05),
            {"candidates": ["dense", "bm25"], "split": "dev"},
        ),
    ],
)
def test_flags_mean_what_python_means(cli, stub, tmp_path, tiny_collection, arguments, rules, settings):
    status, out, err = cli("--model", "m", *arguments)
    assert (status, out) == (0, "")
    expected = mine(
        Collection.load(tiny_collection), StubEncoder(), rules=rules, store=EmbeddingStore(tmp_path / "s"), **settings
    )
    assert (tmp_path / "rows.jsonl").read_text(encoding="utf-8").splitlines() == list(row_lines(expected.rows))
    assert f"{len(expected.rows)} rows: {expected.full} with {rules.num_negatives} negatives" in err


def test_bm25_needs_no_model(cli, tmp_path):
    status, _, err = cli("--candidates", "bm25")
    assert (status, "relative_margin" in err) == (0, False)
    rows, _ = read_rows(tmp_path / "rows.jsonl")
    assert all(row.negative_ids for row in rows)


def test_rows_of_files(cli, stub, tmp_path):
    names = [
        rows_file(tmp_path / f"{i}.jsonl", [{"query": f"which otter {i}", "positive_ids": ["otter-0"]}]) for i in "ab"
    ]
    status, _, _ = cli("--model", "m", "--rows", names[0], "--rows", names[1])
    assert status == 0
    rows, _ = read_rows(tmp_path / "rows.jsonl")
    assert [row.query for row in rows] == ["which otter a", "which otter b"]


def test_judgements_of_files_forbid_negatives(cli, stub, tmp_path):
    """As audit --as qrels writes them."""
    assert cli("--model", "m", "--relative-margin", "none")[0] == 0
    before = read_rows(tmp_path / "rows.jsonl")[0]
    first, second = before[0], before[1]
    for name, row in (("a.tsv", first), ("b.tsv", second)):
        (tmp_path / name).write_text(f"query-id\tcorpus-id\tscore\n{row.query_id}\t{row.negative_ids[0]}\t1\n")
    settings = ("--relative-margin", "none", "--qrels", "a.tsv", "--qrels", "b.tsv", "--overwrite")
    assert cli("--model", "m", *settings)[0] == 0
    after = read_rows(tmp_path / "rows.jsonl")[0]
    for row, old in zip(after[:2], (first, second), strict=True):
        assert old.negative_ids[0] not in row.negative_ids
        assert row.positive_ids == old.positive_ids
    assert after[2:] == before[2:]


def test_a_second_mining_with_other_settings_encodes_nothing(cli, stub):
    assert cli("--model", "m")[0] == 0
    stub[0].seen.clear()
    assert cli("--model", "m", "--range", "5:30", "--sampling", "random", "--overwrite")[0] == 0
    assert stub[0].seen == []


def test_a_real_model_from_encoding_to_training(cli, tiny_model, tiny_collection, tmp_path):
    assert cli("--model", tiny_model, "--num-negatives", 2, "--relative-margin", "none")[0] == 0
    rows, _ = read_rows(tmp_path / "rows.jsonl", Collection.load(tiny_collection))
    assert {len(row.negative_ids) for row in rows} == {2}
    words = f"train --model {tiny_model} --data {tiny_collection} --rows rows.jsonl --num-negatives 2 --max-steps 2"
    assert main([*words.split(), "--out", "run", "--per-device-train-batch-size", "4"]) == 0


def test_an_interrupted_reranker_goes_on_and_other_margins_score_nothing(cli, stub, tmp_path, monkeypatch):
    monkeypatch.setattr("retrieval.reranking.PAIRS_PER_BLOCK", 1)
    _, reranker = stub
    reranker.fail_at = "where is the heron found"
    status, _, err = cli("--model", "m", "--reranker", "r")
    assert (status, (tmp_path / "rows.jsonl").exists()) == (130, False)
    assert "every file written is whole; go on with the same command\n" in err
    n_seen, reranker.fail_at = len(reranker.seen), None
    assert cli("--model", "m", "--reranker", "r")[0] == 0
    resumed = (tmp_path / "rows.jsonl").read_bytes()
    assert len(reranker.seen) == 36
    assert n_seen > 0
    assert cli("--model", "m", "--reranker", "r", "--relative-margin", "none", "--overwrite")[0] == 0
    assert len(reranker.seen) == 36
    assert (tmp_path / "rows.jsonl").read_bytes() != resumed
    assert cli("--model", "m", "--reranker", "r", "--store", "new", "--overwrite")[0] == 0
    assert len(reranker.seen) == 72
    assert (tmp_path / "rows.jsonl").read_bytes() == resumed


def test_settings_of_a_config_file(cli, stub, tmp_path):
    rows = str(rows_file(tmp_path / "r.jsonl", [{"query": "which otter", "positive_ids": ["otter-0"]}]))
    settings = {"model": "m", "range": "2:9", "relative_margin": "none", "num_negatives": 3, "rows": [rows]}
    (tmp_path / "c.yaml").write_text(json.dumps(settings))
    assert cli("--config", "c.yaml")[0] == 0
    (row,) = read_rows(tmp_path / "rows.jsonl")[0]
    assert row.negative_ranks == (2, 3, 4)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((), "dense candidates need a model (--model)"),
        (("--model", "no/such/model/here"), "no/such/model/here"),
        (("--model", "m", "--candidates", "bm25"), "--model has no meaning without dense candidates"),
        (("--model", "m", "--candidates", "dense,bm52"), "unknown candidates 'bm52'; did you mean 'bm25'?"),
        (("--model", "m", "--range", "5:2"), "the window of ranks 5:2 is empty"),
        (("--model", "m", "--range", "0:10"), "--range got '0:10'; ranks begin at 1"),
        (("--model", "m", "--range", "10"), "--range got '10'; wanted the first and the last rank, such as 10:100"),
        (("--model", "m", "--qrels", "none.tsv"), "none.tsv: no such file"),
        (
            ("--model", "m", "--relative-margin", "five"),
            "--relative-margin got 'five'; wanted a share such as 0.05, or none",
        ),
        (("--model", "m", "--relative-margin", "5"), "relative_margin must be in [0, 1]"),
        (
            ("--candidates", "bm25", "--relative-margin", "0.1"),
            "and BM25's are none; add dense candidates or a reranker",
        ),
        (("--model", "m", "--temperature", "1"), "--temperature is of --sampling gumbel; it has no meaning for top"),
        (("--model", "m", "--split", "trian"), "no split 'trian'; did you mean 'train'?"),
        (("--model", "m", "--rows", "none.jsonl"), "none.jsonl"),
        (("--model", "m", "--num-negatives", "0"), "num_negatives must be at least 1, got 0"),
        (("--model", "m", "--out", "store", "--overwrite"), "is a folder; wanted the name of a file"),
        (("--model", "m", "--negatives", "3"), "unknown flag '--negatives'; did you mean '--num-negatives'?"),
    ],
)
def test_each_mistake_is_one_line(cli, monkeypatch, tmp_path, arguments, expected):
    (tmp_path / "store").mkdir()
    if arguments[-1:] != ("no/such/model/here",):
        monkeypatch.setattr("retrieval.cli.mine.encoder_of", lambda args: StubEncoder())
    status, out, err = cli(*arguments)
    assert (status, out, len(err.splitlines())) == (2, "", 1)
    assert err.startswith("error: ")
    assert expected in err
    assert not (tmp_path / "rows.jsonl").exists()


def test_an_existing_result_is_refused_before_anything_is_read(cli, stub, tmp_path):
    (tmp_path / "rows.jsonl").write_text("mine")
    status, _, err = cli("--model", "m")
    assert (status, "exists already" in err, stub[0].seen) == (2, True, [])
    assert (tmp_path / "rows.jsonl").read_text() == "mine"
