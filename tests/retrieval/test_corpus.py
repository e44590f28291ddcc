import gzip
import hashlib
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from beir_folder import DOCUMENTS, jsonl, write
from hypothesis import given
from hypothesis import strategies as st

from retrieval import corpus as corpus_module
from retrieval.cache import cache_folder, unpacked
from retrieval.corpus import Corpus, Document
from retrieval.errors import InputError
from retrieval.ids import IdTable


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RANKWRIGHT_CACHE", str(tmp_path / "cache"))


def load(folder: Path, records, name="corpus.jsonl", **options) -> Corpus:
    return Corpus.load(write(folder / name, records if isinstance(records, str | bytes) else jsonl(records)), **options)


def test_documents_are_read_by_row_and_found_by_id(tmp_path):
    corpus = load(tmp_path, DOCUMENTS)
    assert len(corpus) == 4
    assert list(corpus.ids) == ["d1", "d2", "d3", "d4"]
    assert corpus.document(0) == Document("d1", "Cats", "Cats sleep most of the day.")
    assert corpus.document(3) == Document("d4", "", "Fish breathe in water.")
    assert corpus.row("d3") == 2
    assert ("d3" in corpus, "d5" in corpus) == (True, False)
    assert [document.doc_id for document in corpus] == list(corpus.ids)


def test_the_text_is_title_blank_text_without_blanks_around(tmp_path):
    records = [
        {"_id": "1", "title": "T", "text": "x"},
        {"_id": "2", "title": "", "text": " x "},
        {"_id": "3", "title": None, "text": "x"},
        {"_id": "4", "title": "T", "text": ""},
    ]
    assert load(tmp_path, records).texts(range(4)) == ["T x", "x", "x", "T"]


def test_an_unknown_id_is_told_with_the_file(tmp_path):
    with pytest.raises(InputError, match=r"corpus\.jsonl: no document has the id 'x'"):
        load(tmp_path, DOCUMENTS).row("x")


@pytest.mark.parametrize("row", [4, -5])
def test_a_row_outside_is_an_index_error(tmp_path, row):
    with pytest.raises(IndexError):
        load(tmp_path, DOCUMENTS).document(row)


TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=30)
RECORDS = st.lists(
    st.fixed_dictionaries({"_id": TEXT.filter(bool), "text": TEXT}, optional={"title": TEXT}),
    unique_by=lambda record: record["_id"],
    max_size=12,
)


@given(RECORDS, st.booleans(), st.booleans(), st.sampled_from(["\n", "\r\n", "\n\n", "\n \t\n"]), st.booleans())
def test_every_way_to_write_it_gives_the_same_documents(tmp_path_factory, records, ascii_only, mark, newline, last):
    folder = tmp_path_factory.mktemp("corpus")
    lines = [json.dumps(record, ensure_ascii=ascii_only) for record in records]
    text = ("\ufeff" if mark else "") + newline.join(lines) + (newline if last else "")
    corpus = load(folder, text)
    expected = [Document(r["_id"], r.get("title", ""), r["text"]) for r in records]
    assert list(corpus) == expected
    assert [corpus.row(r["_id"]) for r in records] == list(range(len(records)))
    assert load(folder / "twin", text, name="corpus.jsonl.gz").texts(range(len(corpus))) == [
        document.full_text for document in expected
    ]


def test_an_empty_file_is_a_corpus_of_nothing(tmp_path):
    corpus = load(tmp_path, "")
    assert (len(corpus), list(corpus), corpus.texts([])) == (0, [], [])
    with pytest.raises(InputError):
        corpus.row("d1")


def test_empty_documents_are_kept_and_counted(tmp_path, caplog):
    corpus = load(tmp_path, [{"_id": "a", "text": ""}, {"_id": "b", "text": " \t"}, {"_id": "c", "text": "x"}])
    assert list(corpus.ids) == ["a", "b", "c"]
    assert corpus.texts([0, 1]) == ["", ""]
    assert "2 of 3 documents are empty; they are kept" in caplog.text


