import gzip
import json
import logging

import pytest

from retrieval.cli.main import main

QRELS = "301 0 a 1\n301 0 b 0\n302 0 a 2\n303 0 x 0\n"
RUN = "301 Q0 a 1 2.5 t\n301 Q0 b 2 2.5 t\n302 Q0 c 1 3.5 t\n302 Q0 a 2 2.5 t\n"


@pytest.fixture(autouse=True)
def _loggers_as_before():
    """The command line points our loggers at stderr; other tests want them as they were."""
    names = ("retrieval", "rankers", "indexes")
    before = [(logging.getLogger(n), logging.getLogger(n).handlers, logging.getLogger(n).propagate) for n in names]
    yield
    for logger, handlers, propagate in before:
        logger.handlers, logger.propagate = handlers, propagate
        logger.setLevel(logging.NOTSET)
    logging.captureWarnings(False)


@pytest.fixture
def files(tmp_path):
    (tmp_path / "qrels").write_text(QRELS)
    (tmp_path / "run").write_text(RUN)
    return [str(tmp_path / "qrels"), str(tmp_path / "run")]


@pytest.fixture
def beir(tmp_path):
    folder = tmp_path / "small"
    (folder / "qrels").mkdir(parents=True)
    documents = [{"_id": doc, "title": "", "text": f"text of {doc}"} for doc in "abc"]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(d) + "\n" for d in documents))
    (folder / "queries.jsonl").write_text('{"_id": "301", "text": "one"}\n{"_id": "302", "text": "two"}\n')
    header = "query-id\tcorpus-id\tscore\n"
    (folder / "qrels" / "test.tsv").write_text(header + "301\ta\t1\n301\tgone\t1\n302\ta\t2\n")
    return folder


def run_verb(capsys, *arguments):
    status = main(["evaluate", *map(str, arguments)])
    out, err = capsys.readouterr()
    return status, out, err


def test_json_is_exactly_as_documented(files, capsys):
    status, out, err = run_verb(capsys, *files, "--json", "ndcg_cut_10", "RR@10")
    assert (status, out.count("\n")) == (0, 1)
    found = json.loads(out)
    assert list(found) == ["measures", "n", "missing"]
    assert list(found["measures"]) == ["ndcg_cut_10", "RR@10"]
    assert [list(values) for values in found["measures"].values()] == [["value", "low", "high"]] * 2
    assert (found["n"], found["missing"]) == (3, 1)
    assert found["measures"]["RR@10"]["value"] == (1 / 2 + 1 / 2) / 3  # unrounded
    assert "1 of the 3 queries in the qrels are missing from the run and count 0" in err


def test_json_has_every_query_when_asked(files, capsys):
    _, out, _ = run_verb(capsys, *files, "RR", "P@1", "--json", "--per-query")
    found = json.loads(out)
    assert list(found) == ["measures", "n", "missing", "per_query"]
    assert found["per_query"] == {
        "301": {"RR": 0.5, "P@1": 0.0},
        "302": {"RR": 0.5, "P@1": 0.0},
        "303": {"RR": 0.0, "P@1": 0.0},
    }


def test_the_table_is_aligned_and_complete(files, capsys):
    status, out, _ = run_verb(capsys, *files)
    lines = out.splitlines()
    assert status == 0
    assert lines[0].split("  ")[0] == "measure"
    assert [line.split()[0] for line in lines[1:5]] == ["nDCG@10", "RR@10", "AP", "R@100"]
    assert len({len(line) for line in lines[:5]}) == 1
    assert len({line.index("[") for line in lines[1:5]}) == 1
    assert "3 queries; missing from the run: 1; without a relevant document: 1" in lines
    assert "nDCG@10 has linear gain (the grade)" in lines
    ties = [line for line in lines if line.startswith("equal scores decide")]
    assert len(ties) == 1
    assert "RR@10 in 0.0 % of the queries (0.3333 to 0.5000 in any order)" in ties[0]


def test_without_ties_and_ndcg_nothing_is_said_about_them(files, tmp_path, capsys):
    (tmp_path / "run").write_text(RUN.replace("b 2 2.5", "b 2 1.5"))
    _, out, _ = run_verb(capsys, *files, "RR")
    assert len(out.splitlines()) == 4
    assert "equal scores" not in out


def test_every_query_as_a_table(files, capsys):
    _, out, _ = run_verb(capsys, *files, "RR@10", "--per-query")
    lines = out.splitlines()
    assert lines[:5] == ["query   RR@10", "301    0.5000", "302    0.5000", "303    0.0000", ""]
    assert lines[5].startswith("measure")


@pytest.mark.parametrize(
    ("flags", "value", "n"),
    [
        ([], 1 / 3, 3),
        (["--only-returned"], 1 / 2, 2),
        (["--only-answerable"], 1 / 2, 2),
        (["--ties", "file-rank"], (1 + 1 / 2) / 3, 3),
        (["--ties=file-rank", "--only-returned", "--only-answerable"], (1 + 1 / 2) / 2, 2),
    ],
)
def test_flags_change_what_they_say(flags, value, n, files, capsys):
    # Flags may stand anywhere: before, between and behind the names.
    for arguments in ([*flags, *files, "RR"], [files[0], *flags, files[1], "RR"], [*files, *flags, "RR"]):
        _, out, _ = run_verb(capsys, *arguments, "--json")
        found = json.loads(out)
        assert found["measures"]["RR"]["value"] == pytest.approx(value)
        assert found["n"] == n


