import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers import get_linear_schedule_with_warmup

from retrieval.optimizer import learning_rate, make_optimizer, perturbed
from retrieval.train_config import TrainConfig


def config(**settings) -> TrainConfig:
    return TrainConfig(model="m", data="d", out="o", **settings)


def rates(total: int, **settings) -> list[float]:
    return [learning_rate(step, total, config(**settings)) for step in range(total)]


def test_rates_by_hand():
    assert rates(6, learning_rate=1.0, warmup_ratio=0.5) == pytest.approx([1 / 3, 2 / 3, 1, 1, 2 / 3, 1 / 3])
    assert rates(4, learning_rate=2.0, warmup_ratio=0.0) == pytest.approx([2.0, 1.5, 1.0, 0.5])
    assert rates(2, learning_rate=1.0, warmup_ratio=1.0) == pytest.approx([0.5, 1.0])
    assert rates(1, learning_rate=1.0, warmup_ratio=0.1) == [1.0]  # transformers' rate of an only step would be 0


@given(st.integers(1, 60), st.floats(0, 1), st.floats(1e-7, 1))
def test_it_is_transformers_schedule_with_a_warm_up_one_step_ahead(total, ratio, rate):
    warmup = math.ceil(ratio * total)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=rate)
    schedule = get_linear_schedule_with_warmup(optimizer, warmup, total)
    theirs = [optimizer.param_groups[0]["lr"]]
    for _ in range(total):
        optimizer.step()
        schedule.step()
        theirs.append(optimizer.param_groups[0]["lr"])
    for step, ours in enumerate(rates(total, learning_rate=rate, warmup_ratio=ratio)):
        assert ours == pytest.approx(rate if step + 1 == warmup else theirs[step + (step < warmup)], rel=1e-9)


@given(st.integers(1, 200), st.floats(0, 1))
def test_no_step_is_lost_and_none_exceeds_the_rate(total, ratio):
    found = rates(total, learning_rate=0.1, warmup_ratio=ratio)
    assert all(0 < rate <= 0.1 for rate in found)
    assert max(found) == 0.1


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(5, 4)
        self.dense = nn.Linear(4, 4)
        self.LayerNorm = nn.LayerNorm(4)
        self.norm_matrix = nn.Parameter(torch.ones(2, 2))
        self.frozen = nn.Parameter(torch.ones(3, 3), requires_grad=False)


def test_biases_and_norms_do_not_decay_and_frozen_weights_are_left_out():
    model, loss = Model(), nn.Module()
    loss.temperature = nn.Parameter(torch.tensor(0.05))
    decayed, plain, learned = make_optimizer(model, loss, config(weight_decay=0.3, learning_rate=1e-3)).param_groups
    names = {id(p): n for m in (model, loss) for n, p in m.named_parameters()}
    assert {names[id(p)] for p in decayed["params"]} == {"words.weight", "dense.weight"}
    assert {names[id(p)] for p in plain["params"]} == {
        "dense.bias",
        "LayerNorm.weight",
        "LayerNorm.bias",
        "norm_matrix",
    }
    assert {names[id(p)] for p in learned["params"]} == {"temperature"}
    assert [group["share"] for group in (decayed, plain, learned)] == [1.0, 1.0, 100.0]
    assert [group["weight_decay"] for group in (decayed, plain, learned)] == [0.3, 0.0, 0.0]
    own = make_optimizer(model, loss, config(learning_rate=1e-3, loss_learning_rate=5e-3)).param_groups[-1]
    assert own["share"] == pytest.approx(5.0)
    assert decayed["betas"] == (0.9, 0.999)
    assert decayed["eps"] == 1e-8


def test_a_model_without_matrices_has_one_group():
    assert len(make_optimizer(nn.LayerNorm(3), nn.Module(), config()).param_groups) == 1


def test_one_step_is_adamw_as_it_is_written():
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    before = model.weight.detach().clone()
    optimizer = make_optimizer(model, nn.Module(), config(weight_decay=0.5, learning_rate=0.1))
    (model(torch.randn(4, 3)) ** 2).sum().backward()
    gradient = model.weight.grad.clone()
    optimizer.step()
    # first step: m / (1 - b1) = g and v / (1 - b2) = g², after the decay of the weight itself
    expected = before * (1 - 0.1 * 0.5) - 0.1 * gradient / (gradient.abs() + 1e-8)
    torch.testing.assert_close(model.weight.detach(), expected)


def test_a_sharpness_aware_step_looks_uphill_and_comes_back_to_the_bit():
    first, second, idle = (nn.Parameter(torch.randn(n)) for n in (3, 2, 4))
    first.grad, second.grad = torch.tensor([3.0, 0.0, 0.0]), torch.tensor([0.0, 4.0])
    before = [p.detach().clone() for p in (first, second, idle)]
    with perturbed([first, second, idle], rho=0.5):
        torch.testing.assert_close(first - before[0], torch.tensor([0.3, 0.0, 0.0]))  # 0.5 · (3, 0, 0, 0, 4) / 5
        torch.testing.assert_close(second - before[1], torch.tensor([0.0, 0.4]))
        assert torch.equal(idle, before[2])
        assert first.grad is None
        first.grad = torch.ones(3)
    assert all(torch.equal(p, b) for p, b in zip((first, second, idle), before, strict=True))
    assert torch.equal(first.grad, torch.ones(3))


def test_an_error_uphill_leaves_the_weights_where_they_were():
    weight = nn.Parameter(torch.ones(2))
    weight.grad = torch.ones(2)
    with pytest.raises(KeyError), perturbed([weight], rho=1.0):
        raise KeyError
    assert torch.equal(weight, torch.ones(2))
