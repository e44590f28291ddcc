from collections import Counter

import numpy as np
import pytest
from beir_folder import make_collection
from hypothesis import given
from hypothesis import strategies as st

from retrieval.batches import (
    ANY_GRADE,
    Batcher,
    LabelRule,
    collect_judgements,
    micro_batches,
    negative_documents,
    positive_documents,
)
from retrieval.collection import Collection
from retrieval.errors import InputError
from retrieval.rows import TrainingRow

SINGLE, SEVERAL = LabelRule(several=False), LabelRule(several=True)

TEXTS = {f"d{i}": f"text {i}" for i in range(10)} | {"copy1": "text 1"}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    documents = [{"_id": doc_id, "text": text} for doc_id, text in TEXTS.items()]
    return Collection(make_collection(tmp_path_factory.mktemp("batches") / "c", documents)).corpus


def row(name, relevant=(), others=(), **more) -> TrainingRow:
    return TrainingRow(
        query_id=name, query=f"query {name}", positive_ids=tuple(relevant), negative_ids=tuple(others), **more
    )


def batcher(corpus, rows, rule=SINGLE, qrels=None, *, size=8, positives=1, negatives=7, seed=0) -> Batcher:
    judged = collect_judgements(rows, qrels or {})
    return Batcher(
        rows, corpus, judged, rule, batch_size=size, num_positives=positives, num_negatives=negatives, seed=seed
    )


def whole(corpus, rows, rule=SINGLE, qrels=None, epoch=0, **settings):
    """The batch of all rows in their own order."""
    made = batcher(corpus, rows, rule, qrels, **settings)
    return made.make(range(len(made.rows)), epoch)


def cells(batch, matrix) -> dict[str, dict[str, float]]:
    """Query of each row → text of each column → cell; rows of one query after each other."""
    found: dict[str, dict[str, float]] = {}
    for i, query in enumerate(batch.row_query):
        name = batch.query_ids[query]
        name += "'" * sum(other.rstrip("'") == name for other in found)
        found[name] = dict(zip(batch.documents, matrix[i].tolist(), strict=True))
    return found


# --- the id-aware mask, by hand ---------------------------------------------------------------------------------------


def test_without_judgements_the_diagonal_is_relevant_and_all_else_is_not(corpus):
    batch = whole(corpus, [row("a", ["d1"]), row("b", ["d2"], ["d3", "d4"])])
    assert batch.documents[:2] == ["text 1", "text 2"]
    assert sorted(batch.documents[2:]) == ["text 3", "text 4"]
    np.testing.assert_array_equal(batch.labels, [[1, 0, 0, 0], [0, 1, 0, 0]])
    assert batch.where.all()
    assert batch.where_columns.all()
    np.testing.assert_array_equal(batch.row_query, [0, 1])


def test_a_relevant_column_is_masked_where_a_row_has_one_positive(corpus):
    rows = [row("a", ["d1"]), row("b", ["d2"]), row("c", ["d3"])]
    batch = whole(corpus, rows, qrels={"a": {"d1": 1, "d2": 2, "d9": 1}, "b": {"d1": 0}})
    assert cells(batch, batch.labels)["a"] == {"text 1": 1, "text 2": 0, "text 3": 0}
    assert cells(batch, batch.where)["a"] == {"text 1": True, "text 2": False, "text 3": True}
    assert cells(batch, batch.where)["b"] == {"text 1": True, "text 2": True, "text 3": True}
    assert batch.causes["relevant_masked"] == 1


def test_a_relevant_column_becomes_a_label_where_a_row_may_have_several(corpus):
    rows = [row("a", ["d1"]), row("b", ["d2"])]
    batch = whole(corpus, rows, SEVERAL, {"a": {"d1": 1, "d2": 2}, "b": {"d1": 0}})
    assert cells(batch, batch.labels) == {"a": {"text 1": 1, "text 2": 2}, "b": {"text 1": 0, "text 2": 1}}
    assert batch.where.all()
    assert batch.causes["relevant_labelled"] == 1


