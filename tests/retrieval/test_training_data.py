import json

import pytest
from beir_folder import make_collection
from tiny_files import queries, rows_file

from rankers.losses import LOSSES, build_expression
from retrieval.batches import ANY_GRADE
from retrieval.errors import InputError
from retrieval.train_config import TrainConfig
from retrieval.training_data import load_training_data


def load(data, **values):
    return load_training_data(TrainConfig.from_dict({"model": "m", "data": str(data), "out": "o", **values}))


DOCUMENTS = [{"_id": f"d{i}", "text": f"text {i}"} for i in range(12)]
# words of their own, so that no two queries are near-equal
QUERIES = {f"q{i}": " ".join(f"word{i}x{j}" for j in range(4)) for i in range(10)}
TRAIN = {f"q{i}": {f"d{i}": 1 + i % 3, "d11": 0} for i in range(10)}


def collection(folder, **splits):
    return make_collection(folder, DOCUMENTS, QUERIES, splits)


# --- splits -----------------------------------------------------------------------------------------------------------


def test_train_and_dev_are_read_and_test_is_not(tmp_path, monkeypatch):
    folder = collection(tmp_path, train={"q1": {"d1": 2}}, dev={"q2": {"d2": 1}}, test={"q3": {"d3": 1}})
    (folder / "qrels" / "test.tsv").write_text("this is no qrels file")
    found = load(folder)
    assert [row.query_id for row in found.rows] == ["q1"]
    assert found.judgements == {"q1": {"d1": 2.0}}
    assert found.dev_queries == {"q2": QUERIES["q2"]}
    assert found.dev_qrels == {"q2": {"d2": 1}}
    assert found.max_grade == 2.0


def test_without_a_dev_split_one_is_carved_from_the_training_queries(tmp_path, caplog):
    caplog.set_level("INFO")
    found = load(collection(tmp_path, train=TRAIN))
    trained = {row.query_id for row in found.rows}
    assert 1 <= len(found.dev_queries) <= 5
    assert trained | set(found.dev_queries) == set(QUERIES)
    assert not trained & set(found.dev_queries)
    assert set(found.judgements) == trained  # dev judgements do not enter the mask
    assert found.dev_qrels == {q: TRAIN[q] for q in found.dev_queries}
    assert "no dev split:" in caplog.text
    again = load(collection(tmp_path / "again", train=dict(reversed(TRAIN.items()))))
    assert set(again.dev_queries) == set(found.dev_queries)


def test_without_validation_every_training_query_is_trained_on(tmp_path):
    found = load(collection(tmp_path, train=TRAIN), eval_strategy="no")
    assert len(found.rows) == 10
    assert found.dev_queries == found.dev_qrels == {}


def test_rows_of_dev_queries_are_left_out_by_id_and_by_text(tmp_path, caplog):
    caplog.set_level("INFO")
    folder = collection(tmp_path, dev={"q1": {"d1": 1}, "q2": {"d2": 1}})
    rows = [
        {"query_id": "q1", "query": "another wording", "positive_ids": ["d1"]},
        {"query_id": "x", "query": QUERIES["q2"], "positive_ids": ["d2"]},
        {"query_id": "q3", "query": QUERIES["q3"], "positive_ids": ["d3"]},
    ]
    found = load(folder, rows=[str(rows_file(tmp_path / "rows.jsonl", rows))])
    assert [row.query_id for row in found.rows] == ["q3"]
    assert "2 training rows of dev queries are left out" in caplog.text


def test_a_row_with_a_text_alone_has_the_judgements_of_the_training_query_with_that_text(tmp_path):
    folder = collection(tmp_path, train={"q1": {"d1": 1, "d5": 2}})
    rows = [{"query": QUERIES["q1"], "positives": ["text 1"]}, {"query": "another", "positives": ["text 2"]}]
    found = load(folder, rows=[str(rows_file(tmp_path / "rows.jsonl", rows))], eval_strategy="no")
    known, unknown = (row.query_id for row in found.rows)
    assert known == "q1"
    assert {"d1", "d5"} < found.judgements["q1"].keys()
    assert unknown.startswith("text:")


def test_the_training_split_as_dev_split_leaves_nothing(tmp_path):
    with pytest.raises(InputError, match="beside those of dev queries; is the dev split the training split"):
        load(collection(tmp_path, train=TRAIN), dev_split="train")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"train_split": "trian"}, "no split 'trian'; did you mean 'train'"),
        ({"dev_split": "vaild"}, "no split 'vaild'; did you mean 'valid'"),
    ],
)
def test_a_split_that_is_named_must_exist(tmp_path, values, message):
    folder = collection(tmp_path, train=TRAIN, valid={"q1": {"d1": 1}})
    with pytest.raises(InputError, match=message):
        load(folder, **values)
    rows = rows_file(tmp_path / "rows.jsonl", [{"query": "x", "positive_ids": ["d1"]}])
    with pytest.raises(InputError, match=message):
        load(folder, rows=[str(rows)], **values)


def test_without_rows_there_must_be_a_training_split(tmp_path):
    with pytest.raises(InputError, match="no split 'train'"):
        load(collection(tmp_path / "a", test=TRAIN))
    with pytest.raises(InputError, match=r"it has no qrels/\*.tsv"):
        load(collection(tmp_path / "b"))


def test_rows_alone_are_enough_and_nothing_is_validated(tmp_path, caplog):
    rows = [{"query": f"query {i}", "positives": [f"p{i}"], "negatives": [f"n{i}"]} for i in range(3)]
    found = load(collection(tmp_path), rows=[str(rows_file(tmp_path / "rows.jsonl", rows))])
    assert len(found.rows) == 3
    assert found.dev_queries == {}
    assert "nothing is validated" in caplog.text


