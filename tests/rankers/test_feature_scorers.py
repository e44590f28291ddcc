"""Scorers of features: by hand, and what must not matter."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rankers.feature_scorers import FeatureScorer

SCORERS = {
    "linear": {},
    "mlp": {"hidden": (8, 4)},
    "context": {"hidden": (8,), "blocks": 2, "heads": 2, "feed_forward": 6},
    "context without hidden layer": {"blocks": 1, "heads": 3, "feed_forward": 5},
}
EVERY = pytest.mark.parametrize("kind", SCORERS)


def scorer(kind: str, seed: int = 0, **more) -> FeatureScorer:
    torch.manual_seed(seed)
    return FeatureScorer(3, **{**SCORERS[kind], **more}).double().eval()


def lists(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_linear_by_hand():
    model = scorer("linear")
    with torch.no_grad():
        model.output.weight.copy_(torch.tensor([[1.0, -2.0, 0.5]]))
        model.output.bias.fill_(3)
    assert model(torch.tensor([[[1.0, 1.0, 2.0], [0.0, 0.0, 0.0]]]).double()).tolist() == [[3.0, 3.0]]


def test_mlp_by_hand():
    model = FeatureScorer(1, hidden=(2,))
    with torch.no_grad():
        model.hidden[0].weight.copy_(torch.tensor([[1.0], [-1.0]]))
        model.hidden[0].bias.zero_()
        model.output.weight.copy_(torch.tensor([[2.0, 3.0]]))
        model.output.bias.zero_()
    assert model(torch.tensor([[[5.0], [-5.0]]])).tolist() == [[10.0, 15.0]]  # 2·relu(x) + 3·relu(-x)


def test_a_block_by_hand():
    """With one feature the norm gives 0, so every projection is its bias: attention returns the bias of the values."""
    model = FeatureScorer(1, blocks=1)
    block = model.blocks[0]
    with torch.no_grad():
        block.projections.bias.copy_(torch.tensor([0.3, -0.7, 2.0]))
        block.joined.weight.fill_(4)
        block.joined.bias.fill_(1)
        block.up.bias.fill_(0.5)
        block.down.weight.fill_(2)
        block.down.bias.zero_()
        model.norm.bias.fill_(0.25)
        model.output.weight.fill_(2)
        model.output.bias.zero_()
    found = block(torch.tensor([[[1.0], [2.0]]]), torch.ones(1, 1, 1, 2, dtype=torch.bool))
    assert found.flatten().tolist() == pytest.approx([1 + 9 + 1, 2 + 9 + 1])  # x + (4·2 + 1) + 2·relu(0.5)
    assert model(torch.tensor([[[1.0], [2.0]]])).flatten().tolist() == pytest.approx([0.5, 0.5])


def test_without_blocks_the_context_scorer_is_the_mlp():
    mlp = scorer("mlp")
    context = FeatureScorer(3, hidden=(8, 4), blocks=0, heads=2, feed_forward=6).double().eval()
    context.load_state_dict(mlp.state_dict())
    values = lists(1, 2, 5)
    assert torch.equal(context(values), mlp(values))


@EVERY
@given(seed=st.integers(0, 99), docs=st.integers(1, 6))
def test_the_order_of_the_documents_does_not_matter(kind, seed, docs):
    model, values = scorer(kind, seed), lists(seed, 2, docs)
    order = torch.randperm(docs, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(model(values[:, order]), model(values)[:, order])


@EVERY
@given(seed=st.integers(0, 99), padding=st.integers(0, 4), junk=st.sampled_from([0.0, 1e30, math.nan, math.inf]))
def test_padding_changes_nothing_and_scores_zero(kind, seed, padding, junk):
    model, values = scorer(kind, seed), lists(seed, 2, 4)
    where = torch.ones(2, 4 + padding, dtype=torch.bool)
    where[:, 4:] = False
    padded = torch.cat([values, torch.full((2, padding, 3), junk, dtype=torch.float64)], dim=1)
    found = model(padded, where)
    torch.testing.assert_close(found[:, :4], model(values))
    assert (found[:, 4:] == 0).all()


@EVERY
def test_other_lists_of_a_batch_and_empty_ones_change_nothing(kind):
    model, values = scorer(kind), lists(3, 3, 4).requires_grad_()
    where = torch.tensor([[True] * 4, [False] * 4, [True, True, False, False]])
    found = model(values, where)
    torch.testing.assert_close(found[:1], model(values[:1]))
    torch.testing.assert_close(found[2:, :2], model(values[2:, :2]))
    assert (found[1] == 0).all()
    found.sum().backward()
    assert values.grad.isfinite().all()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize(("kind", "matters"), [("linear", False), ("mlp", False), ("context", True)])
def test_only_the_context_scorer_looks_at_the_other_documents(kind, matters):
    model, values = scorer(kind), lists(4, 1, 3)
    changed = values.clone()
    changed[0, 2] += 1
    moved = (model(values) - model(changed))[0, :2].abs().max() > 1e-6
    assert bool(moved) is matters


def test_dropout_is_for_training_alone():
    model, values = scorer("context", dropout=0.5), lists(5, 2, 4)
    assert torch.equal(model(values), model(values))
    model.train()
    assert not torch.equal(model(values), model(values))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"features": 0}, "must be >= 1"),
        ({"hidden": (0,)}, "must be >= 1"),
        ({"blocks": -1}, "blocks >= 0"),
        ({"blocks": 1, "heads": 2}, "2 heads do not divide the width 3"),
        ({"dropout": 1.0}, "dropout must be a share"),
    ],
)
def test_impossible_sizes_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        FeatureScorer(**{"features": 3, **settings})


def test_wrong_shapes_are_refused():
    model = scorer("linear")
    with pytest.raises(ValueError, match=r"features must be \(queries, docs, 3\), got \(2, 4\)"):
        model(torch.zeros(2, 4, dtype=torch.float64))
    with pytest.raises(ValueError, match="where must be bool"):
        model(lists(0, 2, 4), torch.ones(2, 4))