@pytest.mark.parametrize("rule", [SINGLE, SEVERAL])
def test_a_document_judged_0_is_an_ordinary_negative(corpus, rule):
    batch = whole(corpus, [row("a", ["d1"], ["d2"]), row("b", ["d3"])], rule, {"a": {"d1": 1, "d2": 0, "d3": 0}})
    assert cells(batch, batch.where)["a"] == {"text 1": True, "text 3": True, "text 2": True}
    assert cells(batch, batch.labels)["a"] == {"text 1": 1, "text 3": 0, "text 2": 0}


def test_judgements_below_0_are_worth_0(corpus):
    batch = whole(corpus, [row("a", ["d1"]), row("b", ["d2"])], SEVERAL, {"a": {"d1": 1, "d2": -2}})
    assert cells(batch, batch.labels)["a"]["text 2"] == 0


def test_a_mined_negative_that_the_judgements_call_relevant_is_none(corpus):
    rows = [row("a", ["d1"], ["d2"]), row("b", ["d3"])]
    qrels = {"a": {"d2": 1}}
    single, several = whole(corpus, rows, SINGLE, qrels), whole(corpus, rows, SEVERAL, qrels)
    assert cells(single, single.where)["a"]["text 2"] is False
    assert cells(several, several.labels)["a"]["text 2"] == 1


def test_a_document_of_two_rows_is_one_column(corpus):
    batch = whole(corpus, [row("a", ["d1"], ["d5"]), row("b", ["d1"], ["d5", "d1"]), row("c", ["d5"])])
    assert sorted(batch.documents) == ["text 1", "text 5"]
    assert batch.causes["duplicate_document"] == 6 - 2
    assert cells(batch, batch.labels) == {
        "a": {"text 1": 1, "text 5": 0},
        "b": {"text 1": 1, "text 5": 0},
        "c": {"text 1": 0, "text 5": 1},
    }


def test_a_text_of_two_documents_is_one_column_with_the_labels_of_both(corpus):
    batch = whole(corpus, [row("a", ["d1"]), row("b", ["copy1"]), row("c", ["d2"])], SEVERAL)
    assert sorted(batch.documents) == ["text 1", "text 2"]
    assert batch.causes["duplicate_text"] == 1
    assert [cells(batch, batch.labels)[q]["text 1"] for q in "abc"] == [1, 1, 0]


def test_a_text_of_a_row_and_the_same_text_in_the_corpus_are_one_column(corpus):
    rows = [row("a", ["d1"]), TrainingRow(query_id="b", query="b", positives=("text 1",)), row("c", ["d2"])]
    batch = whole(corpus, rows)
    assert sorted(batch.documents) == ["text 1", "text 2"]
    assert cells(batch, batch.labels)["b"] == {"text 1": 1, "text 2": 0}


def test_a_row_for_each_positive_masks_the_others(corpus):
    rows = [row("a", ["d1", "d2", "d3"]), row("b", ["d4"])]
    batch = whole(corpus, rows, positives=2)
    assert batch.row_query.tolist() == [0, 0, 1]
    drawn = batch.documents[:2]
    first, second = cells(batch, batch.where)["a"], cells(batch, batch.where)["a'"]
    assert (first[drawn[0]], first[drawn[1]], first["text 4"]) == (True, False, True)
    assert (second[drawn[0]], second[drawn[1]], second["text 4"]) == (False, True, True)
    assert (batch.labels.sum(axis=1) == 1).all()
    assert batch.causes["relevant_masked"] == 2


def test_two_positives_with_one_text_are_one_row(corpus):
    batch = whole(corpus, [row("a", ["d1", "copy1"]), row("b", ["d2"])], positives=2)
    assert batch.row_query.tolist() == [0, 1]


# --- the columns' direction -------------------------------------------------------------------------------------------


def test_in_the_columns_direction_a_query_of_several_rows_stands_once(corpus):
    batch = whole(corpus, [row("a", ["d1", "d2"]), row("b", ["d3"])], positives=2)
    where = cells(batch, batch.where_columns)
    first, second = batch.documents[:2]
    # each column of query a keeps the row that calls it relevant, the column of b the first of a's two rows
    assert where["a"] == {first: True, second: False, "text 3": True}
    assert where["a'"] == {first: False, second: True, "text 3": False}
    assert where["b"] == {first: True, second: True, "text 3": True}
    assert batch.causes["duplicate_query"] == 1


