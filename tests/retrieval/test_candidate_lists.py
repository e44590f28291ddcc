"""Lists that a reranker is trained on: what is drawn, what never is, and what label it gets."""

import numpy as np
import pytest
from beir_folder import make_collection
from hypothesis import given
from hypothesis import strategies as st

from retrieval.batches import ANY_GRADE, LabelRule, collect_judgements
from retrieval.candidate_lists import ListBatcher, Pool
from retrieval.collection import Collection
from retrieval.errors import InputError
from retrieval.rows import TrainingRow

BINARY = LabelRule(several=True)
GRADED = LabelRule(several=True, positive_from=ANY_GRADE)
ONE = LabelRule(several=False)
TEACHER = LabelRule(several=True, positive_from=ANY_GRADE, teacher=True)
# d0 … d29; the texts of d4 and d14 are the same, and so are those of d20 and d21
TEXTS = [f"document number {'four' if n in (4, 14) else 'twenty' if n in (20, 21) else n}" for n in range(30)]
RUN = {"q": {f"d{n}": float(-n) for n in range(30)}}
ROW = TrainingRow(query_id="q", query="number", positive_ids=("d3", "d4"), positive_labels=(2.0, 1.0))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lists")
    documents = [{"_id": f"d{n}", "title": "", "text": text} for n, text in enumerate(TEXTS)]
    return Collection.load(make_collection(folder, documents, {"q": "number"}, {"train": {"q": {"d3": 1}}})).corpus


@pytest.fixture(scope="module")
def batcher(corpus):
    """Makes a batcher over RUN; `qrels` are judgements beside those of the rows."""

    def make(*rows, qrels=None, rule=BINARY, run=RUN, **settings):
        judgements = collect_judgements(rows, qrels or {})
        return ListBatcher(rows, Pool(corpus, run), judgements, rule, batch_size=2, **settings)

    return make


def drawn(batcher, epochs=30, number=0) -> set[str]:
    """Every text that the lists of a row have in so many epochs."""
    return {text for epoch in range(epochs) for text in batcher.make(number, epoch).documents}


# --- what is drawn ----------------------------------------------------------------------------------------------------


def test_a_list_has_what_was_asked_for_and_relevant_documents_first(batcher):
    made = batcher(ROW, num_positives=2, num_negatives=7).make(0, 0)
    assert (made.query_id, made.query, made.number, made.filled) == ("q", "number", 0, 7)
    assert len(made.documents) == len(set(made.documents)) == 9
    assert made.labels.dtype == np.float32
    assert sorted(made.labels[:2]) == [1, 2]
    assert made.labels[2:].tolist() == [0] * 7


@given(st.integers(0, 2**32), st.integers(0, 50))
def test_a_list_depends_on_seed_epoch_and_row_alone(batcher, seed, epoch):
    rows = [ROW, TrainingRow(query_id="p", query="document", positive_ids=("d9",))]
    one, two = batcher(*rows, seed=seed, num_negatives=5), batcher(*rows, seed=seed, num_negatives=5)
    two.make(1, epoch + 1)
    first, second = one.make(0, epoch), two.make(0, epoch)
    assert first.documents == second.documents
    assert (first.labels == second.labels).all()


def test_another_epoch_and_another_seed_draw_others(batcher):
    lists = [batcher(ROW, seed=seed).make(0, epoch).documents for seed in range(3) for epoch in range(3)]
    assert len({tuple(one) for one in lists}) == 9


def test_an_epoch_has_every_row_once_in_an_order_of_its_own(batcher):
    rows = [TrainingRow(query_id=f"q{n}", query="number", positive_ids=("d3",)) for n in range(5)]
    made = batcher(*rows)
    one, two = made.epoch(0), made.epoch(1)
    assert [len(batch) for batch in one] == [2, 2, 1]
    assert sorted(np.concatenate(one)) == [0, 1, 2, 3, 4] == sorted(np.concatenate(two))
    assert np.concatenate(one).tolist() != np.concatenate(two).tolist()
    assert [batch.tolist() for batch in batcher(*rows).epoch(1)] == [batch.tolist() for batch in two]


