import hashlib
import itertools
import json
import random
import re

import pytest
from beir_folder import make_collection
from hypothesis import given
from hypothesis import strategies as st

from indexes.storage import StorageError
from retrieval.collection import Collection
from retrieval.errors import InputError
from retrieval.splits import carve_dev, fingerprint, folds, of_seen_documents, query_groups, write_split


def unit(query_id: str) -> float:
    return int(hashlib.sha256(query_id.encode()).hexdigest(), 16) / 2**256


def judged(queries):
    return {query_id: {"d1": 1} for query_id in queries}


def distinct(n):
    return {f"q{i}": f"word{i} other{i}" for i in range(n)}


def test_dev_is_the_fifth_whose_hashes_are_lowest():
    queries = distinct(2000)
    train, dev = carve_dev(judged(queries), queries)
    assert set(dev) == {query_id for query_id in queries if unit(query_id) < 0.2}
    assert set(train) == set(queries) - set(dev)
    assert 340 < len(dev) < 460


def test_a_side_depends_on_nothing_but_the_query():
    queries = distinct(300)
    _, dev = carve_dev(judged(queries), queries)
    some = dict(itertools.islice(queries.items(), 100))
    _, fewer = carve_dev(judged(some), some)
    assert set(fewer) == set(dev) & set(some)


def test_equal_and_near_equal_queries_stay_together():
    base = "what are the symptoms of the very rare disease number"
    queries = {
        f"{copy}{n}": f"{base} x{n} y{n} z{n}" + ("?" if copy == "b" else "") for n in range(60) for copy in "ab"
    }
    train, dev = carve_dev(judged(queries), queries)
    assert dev
    assert train
    for n in range(60):
        assert (f"a{n}" in dev) == (f"b{n}" in dev) == (unit(f"a{n}") < 0.2)


def test_grades_and_order_are_kept():
    queries = distinct(50)
    qrels = {query_id: {"d2": 3, "d1": 0, "d3": n} for n, query_id in enumerate(reversed(queries))}
    train, dev = carve_dev(qrels, queries)
    assert {**train, **dev} == qrels
    assert list(train) == [query_id for query_id in qrels if query_id in train]
    assert [*train["q49"]] == ["d2", "d1", "d3"]
    train["q49"]["d2"] = 9
    assert qrels["q49"]["d2"] == 3


def test_neither_side_is_left_empty():
    high = {q: t for q, t in distinct(40).items() if unit(q) > 0.2}
    train, dev = carve_dev(judged(high), high)
    assert list(dev) == [min(high, key=unit)]
    low = {q: t for q, t in distinct(40).items() if unit(q) < 0.2}
    train, dev = carve_dev(judged(low), low)
    assert list(train) == [max(low, key=unit)]


@pytest.mark.parametrize("queries", [{}, {"a": "x y"}, {"a": "x y", "b": "Y, x!"}])
def test_what_cannot_be_divided_is_told(queries):
    with pytest.raises(InputError, match="cannot be divided"):
        carve_dev(judged(queries), queries)


@pytest.mark.parametrize("fraction", [0, 1, -0.1, 1.5])
def test_a_fraction_is_between_nothing_and_all(fraction):
    with pytest.raises(InputError, match="between 0 and 1"):
        carve_dev(judged(distinct(9)), distinct(9), fraction=fraction)


def test_queries_without_text_are_alone():
    queries = {"a": "", "b": "", "c": "??", "d": "??", "e": "a"}
    assert query_groups(queries) == [["a"], ["b"], ["c", "d"], ["e"]]


def naive_groups(queries, near):
    """All pairs compared, closed under "nearly the same"."""
    words = {q: set(re.findall(r"\w+", text.casefold())) for q, text in queries.items()}
    groups = [{q} for q in sorted(queries)]
    for first, second in itertools.combinations(sorted(queries), 2):
        if len(words[first] & words[second]) >= near * len(words[first] | words[second]):
            one = next(group for group in groups if first in group)
            other = next(group for group in groups if second in group)
            if one is not other:
                one |= other
                groups.remove(other)
    return sorted(map(sorted, groups))


TEXTS = st.lists(st.sampled_from(["a", "b", "c", "d", "e", "f", "g", "h", "i", "j"]), min_size=1, max_size=9).map(
    " ".join
)


@given(st.lists(TEXTS, max_size=25), st.sampled_from([0.5, 0.6, 0.75, 0.8, 0.9, 1.0]))
def test_groups_are_those_of_comparing_all_pairs(texts, near):
    queries = {f"q{n:02d}": text for n, text in enumerate(texts)}
    assert sorted(query_groups(queries, near=near)) == naive_groups(queries, near)