def test_the_same_query_text_under_two_ids_is_one_query_to_a_document(corpus):
    rows = [TrainingRow(query_id=i, query="same", positive_ids=(d,)) for i, d in (("x", "d1"), ("y", "d2"))]
    batch = whole(corpus, [*rows, row("b", ["d3"])])
    np.testing.assert_array_equal(batch.where_columns, [[True, False, True], [False, True, False], [True, True, True]])
    assert batch.where.all()


def test_the_same_row_twice_is_one_positive_of_its_document(corpus):
    batch = whole(corpus, [row("a", ["d1"]), row("a", ["d1"]), row("b", ["d2"])])
    assert batch.labels[:, 0].tolist() == [1, 1, 0]
    np.testing.assert_array_equal(batch.where_columns, [[True, True], [False, False], [True, True]])


# --- what labels are --------------------------------------------------------------------------------------------------


def test_grades_are_divided_by_the_scale_for_a_loss_over_probabilities(corpus):
    rows = [row("a", ["d1", "d2"], positive_labels=(3.0, 1.0)), row("b", ["d3"], positive_labels=(2.0,))]
    rule = LabelRule(several=True, positive_from=ANY_GRADE, scale=3.0)
    batch = whole(corpus, rows, rule, {"b": {"d1": 1}}, positives=5)
    labels = cells(batch, batch.labels)
    assert [labels["a"][f"text {i}"] for i in (1, 2, 3)] == pytest.approx([1, 1 / 3, 0])
    assert [labels["b"][f"text {i}"] for i in (1, 2, 3)] == pytest.approx([1 / 3, 0, 2 / 3])


def test_soft_labels_below_1_count_where_every_grade_does(corpus):
    rows = [row("a", ["d1"], positive_labels=(0.7,)), row("b", ["d2"], ["d3"], negative_labels=(0.25,))]
    rule = LabelRule(several=True, positive_from=ANY_GRADE)
    batch = whole(corpus, rows, rule)
    assert cells(batch, batch.labels)["a"]["text 1"] == pytest.approx(0.7)
    assert cells(batch, batch.labels)["b"]["text 3"] == pytest.approx(0.25)


def test_with_positive_from_2_a_document_of_grade_1_is_neither_drawn_nor_masked(corpus):
    rows = [row("a", ["d1", "d2"], positive_labels=(2.0, 1.0)), row("b", ["d2"], positive_labels=(3.0,))]
    batch = whole(corpus, rows, LabelRule(several=False, positive_from=2.0), positives=5)
    # the label is the grade, so that a loss with positive_from=2 sees a positive
    assert cells(batch, batch.labels) == {"a": {"text 1": 2, "text 2": 0}, "b": {"text 1": 0, "text 2": 3}}
    assert batch.where.all()


def test_rows_without_a_positive_of_the_grade_are_dropped_and_counted(corpus):
    rows = [row("a", ["d1"], positive_labels=(1.0,)), row("b", ["d2"], ["d3"], positive_labels=(2.0,))]
    made = batcher(corpus, rows, LabelRule(several=False, positive_from=2.0))
    assert (made.dropped, [r.query_id for r in made.rows]) == (1, ["b"])
    with pytest.raises(InputError, match="none of the 2 training rows has a positive of grade >= 3"):
        batcher(corpus, rows, LabelRule(several=False, positive_from=3.0))
    zero = [row("a", ["d1"], positive_labels=(0.0,))]
    with pytest.raises(InputError, match="of grade above 0"):
        batcher(corpus, zero, LabelRule(several=True, positive_from=ANY_GRADE))


def test_a_positive_without_a_label_has_grade_1_and_the_higher_grade_wins():
    rows = [row("a", ["d1", "d2"]), row("a", ["d1"], positive_labels=(3.0,))]
    assert collect_judgements(rows, {"a": {"d1": 2, "d2": 2, "d3": 0}, "other": {"d1": 1}}) == {
        "a": {"d1": 3.0, "d2": 2.0, "d3": 0.0}
    }


