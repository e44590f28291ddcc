import gzip
import logging
import unicodedata

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from retrieval.errors import InputError
from retrieval.trec import check_id, numbered_qrels, ranked, read_qrels, read_run, run_lines, write_run

QRELS = "301 0 a 1\n301 0 b 0\n302 0 a 2\n"
RUN = "301 Q0 a 1 2.5 tag\n301 Q0 b 2 1.5 tag\n302 Q0 c 1 0.5 tag\n"
JUDGED = {"301": {"a": 1, "b": 0}, "302": {"a": 2}}
RETRIEVED = {"301": {"a": 2.5, "b": 1.5}, "302": {"c": 0.5}}

# Everything that a TREC column can carry: no blanks of any alphabet, no NUL, no half surrogate pairs.
ids = st.text(st.characters(exclude_categories=("Cs", "Zs", "Zl", "Zp")), min_size=1, max_size=8).filter(
    lambda text: not any(c.isspace() or c == "\0" for c in text) and text[0] != "\ufeff"
)
scores = st.floats(allow_nan=False, allow_infinity=False, min_value=-1e38, max_value=1e38)
runs = st.dictionaries(ids, st.dictionaries(ids, scores, min_size=1, max_size=6), max_size=4)


def write(path, text):
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def slow_rank(scores):
    """The rule in one line, as trec_eval's documentation has it."""
    key = lambda doc: (np.float32(scores[doc]), doc.encode("utf-8"))  # noqa: E731
    return sorted(scores, key=key, reverse=True)


# --- the one ranking


@given(st.dictionaries(st.text(max_size=3), st.sampled_from([0.0, -0.0, 1.0, 30.0, 30.0000001, -1e-46, 2]), max_size=9))
@example({"\uffff": 1.0, "\U00010000": 1.0})  # UTF-16 would order these two the other way round
def test_ranked_is_float32_falling_then_utf8_bytes_falling(scores):
    scores = {doc: score for doc, score in scores.items() if not any("\ud800" <= c <= "\udfff" for c in doc)}
    assert [doc for doc, _ in ranked(scores)] == slow_rank(scores)
    assert dict(ranked(scores)) == scores


def test_scores_equal_as_float32_are_tied():
    assert ranked({"a": 30.0000001, "b": 30.0}) == [("b", 30.0), ("a", 30.0000001)]


def test_file_rank_keeps_the_order_given():
    scores = {"b": 1.0, "c": 2.0, "a": 1.0, "d": 1.0}
    assert [doc for doc, _ in ranked(scores, ties="file-rank")] == ["c", "b", "a", "d"]
    assert [doc for doc, _ in ranked(scores)] == ["c", "d", "b", "a"]


def test_many_ties_equal_the_slow_way():
    generator = np.random.default_rng(5)
    scores = {f"d{i}": float(score) for i, score in enumerate(generator.integers(0, 60, 1000))}
    assert [doc for doc, _ in ranked(scores)] == slow_rank(scores)


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ({"a": 1.0, "b": float("nan")}, "document 'b': score nan is not a finite float32 number"),
        ({"a": float("-inf")}, "document 'a': score -inf"),
        ({"a": 1e39}, "document 'a': score 1e\\+39"),
        ({"a": 1.0, "b": "high"}, "document 'b': score 'high' is not a number"),
        ({"a": None}, "document 'a': score None is not a number"),
        ({"a": 1.0, "b": [1.0, 2.0]}, r"document 'b': score \[1.0, 2.0\] is not a number"),
        ({"a": [1.0, 2.0], "b": [1.0, 2.0]}, r"document 'a': score \[1.0, 2.0\] is not a number"),
        ({5: 1.0}, r"document 5: ids must be str, got int; use str\(5\)"),
    ],
)
def test_scores_that_cannot_rank_are_refused(scores, message):
    with pytest.raises(InputError, match=message):
        ranked(scores)


def test_scores_of_any_number_type_rank():
    assert [d for d, _ in ranked({"a": np.float32(0.5), "b": 1, "c": np.int64(2), "d": True})] == ["c", "d", "b", "a"]
    assert ranked({}) == []


def test_an_unknown_tie_rule_is_refused():
    with pytest.raises(InputError, match="'trec' or 'file-rank', got 'alphabetic'"):
        ranked({"a": 1.0}, ties="alphabetic")


# --- qrels