def test_given_negatives_come_before_the_pool(batcher):
    row = TrainingRow(query_id="q", query="number", positive_ids=("d3",), negative_ids=("d27", "d28", "d29"))
    for epoch in range(9):
        made = batcher(row, num_negatives=5).make(0, epoch)
        assert set(made.documents[1:4]) == {TEXTS[27], TEXTS[28], TEXTS[29]}
        assert made.filled == 2
    few = batcher(row, num_negatives=2)
    assert drawn(few) == {TEXTS[3], TEXTS[27], TEXTS[28], TEXTS[29]}
    assert few.make(0, 0).filled == 0


def test_a_document_that_is_judged_is_never_drawn_from_the_pool(batcher):
    qrels = {"q": {f"d{n}": 0 if n % 2 else 1 for n in range(12)}}
    texts = drawn(batcher(ROW, qrels=qrels, num_negatives=20))
    assert texts == {TEXTS[3], *TEXTS[12:]} - {TEXTS[14]} | {TEXTS[4]}


@pytest.mark.parametrize("rule", [BINARY, GRADED, ONE])
def test_the_text_of_a_relevant_document_is_never_among_the_others(batcher, rule):
    """d14 has the text of d4, which is relevant: by the row, or by the qrels alone."""
    row = TrainingRow(query_id="q", query="number", positive_ids=("d3",), negative_ids=("d14", "d29"))
    for made in (batcher(ROW, rule=rule, num_negatives=40), batcher(row, rule=rule, qrels={"q": {"d4": 1}})):
        for epoch in range(20):
            found = made.make(0, epoch)
            others = [text for text, label in zip(found.documents, found.labels, strict=True) if label == 0]
            assert TEXTS[4] not in others
            assert len(others) == len(set(others)) > 5


def test_a_relevant_document_given_as_a_negative_keeps_its_grade_or_is_left_out(batcher):
    row = TrainingRow(query_id="q", query="number", positive_ids=("d3",), negative_ids=("d7", "d29"))
    qrels = {"q": {"d7": 3}}
    several = batcher(row, qrels=qrels, num_negatives=2).make(0, 0)
    assert dict(zip(several.documents, several.labels.tolist(), strict=True))[TEXTS[7]] == 3
    one = batcher(row, qrels=qrels, num_negatives=2, rule=ONE)
    assert TEXTS[7] not in drawn(one)
    assert TEXTS[29] in one.make(0, 0).documents


def test_texts_that_the_row_brings_need_no_corpus(batcher):
    row = TrainingRow(query_id="text:1", query="number", positives=("mine",), negatives=("theirs", TEXTS[2], "mine "))
    made = batcher(row, run={"text:1": RUN["q"]}, num_negatives=40).make(0, 0)
    assert made.documents[0] == "mine"
    assert set(made.documents[1:4]) == {"theirs", "mine ", TEXTS[2]}
    assert made.labels.tolist() == [1] + [0] * (len(made.documents) - 1)
    assert len(made.documents) == 3 + len(set(TEXTS))  # of the equal texts one


def test_only_the_best_of_a_run_fill_lists_whatever_the_order_of_its_lines(corpus):
    backwards = {"q": dict(reversed(RUN["q"].items()))}
    assert Pool(corpus, backwards, depth=3).documents("q", "") == ["d0", "d1", "d2"]
    assert Pool(corpus, backwards).documents("another", "") == []


def test_without_a_run_bm25_fills_the_lists(corpus):
    pool = Pool(corpus, depth=5)
    assert pool.documents("q", "number 17")[0] == "d17"
    assert len(pool.documents("q", "document")) == 5
    assert pool.documents("q", "words of another tongue") == []