def test_ids_texts_or_both_name_documents():
    both = row("a", ["x"], positives=("the text of x",))
    assert positive_documents(both) == [("x", "the text of x")]
    assert positive_documents(row("a", ["x"])) == [("x", None)]
    assert negative_documents(row("a", ["x"], negatives=("t",))) == [(("text", "t"), "t")]


def test_the_text_of_a_row_wins_over_the_corpus_and_needs_no_entry_there(corpus):
    rows = [row("a", ["d1"], positives=("another version",)), row("b", ["unknown"], positives=("only here",))]
    assert whole(corpus, rows).documents == ["another version", "only here"]


# --- draws ------------------------------------------------------------------------------------------------------------

MANY = [row(f"q{i}", ["d1", "d2", "d3"], ["d4", "d5", "d6", "d7", "d8", "d9"]) for i in range(30)]


def drawn(made: Batcher, number: int, epoch: int) -> list[str]:
    """The documents of one row, in the order drawn."""
    return made.make([number], epoch).documents


def test_a_draw_depends_on_seed_epoch_and_row_alone(corpus):
    one = batcher(corpus, MANY, size=8, negatives=3)
    other = batcher(corpus, MANY, size=5, negatives=3)
    together = one.make([3, 9, 4], 2)
    for number in (3, 4, 9):
        assert drawn(one, number, 2) == drawn(other, number, 2)
        assert set(drawn(one, number, 2)) <= set(together.documents)
    draws = {seed: [drawn(batcher(corpus, MANY, negatives=3, seed=seed), n, e) for e in (0, 1) for n in range(30)]
             for seed in (0, 1)}  # fmt: skip
    assert draws[0] != draws[1]
    assert draws[0][:30] != draws[0][30:]
    assert len({tuple(d) for d in draws[0][:30]}) > 20  # rows draw independently


def test_every_document_is_drawn_equally_often(corpus):
    made = batcher(corpus, MANY, negatives=2)
    counts = Counter(text for epoch in range(100) for text in drawn(made, 7, epoch))
    assert sum(counts.values()) == 300
    for i in (1, 2, 3):  # binomial(100, 1/3), 5 sigma
        assert 33 - 24 <= counts[f"text {i}"] <= 33 + 24
    for i in range(4, 10):
        assert 33 - 24 <= counts[f"text {i}"] <= 33 + 24


@pytest.mark.parametrize(
    ("positives", "negatives", "expected"), [(1, 0, 1), (2, 0, 2), (9, 0, 3), (1, 4, 5), (1, 99, 7)]
)
def test_as_many_are_drawn_as_asked_for_or_as_there_are(corpus, positives, negatives, expected):
    made = batcher(corpus, MANY, positives=positives, negatives=negatives)
    documents = drawn(made, 0, 0)
    assert len(documents) == len(set(documents)) == expected
    assert {int(text.split()[1]) <= 3 for text in documents[: min(positives, 3)]} == {True}


def test_rows_may_have_different_numbers_of_negatives(corpus):
    rows = [row("a", ["d1"], ["d4", "d5", "d6"]), row("b", ["d2"]), row("c", ["d3"], ["d7"])]
    batch = whole(corpus, rows, negatives=2)
    assert len(batch.documents) == 3 + 2 + 1
    assert batch.where.all()


# --- epochs -----------------------------------------------------------------------------------------------------------


def test_an_epoch_is_every_row_once_in_an_order_of_its_own(corpus):
    made = batcher(corpus, MANY, size=8)
    batches = made.epoch(0)
    assert [len(b) for b in batches] == [8, 8, 8, 6]
    assert sorted(np.concatenate(batches).tolist()) == list(range(30))
    orders = [np.concatenate(batcher(corpus, MANY, seed=s).epoch(e)).tolist() for s in (0, 1) for e in (0, 1)]
    assert len(set(map(tuple, orders))) == 4
    assert np.concatenate(made.epoch(0)).tolist() == orders[0]  # the batch size cuts, it does not shuffle


def test_steps_take_batches_in_turn_and_the_last_may_be_short(corpus):
    made = batcher(corpus, MANY, size=8)
    steps = list(micro_batches(made, 0, 3))
    assert [len(step) for step in steps] == [3, 1]
    np.testing.assert_array_equal(np.concatenate([b for step in steps for b in step]), np.concatenate(made.epoch(0)))


