import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from indexes.storage import StorageError
from retrieval import pydocs
from retrieval.docstrings import sentences, words
from retrieval.public_objects import PublicObject
from retrieval.pydocs import build_pydocs, installed_versions, make_pydocs, split_of

ROOT = Path(__file__).resolve().parents[2]
SEVERAL = "It takes several arguments and returns one new array of the same shape and type."

# What the versions of constraints.txt give, on every machine.
PINS = {"numpy": "2.4.6", "scipy": "1.17.1", "scikit-learn": "1.9.1", "torch": "2.13.0", "docstring_parser": "0.18.0"}
SHA256 = {
    "corpus.jsonl": "9da86d3b5b541ade26c5838c1e9be1bb17d0e662ab0303bbcfb692eb71ef2c8e",
    "queries.jsonl": "b034a99c182f050afc628261eeea1067e722f0b6b413e7298692976d2787806d",
    "qrels/train.tsv": "3c6c2ada9441b7a2e99d352ae5bd919909a72e0d3a2a7c20b57bc52d5f7a49ea",
    "qrels/dev.tsv": "1bb8f29743bfccc5298cb1719ce0e708c6ba03929f4c6509dff5ac8048ec7ba2",
    "qrels/test.tsv": "3246f21262575b80ddce09565b8741d1a59f5ee7ba4ad674893aee645bc294de",
}


def entry(name, doc, *aliases):
    return PublicObject(name, aliases, doc)


def judged(collection):
    return {query_id: grades for qrels in collection.qrels.values() for query_id, grades in qrels.items()}


# ------------------------------------------------------------------------------------- hand-made objects


def test_a_document_a_query_and_grades():
    objects = [
        entry(
            "lib.mean",
            f"mean(a)\n\nMean of an array. {SEVERAL}\n\nSee Also\n--------\nmedian : a\nother.var\nnowhere\n",
        ),
        entry("lib.median", f"Median of an array.\n\n{SEVERAL} It sorts them."),
        entry(
            "lib.other.var", f"Variance of an array.\n\n{SEVERAL} It squares first.\n\nSee Also\n--------\nlib.mean\n"
        ),
    ]
    collection = make_pydocs(objects)
    assert collection.documents == {
        "lib.mean": SEVERAL,
        "lib.median": f"{SEVERAL} It sorts them.",
        "lib.other.var": f"{SEVERAL} It squares first.",
    }
    assert collection.queries == {
        "q:lib.mean": "Mean of an array",
        "q:lib.median": "Median of an array",
        "q:lib.other.var": "Variance of an array",
    }
    assert judged(collection) == {
        "q:lib.mean": {"lib.mean": 3, "lib.median": 1, "lib.other.var": 1},
        "q:lib.median": {"lib.median": 3},
        "q:lib.other.var": {"lib.mean": 1, "lib.other.var": 3},
    }
    assert collection.counts["see_also"] == 4
    assert collection.counts["see_also_unresolved"] == 1


def test_an_alias_is_the_same_document():
    objects = [
        entry("lib.abs", f"Absolute value.\n\n{SEVERAL}", "lib.absolute", "lib.core.absolute"),
        entry(
            "lib.core.sign", f"Sign of a number.\n\n{SEVERAL} As a float.\n\nSee Also\n--------\nabsolute\nlib.abs\n"
        ),
    ]
    collection = make_pydocs(objects)
    assert judged(collection)["q:lib.core.sign"] == {"lib.abs": 1, "lib.core.sign": 3}
    assert collection.counts["aliases"] == 2
    assert collection.counts["documents"] == 2


@pytest.mark.parametrize(
    ("written", "found"),
    [
        ("sub.f", "lib.sub.f"),  # from a module above
        ("f", "lib.sub.f"),  # from its own module, before one above
        ("lib.f", "lib.f"),
        ("numpy.exp", "numpy.exp"),
        ("np.exp", "numpy.exp"),
        ("exp", None),
        ("array.sort", None),
        ("g", None),  # itself
    ],
)
def test_see_also_names_are_looked_up_near_the_object(written, found):
    unlike = [
        "Alpha beta gamma delta epsilon zeta eta theta iota kappa lambda",
        "One two three four five six seven " * 2,
    ]
    objects = [
        entry("lib.f", f"First function. {unlike[0]}."),
        entry("lib.sub.f", f"Second function. {unlike[1]}."),
        entry("lib.sub.g", f"Third function.\n\n{SEVERAL}\n\nSee Also\n--------\n{written}\n"),
        entry("numpy.exp", f"Exponential function.\n\n{SEVERAL} {unlike[1]}"),
    ]
    related = {name for name, grade in judged(make_pydocs(objects))["q:lib.sub.g"].items() if grade == 1}
    assert related == ({found} - {None})


