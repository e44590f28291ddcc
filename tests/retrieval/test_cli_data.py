"""Bad data at the command line: one clear line on stderr, with file and line where there is one, and status 2."""

import gzip
import json
import re

import pytest
from beir_folder import DOCUMENTS, HEADER, QUERIES, jsonl, make_collection, write

from retrieval.cli.main import main

GOOD_ROW = {"query": "why", "positive_ids": ["d1"]}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RANKWRIGHT_CACHE", str(tmp_path / "cache"))


# Each case: what is spoiled, the text of that file, the line that the error names (0: the file as a whole).
DOCS, QS = jsonl(DOCUMENTS), jsonl({"_id": q, "text": t} for q, t in QUERIES.items())
BAD_FILES = {
    "corpus: not JSON": ("corpus.jsonl", DOCS + '{"_id": "x"\n', 5, "is not JSON"),
    "corpus: a list": ("corpus.jsonl", DOCS + "[]\n", 5, "wanted an object"),
    "corpus: no _id": ("corpus.jsonl", DOCS + '{"id": "x", "text": "y"}\n', 5, 'there is no "_id"; is that "id"?'),
    "corpus: no text": ("corpus.jsonl", '{"_id": "x"}\n' + DOCS, 1, 'there is no "text"'),
    "corpus: _id is a number": ("corpus.jsonl", DOCS + '{"_id": 1, "text": "y"}\n', 5, "the number 1"),
    "corpus: _id is empty": ("corpus.jsonl", DOCS + '{"_id": "", "text": "y"}\n', 5, '"_id" is empty'),
    "corpus: text is null": ("corpus.jsonl", DOCS + '{"_id": "x", "text": null}\n', 5, '"text" is null'),
    "corpus: title is a list": ("corpus.jsonl", DOCS + '{"_id": "x", "title": [], "text": ""}\n', 5, '"title" is'),
    "corpus: duplicate _id": ("corpus.jsonl", DOCS + '{"_id": "d2", "text": "y"}\n', 5, "stands on line 2 already"),
    "corpus: invalid UTF-8": ("corpus.jsonl", DOCS.encode() + b'{"_id": "\xff", "text": "y"}\n', 5, "byte 10 of the"),
    "corpus: UTF-16": ("corpus.jsonl", DOCS.encode("utf-16"), 1, "is UTF-16; wanted UTF-8"),
    "corpus: lone surrogate": ("corpus.jsonl", DOCS + r'{"_id": "x", "text": "\udfff"}' + "\n", 5, "surrogate"),
    "corpus: deeply nested": ("corpus.jsonl", DOCS + "[" * 100_000 + "\n", 5, "is not JSON"),
    "queries: not JSON": ("queries.jsonl", QS + "q9\twhy\n", 5, "is not JSON"),
    "queries: no text": ("queries.jsonl", QS + '{"_id": "q9", "query": "y"}\n', 5, 'is that "query"?'),
    "queries: duplicate _id": ("queries.jsonl", QS + '{"_id": "q1", "text": "y"}\n', 5, "stands on line 1 already"),
    "queries: text is a number": ("queries.jsonl", QS + '{"_id": "q9", "text": 7}\n', 5, "the number 7"),
    "qrels: two columns": ("qrels/test.tsv", HEADER + "q3\td3\t1\nq4\td4\n", 3, "got 2 columns"),
    "qrels: four columns": ("qrels/test.tsv", HEADER + "q3\t0\td3\t1\n", 2, "got 4 columns"),
    "qrels: no header": ("qrels/test.tsv", "q3\td3\t1\n", 1, "need the header line"),
    "qrels: a run": ("qrels/test.tsv", "q3 Q0 d3 1 0.5 tag\n", 1, "got 6 columns"),
    "qrels: grade is text": ("qrels/test.tsv", HEADER + "q3\td3\thigh\n", 2, "'high' is not an integer"),
    "qrels: grade is a fraction": ("qrels/test.tsv", HEADER + "q3\td3\t0.5\n", 2, "'0.5' is not an integer"),
    "qrels: contradiction": ("qrels/test.tsv", HEADER + "q3\td3\t1\nq3\td3\t0\n", 3, "but 1 on line 2; keep one"),
    "qrels: unknown query": (
        "qrels/test.tsv",
        HEADER + "q3\td3\t1\nq9\td3\t1\n",
        3,
        "query 'q9' is not in queries.jsonl",
    ),
    "qrels: empty": ("qrels/test.tsv", HEADER, 0, "holds no judgement"),
    "qrels: invalid UTF-8": ("qrels/test.tsv", HEADER.encode() + b"q3\t\xff\t1\n", 2, "not UTF-8"),
    "qrels: two files": ("qrels/test.tsv.gz", HEADER + "q3\td3\t1\n", 0, "both exist; remove one"),
}


