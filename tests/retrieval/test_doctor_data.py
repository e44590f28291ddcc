"""What the doctor finds in training rows, on small collections whose faults are made by hand."""

import pytest
from beir_folder import jsonl, make_collection

from retrieval.batches import Batcher
from retrieval.doctor_data import examine_rows, spread
from retrieval.doctor_findings import Commands, Examination
from retrieval.objective import build_loss
from retrieval.train_config import TrainConfig
from retrieval.training_data import load_training_data

N = 20
PLANTS = ["amber", "birch", "cedar", "daisy", "ember", "fern", "ginger", "hazel", "iris", "jade", "kelp", "lotus",
          "maple", "nettle", "olive", "pine", "quince", "rose", "sage", "tansy"]  # fmt: skip
DOCUMENTS = [
    {
        "_id": f"d{i}",
        "title": plant,
        "text": f"The {plant} grows well in the garden beside the house and needs water {i}.",
    }
    for i, plant in enumerate(PLANTS)
]
QUERIES = {f"q{i}": f"how to grow {plant}" for i, plant in enumerate(PLANTS)}
TRAIN = {f"q{i}": {f"d{i}": 1} for i in range(16)}
TEST = {f"q{i}": {f"d{i}": 1} for i in range(16, N)}


@pytest.fixture
def look(tmp_path):
    """Examine a collection, rows and settings; return the examination."""

    def go(rows=None, *, qrels=None, queries=QUERIES, documents=DOCUMENTS, **settings):
        folder = make_collection(tmp_path / "c", documents, queries, qrels or {"train": TRAIN, "test": TEST})
        files = []
        if rows is not None:
            (tmp_path / "rows.jsonl").write_text(jsonl(rows))
            files = [str(tmp_path / "rows.jsonl")]
        base = {"model": "m", "data": str(folder), "out": "o", "rows": files, "eval_strategy": "no", "max_steps": 50}
        config = TrainConfig.from_dict({**base, "per_device_train_batch_size": 8, **settings})
        loss, data = build_loss(config), load_training_data(config)
        batcher = Batcher(
            data.rows,
            data.collection.corpus,
            data.judgements,
            data.label_rule(loss),
            batch_size=config.per_device_train_batch_size,
            num_positives=config.num_positives,
            num_negatives=config.num_negatives,
        )
        exam = Examination("x")
        examine_rows(exam, config, data, batcher, loss, Commands(config))
        return exam

    return go


def found(exam: Examination) -> dict[str, tuple[str, str]]:
    return {one.name: (one.severity, one.found) for one in exam.diagnoses}


def own_rows(**changes):
    return [{"query_id": f"q{i}", "query": QUERIES[f"q{i}"], "positive_ids": [f"d{i}"]} | changes for i in range(16)]


def test_sound_rows_give_no_finding(look):
    exam = look()
    assert found(exam) == {}
    assert exam.figures["leaked_test"] == 0
    assert exam.figures["negatives_per_query"] == 7
    assert exam.figures["masked_share"] == 0


# --- texts ------------------------------------------------------------------------------------------------------------


def test_a_test_query_that_is_trained_on_with_its_document_leaks(look):
    rows = [*own_rows(), *({"query": QUERIES[f"q{i}"], "positive_ids": [f"d{i}"]} for i in range(16, N))]
    severity, told = found(look(rows))["leak"]
    assert severity == "problem"
    assert told == "4 of 4 queries of split test (100.0%) are trained on with their relevant document"


def test_a_near_equal_query_with_the_document_as_text_leaks_too(look):
    document = f"{DOCUMENTS[16]['title']} {DOCUMENTS[16]['text']}"
    rows = [*own_rows(), {"query": "How to grow MAPLE?", "positives": ["a maple"]}]
    rows.append({"query": f"{QUERIES['q16'].upper()}!", "positives": [document]})
    assert found(look(rows))["leak"] == (
        "problem",
        "1 of 4 queries of split test (25.0%) are trained on with their relevant document",
    )


def test_a_near_equal_query_about_another_document_is_no_leak(look):
    # the words "how to grow" are shared by all: what counts is the document
    rows = [*own_rows(), {"query": QUERIES["q16"], "positive_ids": ["d0"]}]
    assert "leak" not in found(look(rows))


def test_a_split_of_the_same_family_is_no_leak(look):
    assert "leak" not in found(look(qrels={"train": TRAIN, "train_small": dict(list(TRAIN.items())[:3]), "test": TEST}))


def test_a_few_leaks_are_a_remark(look):
    test = {**{f"q{i}": {f"d{i}": 1} for i in range(12, N)}}
    qrels = {"train": {f"q{i}": {f"d{i}": 1} for i in range(13)}, "test": test}
    assert found(look(qrels=qrels))["leak"][0] == "remark"  # 1 of 8: 12.5 %
    exam = look(qrels={**qrels, "dev": {"q12": {"d12": 1}}})
    assert found(exam)["leak"] == (
        "problem",
        "1 of 1 queries of split dev (100.0%) and 1 of 8 queries of split test (12.5%) "
        "are trained on with their relevant document",
    )


def test_queries_and_documents_that_are_swapped(look):
    texts = {d["_id"]: f"{d['title']} {d['text']}" for d in DOCUMENTS}
    rows = [{"query": texts[f"d{i}"], "positives": [QUERIES[f"q{i}"]]} for i in range(16)]
    severity, told = found(look(rows))["swapped_sides"]
    assert severity == "problem"
    assert told == (
        "the rows' queries have 15 words (median) and their positives 4; "
        "the collection's documents have 15, its queries 4"
    )