def test_a_summary_is_removed_wherever_it_stands():
    objects = [
        entry("lib.a", f"Sort an array in place.\n\n{SEVERAL} Sort an array, in place! Very fast."),
        entry("lib.b", f"Something quite different here.\n\nSort an array in place. {SEVERAL} It is slow."),
    ]
    assert make_pydocs(objects).documents == {"lib.a": f"{SEVERAL} Very fast.", "lib.b": f"{SEVERAL} It is slow."}


def test_a_longer_sentence_that_contains_the_summary_goes_too():
    containing = "Note that we sort an array in place here."
    objects = [
        entry("lib.a", f"Sort an array in place.\n\n{SEVERAL} {containing} Very fast."),
        # Not near-duplicate: it may say so.
        entry("lib.b", f"Something quite different here.\n\n{SEVERAL} {containing} It allocates memory for all of it."),
    ]
    documents = make_pydocs(objects).documents
    assert documents["lib.a"] == f"{SEVERAL} Very fast."
    assert containing in documents["lib.b"]


def test_a_near_duplicate_does_not_keep_the_summary():
    shared = " ".join(f"Parameter number {number} sets the property number {number} of it." for number in range(20))
    objects = [
        entry("lib.ma.sort", f"Return a sorted masked copy. {shared} Here we sort an array in place."),
        entry("lib.sort", f"Sort an array in place. {shared}"),
    ]
    collection = make_pydocs(objects)
    assert "sort an array" not in collection.documents["lib.ma.sort"]
    assert len({split for split, qrels in collection.qrels.items() if qrels}) == 1


def test_short_summaries_are_removed_as_sentences_only():
    objects = [entry("lib.beta", f"Beta function.\n\n{SEVERAL} The beta function is smooth. Beta function.")]
    assert make_pydocs(objects).documents == {"lib.beta": f"{SEVERAL} The beta function is smooth."}


def test_objects_with_one_summary_share_a_query():
    objects = [
        entry("lib.a.sum", f"Sum of all elements.\n\n{SEVERAL}\n\nSee Also\n--------\nprod\n"),
        entry(
            "lib.b.sum", "sum of all 'elements':\n\nCompletely other words explain what happens in this second case."
        ),
        entry("lib.prod", f"Product of all elements.\n\n{SEVERAL} It multiplies.\n\nSee Also\n--------\nlib.a.sum\n"),
    ]
    collection = make_pydocs(objects)
    assert set(collection.queries) == {"q:lib.a.sum", "q:lib.prod"}
    assert judged(collection)["q:lib.a.sum"] == {"lib.a.sum": 3, "lib.b.sum": 3, "lib.prod": 1}
    assert collection.counts["shared_queries"] == 1


def test_symbols_tell_queries_apart():
    objects = [
        entry("lib.greater", f"Return (x > y) element-wise.\n\n{SEVERAL}"),
        entry("lib.less", f"Return (x < y) element-wise.\n\n{SEVERAL} It is less."),
    ]
    collection = make_pydocs(objects)
    assert len(collection.queries) == 2
    assert [len(qrels) for qrels in collection.qrels.values() if qrels] == [
        2
    ]  # in one split, for the words are the same


def test_an_object_may_be_both_seen_also_and_the_answer():
    objects = [
        entry("lib.a", f"Sum of all elements.\n\n{SEVERAL}\n\nSee Also\n--------\nb\n"),
        entry("lib.b", f"Sum of all elements.\n\n{SEVERAL} Slowly.\n\nSee Also\n--------\na\n"),
    ]
    assert judged(make_pydocs(objects)) == {"q:lib.a": {"lib.a": 3, "lib.b": 3}}


