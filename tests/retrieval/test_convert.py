import gzip
import json

import pytest
from beir_folder import HEADER, jsonl, make_collection, write
from hypothesis import given, settings
from hypothesis import strategies as st

from indexes.storage import StorageError
from retrieval.cli.main import main
from retrieval.convert import FORMATS, convert, recognised, resolve
from retrieval.dialects import DIALECTS
from retrieval.errors import InputError
from retrieval.row_formats import WRITERS
from retrieval.rows import read_rows
from retrieval.trec import read_qrels, read_run, write_run

QRELS = {"q1": {"d1": 2, "d2": 0}, "q2": {"d 3": -1}}
TREC_QRELS = "q1 0 d1 2\nq1 0 d2 0\nq2 7 d3 1\n"
TREC_RUN = "q1 Q0 d2 1 0.5 bm25\nq1 Q0 d1 2 0.25 bm25\nq2 Q0 d1 1 3 bm25\n"


def read_jsonl(path):
    data = path.read_bytes()
    return [json.loads(line) for line in (gzip.decompress(data) if path.suffix == ".gz" else data).splitlines()]


# --------------------------------------------------------------------------------------------------------- qrels


def test_trec_qrels_become_beir_and_back(tmp_path):
    trec = write(tmp_path / "qrels.txt", TREC_QRELS)
    done = convert(trec, tmp_path / "test.tsv", "beir")
    assert (tmp_path / "test.tsv").read_text() == HEADER + "q1\td1\t2\nq1\td2\t0\nq2\td3\t1\n"
    assert (done.kind, done.source_format, done.target_format, done.records) == ("qrels", "trec", "beir", 3)
    assert done.lost == ["the iteration column"]
    back = convert(tmp_path / "test.tsv", tmp_path / "back.txt", "trec")
    assert (tmp_path / "back.txt").read_text() == TREC_QRELS.replace(" 7 ", " 0 ")
    assert back.lost == []


IDS = st.text(st.characters(exclude_categories=("Cs", "Cc", "Z")), min_size=1, max_size=6).filter(
    lambda text: text[0] != "\ufeff" and text.strip() == text
)
TABLES = st.dictionaries(IDS, st.dictionaries(IDS, st.integers(-2, 5), min_size=1, max_size=5), min_size=1, max_size=5)


@settings(max_examples=20)
@given(TABLES, st.sampled_from(["", ".gz"]))
def test_qrels_survive_every_round_trip(tmp_path_factory, qrels, ending):
    folder = tmp_path_factory.mktemp("qrels")
    first = write(folder / "a.json", json.dumps(qrels))
    convert(first, folder / f"b.txt{ending}", "trec-qrels", "json")
    convert(folder / f"b.txt{ending}", folder / f"c.tsv{ending}", "beir")
    convert(folder / f"c.tsv{ending}", folder / f"d.json{ending}", "json-qrels")
    convert(folder / f"d.json{ending}", folder / "e.json", "json-qrels", "json-qrels")
    assert read_qrels(folder / f"b.txt{ending}") == read_qrels(folder / f"c.tsv{ending}") == qrels
    assert json.loads((folder / "e.json").read_text()) == qrels


def test_what_a_format_cannot_carry_is_refused_and_nothing_is_written(tmp_path):
    beir = write(tmp_path / "q.tsv", HEADER + "q 1\td1\t1\n")
    with pytest.raises(InputError, match=r"query id 'q 1' holds U\+0020"):
        convert(beir, tmp_path / "out", "trec")
    table = write(tmp_path / "q.json", json.dumps({"q\t1": {"d1": 1}}))
    with pytest.raises(InputError, match="holds a tab or line end"):
        convert(table, tmp_path / "out", "beir", "json")
    assert not (tmp_path / "out").exists()


# ---------------------------------------------------------------------------------------------------------- runs


def test_a_trec_run_becomes_json_in_its_order(tmp_path):
    done = convert(write(tmp_path / "run.trec", TREC_RUN), tmp_path / "run.json", "json")
    text = (tmp_path / "run.json").read_text()
    assert json.loads(text) == {"q1": {"d2": 0.5, "d1": 0.25}, "q2": {"d1": 3.0}}
    assert text.index('"d2"') < text.index('"d1"')
    assert (done.records, done.lost) == (3, ["the tag"])