@pytest.mark.parametrize(("name", "text", "line", "message"), BAD_FILES.values(), ids=BAD_FILES)
def test_a_bad_file_of_a_collection_is_one_line(tmp_path, capsys, name, text, line, message):
    folder = make_collection(tmp_path / "zoo")
    path = write(folder / name, text)
    assert main(["data", str(folder)]) == 2
    out, err = capsys.readouterr()
    place = f"{path}:{line}: " if line else str(path.parent if "both" in message else path)
    assert_one_error(err, place, message)
    assert re.search(r"^\d defects?$", out, re.MULTILINE)
    assert "Traceback" not in out + err


BAD_ROWS = {
    "not JSON": ("{", "is not JSON"),
    "not a row": ({"text": "a"}, "which is no training row"),
    "no query": ({"positive_ids": ["d1"]}, 'has no "query"'),
    "unknown query": ({"query_id": "q9", "positive_ids": ["d1"]}, "query 'q9' is not in the collection"),
    "no positive": ({"query": "a", "negative_ids": ["d1"]}, "has no relevant document"),
    "unknown positive": ({"query": "a", "positive_ids": ["d9"]}, "'d9', which is not in the corpus"),
    "unknown negative": ({"query": "a", "positive_ids": ["d1"], "negative_ids": ["d9"]}, "'d9', which is not"),
    "positive is negative": ({"query": "a", "positive_ids": ["d1"], "negative_ids": ["d1"]}, "keep one"),
    "misaligned labels": ({"query": "a", "positive_ids": ["d1"], "positive_labels": [1, 2]}, "got 2 positive_labels"),
    "misaligned ids": ({"query": "a", "positive_ids": ["d1"], "positives": ["a", "b"]}, "got 1 positive_ids and 2"),
    "score is nan": ('{"query": "a", "positive_ids": ["d1"], "positive_scores": [NaN]}', "wanted a finite number"),
    "label is text": ({"query": "a", "positive_ids": ["d1"], "positive_labels": ["1"]}, 'the string "1"'),
    "misspelt key": ({"query": "a", "positive_ids": ["d1"], "negative_id": ["d2"]}, "did you mean 'negative_ids'"),
    "mixed dialects": (["a", "b"], "is a row of sentence-transformers, but the file began with rankwright"),
    "passage without text": ({"query": "a", "positive_passages": [{"docid": "d1"}]}, "is a row of tevatron, but"),
}


@pytest.mark.parametrize(("record", "message"), BAD_ROWS.values(), ids=BAD_ROWS)
def test_a_bad_training_row_is_one_line(tmp_path, capsys, record, message):
    rows = write(tmp_path / "rows.jsonl", jsonl([GOOD_ROW, record]))
    assert main(["data", str(make_collection(tmp_path / "zoo")), "--rows", str(rows)]) == 2
    assert_one_error(capsys.readouterr().err, f"{rows}:2: ", message)
    if "q9" in message or "d9" in message:  # without the collection, ids are not checked
        return
    assert main(["convert", str(rows), str(tmp_path / "out"), "--to", "rankwright"]) == 2
    assert_one_error(capsys.readouterr().err, f"{rows}:2: ", message)
    assert not (tmp_path / "out").exists()