def test_long_queries_of_a_collection_whose_documents_are_short_are_a_remark(look):
    queries = {q: " ".join([text] * 12) for q, text in QUERIES.items()}
    assert found(look(queries=queries))["swapped_sides"][0] == "remark"


def test_positives_that_are_the_query(look):
    rows = [*own_rows(), *({"query": f"what is {w}", "positives": [f"What is {w}?"]} for w in PLANTS[:4])]
    assert found(look(rows))["positive_is_query"] == (
        "problem",
        "4 of 20 rows looked at have a positive that is the text of the query",
    )


def test_documents_that_are_a_query(look):
    documents = [*DOCUMENTS, {"_id": "x", "text": "How to grow amber?"}, {"_id": "y", "text": "How to grow."}]
    assert found(look(documents=documents))["document_is_query"] == ("remark", "1 documents have the text of a query")


def test_queries_that_repeat(look):
    rows = [{**row, "query_id": f"{row['query_id']}-{copy}"} for row in own_rows() for copy in range(3)]
    assert found(look(rows))["duplicate_queries"] == (
        "problem",
        "32 of 48 rows repeat the query of an earlier one (67%)",
    )


def test_rows_of_one_query_with_other_positives_are_no_repetition(look):
    rows = [*own_rows(), *({**row, "positive_ids": [f"d{(i + 1) % 16}"]} for i, row in enumerate(own_rows()))]
    assert "duplicate_queries" not in found(look(rows))
    assert found(look([*own_rows(), *own_rows()]))["duplicate_queries"][0] == "problem"


# --- labels -----------------------------------------------------------------------------------------------------------


def listed(negative: float, positive: float = 1.0):
    labels = {"positive_labels": [positive], "negative_labels": [negative, 0.0]}
    return [{**row, "negative_ids": [f"d{i + 1}", f"d{(i + 2)}"], **labels} for i, row in enumerate(own_rows())]


@pytest.mark.parametrize(("negative", "is_same"), [(0.0, False), (0.5, False), (1.0, True), (2.0, True)])
def test_labels_that_do_not_tell_positives_from_negatives(look, negative, is_same):
    exam = look(listed(negative), loss="softmax_ce")
    assert ("same_labels" in found(exam)) == is_same
    if is_same:
        assert found(exam)["same_labels"] == (
            "problem",
            "of 16 rows with labelled negatives, the negatives have the label of the best positive, or a higher in 16",
        )


def test_a_teacher_that_gives_one_score(look):
    scores = {"positive_scores": [0.4], "negative_scores": [0.4, 0.4]}
    rows = [{**row, "negative_ids": [f"d{i + 1}", f"d{i + 2}"], **scores} for i, row in enumerate(own_rows())]
    assert found(look(rows, loss="kl_div"))["same_labels"][0] == "problem"
    rows[0]["negative_scores"] = [0.4, 0.1]
    told = found(look(rows, loss="kl_div"))["same_labels"][1]
    assert told == "of 16 rows with labelled negatives, the teacher's scores are all equal in 15"


def test_grades_that_the_loss_does_not_see_and_a_loss_without_grades(look):
    graded = {q: {d: 1 + i % 3 for d in judged} for i, (q, judged) in enumerate(TRAIN.items())}
    assert "lost_grades" in found(look(qrels={"train": graded, "test": TEST}))
    assert "lost_grades" not in found(look(qrels={"train": graded, "test": TEST}, loss="softmax_ce"))
    assert "single_grade" in found(look(loss="softmax_ce"))
    exam = look(qrels={"train": graded, "test": TEST}, **{"loss.positive_from": 2})
    assert found(exam)["rows_left_out"] == ("remark", "6 of 16 rows have no positive of grade >= 2")


# --- batches ----------------------------------------------------------------------------------------------------------


def test_rows_that_all_have_the_same_positive(look):
    rows = [{"query": row["query"], "positive_ids": ["d0"]} for row in own_rows()]
    severity, told = found(look(rows))["one_class"]
    assert severity == "problem"
    assert told == "16 of 16 rows have the same positive; a query has 0.0 negatives in a batch"


@pytest.mark.parametrize(("size", "expected"), [(2, "remark"), (4, "remark"), (5, None)])
def test_batches_in_which_little_is_compared(look, size, expected):
    exam = look(per_device_train_batch_size=size)
    assert found(exam).get("few_negatives", (None,))[0] == expected
    assert exam.figures["negatives_per_query"] == pytest.approx(size - 1)


def test_a_run_of_few_steps(look):
    assert found(look(max_steps=-1, num_train_epochs=2))["few_steps"] == ("remark", "4 steps")
    assert "few_steps" not in found(look(max_steps=-1, num_train_epochs=5))


def test_what_a_batch_compares_by_hand(look):
    # rows 0 and 1 share d0, which is judged relevant for both: two rows, one column, nothing to compare
    rows = [{"query_id": f"q{i}", "query": QUERIES[f"q{i}"], "positive_ids": ["d0"]} for i in range(2)]
    rows.append({"query_id": "q2", "query": QUERIES["q2"], "positive_ids": ["d2"]})
    exam = look(rows, per_device_train_batch_size=3)
    assert exam.figures["negatives_per_query"] == 1  # d2, d2 and d0
    assert exam.figures["commonest_positive"] == pytest.approx(2 / 3)


def test_values_at_equal_distances():
    assert spread(range(10), 3) == [0, 4, 9]
    assert spread(["a", "b"], 5) == ["a", "b"]
    assert spread([], 5) == []