def test_a_json_run_becomes_trec(tmp_path):
    path = write(tmp_path / "run.json", json.dumps({"q1": {"a": 1.5, "b": 2, "c": 2}}, indent=2))
    convert(path, tmp_path / "run.trec", "trec")
    assert (tmp_path / "run.trec").read_text() == (
        "q1 Q0 c 1 2.0 rankwright\nq1 Q0 b 2 2.0 rankwright\nq1 Q0 a 3 1.5 rankwright\n"
    )


def test_a_run_becomes_msmarco_by_our_order_and_back_by_rank(tmp_path):
    run = write(tmp_path / "run.trec", "q1 Q0 a 1 1 t\nq1 Q0 b 2 1 t\nq1 Q0 c 3 7 t\n")
    done = convert(run, tmp_path / "run.tsv.gz", "msmarco")
    assert gzip.decompress((tmp_path / "run.tsv.gz").read_bytes()) == b"q1\tc\t1\nq1\tb\t2\nq1\ta\t3\n"
    assert done.lost == ["the tag", "the scores"]
    back = convert(tmp_path / "run.tsv.gz", tmp_path / "back.trec", "trec")
    assert read_run(tmp_path / "back.trec") == {"q1": {"c": -1.0, "b": -2.0, "a": -3.0}}
    assert (back.lost, back.notes) == ([], ["the file has no scores; minus the rank was written"])


SCORES = st.floats(width=32, allow_nan=False, allow_infinity=False)
RUNS = st.dictionaries(IDS, st.dictionaries(IDS, SCORES, min_size=1, max_size=5), min_size=1, max_size=4)


@settings(max_examples=20)
@given(RUNS)
def test_runs_survive_the_round_trip_through_json(tmp_path_factory, run):
    folder = tmp_path_factory.mktemp("run")
    write_run(folder / "a.trec", run)
    convert(folder / "a.trec", folder / "b.json", "json")
    convert(folder / "b.json", folder / "c.trec", "trec", "json-run")
    assert (folder / "c.trec").read_bytes() == (folder / "a.trec").read_bytes()
    assert read_run(folder / "c.trec") == run


def test_equal_input_gives_equal_compressed_bytes(tmp_path):
    run = write(tmp_path / "run.trec", TREC_RUN)
    for name in ("a.json.gz", "b.json.gz"):
        convert(run, tmp_path / name, "json")
    assert (tmp_path / "a.json.gz").read_bytes() == (tmp_path / "b.json.gz").read_bytes()


# ---------------------------------------------------------------------------------------------------------- rows

FULL = {
    "query_id": "q1",
    "query": "why",
    "positive_ids": ["d1", "d2"],
    "negative_ids": ["d3"],
    "positive_labels": [2.0, 1.0],
    "positive_scores": [0.9, 0.8],
    "negative_scores": [0.1],
    "negative_ranks": [4],
}


@pytest.fixture
def zoo(tmp_path):
    return make_collection(tmp_path / "zoo")


def test_ids_become_triplets_with_the_texts_of_the_collection(tmp_path, zoo):
    rows = write(tmp_path / "rows.jsonl", jsonl([FULL]))
    done = convert(rows, tmp_path / "out.jsonl", "sentence-transformers", data=zoo)
    bird = "Birds Most birds can fly."
    assert read_jsonl(tmp_path / "out.jsonl") == [
        {"anchor": "why", "positive": "Cats Cats sleep most of the day.", "negative": bird, "scores": [0.9, 0.1]},
        {"anchor": "why", "positive": "Dogs bark at strangers.", "negative": bird, "scores": [0.8, 0.1]},
    ]
    assert done.records == 2
    assert done.lost == ["query_id of 1 rows", "ids of 1 rows", "labels of 1 rows", "negative_ranks of 1 rows"]


def test_rows_without_negatives_become_pairs_but_are_lost_among_triplets(tmp_path):
    plain = {"query": "a", "positives": ["p", "o"]}
    rows = write(tmp_path / "rows.jsonl", jsonl([plain]))
    convert(rows, tmp_path / "pairs.jsonl", "sentence-transformers")
    assert read_jsonl(tmp_path / "pairs.jsonl") == [{"anchor": "a", "positive": t} for t in "po"]
    mixed = write(tmp_path / "mixed.jsonl", jsonl([plain, {"query": "b", "positives": ["p"], "negatives": ["n"]}]))
    done = convert(mixed, tmp_path / "triplets.jsonl", "sentence-transformers")
    assert read_jsonl(tmp_path / "triplets.jsonl") == [{"anchor": "b", "positive": "p", "negative": "n"}]
    assert done.lost == ["1 of 2 rows, which have no negative for a triplet"]