DEFECTS = {
    "not JSON": ('{"_id": "x", "text": ', "column 21 is not JSON"),
    "not an object": ("[1, 2]", "got a JSON list"),
    "no id": ('{"text": "x"}', 'there is no "_id"'),
    "other name for the id": ('{"docid": "x", "text": "x"}', 'is that "docid"?'),
    "no text": ('{"_id": "x"}', 'there is no "text"'),
    "other name for the text": ('{"_id": "x", "contents": "x"}', 'is that "contents"?'),
    "id is a number": ('{"_id": 7, "text": "x"}', '"_id" is the number 7; wanted a string'),
    "id is empty": ('{"_id": "", "text": "x"}', '"_id" is empty'),
    "text is null": ('{"_id": "x", "text": null}', '"text" is null; wanted a string'),
    "text is a list": ('{"_id": "x", "text": ["a", "b"]}', '"text" is a list of 2'),
    "title is a number": ('{"_id": "x", "title": 1.5, "text": "x"}', '"title" is the number 1.5'),
    "title is an object": ('{"_id": "x", "title": {}, "text": "x"}', '"title" is an object'),
    "lone surrogate": (r'{"_id": "x", "text": "\ud800"}', "half a surrogate pair"),
    "duplicate, same text": ('{"_id": "d2", "text": "Dogs bark at strangers."}', "line 2 already, with the same"),
    "duplicate, other text": ('{"_id": "d2", "text": "x"}', "line 2 already, with another text"),
}


@pytest.mark.parametrize(("line", "message"), DEFECTS.values(), ids=DEFECTS)
@pytest.mark.parametrize("name", ["corpus.jsonl", "corpus.jsonl.gz"])
def test_a_defect_is_told_with_file_and_line(tmp_path, line, message, name):
    records = [*DOCUMENTS[:3], "", line, DOCUMENTS[3]]
    with pytest.raises(InputError) as caught:
        load(tmp_path, records, name=name)
    assert str(caught.value).startswith(f"{tmp_path / name}:5: ")
    assert message in str(caught.value)


@pytest.mark.parametrize(("line", "message"), DEFECTS.values(), ids=DEFECTS)
def test_a_collected_defect_leaves_the_other_documents(tmp_path, line, message):
    defects, seen = [], []
    records = [*DOCUMENTS[:3], line, DOCUMENTS[3]]
    corpus = load(tmp_path, records, report=defects.append, visit=lambda n, d: seen.append((n, d.doc_id)))
    assert [defect.line for defect in defects] == [4]
    assert message in defects[0].reason
    assert [corpus.document(corpus.row(f"d{n}")).doc_id for n in (1, 2, 3, 4)] == ["d1", "d2", "d3", "d4"]
    assert set(seen) >= {(1, "d1"), (2, "d2"), (3, "d3"), (5, "d4")}


def test_all_defects_are_collected(tmp_path):
    defects = []
    records = [line for line, _ in DEFECTS.values()]
    load(tmp_path, [*DOCUMENTS, *records], report=defects.append)
    assert sorted(defect.line for defect in defects) == list(range(5, 5 + len(DEFECTS)))


def test_invalid_utf8_is_told_with_the_byte(tmp_path):
    path = write(tmp_path / "corpus.jsonl", b'{"_id": "a", "text": "b"}\n{"_id": "\xff", "text": "b"}\n')
    with pytest.raises(InputError, match=r":2: byte 10 of the line is not UTF-8 \(0xff\)"):
        Corpus.load(path)


def test_a_compressed_corpus_is_unpacked_once_by_content(tmp_path, caplog):
    caplog.set_level("INFO")
    first = load(tmp_path, DOCUMENTS, name="corpus.jsonl.gz")
    assert "unpacking it once" in caplog.text
    assert first.path.is_relative_to(cache_folder())
    assert first.sha256 == hashlib.sha256(jsonl(DOCUMENTS).encode()).hexdigest()
    caplog.clear()
    assert load(tmp_path, DOCUMENTS, name="corpus.jsonl.gz").path == first.path
    assert "unpacking" not in caplog.text
    other = load(tmp_path, DOCUMENTS[:2], name="corpus.jsonl.gz")  # the same name, another content
    assert other.path != first.path
    assert (len(first), len(other), first.text(3)) == (4, 2, "Fish breathe in water.")


def test_damaged_gzip_data_leaves_nothing_in_the_cache(tmp_path):
    path = tmp_path / "corpus.jsonl.gz"
    path.write_bytes(gzip.compress(jsonl(DOCUMENTS).encode())[:-4])
    with pytest.raises(InputError, match="gzip data is damaged"):
        Corpus.load(path)
    assert not [p for p in cache_folder().rglob("*") if p.is_file()]


