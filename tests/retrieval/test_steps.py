import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from beir_folder import make_collection
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from rankers.engine import Views
from rankers.losses import LOSSES, build, build_expression
from retrieval.batches import Batch, Batcher, LabelRule, collect_judgements
from retrieval.cells import CellTargets
from retrieval.collection import Collection
from retrieval.encoder import Encoder
from retrieval.rows import TrainingRow
from retrieval.steps import BlockTargets, TokenizedBatch, backward, embed, steps_ahead, steps_per_epoch

TEMPERATURE = 0.5


class Table:
    """An encoder whose text i is a row of a table: its gradient can be written down."""

    precision, batch_tokens = "fp32", 2  # two texts of a token each in a forward pass

    def __init__(self, texts: int = 12, dim: int = 3, seed: int = 0):
        torch.manual_seed(seed)
        self.model = nn.Embedding(texts, dim, dtype=torch.float64)
        self.model.device = torch.device("cpu")

    def forward(self, tokens):
        return self.model(torch.tensor([ids[0] for ids in tokens]))


def batch(queries, documents, positive, *, row_query=None, where=None) -> TokenizedBatch:
    """Texts are rows of the table; `positive[i]` is the column of matrix row i."""
    row_query = np.arange(len(queries)) if row_query is None else np.array(row_query)
    labels = np.zeros((len(row_query), len(documents)), dtype=np.float32)
    labels[np.arange(len(row_query)), positive] = 1
    where = np.ones(labels.shape, dtype=bool) if where is None else np.array(where, dtype=bool)
    made = Batch(
        query_ids=[f"q{i}" for i in queries],
        queries=[f"query {i}" for i in queries],
        documents=[f"document {i}" for i in documents],
        query_numbers=np.array(queries),
        row_query=row_query,
        targets=CellTargets.of(labels, where, [queries[i] for i in row_query]),
    )
    return TokenizedBatch(made, [[i] for i in queries], [[i] for i in documents])


