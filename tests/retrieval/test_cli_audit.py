"""`rankwright audit` as a user types it: the table, the files, the labels that come back, and what is refused."""

import json
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from beir_folder import make_collection, qrels_text
from stub_reranker import StubReranker

from retrieval.cli.main import main
from retrieval.collection import Collection
from retrieval.rows import read_rows
from retrieval.trec import read_qrels

N = 12
DOCUMENTS = [
    {"_id": f"{kind}{i}", "text": f"{text} alpha{i} beta{i} gamma{i}"}
    for i in range(N)
    for kind, text in {"p": "first\tstory", "r": "second\n\ntale", "h": 'third "account"'}.items()
] + [{"_id": f"n{i}.{j}", "text": f"item{j} alpha{i} {'filler ' * j}"} for i in range(N) for j in range(5)]
QUERIES = {f"q{i}": f"alpha{i} beta{i} gamma{i}" for i in range(N)}
QRELS = {"train": {f"q{i}": {f"p{i}": 1, f"r{i}": 1} for i in range(N)}, "test": {"q0": {"h0": 1, "n0.0": 0}}}
BANDS = ("--bands", "1-2,3-6")


def rows():
    return [
        {
            "query_id": f"q{i}",
            "positive_ids": [f"p{i}", f"r{i}"],
            "negative_ids": [f"h{i}", *(f"n{i}.{j}" for j in range(5))],
            "positive_scores": [0.95, 0.9],
            "negative_scores": [0.92, 0.5, 0.4, 0.3, 0.2, 0.1],
            "negative_ranks": [1, 2, 3, 4, 5, 6],
        }
        for i in range(N)
    ]