def test_both_layouts_of_qrels_are_read(tmp_path):
    beir = "query-id\tcorpus-id\tscore\n301\ta\t1\n301\tb\t0\n302\ta\t2\n"
    assert read_qrels(write(tmp_path / "q.txt", QRELS)) == JUDGED
    assert read_qrels(write(tmp_path / "q.tsv", beir)) == JUDGED
    assert read_qrels(write(tmp_path / "t.txt", QRELS.replace(" ", "\t"))) == JUDGED
    assert read_qrels(str(write(tmp_path / "q.txt.gz", gzip.compress(QRELS.encode())))) == JUDGED
    assert next(numbered_qrels(tmp_path / "q.tsv")) == (2, "301", "a", 1)


def test_ids_in_tab_separated_qrels_may_hold_spaces(tmp_path):
    path = write(tmp_path / "q.tsv", "query-id\tcorpus-id\tscore\nq 1\tdoc \u00a0 2\t3\n")
    assert read_qrels(path) == {"q 1": {"doc \u00a0 2": 3}}


@pytest.mark.parametrize("read", [read_qrels, read_run])
@pytest.mark.parametrize(
    "spoil",
    [
        lambda text: b"\xef\xbb\xbf" + text.encode(),
        lambda text: text.replace("\n", "\r\n").encode(),
        lambda text: text.replace("\n", "\n\n \t\n").encode(),
        lambda text: text.rstrip("\n").encode(),
        lambda text: b"\n" + text.replace(" ", " \t ").encode(),
    ],
    ids=["byte order mark", "CRLF", "blank lines", "no final newline", "more blanks"],
)
def test_what_editors_do_to_files_changes_nothing(read, spoil, tmp_path):
    text, expected = (QRELS, JUDGED) if read is read_qrels else (RUN, RETRIEVED)
    assert read(write(tmp_path / "file", spoil(text))) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("301 0 a 1\n301 0 b\n", ":2: got 3 columns, wanted 4 .*header line query-id<TAB>corpus-id<TAB>score"),
        ("301 0 a b 1\n", ":1: got 5 columns, wanted 4"),
        (RUN, ":1: got 6 columns, wanted 4 .*is this a run"),
        ("query-id\tcorpus-id\tscore\n301 a 1\n", ":2: got 1 columns, wanted 3 between tabs"),
        ("query-id\tcorpus-id\tscore\n301\ta\t1\tx\n", ":2: got 4 columns, wanted 3 between tabs"),
        ("query-id\tcorpus-id\tscore\n\ta\t1\n", ":2: an id is empty"),
        ("301 0 a 1.0\n", ":1: grade '1.0' is not an integer"),
        ("301 0 a relevant\n", ":1: grade 'relevant' is not an integer"),
        ("301 0 a 1_0\n", ":1: grade '1_0' is not an integer"),
        ("301 0 a 99999999999\n", ":1: grade '99999999999' is not"),
        ("301 0 a 1\n301 0 b 1\n\n301 0 a 2\n", ":4: query '301', document 'a': grade 2, but 1 on line 1; keep one"),
        ("", "holds no judgement"),
        ("query-id\tcorpus-id\tscore\n", "holds no judgement"),
        (b"301 0 a 1\n301 0 b\xff 1\n", ":2: byte 8 of the line is not UTF-8"),
    ],
)
def test_bad_qrels_are_one_line_with_file_and_line(text, message, tmp_path):
    path = write(tmp_path / "bad.qrels", text)
    with pytest.raises(InputError, match=message) as caught:
        read_qrels(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_negative_grades_are_read(tmp_path):
    assert read_qrels(write(tmp_path / "q", "1 0 a -2\n1 0 b +1\n")) == {"1": {"a": -2, "b": 1}}


def test_repeated_judgements_count_once_and_are_counted(tmp_path, caplog):
    path = write(tmp_path / "q", QRELS + "301 0 a 1\n302 0 a 2\n")
    with caplog.at_level(logging.WARNING):
        assert read_qrels(path) == JUDGED
    assert "2 judgements are repeated with the same grade; each counts once" in caplog.text


def test_defects_can_be_collected(tmp_path):
    path = write(tmp_path / "q", "301 0 a 1\n301 0 b\n301 0 a 2\n301 0 c x\n302 0 a 2\n")
    found = []
    assert read_qrels(path, found.append) == {"301": {"a": 1}, "302": {"a": 2}}
    assert [(error.line, error.kind) for error in found] == [
        (2, "wrong columns"),
        (3, "contradictory judgement"),
        (4, "grade"),
    ]


def test_missing_files_are_told(tmp_path):
    for read in (read_qrels, read_run):
        with pytest.raises(InputError, match="no such file"):
            read(tmp_path / "absent")
        with pytest.raises(InputError, match="is a folder"):
            read(tmp_path)


# --- runs


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("301 Q0 a 1 0.5", "got 5 columns, wanted 6"),
        ("301 Q0 a b 1 0.5 tag", "got 7 columns, wanted 6 .*a blank in it"),
        ("301\ta\t1", "got 3 columns, wanted 6 .*MS MARCO's runs have no scores: write minus the rank"),
        ("301 0 a 1", "got 4 columns, wanted 6 .*are these qrels"),
        ("301 Q0 a 1 high tag", "score 'high' is not a number"),
        ("301 Q0 a 1 1_0 tag", "score '1_0' is not a number"),
        ("301 Q0 a 1 nan tag", "score 'nan' is not a finite float32 number"),
        ("301 Q0 a 1 -inf tag", "score '-inf' is not a finite float32 number"),
        ("301 Q0 a 1 1e39 tag", "score '1e39' is not a finite float32 number"),
        ("301 Q0 a 0.5 1 tag", "rank '0.5' is not an integer; are the columns rank and score swapped"),
        ("301 Q0 b 3 0.5 tag", "query '301' has document 'b' already on line 2; keep one"),
        (b"301 Q0 a\xff 1 0.5 tag", "byte 9 of the line is not UTF-8"),
        (b"30\xff1 Q0 a 1 0.5 tag", "byte 3 of the line is not UTF-8"),
    ],
)
def test_bad_runs_are_one_line_with_file_and_line(line, message, tmp_path):
    line = line if isinstance(line, bytes) else line.encode()
    path = write(tmp_path / "bad.run", RUN.encode() + b"\n" + line + b"\n")
    with pytest.raises(InputError, match=message) as caught:
        read_run(path)
    assert str(caught.value).startswith(f"{path}:5: ")
    assert "\n" not in str(caught.value)