def test_the_cache_follows_the_environment(tmp_path, monkeypatch):
    monkeypatch.delenv("RANKWRIGHT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "rankwright"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "rankwright"
    plain = write(tmp_path / "plain.jsonl", "x")
    assert unpacked(plain) == plain


@pytest.mark.parametrize(
    "change",
    [
        lambda text: "",
        lambda text: text[: len(text) // 2],
        lambda text: "\n".join(reversed(text.splitlines())),
        lambda text: text.replace("d4", "d9"),
    ],
    ids=["emptied", "cut off", "reordered", "another id"],
)
def test_a_file_that_changes_under_the_reader_is_told(tmp_path, change):
    corpus = load(tmp_path, DOCUMENTS)
    corpus.path.write_text(change(corpus.path.read_text()))
    with pytest.raises(InputError, match="the file changed"):
        corpus.texts(range(4))


def test_a_replaced_file_stays_readable_once_opened(tmp_path):
    corpus = load(tmp_path, DOCUMENTS)
    corpus.text(0)
    corpus.path.unlink()
    assert corpus.text(3) == "Fish breathe in water."


def test_threads_and_forks_read_at_once(tmp_path):
    corpus = load(tmp_path, [{"_id": str(n), "text": f"text {n}"} for n in range(300)])
    wrong = []

    def read(seed):
        for row in np.random.default_rng(seed).permutation(300).tolist():
            if corpus.text(row) != f"text {row}":
                wrong.append(row)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    [thread.start() for thread in threads]
    pid = os.fork()
    if pid == 0:
        read(9)
        os._exit(1 if wrong else 0)
    [thread.join() for thread in threads]
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert wrong == []


def test_long_documents_are_cut_for_models_and_counted(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(corpus_module, "MAX_CHARACTERS", 50)
    corpus = load(tmp_path, [{"_id": "a", "text": "x" * 200}, {"_id": "b", "text": "y" * 20}])
    assert (len(corpus.text(0)), len(corpus.text(1))) == (50, 20)
    assert len(corpus.document(0).text) == 200
    assert "of 1 documents only the first 50 characters are used" in caplog.text


def test_offsets_and_ids_must_match(tmp_path):
    with pytest.raises(ValueError, match="got 2 offsets and 1 ids"):
        Corpus(tmp_path, np.zeros(2, dtype=np.int64), IdTable.build(["a"]))


SCAN = """
import re, resource, sys
from pathlib import Path
from retrieval.corpus import Corpus
corpus = Corpus.load(sys.argv[1])
rows = range(0, len(corpus), max(1, len(corpus) // 1000))
assert all(corpus.row(corpus.ids[row]) == row and corpus.text(row) for row in rows)
# On Linux getrusage remembers what the forking parent had; the kernel's own mark is of this program alone.
status = Path("/proc/self/status")
mark = re.search(r"VmHWM:\\s+(\\d+)", status.read_text()) if status.exists() else None
print(len(corpus), mark[1] if mark else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def scanned(path: Path) -> tuple[int, float]:
    """Load a corpus in a process of its own; return the number of documents and the peak in MiB."""
    done = subprocess.run([sys.executable, "-c", SCAN, str(path)], capture_output=True, text=True, check=True)
    n, peak = map(int, done.stdout.split())
    return n, peak / (1024 if sys.platform == "linux" else 1024**2)


@pytest.mark.slow
@pytest.mark.promise
def test_a_million_documents_need_less_than_400_mb(tmp_path):
    path = tmp_path / "corpus.jsonl"
    body = " ".join(f"word{n}" for n in range(15))
    with path.open("w") as file:
        file.writelines(f'{{"_id": "document-{n}", "title": "T{n}", "text": "{body} {n}"}}\n' for n in range(1_000_000))
    n, peak = scanned(path)
    assert n == 1_000_000
    assert peak < 400


def test_a_line_of_100_mb_needs_a_few_times_its_size(tmp_path):
    path = tmp_path / "corpus.jsonl"
    path.write_text('{"_id": "a", "text": "' + "abcdefghi " * 10_000_000 + '"}\n{"_id": "b", "text": "x"}\n')
    n, peak = scanned(path)
    assert n == 2
    assert peak < 800


def test_a_file_of_a_byte_order_mark_alone_is_an_empty_corpus(tmp_path):
    path = tmp_path / "corpus.jsonl"
    path.write_bytes(b"\xef\xbb\xbf")
    assert len(Corpus.load(path)) == 0