def test_a_pair_exactly_at_the_threshold_is_found_at_any_length():
    for size in range(5, 100, 5):  # 0.8 * 35 is 28.000000000000004
        shared = [f"w{n}" for n in range(size * 4 // 5)]
        queries = {"a": " ".join(shared), "b": " ".join([*shared, *(f"x{n}" for n in range(size // 5))])}
        assert query_groups(queries) == [["a", "b"]]


@given(st.lists(TEXTS, min_size=2, max_size=25), st.randoms())
def test_the_order_of_queries_does_not_matter(texts, shuffler):
    queries = {f"q{n}": text for n, text in enumerate(texts)}
    items = list(queries.items())
    shuffler.shuffle(items)
    assert query_groups(dict(items)) == query_groups(queries)


def test_folds_part_the_queries_and_hold_a_fifth_each():
    queries = distinct(103)
    qrels = judged(queries)
    parts = folds(qrels, queries)
    assert sorted(q for part in parts for q in part["test"]) == sorted(queries)
    assert {len(part["test"]) for part in parts} <= {20, 21}
    for part in parts:
        assert {**part["train"], **part["dev"], **part["test"]} == qrels
        assert len(part["train"]) + len(part["dev"]) + len(part["test"]) == len(qrels)
        rest = {q: queries[q] for q in queries if q not in part["test"]}
        assert (part["train"], part["dev"]) == carve_dev(judged(rest), rest)


def test_folds_keep_near_equal_queries_together_and_ignore_order():
    queries = {f"{copy}{n}": f"topic{n} words{n} here{n}" for n in range(30) for copy in "ab"}
    items = list(queries.items())
    random.Random(1).shuffle(items)
    parts = folds(judged(queries), queries)
    assert [set(p["test"]) for p in parts] == [set(p["test"]) for p in folds(judged(dict(items)), dict(items))]
    for part in parts:
        for split in part.values():
            assert all((f"a{n}" in split) == (f"b{n}" in split) for n in range(30))


@pytest.mark.parametrize(("queries", "n"), [(4, 5), (10, 1), (0, 2)])
def test_too_few_groups_for_the_folds_are_told(queries, n):
    with pytest.raises(InputError, match=f"cannot be divided into {n} folds"):
        folds(judged(distinct(queries)), distinct(queries), n=n)


@pytest.mark.parametrize("ending", ["", ".gz"])
def test_a_split_is_a_collection_whose_corpus_is_linked(tmp_path, monkeypatch, ending):
    monkeypatch.setenv("RANKWRIGHT_CACHE", str(tmp_path / "cache"))
    original = Collection.load(make_collection(tmp_path / "zoo", ending=ending))
    splits = {"train": {"q1": {"d1": 2}}, "dev": {"q2": {"d2": 1, "d1": 0}}, "test": {"q3": {"d3": 1}}}
    made = write_split(original, splits, tmp_path / "build" / "fold-0")
    assert (made.name, made.splits) == ("zoo/fold-0", ["dev", "test", "train"])
    assert {split: made.qrels(split) for split in made.splits} == splits
    assert (tmp_path / "build" / "fold-0" / f"corpus.jsonl{ending}").is_symlink()
    assert list(made.corpus) == list(original.corpus)
    assert made.queries("dev") == {"q2": "what do dogs do"}
    record = json.loads((made.path / "split.json").read_text())
    assert record == {
        "collection": "zoo",
        "queries": {"train": 1, "dev": 1, "test": 1},
        "fingerprint": fingerprint(splits),
    }


def test_a_written_split_is_not_overwritten_but_an_interrupted_one_is_completed(tmp_path):
    original = Collection.load(make_collection(tmp_path / "zoo"))
    splits = {"test": {"q3": {"d3": 1}}}
    folder = tmp_path / "split"
    folder.mkdir()
    (folder / "corpus.jsonl").symlink_to(tmp_path / "nowhere")  # what a killed run may leave
    assert write_split(original, splits, folder).qrels("test") == splits["test"]
    with pytest.raises(StorageError, match="exists already"):
        write_split(original, splits, folder)


def test_the_fingerprint_is_of_the_judgements_alone():
    splits = {"train": {"q1": {"d1": 1, "d2": 0}, "q2": {"d1": 1}}, "dev": {"q3": {"d1": 1}}}
    reordered = {"dev": {"q3": {"d1": 1}}, "train": {"q2": {"d1": 1}, "q1": {"d2": 0, "d1": 1}}}
    assert fingerprint(splits) == fingerprint(reordered)
    assert fingerprint(splits) != fingerprint({**splits, "dev": {"q3": {"d1": 2}}})
    assert fingerprint({"train": splits["dev"]}) != fingerprint({"dev": splits["dev"]})


def test_cystic_fibrosis_has_five_folds(shared):
    collection = Collection.load(shared / "data" / "cystic_fibrosis")
    parts = folds(collection.qrels("test"), collection.queries("test"))
    assert sum(len(part["test"]) for part in parts) == 99
    assert all(part["dev"] and part["train"] for part in parts)


def test_queries_of_seen_documents_are_those_that_share_one_with_any_training_query():
    trained = {"a": {"d1", "d2"}, "b": {"d3"}}
    evaluated = {"c": {"d2", "d9"}, "d": {"d8"}, "b": {"d7"}, "e": set(), "f": {"d3", "d1"}}
    assert of_seen_documents(trained, evaluated) == {"c", "f"}
    assert of_seen_documents({}, evaluated) == set()