BAD_SOURCES = {
    "run with five columns": ("q1 Q0 d1 1 0.5\n", ["--to", "json", "--from", "trec-run"], 1, "got 5 columns, wanted 6"),
    "run with text as score": ("q1 Q0 d1 1 0.5 t\nq1 Q0 d2 2 high t\n", ["--to", "json"], 2, "'high' is not a number"),
    "run with nan": ("q1 Q0 d1 1 0.5 t\nq1 Q0 d2 2 nan t\n", ["--to", "json"], 2, "'nan' is not a finite"),
    "run with a document twice": ("q1 Q0 d1 1 2 t\nq1 Q0 d1 2 1 t\n", ["--to", "json"], 2, "keep one"),
    "msmarco with text as rank": ("q1\td1\t1\nq1\td2\tx\n", ["--to", "trec"], 2, "query, document, rank"),
    "msmarco with a document twice": ("q1\td1\t1\nq1\td1\t2\n", ["--to", "trec"], 2, "a second time"),
    "json run that is cut off": ('{"q1": {"d1":\n0.5', ["--to", "trec"], 2, "is not JSON"),
    "json run with text as score": ('{"q1": {"d1": "high"}}', ["--to", "trec"], 0, 'got the string "high"'),
    "json run with nan": ('{"q1": {"d1": NaN}}', ["--to", "trec"], 0, "wanted a finite score"),
    "json run with a list": ('{"q1": {"d1": 1}, "q2": [1]}', ["--to", "trec", "--from", "json-run"], 0, "a list of 1"),
    "json qrels with fractions": ('{"q1": {"d1": 0.5}}', ["--to", "beir", "--from", "json"], 0, "an integer grade"),
    "empty file": ("", ["--to", "trec"], 0, "is empty"),
    "seven columns": ("a b c d e f g\n", ["--to", "trec"], 1, "got 7 columns"),
    "qrels into a run": ("q1 0 d1 1\n", ["--to", "msmarco"], 0, "both must be of one kind"),
    "ambiguous": ('{"q1": {"d1": 1}}', ["--to", "trec"], 0, "say --from json-run or --from json-qrels"),
    "wrong --from": (
        '{"query": "a", "pos": ["b"]}',
        ["--to", "tevatron", "--from", "rankwright"],
        0,
        "not of rankwright",
    ),
}


@pytest.mark.parametrize(("text", "flags", "line", "message"), BAD_SOURCES.values(), ids=BAD_SOURCES)
def test_a_file_that_cannot_be_converted_is_one_line(tmp_path, capsys, text, flags, line, message):
    path = write(tmp_path / "source", text)
    assert main(["convert", str(path), str(tmp_path / "out"), *flags]) == 2
    assert_one_error(capsys.readouterr().err, f"{path}:{line}: " if line else str(path), message)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["data", "{0}/nowhere"], "no such folder"),
        (["data", "{0}/zoo/corpus.jsonl"], "is a file; wanted a BEIR folder"),
        (["data", "{0}"], "has no corpus.jsonl"),
        (["data"], "required: DATA"),
        (["data", "{0}/zoo", "--jsn"], "unknown flag '--jsn'; did you mean '--json'"),
        (["data", "{0}/zoo", "--list", "few"], "invalid int value: 'few'"),
        (["data", "{0}/zoo", "--rows", "{0}/nowhere"], "nowhere: no such file"),
        (["data", "{0}/zoo", "--rows", "{0}"], "is a folder; wanted a file"),
        (["convert", "{0}/nowhere", "{0}/out", "--to", "trec"], "no such file"),
        (["convert", "{0}/zoo/qrels/test.tsv", "{0}/out"], "required: --to"),
        (
            ["convert", "{0}/zoo/qrels/test.tsv", "{0}/out", "--to", "terc"],
            "unknown format 'terc'; did you mean 'trec'",
        ),
        (["convert", "{0}/zoo/qrels/test.tsv", "{0}/zoo/corpus.jsonl", "--to", "trec"], "exists already"),
        (["convert", "{0}/zoo", "{0}/out", "--to", "beir"], "is a BEIR folder already"),
    ],
)
def test_wrong_use_is_one_line(tmp_path, capsys, arguments, message):
    make_collection(tmp_path / "zoo")
    assert main([argument.format(tmp_path) for argument in arguments]) == 2
    assert_one_error(capsys.readouterr().err, "", message)


def test_a_compressed_corpus_cut_at_any_place_is_one_line_and_never_a_shorter_corpus(tmp_path, capsys):
    folder = make_collection(tmp_path / "zoo", ending=".gz")
    path = folder / "corpus.jsonl.gz"
    whole = path.read_bytes()
    for size in range(0, len(whole), 7):
        path.write_bytes(whole[:size])
        assert main(["data", str(folder), "--quiet"]) == 2
        err = capsys.readouterr().err
        assert "gzip" in err
        assert err.startswith(f"error: {path}: ")
        assert err.count("\n") == 1


def assert_one_error(err: str, place: str, message: str):
    assert err.startswith(f"error: {place}")
    assert message in err
    assert err.count("\n") == 1
    assert "Traceback" not in err


