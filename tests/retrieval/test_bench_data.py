"""Parts of a comparison: no test judgement in them, folds, and the rule of label noise."""

import hashlib

import pytest
from beir_folder import make_collection
from bench_runs import config
from tiny_files import documents, qrels, queries

from retrieval.bench_data import exchange_positives, make_parts
from retrieval.collection import Collection
from retrieval.errors import InputError

DOCS = [f"d{i}" for i in range(50)]


def judged(n_queries=40, per_query=4):
    return {f"q{q}": {f"d{(7 * q + d) % 50}": d % 3 for d in range(per_query)} for q in range(n_queries)}


@pytest.fixture
def only_test(tmp_path):
    every = {query: grades for split in qrels().values() for query, grades in split.items()}
    return make_collection(tmp_path / "test-only", documents(), queries(), {"test": every})


def test_a_part_has_no_test_split(tiny_collection, tmp_path):
    (part,) = make_parts(config("m", tiny_collection, "o"), Collection.load(tiny_collection), tmp_path / "splits")
    assert Collection(part.folder).splits == ["dev", "train"]
    assert part.test() == qrels()["test"]
    assert Collection(part.folder).qrels("train") == qrels()["train"]


def test_dev_is_carved_where_there_is_none(tmp_path):
    splits = qrels()
    source = make_collection(tmp_path / "c", documents(), queries(), {"train": splits["train"], "test": splits["test"]})
    (part,) = make_parts(config("m", source, "o"), Collection.load(source), tmp_path / "splits")
    made = Collection(part.folder)
    assert made.qrels("dev")
    assert made.qrels("train") | made.qrels("dev") == splits["train"]
    assert sorted(path.name for path in (source / "qrels").iterdir()) == ["test.tsv", "train.tsv"]


def test_a_part_that_lies_there_is_kept_and_another_replaced(tiny_collection, tmp_path):
    collection = Collection.load(tiny_collection)
    (part,) = make_parts(config("m", tiny_collection, "o"), collection, tmp_path / "s")
    before = (part.folder / "qrels" / "train.tsv").stat().st_mtime_ns
    (again,) = make_parts(config("m", tiny_collection, "o"), collection, tmp_path / "s")
    assert again.fingerprint == part.fingerprint
    assert (part.folder / "qrels" / "train.tsv").stat().st_mtime_ns == before
    (noisy,) = make_parts(config("m", tiny_collection, "o", label_noise=0.5), collection, tmp_path / "s")
    assert noisy.fingerprint != part.fingerprint
    assert Collection(noisy.folder).qrels("dev") == qrels()["dev"]
    assert Collection(noisy.folder).qrels("train") != qrels()["train"]


def test_folds_part_the_queries(only_test, tmp_path):
    collection = Collection.load(only_test)
    parts = make_parts(config("m", only_test, "o", folds=3), collection, tmp_path / "splits")
    assert [part.name for part in parts] == ["fold1", "fold2", "fold3"]
    tests = [part.test() for part in parts]
    assert sorted(q for test in tests for q in test) == sorted(collection.qrels("test"))
    for part, test in zip(parts, tests, strict=True):
        made = Collection(part.folder)
        assert made.splits == ["dev", "train"]
        assert not test.keys() & (made.qrels("train").keys() | made.qrels("dev").keys())


def test_a_missing_split_is_named(only_test, tiny_collection, tmp_path):
    with pytest.raises(InputError, match=r"no split 'train'.*--folds 5 divides that one"):
        make_parts(config("m", only_test, "o"), Collection.load(only_test), tmp_path / "s")
    with pytest.raises(InputError, match="folds are for collections without one"):
        make_parts(config("m", tiny_collection, "o", folds=3), Collection.load(tiny_collection), tmp_path / "s")
    with pytest.raises(InputError, match="no split 'tets'; did you mean 'test'"):
        make_parts(
            config("m", tiny_collection, "o", test_split="tets"), Collection.load(tiny_collection), tmp_path / "s"
        )


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 0.99])
def test_the_share_of_exchanged_positives(share):
    before = judged(500)
    after = exchange_positives(before, DOCS, share)
    gone = [(q, d) for q, grades in before.items() for d, grade in grades.items() if grade > 0 and d not in after[q]]
    expected = [
        (q, d)
        for q, grades in before.items()
        for d, grade in grades.items()
        if grade > 0 and int(hashlib.sha256(f"{q}\t{d}".encode()).hexdigest(), 16) / 2**256 < share
    ]
    assert gone == expected
    positives = sum(grade > 0 for grades in before.values() for grade in grades.values())
    assert abs(len(gone) / positives - share) < 0.05


def test_an_exchanged_document_was_not_judged_and_gets_the_grade():
    before, after = judged(), exchange_positives(judged(), DOCS, 0.5)
    for query, grades in after.items():
        assert sorted(grades.values()) == sorted(before[query].values())
        assert all(before[query][doc] == grade for doc, grade in grades.items() if doc in before[query])
        assert {doc for doc, grade in before[query].items() if grade == 0} <= grades.keys()


def test_more_noise_exchanges_all_that_less_does():
    before = judged()
    little, much = (exchange_positives(before, DOCS, share) for share in (0.2, 0.4))
    for query, grades in before.items():
        assert grades.keys() - little[query].keys() <= grades.keys() - much[query].keys()


def test_a_query_that_judges_every_document_keeps_its_positives():
    everything = {"q": dict.fromkeys(DOCS, 1)}
    assert exchange_positives(everything, DOCS, 0.9) == everything


def test_the_rule_by_hand():
    """One positive of two documents: it moves to the other, wherever the hash points."""
    assert exchange_positives({"q": {"a": 2}}, ["a", "b"], 1 - 1e-12) == {"q": {"b": 2}}