@pytest.fixture
def cli(capfd, tmp_path, monkeypatch):
    """Run `audit` in a folder with the collection D and rows.jsonl; returns (exit status, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    make_collection(tmp_path / "D", DOCUMENTS, QUERIES, QRELS)
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows()), encoding="utf-8")
    monkeypatch.setattr("retrieval.reranking.load_reranker", lambda *args, **settings: StubReranker())

    def run(*arguments) -> tuple[int, str, str]:
        status = main(["audit", "rows.jsonl", "--data", "D", *map(str, arguments)])
        return (status, *capfd.readouterr())

    return run


def label(grades) -> str:
    """Fill in doubtful.tsv as a person would; returns the name of the labelled file."""
    head, *lines = Path("out/doubtful.tsv").read_text(encoding="utf-8").splitlines()
    place = head.split("\t").index("doc_id")
    filled = [line + str(grades.get(line.split("\t")[place], "")) for line in lines]
    Path("labelled.tsv").write_text("\n".join([head, *filled]) + "\n", encoding="utf-8")
    return "labelled.tsv"


def test_the_table_says_what_was_found_and_what_it_rests_on(cli):
    status, out, _ = cli("--reranker", "R", "--qrels", "D:test", *BANDS)
    assert status == 0
    lines = [line.split("  ") for line in out.splitlines()]
    heads = ["ranks", "negatives", "by scores", "by likeness", "near duplicates", "judged relevant", "judged"]
    assert [cell.strip() for cell in lines[0] if cell.strip()] == heads
    first = [cell.strip() for cell in lines[1] if cell.strip()]
    assert first == ["1-2", "24", "50.0 % [50.0, 50.0]", "50.0 % [50.0, 50.0]", "0.0 % [0.0, 12.5]", *first[5:]]
    assert first[5].startswith("4.2 % [0.0,")
    assert first[6] == "2"
    assert "12 queries, 72 negatives\n" in out
    assert "scores: the reranker's\n" in out
    assert "judged relevant: by --qrels" in out


def test_scores_in_the_rows_are_called_that_and_give_bounds(cli):
    status, out, _ = cli(*BANDS)
    assert status == 0
    assert "scores: those in the rows (the negatives were ranked or chosen by them" in out
    assert "≤ " in out
    assert "judged" not in out


def test_json_is_one_document_with_the_same_numbers(cli):
    status, out, _ = cli("--reranker", "R", "--qrels", "D:test", "--json", "--top", 3, *BANDS)
    found = json.loads(out)
    assert status == 0
    assert [band["band"] for band in found["bands"]] == ["1-2", "3-6"]
    assert found["bands"][0]["scores"]["value"] == pytest.approx(0.5)
    assert found["bands"][0]["scores"].keys() >= {"low", "high", "positives", "matched", "separation", "is_bound"}
    assert found["bands"][0]["judged"] == 2
    assert len(found["doubtful"]) == 3
    assert found["scored_by"] == "reranker"


def test_a_folder_for_the_person_who_labels(cli):
    status, _, err = cli("--reranker", "R", "--out", "out")
    assert status == 0
    assert "out: doubtful.tsv, with 72 negatives to label, and audit.json" in err
    head, first, *_ = Path("out/doubtful.tsv").read_text(encoding="utf-8").splitlines()
    assert head.split("\t")[-1] == "label"
    assert first.endswith("\t")
    assert len(first.split("\t")) == len(head.split("\t"))  # tabs within texts are gone
    assert json.loads(Path("out/audit.json").read_text(encoding="utf-8"))["queries"] == N
    if find_spec("matplotlib") is not None:
        assert Path("out/audit.png").read_bytes().startswith(b"\x89PNG")
        before = Path("out/audit.png").read_bytes()
        assert cli("--reranker", "R", "--out", "out", "--overwrite")[0] == 0
        assert Path("out/audit.png").read_bytes() == before
    status, _, err = cli("--out", "out")
    assert status == 2
    assert "exists already" in err


def test_without_matplotlib_the_rest_is_there(cli, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    status, _, err = cli("--out", "out")
    assert status == 0
    assert "no picture: matplotlib is not installed; run: pip install 'rankwright[bench]'" in err
    assert {path.name for path in Path("out").iterdir()} == {"audit.json", "doubtful.tsv"}


def test_labels_become_judgements_or_a_mask(cli):
    cli("--reranker", "R", "--out", "out")
    labels = label({"h0": 1, "h1": 2, "n0.0": 0})
    status, _, err = cli("--labels", labels, "--as", "qrels", "--out", "labels.tsv")
    assert (status, read_qrels("labels.tsv")) == (0, {"q0": {"h0": 1, "n0.0": 0}, "q1": {"h1": 2}})
    assert "labelled.tsv: 3 labels, 2 of them relevant" in err
    assert "next: rankwright mine with --qrels labels.tsv, so that no relevant one is a negative; or append" in err
    status, _, err = cli("--labels", labels, "--as", "mask", "--out", "clean.jsonl")
    assert status == 0
    assert "clean.jsonl: 12 rows, 2 of 72 negatives taken out" in err
    before, after = read_rows("rows.jsonl", Collection.load("D"))[0], read_rows("clean.jsonl")[0]
    assert after[0].negative_ids == before[0].negative_ids[1:]
    assert after[0].negative_ranks == (2, 3, 4, 5, 6)
    assert after[2:] == before[2:]
    Path("again.tsv").write_text(qrels_text(read_qrels("labels.tsv")), encoding="utf-8")
    audited = json.loads(cli("--qrels", "again.tsv", "--json", *BANDS)[1])
    assert [band["judged"] for band in audited["bands"]] == [3, 0]  # labels are judgements


def test_judgements_of_a_test_split_bring_a_warning(cli):
    warning = "judgements of a test split; whatever is chosen by this audit is then tuned on the test"
    assert f"--qrels D:test: {warning}" in cli("--qrels", "D:test", *BANDS)[2]
    assert f"--qrels D/qrels/test.tsv: {warning}" in cli("--qrels", "D/qrels/test.tsv", *BANDS)[2]
    Path("further.tsv").write_text(qrels_text({"q0": {"h0": 1}}), encoding="utf-8")
    assert "test split" not in cli("--qrels", "further.tsv", "--qrels", "D:train", *BANDS)[2]


def test_labels_are_not_written_over(cli):
    cli("--out", "out")
    Path(label({"h0": 1})).replace("out/doubtful.tsv")
    status, _, err = cli("--out", "out", "--overwrite")
    assert status == 2
    assert "out/doubtful.tsv: holds 1 labels, which would be lost; move it away first" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--bands", "1-10,x"], "--bands got 'x'; wanted ranks such as 1-10,11-30,31-100"),
        (["--bands", "1-10,5-20"], "bands must be ranks that rise from 1 and do not overlap, such as 1-10,11-30; got"),
        (["--top", "-1"], "--top must be at least 0, got -1"),
        (["--labels", "x.tsv"], "labels need --labels FILE, --as qrels or --as mask, and --out FILE"),
        (["--as", "mask", "--out", "o"], "labels need --labels FILE"),
        (["--labels", "x.tsv", "--as", "mask", "--out", "o", "--top", "3"], "--top is of the audit; it has no meaning"),
        (["--labels", "x.tsv", "--as", "mask", "--out", "o"], "x.tsv: no such file"),
        (["--qrels", "D:tset"], "no split 'tset'; did you mean 'test'?"),
        (["--qrels", "nowhere"], "nowhere: no such file: QRELS is a file or D:SPLIT"),
        (["--out", "rows.jsonl", "--overwrite"], "rows.jsonl: is a file; wanted the name of a folder"),
        (["--features", "x.svm"], "--features goes with --reranker, a ranker that `train-ltr` wrote"),
        (["--lables", "x"], "unknown flag '--lables'; did you mean '--labels'?"),
    ],
)
def test_bad_input_is_one_line(cli, arguments, message):
    status, out, err = cli(*arguments)
    assert (status, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1