def test_unclean_twins_read_like_clean_ones(tmp_path, capsys):
    clean, unclean = make_collection(tmp_path / "clean"), make_collection(tmp_path / "unclean")
    for path in sorted(unclean.rglob("*.*")):
        text = path.read_text().rstrip("\n").replace("\n", "\r\n")
        head, _, rest = text.partition("\r\n")
        path.write_bytes(("\ufeff" + head + "\r\n\r\n" + rest).encode())
    reports = []
    for folder in (clean, unclean):
        assert main(["data", str(folder), "--json"]) == 0
        reports.append(json.loads(capsys.readouterr().out) | {"name": ""})
    assert reports[0] == reports[1]


def test_the_report_names_what_it_read(tmp_path, capsys):
    rows = write(tmp_path / "rows.jsonl", jsonl([{"anchor": "a", "positive": "p"}]))
    assert main(["data", str(make_collection(tmp_path / "zoo")), "--rows", str(rows)]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert out.startswith("zoo\n  documents: 4, 2 titled\n    words       5%: 4")
    assert "  split train: 2 queries, 3 judgements; grade 0: 1, grade 1: 1, grade 2: 1\n" in out
    assert f"  rows {rows}: sentence-transformers\n    1 rows, 0 defective, 1 queries" in out
    assert out.endswith("no warnings\nno defects\n")


def test_findings_are_told_up_to_a_limit_and_all_in_json(tmp_path, capsys):
    folder = make_collection(tmp_path / "zoo", documents=[*DOCUMENTS, *["nonsense"] * 9, '{"_id": 7, "text": "x"}'])
    assert main(["data", str(folder), "--list", "3"]) == 2
    out, err = capsys.readouterr()
    assert "10 defects\n" in out
    assert len(re.findall(r"^  not JSON: .*corpus\.jsonl:\d+: column 1", out, re.MULTILINE)) == 3
    assert f"  not JSON: {folder / 'corpus.jsonl'}: and 6 more (--json has all)\n" in out
    assert "  wrong type: " in out
    assert err == f"error: {folder / 'corpus.jsonl'}:5: column 1 is not JSON: Expecting value (and 9 more defects)\n"
    assert main(["data", str(folder), "--json"]) == 2
    report = json.loads(capsys.readouterr().out)
    assert [finding["line"] for finding in report["defects"]] == list(range(5, 15))
    assert set(report["defects"][0]) == {"kind", "message", "path", "line"}


def test_leaks_and_lost_documents_are_told_but_are_no_defects(tmp_path, capsys):
    qrels = {"train": {"q1": {"d1": 1}}, "test": {"q1": {"d1": 1, "lost": 1}}}
    assert main(["data", str(make_collection(tmp_path / "zoo", qrels=qrels))]) == 0
    out = capsys.readouterr().out
    assert "  leak from train to test: 1 × query id" in out
    assert "1 judgements name documents that are not in the corpus; no run can have a mean recall above 0.5000" in out
    assert "unknown document: " in out
    assert out.endswith("no defects\n")


def test_queries_whose_relevant_document_is_trained_on_are_counted_and_are_no_leak(tmp_path, capsys):
    qrels = {"train": {"q1": {"d1": 1, "d2": 1}}, "test": {"q2": {"d1": 1}, "q3": {"d3": 1, "d2": 0}}}
    folder = str(make_collection(tmp_path / "zoo", qrels=qrels))
    assert main(["data", folder]) == 0
    out = capsys.readouterr().out
    assert "  test: 1 of 2 queries have a relevant document that train has too\n" in out
    assert "leak" not in out
    assert main(["data", folder, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["seen"] == [{"between": ["train", "test"], "queries": 1, "of": 2}]


def test_a_run_survives_compression(tmp_path, capsys):
    path = tmp_path / "run.gz"
    path.write_bytes(gzip.compress(b"q1 Q0 d1 1 0.5 t\n"))
    assert main(["convert", str(path), str(tmp_path / "run.json"), "--to", "json", "--quiet"]) == 0
    assert capsys.readouterr().out == ""
    assert json.loads((tmp_path / "run.json").read_text()) == {"q1": {"d1": 0.5}}


@pytest.mark.parametrize("verb", ["data", "convert"])
def test_help_has_examples(verb, capsys):
    assert main([verb, "--help"]) == 0
    out = capsys.readouterr().out
    assert f"examples:\n  rankwright {verb} " in out
    assert "defect" in out or "lost" in out or "cannot hold" in out