def test_compressed_files_and_settings_files(files, tmp_path, capsys):
    for name, text in (("qrels.gz", QRELS), ("run.gz", RUN)):
        (tmp_path / name).write_bytes(gzip.compress(text.encode()))
    (tmp_path / "settings.yaml").write_text("only_returned: true\n")
    compressed = [tmp_path / "qrels.gz", tmp_path / "run.gz", "AP", "--json"]
    _, plain, _ = run_verb(capsys, *files, "AP", "--json", "--only-returned")
    _, found, _ = run_verb(capsys, *compressed, "--config", tmp_path / "settings.yaml")
    assert json.loads(found) == json.loads(plain)


def test_a_split_of_a_collection(beir, tmp_path, capsys):
    (tmp_path / "run").write_text("301 Q0 a 1 2 t\n302 Q0 a 1 2 t\n302 Q0 z 2 1 t\n")
    status, out, err = run_verb(capsys, f"{beir}:test", tmp_path / "run", "R@10", "--json")
    assert status == 0
    assert json.loads(out)["measures"]["R@10"]["value"] == 0.75
    assert "1 of 3 judged documents are not in the corpus; no run can do better than R@10 0.7500" in err
    assert "1 of the 2 documents that the run's lists begin with are not in the corpus, such as 'z'" in err


def bad_cases():
    yield "no run", ["QRELS"], "the following arguments are required: RUN"
    yield "no such qrels", ["absent", "RUN"], "absent: no such file: QRELS is a file or D:SPLIT, such as absent:test"
    yield "no such run", ["QRELS", "absent"], "absent: no such file"
    yield "a folder without a split", ["BEIR", "RUN"], "is a collection; name its split, too"
    yield "pydocs without a split", ["pydocs", "RUN"], "such as pydocs:test"
    yield "irds without a split", ["irds:vaswani", "RUN"], "is a collection; name its split, too"
    yield "empty split", ["BEIR:", "RUN"], "no such file: QRELS is a file or D:SPLIT"
    yield "unknown split", ["BEIR:tset", "RUN"], "did you mean 'test'?"
    yield "unknown collection", ["elsewhere:test", "RUN"], "elsewhere: no such folder"
    yield "swapped files", ["RUN", "QRELS"], "got 6 columns, wanted 4 (query 0 document grade); is this a run?"
    yield "qrels twice", ["QRELS", "QRELS"], "got 4 columns, wanted 6"
    yield "unknown measure", ["QRELS", "RUN", "nDCGG@10"], "unknown measure 'nDCGG@10'; did you mean 'nDCG'?"
    yield "measure before files are read", ["absent", "absent", "P"], "measure 'P' needs a cut-off, such as P@10"
    yield "unknown flag", ["QRELS", "RUN", "--per-qery"], "unknown flag '--per-qery'; did you mean '--per-query'?"
    yield "unknown ties", ["QRELS", "RUN", "--ties", "random"], "invalid choice: 'random'"
    yield "nothing left", ["NEGATIVE", "RUN", "--only-answerable"], "no query is left to average over"


@pytest.mark.parametrize(("arguments", "message"), [c[1:] for c in bad_cases()], ids=[c[0] for c in bad_cases()])
def test_bad_input_is_one_line_and_status_2(arguments, message, files, beir, tmp_path, capsys):
    (tmp_path / "negative").write_text("301 0 a 0\n")
    places = {"QRELS": files[0], "RUN": files[1], "BEIR": str(beir), "NEGATIVE": str(tmp_path / "negative")}
    status, out, err = run_verb(capsys, *[places.get(a, a.replace("BEIR", str(beir))) for a in arguments])
    assert (status, out) == (2, "")
    errors = [line for line in err.splitlines() if not line.startswith("warning: ")]
    assert len(errors) == 1
    assert errors[0].startswith("error: ")
    assert message in errors[0]


@pytest.mark.parametrize(
    ("place", "text", "message"),
    [
        ("run", RUN.replace("3.5", "nan"), ":3: score 'nan' is not a finite float32 number"),
        ("run", RUN.replace("3.5", "good"), ":3: score 'good' is not a number"),
        ("run", RUN.replace("c 1", "a 1"), ":4: query '302' has document 'a' already on line 3"),
        ("run", RUN.replace("302 Q0 c 1 3.5 t", "302 Q0 c 1 3.5"), ":3: got 5 columns, wanted 6"),
        ("run", RUN.replace("302 Q0 c 1 3.5 t", "302 Q0 c d 1 3.5 t"), ":3: got 7 columns, wanted 6"),
        ("run", "301\ta\t1\n", ":1: got 3 columns, wanted 6 (query Q0 document rank score tag); MS MARCO's runs"),
        ("qrels", QRELS.replace("a 2", "a 2.0"), ":3: grade '2.0' is not an integer"),
        ("qrels", QRELS + "301 0 a 2\n", ":5: query '301', document 'a': grade 2, but 1 on line 1"),
        ("qrels", "", "holds no judgement"),
    ],
)
def test_defects_of_files_are_told_with_file_and_line(place, text, message, files, tmp_path, capsys):
    (tmp_path / place).write_text(text)
    status, out, err = run_verb(capsys, *files)
    assert (status, out) == (2, "")
    assert err.startswith(f"error: {tmp_path / place}:")
    assert message in err
    assert err.count("\n") == 1


def test_help_has_examples(capsys):
    assert main(["evaluate", "--help"]) == 0
    out = capsys.readouterr().out
    assert "rankwright evaluate qrels/test.tsv bm25.run" in out
    assert "nDCG@10 RR@10 AP R@100" in out