def test_triplets_are_what_sentence_transformers_reads_as_columns(tmp_path):
    rows = [{"query": f"q{n}", "positives": ["p"], "negatives": ["n"] * (n + 1)} for n in range(3)]
    convert(write(tmp_path / "rows.jsonl", jsonl(rows)), tmp_path / "out.jsonl", "sentence-transformers")
    lines = read_jsonl(tmp_path / "out.jsonl")
    assert len(lines) == 1 + 2 + 3
    assert {tuple(line) for line in lines} == {("anchor", "positive", "negative")}


def test_rows_become_flagembedding(tmp_path, zoo):
    rows = write(tmp_path / "rows.jsonl", jsonl([FULL, {"query": "b", "positives": ["p"], "positive_scores": [1]}]))
    done = convert(rows, tmp_path / "out.jsonl", "flagembedding", data=zoo)
    first, second = read_jsonl(tmp_path / "out.jsonl")
    assert first["neg"] == ["Birds Most birds can fly."]
    assert (first["pos_scores"], first["neg_scores"]) == ([0.9, 0.8], [0.1])
    assert second == {"query": "b", "pos": ["p"], "neg": [], "pos_scores": [1.0], "neg_scores": []}
    assert done.notes == ["1 rows have no negative; FlagEmbedding wants some, so mine them"]


def test_scores_of_one_side_alone_are_lost(tmp_path):
    row = {"query": "b", "positives": ["p"], "negatives": ["n"], "positive_scores": [1]}
    done = convert(write(tmp_path / "rows.jsonl", jsonl([row])), tmp_path / "out.jsonl", "flagembedding")
    assert read_jsonl(tmp_path / "out.jsonl") == [{"query": "b", "pos": ["p"], "neg": ["n"]}]
    assert done.lost == ["scores of 1 rows, which have them on one side alone"]


def test_rows_become_tevatron_with_titles_of_the_corpus(tmp_path, zoo):
    rows = write(tmp_path / "rows.jsonl", jsonl([FULL, {"query": "b", "positives": ["p"]}]))
    done = convert(rows, tmp_path / "out.jsonl.gz", "tevatron", data=zoo)
    first, second = read_jsonl(tmp_path / "out.jsonl.gz")
    assert first["query_id"] == "q1"
    assert first["positive_passages"][0] == {"docid": "d1", "title": "Cats", "text": "Cats sleep most of the day."}
    assert first["negative_passages"] == [{"docid": "d3", "title": "Birds", "text": "Most birds can fly."}]
    assert second["positive_passages"][0]["docid"].startswith("text:")
    assert done.lost == ["labels of 1 rows", "scores of 1 rows", "negative_ranks of 1 rows"]


TEXT = st.text("abcdefgh ", max_size=6).map(str.strip).filter(bool)
ROWS = st.lists(
    st.tuples(TEXT, st.lists(TEXT, min_size=1, max_size=3, unique=True), st.lists(TEXT, max_size=3, unique=True)),
    min_size=1,
    max_size=5,
)


@pytest.mark.parametrize("target", ["tevatron", "flagembedding", "rankwright"])
@settings(max_examples=20)
@given(ROWS)
def test_texts_survive_the_way_to_another_tool_and_back(tmp_path_factory, target, rows):
    folder = tmp_path_factory.mktemp("rows")
    records = [{"query": q, "positives": p, "negatives": [t for t in n if t not in p]} for q, p, n in rows]
    convert(write(folder / "a.jsonl", jsonl(records)), folder / "b.jsonl", target)
    assert recognised(folder / "b.jsonl") == [("rows", target)]
    convert(folder / "b.jsonl", folder / "c.jsonl", "rankwright")
    expected = [(r["query"], tuple(r["positives"]), tuple(r["negatives"])) for r in records]
    assert [(row.query, row.positives, row.negatives) for row in read_rows(folder / "c.jsonl")[0]] == expected


def test_keys_that_our_rows_have_no_place_for_are_named(tmp_path):
    rows = [
        {"query": "a", "pos": ["p"], "neg": [], "prompt": "x", "type": "t"},
        {"query": "b", "pos": ["p"], "type": "t"},
    ]
    done = convert(write(tmp_path / "rows.jsonl", jsonl(rows)), tmp_path / "out.jsonl", "rankwright")
    assert done.lost == ["prompt of 1 rows", "type of 2 rows"]