def infonce_by_hand(table: np.ndarray, batches: list[TokenizedBatch]) -> tuple[float, np.ndarray]:
    """Σ over all rows of all batches of the cross-entropy, over the number of rows; and its gradient."""
    gradient, total, rows = np.zeros_like(table), 0.0, 0
    for b in batches:
        q = np.array([ids[0] for ids in b.queries])[b.batch.row_query]
        d = np.array([ids[0] for ids in b.documents])
        logits = np.where(b.batch.where, table[q] @ table[d].T / TEMPERATURE, -np.inf)
        p = np.exp(logits - logits.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        total -= np.log((p * b.batch.labels).sum(axis=1)).sum()
        by_score = (p - b.batch.labels) / TEMPERATURE
        np.add.at(gradient, q, by_score @ table[d])
        np.add.at(gradient, d, by_score.T @ table[q])
        rows += len(q)
    return total / rows, gradient / rows


BATCHES = [
    batch([0, 1, 2], [3, 4, 5, 6], [0, 1, 2]),
    batch([7], [8, 9], [1]),  # a short one
    batch([0, 7], [3, 10, 11], [0, 1, 2], row_query=[0, 1, 1], where=[[True] * 3, [1, 1, 0], [1, 0, 1]]),
]


@pytest.mark.parametrize("parts", [[0], [0, 1], [1, 2], [0, 1, 2], [2, 1, 0]])
def test_the_gradient_by_hand(parts):
    encoder, batches = Table(), [BATCHES[i] for i in parts]
    value = backward(encoder, build("infonce", temperature=TEMPERATURE), batches)
    expected, gradient = infonce_by_hand(encoder.model.weight.detach().numpy(), batches)
    assert value == pytest.approx(expected, rel=1e-6)
    np.testing.assert_allclose(encoder.model.weight.grad.numpy(), gradient, atol=1e-7)


@given(st.integers(0, 5), st.lists(st.integers(1, 4), min_size=1, max_size=4))
def test_any_split_into_batches_weighs_rows_alike(seed, sizes):
    """Rows whose documents are their own alone: however they are cut, loss and gradient are those of one batch."""
    texts = sum(sizes) * 3
    # each query with a positive and a negative of its own; in the one matrix, the others' are masked
    queries = [3 * i for i in range(sum(sizes))]

    def part(first, last):
        own = range(first, last)
        documents = [t for i in own for t in (3 * i + 1, 3 * i + 2)]
        where = np.kron(np.eye(last - first, dtype=bool), np.ones((1, 2), dtype=bool))
        return batch([queries[i] for i in own], documents, [2 * j for j in range(last - first)], where=where)

    edges = np.cumsum([0, *sizes])
    losses = []
    gradients = []
    for batches in ([part(0, edges[-1])], [part(a, b) for a, b in pairwise(edges)]):
        encoder = Table(texts=texts, seed=seed)
        losses.append(backward(encoder, build("infonce", temperature=TEMPERATURE), batches))
        gradients.append(encoder.model.weight.grad)
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    torch.testing.assert_close(*gradients, atol=1e-7, rtol=1e-5)


@pytest.mark.parametrize("name", ["infonce", "bixse", "mw", "sl_at_k", "decoupled_softmax", "softmax_ce"])
def test_every_loss_is_divided_by_the_counts_of_the_whole_step(name):
    encoder, loss = Table(), build(name)
    value = backward(encoder, loss, BATCHES[:2])
    total, count = 0.0, 0
    for b in BATCHES[:2]:
        queries, documents = (torch.tensor(t).flatten() for t in (b.queries, b.documents))
        scores = encoder.model.weight.detach()[queries] @ encoder.model.weight.detach()[documents].T
        labels, where = torch.from_numpy(b.batch.labels), torch.from_numpy(b.batch.where)
        n = int(loss.count(labels, where))
        total, count = total + float(loss(scores, labels, where)) * n, count + n
    assert value == pytest.approx(total / count, rel=1e-6)


def test_a_step_without_anything_relevant_is_0_and_has_no_gradient():
    encoder = Table()
    empty = batch([0, 1], [2, 3], [0, 1], where=[[False, True], [True, False]])
    assert backward(encoder, build("infonce"), [empty]) == 0
    assert not encoder.model.weight.grad.any()


def test_in_the_columns_direction_a_query_of_two_rows_is_one():
    one = batch([0, 7], [3, 10, 11], [0, 1, 2], row_query=[0, 1, 1])
    where_columns = torch.tensor([[True, True, True], [True, True, False], [False, False, True]])
    encoder = Table()
    symmetric = build("infonce", temperature=TEMPERATURE, symmetric=True)
    logits = encoder.model.weight.detach()[[0, 7, 7]] @ encoder.model.weight.detach()[[3, 10, 11]].T / TEMPERATURE
    rows = -torch.log_softmax(logits, 1).diagonal().mean()
    columns = -torch.log_softmax(logits.masked_fill(~where_columns, -math.inf), 0).diagonal().mean()
    assert backward(encoder, symmetric, [one]) == pytest.approx(float(rows + columns) / 2, rel=1e-6)


# --- large batches: chunks of texts, blocks of rows -------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name, entry in LOSSES.items() if entry.labels != "teacher"])
@pytest.mark.parametrize("chunk_size", [1, 100])
def test_chunks_give_the_plain_gradient_for_every_loss(name, chunk_size):
    losses, gradients = [], []
    for size in (None, chunk_size):
        encoder = Table()
        losses.append(backward(encoder, build(name), BATCHES, chunk_size=size))
        gradients.append(encoder.model.weight.grad)
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    torch.testing.assert_close(gradients[1], gradients[0], atol=1e-7, rtol=1e-5)


@pytest.mark.parametrize("expression", ["infonce", "bixse + 0.5*ranknet", "2*mw + sl_at_k + 0.1*softmax_ce"])
@pytest.mark.parametrize("views", [None, Views.matryoshka({3: 1.0, 2: 0.5})])
def test_sums_and_matryoshka_in_chunks(expression, views):
    losses, gradients = [], []
    for size in (None, 2):
        encoder, loss = Table(), build_expression(expression)
        losses.append(backward(encoder, loss, BATCHES, chunk_size=size, views=views))
        gradients.append(encoder.model.weight.grad)
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    torch.testing.assert_close(gradients[1], gradients[0], atol=1e-7, rtol=1e-5)


def test_a_sum_of_losses_is_the_sum_of_their_steps():
    values, gradients = [], []
    for expression in ("bixse", "ranknet", "bixse + 0.5*ranknet"):
        encoder = Table()
        values.append(backward(encoder, build_expression(expression), BATCHES))
        gradients.append(encoder.model.weight.grad)
    assert values[2] == pytest.approx(values[0] + 0.5 * values[1], rel=1e-6)
    torch.testing.assert_close(gradients[2], gradients[0] + 0.5 * gradients[1])


def test_matryoshka_by_hand():
    """The whole embedding and, half as much, its first two dimensions made unit vectors again."""
    encoder = Table()
    value = backward(
        encoder, build("infonce", temperature=TEMPERATURE), BATCHES[:1], views=Views.matryoshka({3: 1, 2: 0.5})
    )
    expected = 0.0
    for dim, weight in ((3, 1.0), (2, 0.5)):
        table = encoder.model.weight.detach().numpy()[:, :dim]
        expected += weight * infonce_by_hand(table / np.linalg.norm(table, axis=1, keepdims=True), BATCHES[:1])[0]
    assert value == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("chunk_size", [None, 2])
def test_a_loss_with_state_keeps_it_by_query(chunk_size):
    encoder, loss = Table(), build("isogclr")
    loss.remember(12)
    first = loss.recall(torch.arange(12))
    backward(encoder, loss, [BATCHES[0]], chunk_size=chunk_size, keep_state=False)
    assert all(torch.equal(values, first[name]) for name, values in loss.recall(torch.arange(12)).items())
    backward(encoder, loss, [BATCHES[0]], chunk_size=chunk_size)
    after = loss.recall(torch.arange(12))
    moved = after["temperature"] != first["temperature"]
    assert moved.tolist() == [True] * 3 + [False] * 9  # queries 0, 1, 2
    again = build("isogclr")
    again.remember(12)
    again.load_state_dict(loss.state_dict())
    assert torch.equal(again.recall(torch.arange(12))["temperature"], after["temperature"])


def test_threads_sum_the_gradient_of_a_query_with_several_rows_in_one_order():
    """The gradient of `queries[rows]` is summed by whichever thread comes first; this one is not."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    rows = np.random.default_rng(0).permutation(np.repeat(np.arange(64), 5))
    one = batch(range(64), range(64, 384), np.arange(320), row_query=rows)
    try:
        gradients = set()
        for _ in range(60):
            encoder = Table(texts=384, dim=256)
            encoder.model.float()
            encoder.batch_tokens = 400
            backward(encoder, build("infonce"), [one])
            gradients.add(encoder.model.weight.grad.numpy().tobytes())
    finally:
        torch.set_num_threads(before)
    assert len(gradients) == 1


def test_learned_settings_of_a_loss_get_a_gradient():
    scale = nn.Parameter(torch.tensor(5.0))
    bias = nn.Parameter(torch.tensor(-1.0))
    backward(Table(), build("bixse", scale=scale, bias=bias), BATCHES[:2])
    assert scale.grad.isfinite()
    assert bias.grad != 0


def test_it_stops_before_the_gradient_of_a_loss_that_is_not_finite():
    encoder = Table()
    with torch.no_grad():
        encoder.model.weight[7] = math.nan
    assert math.isnan(backward(encoder, build("infonce"), BATCHES))
    assert encoder.model.weight.grad.isfinite().all()  # that of the first batch


# --- embeddings and order ---------------------------------------------------------------------------------------------


def test_texts_are_embedded_in_their_own_order_whatever_the_budget(tiny_model):
    encoder = Encoder.load(tiny_model, precision="fp32", device="cpu")
    texts = ["ice", "a slow river of packed ice", "the otter", "", "oil wax and a soft cloth " * 5, "salt"]
    tokens = encoder.tokenize(texts, encoder.document)
    one_by_one = torch.cat([encoder.forward([ids]) for ids in tokens])
    for budget in (1, 20, 4_096):
        encoder.batch_tokens = budget
        found = embed(encoder, tokens)
        torch.testing.assert_close(found, one_by_one, atol=1e-6, rtol=0)
    assert found.requires_grad
    np.testing.assert_allclose(found.detach().numpy(), encoder.encode_document(texts), atol=1e-6)


@pytest.fixture(scope="module")
def batcher(tmp_path_factory) -> Batcher:
    documents = [{"_id": f"d{i}", "text": f"the otter {i}"} for i in range(11)]
    corpus = Collection(make_collection(tmp_path_factory.mktemp("steps") / "c", documents)).corpus
    rows = [TrainingRow(query_id=f"q{i}", query=f"query {i}", positive_ids=(f"d{i}",)) for i in range(11)]
    return Batcher(rows, corpus, collect_judgements(rows, {}), LabelRule(several=False), batch_size=2)


class Tokenizer:
    """What `steps_ahead` asks of an encoder."""

    query = document = None

    def tokenize(self, texts, side):
        return [[len(text)] for text in texts]


def names(batcher, first, total, accumulation=2):
    steps = steps_ahead(batcher, Tokenizer(), first=first, total=total, accumulation=accumulation)
    return [[b.batch.query_ids for b in step] for step in steps]


def test_steps_begin_anywhere_and_go_on_as_if_they_had_begun_at_0(batcher):
    assert steps_per_epoch(batcher, 2) == 3  # 11 rows, batches of 2, 2 batches a step: 2 + 2 + 2
    whole = names(batcher, 0, 8)
    assert len(whole) == 8
    for first in range(9):
        assert names(batcher, first, 8) == whole[first:]
    assert [len(step) for step in whole] == [2, 2, 2] * 2 + [2, 2]
    for epoch in range(2):
        seen = [q for step in whole[3 * epoch : 3 * epoch + 3] for b in step for q in b]
        assert sorted(seen) == sorted(f"q{i}" for i in range(11))
    assert whole[:3] != whole[3:6]


def test_what_fails_while_a_batch_is_made_ahead_is_told(batcher):
    class Broken(Tokenizer):
        def tokenize(self, texts, side):
            raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        next(steps_ahead(batcher, Broken(), first=0, total=3, accumulation=1))


def test_only_one_step_is_made_ahead(batcher):
    made = []

    class Counting(Tokenizer):
        def tokenize(self, texts, side):
            made.append(texts)
            return super().tokenize(texts, side)

    steps = steps_ahead(batcher, Counting(), first=0, total=6, accumulation=1)
    next(steps)
    steps.close()
    assert len(made) <= 2 * 2


@given(st.integers(1, 5), st.integers(1, 5), st.integers(1, 5), st.integers(0, 100))
def test_columns_have_a_mask_of_their_own_only_where_queries_repeat(rows, documents, queries, seed):
    generator = np.random.default_rng(seed)
    labels = (generator.random((rows, documents)) < 0.3).astype(np.float32)
    where = generator.random(labels.shape) < 0.8
    targets = CellTargets.of(labels, where, generator.permutation(max(rows, queries))[:rows] % queries)
    part = BlockTargets(targets, torch.device("cpu"), symmetric=True).rows(0, rows)
    columns = part.at_call.get("where_columns", part.where)
    np.testing.assert_array_equal(columns, targets.where_columns(0, rows))
    assert targets.repeats_queries == ("where_columns" in part.at_call)
