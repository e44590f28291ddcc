"""The engine gives the plain gradient: in row blocks, from replayed chunks, for every loss."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from rankers.engine import WholeTargets, cached_backward, gradients
from rankers.losses import LOSSES, build
from rankers.random_state import RandomState

every_loss = pytest.mark.parametrize("name", LOSSES)
CLOSE = {"rtol": 1e-9, "atol": 1e-12}


def example(name, rows=7, documents=11, dim=5, seed=0):
    """Unit embeddings, labels of the loss's kind, a mask, and rows that share queries."""
    generator = torch.Generator().manual_seed(seed)

    def unit(n):
        return nn.functional.normalize(torch.randn(n, dim, generator=generator, dtype=torch.float64), dim=1)

    levels = torch.randint(0, 5, (rows, documents), generator=generator).double()
    kind = LOSSES[name].labels
    labels = {"probability": levels / 4, "teacher": levels - 2.5, "binary": (levels > 3).double()}.get(kind, levels)
    where = torch.rand(rows, documents, generator=generator) < 0.8
    row_query = torch.randint(0, rows - 1, (rows,), generator=generator)
    return unit(rows - 1), unit(documents), labels, where, row_query


def plain(loss, queries, documents, labels, where, row_query):
    q, d = queries.clone().requires_grad_(), documents.clone().requires_grad_()
    value = loss(q[row_query] @ d.T, labels, where)
    value.backward()
    return value.item(), q.grad, d.grad


@every_loss
@pytest.mark.parametrize("block", [1, 30, 10**6])
def test_any_block_of_rows_gives_the_plain_gradient(name, block):
    loss = build(name)
    queries, documents, labels, where, row_query = example(name)
    value, by_query, by_document = plain(loss, queries, documents, labels, where, row_query)
    found = gradients(loss, queries, documents, WholeTargets(labels, where), row_query=row_query, block=block)
    assert value > 0 or name in ("approx_ndcg", "neural_ndcg", "approx_rr")
    tolerance = {"rtol": 1e-5, "atol": 1e-7} if name == "mw" else CLOSE  # rows in blocks: from tables
    torch.testing.assert_close(torch.tensor(found.loss), torch.tensor(value), **tolerance)
    torch.testing.assert_close(found.queries, by_query, **tolerance)
    torch.testing.assert_close(found.documents, by_document, **tolerance)


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 60), st.integers(0, 100))
def test_blocks_of_any_size_of_any_batch(rows, documents, block, seed):
    queries, texts, labels, where, row_query = example("decoupled_softmax", rows + 1, documents, seed=seed)
    loss = build("decoupled_softmax")
    value, by_query, by_document = plain(loss, queries, texts, labels, where, row_query)
    found = gradients(loss, queries, texts, WholeTargets(labels, where), row_query=row_query, block=block)
    assert found.loss == pytest.approx(value, rel=1e-9)
    torch.testing.assert_close(found.queries, by_query, **CLOSE)
    torch.testing.assert_close(found.documents, by_document, **CLOSE)


def test_infonce_by_hand():
    """Two queries, two documents, temperature 1: softmax - one-hot, by pencil."""
    queries, documents = torch.eye(2), torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    found = gradients(build("infonce", temperature=1.0), queries, documents, WholeTargets(torch.eye(2)), block=1)
    first, second = 1 / (1 + math.e), 1 / (1 + math.e**2)  # what the wrong document gets
    assert found.loss == pytest.approx((math.log(1 + math.exp(-1)) + math.log(1 + math.exp(-2))) / 2)
    slope = torch.tensor([[-first, first], [second, -second]]) / 2
    torch.testing.assert_close(found.queries, slope @ documents)
    torch.testing.assert_close(found.documents, slope.T @ queries)


def test_the_scores_are_never_whole_in_memory(monkeypatch):
    biggest = []
    loss = build("infonce")
    forward = type(loss).forward

    def watched(self, scores, *rest, **keywords):
        biggest.append(scores.numel())
        return forward(self, scores, *rest, **keywords)

    monkeypatch.setattr(type(loss), "forward", watched)
    queries, documents = torch.randn(40, 3), torch.randn(50, 3)
    gradients(loss, queries, documents, WholeTargets(torch.eye(40, 50)), block=100)
    assert len(biggest) == 20
    assert max(biggest) == 100


def test_learned_settings_get_the_gradient_of_the_whole_batch():
    queries, documents, labels, where, row_query = example("bixse")
    slopes = []
    for block in (1, 10**6):
        scale, bias = (nn.Parameter(torch.tensor(x, dtype=torch.float64)) for x in (10.0, -1.0))
        loss = build("bixse", scale=scale, bias=bias)
        gradients(loss, queries, documents, WholeTargets(labels, where), row_query=row_query, block=block)
        slopes.append(torch.stack([scale.grad, bias.grad]))
    scale, bias = (torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (10.0, -1.0))
    value = LOSSES["bixse"].fn(queries[row_query] @ documents.T, labels, where=where, scale=scale, bias=bias)
    wanted = torch.stack(torch.autograd.grad(value, [scale, bias]))
    torch.testing.assert_close(slopes[0], wanted)
    torch.testing.assert_close(slopes[1], wanted)