def test_ids_without_a_collection_cannot_become_texts(tmp_path):
    rows = write(tmp_path / "rows.jsonl", jsonl([FULL]))
    for target in ("sentence-transformers", "flagembedding", "tevatron"):
        with pytest.raises(
            InputError, match=r"text of document 'd1' is not in the row; give the collection \(--data\)"
        ):
            convert(rows, tmp_path / "out.jsonl", target)
        assert not (tmp_path / "out.jsonl").exists()
    convert(rows, tmp_path / "out.jsonl", "rankwright")
    assert read_jsonl(tmp_path / "out.jsonl") == [FULL]


def test_every_dialect_can_be_written():
    assert set(WRITERS) == set(DIALECTS) == set(FORMATS["rows"])


# -------------------------------------------------------------------------------------------- what is converted


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("a", TREC_QRELS, [("qrels", "trec")]),
        ("a", "\ufeff" + HEADER, [("qrels", "beir")]),
        ("a", TREC_RUN, [("run", "trec")]),
        ("a.gz", "q1\td1\t1\n", [("run", "msmarco")]),
        ("a", '{"q1": {"d1": 0.5}}', [("run", "json")]),
        ("a", '{\n"q1": {\n"d1": 1}}', [("run", "json"), ("qrels", "json")]),
        ("a", '\n["a", "b"]\n', [("rows", "sentence-transformers")]),
        ("a", '{"query": "a", "pos": ["b"]}', [("rows", "flagembedding")]),
    ],
)
def test_a_file_shows_what_it_is(tmp_path, name, text, expected):
    assert recognised(write(tmp_path / name, text)) == expected


def test_names_with_and_without_the_kind(tmp_path):
    run = write(tmp_path / "run", TREC_RUN)
    table = write(tmp_path / "table.json", '{"q1": {"d1": 1}}')
    assert resolve(run, None, "json") == resolve(run, "trec", "json") == ("run", "trec", "json")
    assert resolve(table, "json-run", "trec") == resolve(table, "json", "trec-run") == ("run", "json", "trec")
    assert resolve(table, None, "msmarco") == ("run", "json", "msmarco")
    assert resolve(table, "json-qrels", "trec") == ("qrels", "json", "trec")
    assert resolve(table, None, "beir") == ("qrels", "json", "beir")
    assert resolve("irds:vaswani", None, "beir") == ("collection", "irds", "beir")


def test_an_existing_target_is_kept_unless_overwriting_is_asked_for(tmp_path):
    run, target = write(tmp_path / "run", TREC_RUN), write(tmp_path / "old", "old")
    with pytest.raises(StorageError, match="exists already"):
        convert(run, target, "json")
    assert target.read_text() == "old"
    convert(run, target, "json", overwrite=True)
    assert json.loads(target.read_text())


def test_a_failed_conversion_leaves_the_old_file(tmp_path):
    rows = write(tmp_path / "rows.jsonl", jsonl([{"query": "a", "positives": ["p"]}, FULL]))
    target = write(tmp_path / "out.jsonl", "old")
    with pytest.raises(InputError, match="give the collection"):
        convert(rows, target, "tevatron", overwrite=True)
    assert target.read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.jsonl", "rows.jsonl"]


def test_the_command_says_what_it_did_and_what_is_lost(tmp_path, capsys):
    run, target = write(tmp_path / "run", TREC_RUN), tmp_path / "run.tsv"
    assert main(["convert", str(run), str(target), "--to", "msmarco"]) == 0
    out, err = capsys.readouterr()
    assert out == f"{target}: 3 results, trec → msmarco\n"
    assert err == "lost: the tag\nlost: the scores\n"


def test_the_command_prints_one_json_document_when_asked(tmp_path, capsys):
    rows = write(tmp_path / "rows.jsonl", jsonl([{"query": "a", "positives": ["p"]}, "nonsense"]))
    arguments = ["convert", str(rows), str(tmp_path / "out"), "--to", "tevatron", "--on-error", "skip", "--json"]
    assert main(arguments) == 0
    out, err = capsys.readouterr()
    assert json.loads(out) == {
        "kind": "rows",
        "source_format": "rankwright",
        "target_format": "tevatron",
        "records": 1,
        "lost": [],
        "notes": [],
    }
    assert "skipped" in err


def test_trec_evals_own_qrels_mean_the_same_in_beirs_columns(tmp_path, shared):
    source = shared / "conformance" / "trec_eval" / "qrels.test"
    convert(source, tmp_path / "test.tsv", "beir")
    assert read_qrels(tmp_path / "test.tsv") == read_qrels(source)