def test_one_query_cannot_be_carved_and_the_fix_is_named(tmp_path):
    folder = collection(tmp_path, train={"q1": {"d1": 1}})
    with pytest.raises(InputError, match="cannot be divided into training and dev; turn validation off"):
        load(folder)
    assert load(folder, eval_strategy="no").rows


def test_dev_queries_without_anything_relevant_turn_validation_off(tmp_path, caplog):
    found = load(collection(tmp_path, train=TRAIN, dev={"q1": {"d1": 0}}))
    assert found.dev_queries == found.dev_qrels == {}
    assert len(found.rows) == 10
    assert "no dev query has a relevant document" in caplog.text


# --- rows -------------------------------------------------------------------------------------------------------------


def test_several_files_of_rows_of_any_dialect_are_joined(tmp_path):
    one = rows_file(
        tmp_path / "one.jsonl", [{"query_id": "q1", "query": "a", "positive_ids": ["d1"], "negative_ids": ["d2"]}]
    )
    two = rows_file(tmp_path / "two.jsonl", [{"anchor": "b", "positive": "p", "negative": "n"}])
    found = load(collection(tmp_path), rows=[str(one), str(two)], eval_strategy="no")
    assert [(row.query, row.positive_ids or row.positives) for row in found.rows] == [("a", ("d1",)), ("b", ("p",))]


def test_a_bad_row_is_told_by_file_and_line(tmp_path):
    rows = rows_file(
        tmp_path / "rows.jsonl", [{"query": "a", "positive_ids": ["d1"]}, {"query": "b", "positive_ids": ["zz"]}]
    )
    with pytest.raises(InputError, match=r"rows.jsonl:2: .*'zz'.*not in the corpus"):
        load(collection(tmp_path), rows=[str(rows)], eval_strategy="no")


def test_training_qrels_mask_the_negatives_of_rows(tmp_path):
    rows = [{"query_id": "q1", "query": "a", "positive_ids": ["d1"], "positive_labels": [2.0]}]
    folder = collection(tmp_path, train=TRAIN)
    found = load(folder, rows=[str(rows_file(tmp_path / "rows.jsonl", rows))], eval_strategy="no")
    assert found.judgements == {"q1": {"d1": 2.0, "d11": 0.0}}
    assert found.max_grade == 2.0  # of what is trained on, not of the whole split


# --- labels -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "settings", "several", "positive_from", "scale"),
    [
        ("infonce", {}, False, 1.0, 1.0),
        ("infonce", {"positive_from": 3}, False, 3.0, 1.0),
        ("mw", {}, True, 1.0, 1.0),
        ("sl_at_k", {"positive_from": 2}, True, 2.0, 1.0),
        ("decoupled_softmax", {}, True, 1.0, 1.0),
        ("softmax_ce", {}, True, ANY_GRADE, 1.0),
        ("bixse", {}, True, ANY_GRADE, 3.0),
        ("kl_div", {}, True, ANY_GRADE, 1.0),
        ("mw + sl_at_k", {"mw.positive_from": 2, "sl_at_k.positive_from": 3}, True, 2.0, 1.0),
        ("bixse + point_ce", {}, True, ANY_GRADE, 3.0),
        ("bixse + 0.5*ranknet", {}, True, ANY_GRADE, 1.0),
        ("infonce + 0.5*ranknet", {}, False, ANY_GRADE, 1.0),
    ],
)
def test_each_loss_gets_the_labels_that_it_accepts(tmp_path, name, settings, several, positive_from, scale):
    loss = build_expression(name, settings)
    rule = load(collection(tmp_path, train=TRAIN), eval_strategy="no").label_rule(loss)
    assert (rule.several, rule.positive_from, rule.scale) == (several, positive_from, scale)
    assert rule.teacher == (name == "kl_div")


def test_the_test_above_knows_every_kind_of_label():
    assert {entry.labels for entry in LOSSES.values()} == {"binary", "probability", "grade", "teacher"}


# --- fingerprint ------------------------------------------------------------------------------------------------------


def test_the_fingerprint_is_of_everything_that_is_trained_and_validated_on(tmp_path):
    def fingerprint(name, documents=DOCUMENTS, texts=QUERIES, rows=None, **splits):
        folder = make_collection(tmp_path / name, documents, texts, {"train": TRAIN, "dev": {"q1": {"d1": 1}}} | splits)
        more = {"rows": [str(rows_file(tmp_path / f"{name}.jsonl", rows))]} if rows else {}
        return load(folder, **more).fingerprint()

    base = fingerprint("base")
    assert fingerprint("same") == base
    assert fingerprint("test", test={"q2": {"d2": 1}}) == base  # nothing depends on test judgements
    others = [
        fingerprint("documents", documents=[*DOCUMENTS[:-1], {"_id": "d11", "text": "changed"}]),
        fingerprint("queries", texts=QUERIES | {"q5": "changed"}),
        fingerprint("train", train=TRAIN | {"q5": {"d5": 1, "d6": 1}}),
        fingerprint("judged", train=TRAIN | {"q5": TRAIN["q5"] | {"d7": 0}}),
        fingerprint("dev", dev={"q1": {"d1": 2}}),
        fingerprint("dev-text", texts=QUERIES | {"q1": "changed"}),
        fingerprint("rows", rows=[{"query": "x", "positive_ids": ["d1"]}]),
    ]
    assert len({base, *others}) == 8


def test_a_real_collection_with_every_split(tiny_collection):
    found = load(tiny_collection)
    assert (len(found.rows), len(found.dev_queries), found.max_grade) == (36, 12, 3.0)
    assert json.dumps(found.dev_queries)
    assert set(found.dev_queries) < set(queries())