class Dropping(nn.Module):
    """A small encoder with dropout, so that a replay with other random numbers would show."""

    def __init__(self, dim=5):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Dropout(0.3), nn.Linear(16, dim)).double()

    def forward(self, x):
        return nn.functional.normalize(self.layers(x), dim=1)


def cut(rows, size):
    return list(torch.split(rows, size))


@every_loss
@pytest.mark.parametrize("size", [1, 3, 100])
def test_replayed_chunks_give_the_plain_gradient(name, size):
    generator = torch.Generator().manual_seed(1)
    texts = torch.randn(6, 4, generator=generator, dtype=torch.float64)
    others = torch.randn(11, 4, generator=generator, dtype=torch.float64)
    _, _, labels, where, row_query = example(name)
    torch.manual_seed(2)
    model = Dropping()
    loss = build(name)

    torch.manual_seed(3)
    q, d = (torch.cat([model(part) for part in cut(inputs, size)]) for inputs in (texts, others))
    value = loss(q[row_query] @ d.T, labels, where)
    value.backward()
    wanted = [p.grad.clone() for p in model.parameters()]
    after = torch.rand(3)
    model.zero_grad()

    torch.manual_seed(3)
    chunks = [[lambda part=part: model(part) for part in cut(inputs, size)] for inputs in (texts, others)]
    found = cached_backward(loss, *chunks, WholeTargets(labels, where), row_query=row_query, block=25)
    tolerance = {"rtol": 1e-5, "atol": 1e-7} if name == "mw" else CLOSE
    assert found.loss == pytest.approx(value.item(), rel=1e-5 if name == "mw" else 1e-9)
    for parameter, gradient in zip(model.parameters(), wanted, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, **tolerance)
    assert torch.equal(torch.rand(3), after)  # the next step draws what it would have drawn


@pytest.mark.parametrize("settings", [{}, {"hardness": 2.0}, {"grade_weight": True}, {"scale": 7.0}])
@pytest.mark.parametrize("block", [1, 40, 10**6])
def test_symmetric_infonce_in_blocks_with_its_own_mask_of_columns(settings, block):
    queries, documents, labels, where, row_query = example("softmax_ce")
    generator = torch.Generator().manual_seed(5)
    at_call = {
        "where_columns": where & (torch.rand(where.shape, generator=generator) < 0.8),
        "weights": torch.rand(where.shape, generator=generator, dtype=torch.float64).round(decimals=1),
    }
    loss = build("infonce", symmetric=True, **settings)
    q, d = queries.clone().requires_grad_(), documents.clone().requires_grad_()
    value = loss(q[row_query] @ d.T, labels, where, **at_call)
    value.backward()
    targets = WholeTargets(labels, where, at_call)
    found = gradients(loss, queries, documents, targets, row_query=row_query, block=block)
    assert found.loss == pytest.approx(value.item(), rel=1e-9)
    torch.testing.assert_close(found.queries, q.grad, **CLOSE)
    torch.testing.assert_close(found.documents, d.grad, **CLOSE)


def test_a_batch_without_rows_has_no_loss_and_no_gradient():
    found = gradients(build("infonce"), torch.zeros(0, 3), torch.randn(4, 3), WholeTargets(torch.zeros(0, 4)))
    assert found.loss == 0
    assert found.queries.shape == (0, 3)
    assert (found.documents == 0).all()


def test_a_batch_without_chunks_is_refused_and_one_without_rows_keeps_its_state():
    with pytest.raises(ValueError, match="got no chunk"):
        cached_backward(build("infonce"), [], [lambda: torch.zeros(2, 3)], WholeTargets(torch.zeros(0, 2)))
    state = {"beta": torch.zeros(0)}
    loss = build("sl_at_k", quantile="estimated")
    found = gradients(loss, torch.zeros(0, 3), torch.randn(4, 3), WholeTargets(torch.zeros(0, 4)), state=state)
    assert found.state.keys() == {"beta"}


def test_a_loss_that_needs_all_rows_gets_them_in_one_block():
    queries, documents, labels, where, row_query = example("mw")
    loss = build("mw", method="exact")
    value, by_query, _ = plain(loss, queries, documents, labels, where, row_query)
    found = gradients(loss, queries, documents, WholeTargets(labels, where), row_query=row_query, block=1)
    assert found.loss == pytest.approx(value, rel=1e-12)
    torch.testing.assert_close(found.queries, by_query, **CLOSE)


def test_the_random_state_comes_back():
    state = RandomState.now()
    first = torch.rand(4)
    state.restore()
    assert torch.equal(torch.rand(4), first)