def test_defects_of_a_run_can_be_collected(tmp_path):
    text = RUN + "301 Q0 a\n301 Q0 a 3 0.5 tag\n303 Q0 z 1 nan tag\n301 Q0 z 3 0.25 tag\n"
    found = []
    run = read_run(write(tmp_path / "run", text), found.append)
    assert run["301"] == {"a": 2.5, "b": 1.5, "z": 0.25}
    assert [(error.line, error.kind) for error in found] == [
        (4, "wrong columns"),
        (5, "duplicate document"),
        (6, "score"),
    ]


def test_an_empty_run_answers_nothing(tmp_path):
    assert read_run(write(tmp_path / "empty", "")) == {}


def test_a_query_may_stand_in_several_places(tmp_path):
    text = "1 Q0 a 1 3 t\n2 Q0 a 1 3 t\n1 Q0 b 2 2 t\n2 Q0 b 2 2 t\n"
    assert read_run(write(tmp_path / "run", text)) == {q: {"a": 3.0, "b": 2.0} for q in "12"}


def test_gzip_cut_off_is_an_error_not_a_short_run(tmp_path):
    whole = gzip.compress((RUN * 1).encode() + b"".join(b"9 Q0 d%d 1 1 t\n" % i for i in range(5000)))
    for cut in range(20, len(whole) - 1, len(whole) // 7):
        with pytest.raises(InputError, match="damaged or cut off"):
            read_run(write(tmp_path / "run.gz", whole[:cut]))


@pytest.mark.parametrize(
    ("lines", "n_wrong"),
    [
        (["1 Q0 a 1 2.0 t", "1 Q0 b 2 1.0 t"], 0),
        (["1 Q0 b 2 1.0 t", "1 Q0 a 1 2.0 t"], 0),  # the order of lines does not matter
        (["1 Q0 a 0 1.0 t", "1 Q0 b 0 2.0 t"], 0),  # a tool that writes 0 everywhere says nothing
        (["1 Q0 a 1 1.0 t", "1 Q0 b 2 1.0 t"], 0),
        (["1 Q0 a 1 30.0 t", "1 Q0 b 2 30.0000001 t"], 0),  # equal as float32
        (["1 Q0 a 1 1.0 t", "1 Q0 b 2 2.0 t"], 1),
        (["1 Q0 a 1 1.0 t", "1 Q0 b 2 2.0 t", "2 Q0 a 1 1 t", "3 Q0 a 1 1 t", "3 Q0 b 99999999999999999999 2 t"], 2),
    ],
)
def test_ranks_that_contradict_the_scores_are_counted_and_not_used(lines, n_wrong, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        run = read_run(write(tmp_path / "run", "\n".join(lines)))
    n_queries = len(run)
    warning = f"in {n_wrong} of {n_queries} queries the rank column contradicts the scores; the scores decide"
    assert (warning in caplog.text) == (n_wrong > 0)
    assert len(caplog.records) == (n_wrong > 0)
    assert run["1"][lines[0].split()[2]] == float(lines[0].split()[4])


# --- writing


@given(runs)
@example({unicodedata.normalize(form, "Åse"): {unicodedata.normalize(form, "é"): 1.0} for form in ("NFC", "NFD")})
@example({"שלום": {"مرحبا": 0.1, "👩‍👩‍👧": 0.1, "𝒟": -0.0, "\u202ertl": 3.5}})
@example({"q": {"\x01": 1.0, "\x7f": 2.0, "a\ufeff": 1.0, "#": 0.5}})
@example({"q": {"d": float(np.float32(0.1)), "e": 0.1, "f": 5e-324, "g": -0.0}})
def test_writing_and_reading_gives_the_same_run_to_the_bit(run):
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as folder:
        for name in ("run.txt", "run.txt.gz"):
            path = Path(folder, name)
            write_run(path, run)
            back = read_run(path)
            assert back == run
            assert [list(map(repr, docs.values())) for docs in back.values()] == [
                [repr(score) for _, score in ranked(docs)] for docs in run.values()
            ]
            assert {q: [d for d, _ in ranked(docs)] for q, docs in back.items()} == {
                q: slow_rank(docs) for q, docs in run.items()
            }


def test_a_run_is_written_in_ranked_order(tmp_path):
    write_run(tmp_path / "run", {"q2": {"a": 1.0, "c": 2.0, "b": 1.0}, "q1": {"x": np.float32(0.1)}, "q3": {}}, "t")
    assert (tmp_path / "run").read_text().splitlines() == [
        "q2 Q0 c 1 2.0 t",
        "q2 Q0 b 2 1.0 t",
        "q2 Q0 a 3 1.0 t",
        "q1 Q0 x 1 0.10000000149011612 t",
    ]
    assert list(run_lines("q", {"d": 1}, "t")) == ["q Q0 d 1 1.0 t"]


def test_ranks_that_we_write_agree_with_our_scores(tmp_path, caplog):
    generator = np.random.default_rng(1)
    run = {"q": {f"d{i}": float(s) for i, s in enumerate(generator.normal(size=500).round(1))}}
    write_run(tmp_path / "run", run)
    with caplog.at_level(logging.WARNING):
        assert read_run(tmp_path / "run") == run
    assert caplog.records == []


def test_the_same_run_gives_the_same_bytes_compressed_too(tmp_path):
    for name in ("a.gz", "b.gz"):
        write_run(tmp_path / name, RETRIEVED)
    assert (tmp_path / "a.gz").read_bytes() == (tmp_path / "b.gz").read_bytes()


@pytest.mark.parametrize(
    "bad", ["a b", "a\tb", "a\n", "a\0b", "\u00a0", "a\u2028b", "\x1c", "\ud800", "\ufeffa", "", 7]
)
@pytest.mark.parametrize("place", ["query", "document", "tag"])
def test_ids_that_the_format_cannot_carry_are_refused_and_nothing_is_lost(bad, place, tmp_path):
    run = {"q": {"fine": 2.0, bad if place == "document" else "d": 1.0}}
    if place == "query":
        run = {"first": {"d": 1.0}, bad: {"d": 1.0}}
    path = write(tmp_path / "run", "what was there before")
    with pytest.raises(InputError, match=r"holds U\+|begins with U\+FEFF|is empty|must be str"):
        write_run(path, run, bad if place == "tag" else "tag")
    assert path.read_text() == "what was there before"
    assert list(tmp_path.iterdir()) == [path]


def test_scores_that_are_no_numbers_are_refused_and_nothing_is_written(tmp_path):
    with pytest.raises(InputError, match="query 'q', document 'd': score nan"):
        write_run(tmp_path / "run", {"q": {"d": float("nan")}})
    assert list(tmp_path.iterdir()) == []


def test_check_id_says_which_character():
    with pytest.raises(InputError, match=r"document id 'a\\u3000b' holds U\+3000"):
        check_id("a\u3000b", "document id")
    check_id("MARCO_d0#42", "document id")
    check_id("čau", "document id")