def test_a_query_whose_pool_is_empty_has_a_list_of_one(batcher):
    row = TrainingRow(query_id="lacking", query="zebra", positive_ids=("d3",))  # a word that no document has
    made = batcher(row).make(0, 0)
    assert (made.documents, made.labels.tolist(), made.filled) == ([TEXTS[3]], [1], 0)


# --- labels -----------------------------------------------------------------------------------------------------------


def test_grades_become_probabilities_by_the_highest_grade(batcher):
    rule = LabelRule(several=True, positive_from=ANY_GRADE, scale=2.0)
    made = batcher(ROW, rule=rule, num_positives=2, num_negatives=0).make(0, 0)
    assert dict(zip(made.documents, made.labels.tolist(), strict=True)) == {TEXTS[3]: 1.0, TEXTS[4]: 0.5}


def test_soft_labels_of_negatives_are_kept(batcher):
    row = TrainingRow(
        query_id="q", query="n", positive_ids=("d3",), negative_ids=("d8", "d9"), negative_labels=(0.25, 0.0)
    )
    made = batcher(row, rule=GRADED, num_negatives=2).make(0, 0)
    assert dict(zip(made.documents, made.labels.tolist(), strict=True)) == {TEXTS[3]: 1, TEXTS[8]: 0.25, TEXTS[9]: 0}


def test_positives_below_the_grade_of_the_loss_are_none(batcher):
    rule = LabelRule(several=True, positive_from=2.0)
    row = TrainingRow(query_id="q", query="number", positive_ids=("d3", "d9"), positive_labels=(2.0, 1.0))
    made = batcher(row, rule=rule, num_positives=2, num_negatives=3)
    assert [made.make(0, epoch).documents[0] for epoch in range(5)] == [TEXTS[3]] * 5
    assert TEXTS[9] not in drawn(made)  # judged, so no stranger
    weak = TrainingRow(query_id="p", query="n", positive_ids=("d1",))
    assert batcher(ROW, weak, rule=rule).dropped == 1
    with pytest.raises(InputError, match="none of the 1 training rows has a positive of grade >= 2"):
        batcher(weak, rule=rule)


def test_a_loss_of_one_positive_gets_one(batcher):
    made = batcher(ROW, rule=ONE, num_positives=2, num_negatives=3)
    assert {tuple(made.make(0, epoch).labels > 0) for epoch in range(20)} == {(True, False, False, False)}
    assert {made.make(0, epoch).documents[0] for epoch in range(20)} == {TEXTS[3], TEXTS[4]}


def test_a_teachers_list_has_what_it_scored_and_nothing_else(batcher):
    row = TrainingRow(
        query_id="q",
        query="n",
        positive_ids=("d3", "d5"),
        positive_scores=(2.5, -1.0),
        negative_ids=("d8", "d9"),
        negative_scores=(-3.5, 0.5),
    )
    made = batcher(row, rule=TEACHER, num_positives=2, num_negatives=7).make(0, 0)
    found = dict(zip(made.documents, made.labels.tolist(), strict=True))
    assert found == {TEXTS[3]: 2.5, TEXTS[5]: -1, TEXTS[8]: -3.5, TEXTS[9]: 0.5}
    assert made.filled == 0
    with pytest.raises(InputError, match="none of the 1 training rows has a teacher's scores of two documents"):
        batcher(ROW, rule=TEACHER)


def test_of_near_duplicates_the_best_alone_keeps_its_grade(batcher):
    long = "one two three four five six seven eight nine ten"
    row = TrainingRow(
        query_id="q",
        query="n",
        positives=(long, f"{long} eleven", "something else altogether, about otters"),
        positive_labels=(1.0, 2.0, 1.0),
        negatives=("and a fourth text that nothing resembles",),
    )
    made = batcher(row, run={}, rule=GRADED, num_positives=3, num_negatives=1, novelty=True).make(0, 0)
    found = dict(zip(made.documents, made.labels.tolist(), strict=True))
    assert sorted(found.values()) == [0, 0, 1, 2]
    assert (found[long], found[f"{long} eleven"]) == (0, 2)


