"""What labels of text columns mean: the rules of our own batches, for rows without ids."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieval.batches import Batcher, LabelRule, collect_judgements
from retrieval.cells import CellTargets
from retrieval.errors import InputError
from retrieval.labelled_columns import in_batch, own_lists, text_keys
from retrieval.rows import TrainingRow

torch = pytest.importorskip("torch", reason="needs the train extra")


def entry(labels="binary", *, several=True, unchanged_by="one per query"):
    return SimpleNamespace(name="some_loss", labels=labels, several_positives=several, unchanged_by=unchanged_by)


def loss(labels="binary", *, several=True, unchanged_by="one per query", **settings):
    """What is read of a loss."""
    return SimpleNamespace(entry=entry(labels, several=several, unchanged_by=unchanged_by), settings=settings)


def tensors(*rows):
    return [torch.tensor(row) for row in rows]


# --- the matrix ------------------------------------------------------------------------------------------------------


def test_one_at_the_positive_and_a_column_for_every_distinct_text():
    made = in_batch(loss(), ["q", "r"], [["a", "b"], ["c", "a"]], None)
    assert made.documents.tolist() == [0, 1, 2]  # a, b, c; r's negative a is q's positive
    assert made.labels.tolist() == [[1, 0, 0], [0, 1, 0]]
    assert made.labels.dtype == np.float32
    assert made.where.all()


def test_documents_are_numbered_column_by_column():
    made = in_batch(loss(), ["q", "r"], [["a", "a"], ["b", "c"]], None)
    assert made.documents.tolist() == [0, 2, 3]
    assert made.labels.tolist() == [[1, 0, 0], [1, 0, 0]]


def test_a_query_of_two_rows_knows_both_positives():
    queries, columns = ["q", "q", "r"], [["a", "b", "c"]]
    several = in_batch(loss(), queries, columns, None)
    assert several.labels.tolist() == [[1, 1, 0], [1, 1, 0], [0, 0, 1]]
    assert several.where.all()
    single = in_batch(loss(several=False), queries, columns, None)
    assert single.labels.tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 1]]
    assert single.where.tolist() == [[True, False, True], [False, True, True], [True, True, True]]


def test_a_mined_negative_that_is_the_positive_is_none():
    made = in_batch(loss(several=False), ["q", "r"], [["a", "b"], ["a", "c"]], None)
    assert made.labels.tolist() == [[1, 0, 0], [0, 1, 0]]
    assert made.where.all()
    across = in_batch(loss(several=False), ["q", "q"], [["a", "b"], ["c", "a"]], None)  # q's row 2 mined its positive a
    assert across.where.tolist() == [[True, False, True], [False, True, True]]


def test_one_label_is_that_of_the_first_document():
    made = in_batch(loss("probability"), ["q", "r"], [["a", "b"], ["c", "d"]], torch.tensor([0.25, 0.0]))
    assert made.labels.tolist() == [[0.25, 0, 0, 0], [0, 0, 0, 0]]


def test_a_list_labels_a_rows_own_documents():
    made = in_batch(loss("grade"), ["q", "r"], [["a", "b"], ["c", "d"]], torch.tensor([[3, 1], [2, 0]]))
    assert made.labels.tolist() == [[3, 0, 1, 0], [0, 2, 0, 0]]
    again = in_batch(loss("grade"), ["q", "r"], [["a", "b"], ["c", "d"]], tensors([3, 1], [2, 0]))
    assert np.array_equal(made.labels, again.labels)


def test_of_two_labels_of_a_document_the_higher_wins():
    twice = in_batch(loss("grade"), ["q"], [["a"], ["a"], ["b"]], torch.tensor([[1, 3, 2]]))
    assert twice.labels.tolist() == [[3, 2]]
    rows = in_batch(loss("grade"), ["q", "q"], [["a", "a"]], torch.tensor([2, 1]))
    assert rows.labels.tolist() == [[2], [2]]
    negative = in_batch(loss("grade"), ["q", "r"], [["a", "b"]], torch.tensor([-1.0, 1.0]))
    assert negative.labels.tolist() == [[-1, 0], [0, 1]]  # not raised to 0: the loss must refuse it


def test_positive_from_says_what_must_not_be_a_negative():
    labels, columns = torch.tensor([2, 1, 1]), [["a", "b", "c"]]
    made = in_batch(loss(several=False, positive_from=2), ["q", "q", "r"], columns, labels)
    assert made.labels.tolist() == [[2, 0, 0], [0, 1, 0], [0, 0, 1]]
    assert made.where.tolist() == [[True, True, True], [False, True, True], [True, True, True]]
    graded = in_batch(loss("grade", several=False), ["q", "q", "r"], columns, labels / 4)
    assert graded.where.tolist() == [[True, False, True], [False, True, True], [True, True, True]]


def test_a_teacher_sees_a_rows_own_documents():
    made = in_batch(loss("teacher"), ["q", "q"], [["a", "b"], ["b", "b"]], torch.tensor([[-5.0, 2.5], [1.0, 1.0]]))
    assert made.documents is None
    assert made.labels.tolist() == [[-5, 2.5], [1, 1]]
    assert made.where.tolist() == [[True, True], [True, False]]


texts = st.sampled_from("abcdef")
batches = st.lists(st.tuples(st.sampled_from("QRST"), texts, texts, texts), min_size=2, max_size=6)


@given(batches, st.booleans())
def test_it_is_the_matrix_of_our_own_batches(rows, several):
    training_rows = [
        TrainingRow(query_id=query, query=query, positives=(positive,), negatives=tuple(dict.fromkeys(negatives)))
        for query, positive, *negatives in rows
    ]
    batcher = Batcher(
        training_rows,
        SimpleNamespace(texts=lambda rows: []),
        collect_judgements(training_rows, {}),
        LabelRule(several=several),
        batch_size=len(rows),
        num_negatives=2,
    )
    ours = batcher.make(range(len(rows)), 0)
    queries, *columns = (list(column) for column in zip(*rows, strict=True))
    made = in_batch(loss(several=several), queries, columns, None)
    flat = [text for column in columns for text in column]
    order = [[flat[place] for place in made.documents].index(text) for text in ours.documents]
    assert sorted(order) == list(range(len(made.documents)))
    assert np.array_equal(made.labels[:, order], ours.labels)
    assert np.array_equal(made.where[:, order], ours.where)
    assert ours.row_query.tolist() == list(range(len(rows)))
    where_columns = CellTargets.of(made.labels, made.where, queries).where_columns(0, len(rows))
    assert np.array_equal(where_columns[:, order], ours.where_columns)


# --- lists -----------------------------------------------------------------------------------------------------------


def test_lists_of_any_length():
    made = own_lists(entry("grade"), [[["a", "b", "b"], ["c"], []]], tensors([2, 0, 1], [1.5], []))
    assert made.documents == [["a", "b", "b"], ["c"], []]
    assert made.labels.tolist() == [2, 0, 1, 1.5]


def test_columns_become_lists():
    made = own_lists(entry(), [["a", "b"], ["c", "b"], ["d", "e"]], None)
    assert made.documents == [["a", "c", "d"], ["b", "e"]]
    assert made.labels.tolist() == [1, 0, 0, 1, 0]
    taught = own_lists(entry("teacher"), [["a", "b"], ["c", "d"]], tensors([-1.0, -2.0], [3.0, 4.0]))
    assert (taught.documents, taught.labels.tolist()) == ([["a", "c"], ["b", "d"]], [-1, -2, 3, 4])
    first = own_lists(entry(), [["a", "b"], ["c", "d"]], torch.tensor([1, 0]))
    assert first.labels.tolist() == [1, 0, 0, 0]


def test_pairs_for_a_loss_that_needs_no_list():
    made = own_lists(entry("probability", unchanged_by="none"), [["a", "b"]], torch.tensor([0.5, 0.0]))
    assert (made.documents, made.labels.tolist()) == ([["a"], ["b"]], [0.5, 0])


def test_documents_that_are_no_texts_are_all_distinct():
    one, other = {"text": "a"}, {"text": "a"}
    made = own_lists(entry(), [[one], [other], [one]], None)
    assert made.documents == [[one, other]]


# --- what does not fit -----------------------------------------------------------------------------------------------

COLUMNS = [["a", "b"], ["c", "d"]]


@pytest.mark.parametrize(
    "make", [lambda e, *more: in_batch(SimpleNamespace(entry=e, settings={}), ["q", "r"], *more), own_lists]
)
@pytest.mark.parametrize(
    ("kind", "columns", "labels", "message"),
    [
        ("teacher", COLUMNS, None, "some_loss needs a column label: a teacher's scores, a list of 2 per row"),
        (
            "teacher",
            COLUMNS,
            torch.tensor([1.0, 2.0]),
            "some_loss with 2 columns of documents takes a list of 2 per row as labels, got 1 per row",
        ),
        (
            "grade",
            COLUMNS,
            torch.ones(2, 3),
            "some_loss with 2 columns of documents takes a number, or a list of 2, per row as labels, got 3 per row",
        ),
        ("grade", COLUMNS, tensors([1.0], [1.0, 2.0]), "got 1 or 2 per row"),
        (
            "teacher",
            COLUMNS[:1],
            torch.tensor([1.0, 2.0]),
            "some_loss compares a row's own documents, and each row has one",
        ),
        ("grade", COLUMNS, torch.tensor([1, float("nan")]), r"labels of row 1 of the batch are \[nan\]; each must be"),
        (
            "binary",
            COLUMNS,
            torch.tensor([[1, 0], [1, -float("inf")]]),
            r"labels of row 1 of the batch are \[1.0, -inf\]",
        ),
    ],
)
def test_labels_that_do_not_fit_are_named_in_one_line(make, kind, columns, labels, message):
    with pytest.raises(InputError, match=message) as caught:
        make(entry(kind), columns, labels)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "columns", "labels", "message"),
    [
        ("grade", [[["a"]]], None, "some_loss needs a column label: for each query a list, one label per document"),
        ("grade", [[["a"], ["b", "c"]]], tensors([1], [1]), "row 1 of the batch has 2 documents but 1 labels"),
        ("grade", [[["a"]], ["b"]], tensors([1]), "lists of documents come as one column beside the query, got 2"),
        ("probability", COLUMNS[:1], None, "each row has one; add columns of negatives"),
        ("grade", COLUMNS[:1], torch.tensor([1, 0]), "each row has one; add columns of negatives"),
    ],
)
def test_lists_that_do_not_fit(kind, columns, labels, message):
    with pytest.raises(InputError, match=message):
        own_lists(entry(kind), columns, labels)


# --- texts -----------------------------------------------------------------------------------------------------------


def test_texts_are_told_apart_by_their_tokens_whatever_the_padding():
    short = {"input_ids": torch.tensor([[1, 2, 0], [1, 3, 4]]), "attention_mask": torch.tensor([[1, 1, 0], [1, 1, 1]])}
    left = {"input_ids": torch.tensor([[0, 0, 0, 1, 2]]), "attention_mask": torch.tensor([[0, 0, 0, 1, 1]])}
    assert text_keys(short)[0] == text_keys(left)[0] != text_keys(short)[1]
    flat = {"input_ids": torch.tensor([[1, 2, 1, 3, 4]]), "cu_seq_lens_q": torch.tensor([0, 2, 5])}
    assert text_keys(flat) == text_keys(short)
    bags = {"input_ids": torch.tensor([1, 2, 1, 3, 4]), "offsets": torch.tensor([0, 2])}
    assert text_keys(bags) == text_keys(short)
    assert text_keys({"input_ids": torch.tensor([[1, 2]])}) == text_keys(short)[:1]


def test_images_are_not_told_apart_by_the_tokens_that_stand_for_them():
    ids = torch.tensor([[1, 2], [1, 2]])
    assert text_keys({"input_ids": ids, "attention_mask": ids, "pixel_values": torch.rand(2, 3)}) is None
    assert text_keys({"pixel_values": torch.rand(2, 3)}) is None