@pytest.mark.parametrize("size", [1, 4])
def test_a_batch_without_any_negative_is_refused(corpus, size):
    rows = [row("a", ["d1"])] if size > 1 else [row("a", ["d1"]), row("b", ["d2"])]
    with pytest.raises(InputError, match="nothing is learned; make it larger"):
        batcher(corpus, rows, size=size)
    with pytest.raises(InputError, match="nothing is learned"):
        batcher(corpus, MANY, size=1, negatives=0)
    assert batcher(corpus, [row("a", ["d1"], ["d2"])], size=size).rows


# --- properties -------------------------------------------------------------------------------------------------------

ids = st.sampled_from(sorted(TEXTS))
some_rows = st.lists(
    st.tuples(
        st.sampled_from("abcd"),
        st.lists(ids, min_size=1, max_size=3, unique=True),
        st.lists(ids, max_size=3, unique=True),
    ),
    min_size=2,
    max_size=6,
)
some_qrels = st.dictionaries(st.sampled_from("abcde"), st.dictionaries(ids, st.integers(0, 3), max_size=5), max_size=4)


@given(some_rows, some_qrels, st.sampled_from([1, 2, 5]), st.integers(0, 3))
def test_single_rows_say_exactly_what_a_reader_of_the_rule_would(corpus, drafts, qrels, positives, epoch):
    rows = [row(q, p, n) for q, p, n in drafts]
    relevant = {q: {TEXTS[d] for d, grade in judged.items() if grade} for q, judged in qrels.items()}
    for r in rows:
        relevant.setdefault(r.query_id, set()).update(TEXTS[d] for d in r.positive_ids)
    batch = whole(corpus, rows, SINGLE, qrels, epoch, positives=positives, negatives=2)
    assert len(batch.documents) == len(set(batch.documents))
    for i, query in enumerate(batch.row_query):
        (own,) = np.flatnonzero(batch.labels[i])
        name = batch.query_ids[query]
        assert batch.documents[own] in {TEXTS[d] for d in rows[query].positive_ids}
        for j, text in enumerate(batch.documents):
            if j == own:
                assert batch.where[i, j]
            elif not batch.where[i, j]:
                assert text in relevant[name]
            elif text != "text 1":  # which two documents have, of which perhaps only the other one is judged
                assert text not in relevant[name]
    assert batch.causes["relevant_masked"] == (~batch.where).sum()
    assert (batch.where_columns <= batch.where).all()
    for j in np.flatnonzero(batch.labels.any(axis=0)):  # each relevant document keeps a query that asks for it
        assert (batch.where_columns[:, j] & (batch.labels[:, j] > 0)).any()


@given(some_rows, some_qrels)
def test_several_positives_are_the_grades_that_are_known(corpus, drafts, qrels):
    rows = [row(q, p, n) for q, p, n in drafts]
    batch = whole(corpus, rows, SEVERAL, qrels, positives=9, negatives=9)
    in_batch = {d for r in rows for d in [*r.positive_ids, *r.negative_ids]}
    for i, r in enumerate(rows):
        grades = dict.fromkeys(batch.documents, 0.0)
        for other in rows:
            if other.query_id == r.query_id:
                for d in other.positive_ids:
                    grades[TEXTS[d]] = max(1.0, grades[TEXTS[d]])
        for d, grade in qrels.get(r.query_id, {}).items():
            if d in in_batch:
                grades[TEXTS[d]] = max(float(grade), grades[TEXTS[d]])
        assert dict(zip(batch.documents, batch.labels[i].tolist(), strict=True)) == grades
    assert batch.where.all()


@given(some_rows, st.permutations(range(6)))
def test_the_order_of_a_batchs_rows_changes_no_cell(corpus, drafts, order):
    rows = [row(f"{q}{i}", p, n) for i, (q, p, n) in enumerate(drafts)]
    made = batcher(corpus, rows, SEVERAL, positives=2, negatives=2)
    order = [i for i in order if i < len(rows)]
    straight, shuffled = made.make(range(len(rows)), 0), made.make(order, 0)
    assert cells(straight, straight.labels) == cells(shuffled, shuffled.labels)