@pytest.mark.parametrize(
    ("doc", "is_document", "has_query"),
    [
        (f"A good summary.\n\n{SEVERAL}", True, True),
        ("A good summary.\n\nThese nine words are not enough to make it.", False, False),
        ("A good summary.\n\nThese ten words here are just enough to make it.", True, True),
        ("A good summary.", False, False),
        (f"Members:\n\n{SEVERAL}", True, False),
        (f"{'very ' * 50}long.\n\n{SEVERAL}", True, False),
        (f".. note:: {SEVERAL}", True, False),
        ("f(x) -> y", False, False),
    ],
)
def test_what_becomes_a_document_and_a_query(doc, is_document, has_query):
    collection = make_pydocs([entry("lib.f", doc)])
    assert (len(collection.documents), len(collection.queries)) == (is_document, has_query)
    assert collection.counts["without_body"] == (not is_document)


def test_no_objects():
    collection = make_pydocs([])
    assert (collection.documents, collection.queries) == ({}, {})
    assert collection.qrels == {"train": {}, "dev": {}, "test": {}}


def test_splits_by_hand():
    share = int(hashlib.sha256(b"numpy.mean").hexdigest()[:16], 16) / 2**64
    assert split_of("numpy.mean") == ("train" if share < 0.7 else "dev" if share < 0.8 else "test")
    splits = [split_of(f"lib.f{number}") for number in range(20_000)]
    assert [round(splits.count(split) / 20_000, 2) for split in ("train", "dev", "test")] == [0.7, 0.1, 0.2]


PARTS = st.lists(st.sampled_from([*"abcdefgh"]).map(lambda w: f"{w} {w}{w}"), min_size=2, max_size=4).map(" and ".join)
DOCS = st.tuples(PARTS, st.lists(PARTS, max_size=5)).map(
    lambda parts: f"{parts[0]}. {SEVERAL} " + " ".join(f"{part.capitalize()}." for part in parts[1])
)


@given(st.lists(DOCS, min_size=1, max_size=8))
def test_properties_of_any_collection(docs):
    objects = [entry(f"lib.f{number}", doc) for number, doc in enumerate(docs)]
    collection = make_pydocs(objects)
    check_invariants(collection.documents, collection.queries, collection.qrels)
    assert make_pydocs(objects) == collection


def check_invariants(documents, queries, qrels):
    """Hold for every collection: each query judged in one split, its text nowhere in the corpus."""
    assert sorted(query_id for split in qrels.values() for query_id in split) == sorted(queries)
    split_by_words = {words(queries[query_id]): name for name, split in qrels.items() for query_id in split}
    assert all(split_by_words[words(queries[query_id])] == name for name, split in qrels.items() for query_id in split)
    texts = {name: words(text) for name, text in documents.items()}
    asked = {words(text) for text in queries.values()}
    said = {words(s) for text in documents.values() for line in text.split("\n") for s in sentences(line)}
    assert not asked & said
    for split in qrels.values():
        for query_id, grades in split.items():
            assert set(grades) <= set(documents)
            assert set(grades.values()) <= {1, 3}
            assert grades[query_id.removeprefix("q:")] == 3
            own = words(queries[query_id])
            if len(own.split()) >= 4:
                assert not any(f" {own} " in f" {texts[name]} " for name, grade in grades.items() if grade == 3)


# ------------------------------------------------------------------------------- the installed packages


@pytest.fixture(scope="session")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pydocs") / "built"
    return folder, build_pydocs(folder)


def read(folder):
    lines = {name: (folder / name).read_text(encoding="utf-8").splitlines() for name in SHA256}
    corpus = [json.loads(line) for line in lines["corpus.jsonl"]]
    assert all(record["_id"] == record["title"] for record in corpus)
    qrels = {}
    for split in ("train", "dev", "test"):
        header, *rows = lines[f"qrels/{split}.tsv"]
        assert header == "query-id\tcorpus-id\tscore"
        for query_id, doc_id, grade in (row.split("\t") for row in rows):
            qrels.setdefault(split, {}).setdefault(query_id, {})[doc_id] = int(grade)
    queries = {record["_id"]: record["text"] for record in map(json.loads, lines["queries.jsonl"])}
    return {record["_id"]: record["text"] for record in corpus}, queries, qrels


def test_the_real_collection_keeps_its_promises(built):
    documents, queries, qrels = read(built[0])
    check_invariants(documents, queries, qrels)
    assert list(documents) == sorted(documents)
    assert not any(re.search(r"\s", name) for name in [*documents, *queries])
    assert min(len(words(text).split()) for text in documents.values()) >= 10