# --- runs that do not fit ---------------------------------------------------------------------------------------------


def test_a_run_with_a_document_that_the_corpus_lacks_is_refused(corpus):
    with pytest.raises(InputError, match="query 'q' of the run has document 'x7', which is not in the corpus"):
        Pool(corpus, {"q": {"d1": 2.0, "x7": 1.0}})


@pytest.mark.parametrize("run", [{}, {"other": {"d1": 1.0}}, {"q": {}}])
def test_a_run_without_any_training_query_is_refused(corpus, run):
    with pytest.raises(InputError, match=r"mine\.run: has documents for none of the 1 training queries"):
        Pool(corpus, run).check(["q"], "mine.run")


def test_training_queries_that_the_run_lacks_are_counted(corpus, caplog):
    caplog.set_level("WARNING")
    Pool(corpus, RUN).check(["q"])
    Pool(corpus).check(["q", "p"])
    assert not caplog.records
    Pool(corpus, RUN).check(["p", "q", "r"])
    assert "2 of 3 training queries have no documents in the run (first: p); BM25 fills their lists" in caplog.text


def test_a_query_that_the_run_lacks_is_filled_from_bm25(corpus):
    with_run, without = Pool(corpus, RUN), Pool(corpus)
    assert with_run.documents("q", "number") == list(RUN["q"])[:100]
    assert with_run.documents("unknown", "number") == without.documents("unknown", "number") != []
    assert len(without.documents("unknown", "number", depth=1)) == 1


# --- duels ------------------------------------------------------------------------------------------------------------


def test_a_duel_is_a_pair_of_different_labels_whose_better_one_is_1(batcher):
    made = batcher(ROW, rule=GRADED, num_positives=2, num_negatives=3)
    grades = {TEXTS[3]: 2, TEXTS[4]: 1}
    seen = set()
    for epoch in range(30):
        duels = made.duels(0, epoch, 3)
        assert len(duels) == 3
        listed = set(made.make(0, epoch).documents)
        for duel in duels:
            assert set(duel.documents) <= listed
            better = [grades.get(text, 0) for text in duel.documents]
            assert duel.labels.tolist() == [float(better[0] > better[1]), float(better[1] > better[0])]
            assert duel.labels.dtype == np.float32
            seen.add((*sorted(better), better[0] > better[1]))
    assert seen == {(0, 1, True), (0, 1, False), (0, 2, True), (0, 2, False), (1, 2, True), (1, 2, False)}


def test_duels_depend_on_seed_epoch_and_row_alone_and_there_are_no_more_than_pairs(batcher):
    one, two = (batcher(ROW, num_negatives=4) for _ in range(2))
    two.duels(0, 5, 2)
    first, second = one.duels(0, 7, 9), two.duels(0, 7, 9)
    assert [duel.documents for duel in first] == [duel.documents for duel in second]
    assert len({frozenset(duel.documents) for duel in first}) == len(first) == 4
    assert [duel.documents for duel in one.duels(0, 8, 9)] != [duel.documents for duel in first]


def test_a_list_of_equal_labels_has_no_duel(batcher):
    alone = TrainingRow(query_id="q", query="zebra", positive_ids=("d3",))
    assert batcher(alone, rule=BINARY, run={}).duels(0, 0, 7) == []
    equal = TrainingRow(query_id="q", query="zebra", positive_ids=("d3", "d5"))
    assert batcher(equal, run={}, num_positives=2).duels(0, 0, 7) == []


def test_a_teachers_duels_keep_its_scores(batcher):
    row = TrainingRow(
        query_id="q",
        query="n",
        positive_ids=("d3",),
        positive_scores=(2.5,),
        negative_ids=("d8",),
        negative_scores=(-3.5,),
    )
    (duel,) = batcher(row, rule=TEACHER).duels(0, 0, 7)
    assert dict(zip(duel.documents, duel.labels.tolist(), strict=True)) == {TEXTS[3]: 2.5, TEXTS[8]: -3.5}