def test_the_real_collection_has_the_promised_size(built):
    documents, queries, qrels = read(built[0])
    counts = built[1]["counts"]
    assert len(documents) == counts["documents"] > 4_500
    assert len(queries) == counts["queries"]
    assert counts["train_queries"] > 3_000
    for split, share in (("train", 0.7), ("dev", 0.1), ("test", 0.2)):
        assert len(qrels[split]) == counts[f"{split}_queries"] == pytest.approx(share * len(queries), rel=0.1)
    assert {name.split(".")[0] for name in documents} == {"numpy", "scipy", "sklearn", "torch"}
    assert counts["see_also_unresolved"] < 0.1 * counts["see_also"]


def test_nothing_of_this_machine_is_in_the_texts(built):
    text = (built[0] / "corpus.jsonl").read_text(encoding="utf-8")
    home = str(Path.home())
    assert str(ROOT) not in text
    assert sys.prefix not in text
    assert home == "/" or f"{home}/" not in text
    assert not re.search(r"\bat 0x[0-9a-f]{6,}>(?! *$)", text.replace("0x7ff1106bf280", ""))
    assert "on this platform" not in text


def test_examples_by_hand(built):
    documents, queries, qrels = read(built[0])
    grades = {query_id: grades for split in qrels.values() for query_id, grades in split.items()}
    assert queries["q:torch.nn.Linear"].startswith("Applies an affine linear transformation to the incoming data")
    assert queries["q:numpy.hypot"] == 'Given the "legs" of a right triangle, return its hypotenuse'
    assert grades["q:scipy.stats.zscore"] == {
        "numpy.mean": 1,
        "numpy.std": 1,
        "scipy.stats.gzscore": 1,
        "scipy.stats.zscore": 3,
    }
    assert not {"torch.nn.modules.Linear", "numpy.absolute", "numpy.int64"} & set(documents)
    assert "sklearn.linear_model.LogisticRegression" in documents


def test_about_says_what_was_built(built):
    folder, about = built
    assert json.loads((folder / "about.json").read_text()) == about
    assert about["versions"] == installed_versions()
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert files == {*SHA256, "about.json"}
    assert {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in SHA256} == about["sha256"]


def test_the_bytes_under_the_constraints(built):
    constraints = ROOT / "constraints.txt"
    pinned = re.findall(r"(?m)^([\w.-]+)==([\w.]+)", constraints.read_text()) if constraints.exists() else []
    wanted = {name.lower().replace("-", "_"): number for name, number in pinned}
    for name, number in PINS.items():
        assert wanted.get(name.replace("-", "_"), number) == number, "constraints.txt has changed: pin new hashes here"
    if built[1]["versions"] != PINS:
        pytest.skip(f"installed are {built[1]['versions']}, the hashes are of {PINS}")
    assert built[1]["sha256"] == SHA256


def test_another_process_builds_the_same_bytes(built, tmp_path):
    """Another hash seed, the packages imported in another order and partly used, another folder and locale."""
    code = """
        import sys
        import torch.nn.functional, sklearn.svm, scipy.stats, sklearn.experimental.enable_iterative_imputer
        import numpy; numpy.set_printoptions(precision=2); numpy.random.seed(3)
        import retrieval.public_objects as p, retrieval.pydocs as q
        walk = p._public_modules
        p._public_modules = lambda package: walk(package)[::-1]
        q.build_pydocs(sys.argv[1])
    """
    environment = os.environ | {"PYTHONHASHSEED": "4321", "LC_ALL": "C", "PYTHONPATH": str(ROOT), "TZ": "Asia/Tokyo"}
    command = [sys.executable, "-c", "\n".join(line.strip() for line in code.splitlines()), str(tmp_path / "again")]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    for name in [*SHA256, "about.json"]:
        assert (tmp_path / "again" / name).read_bytes() == (built[0] / name).read_bytes(), name


def test_an_existing_folder_is_refused_before_anything_is_lost(built, monkeypatch):
    monkeypatch.setattr(pydocs, "public_objects", lambda packages: [])
    before = (built[0] / "corpus.jsonl").read_bytes()
    with pytest.raises(StorageError, match="built"):
        build_pydocs(built[0])
    assert (built[0] / "corpus.jsonl").read_bytes() == before
