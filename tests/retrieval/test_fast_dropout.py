import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from retrieval.fast_dropout import dropout, use_fast_dropout

N = 1 << 18


@pytest.mark.parametrize("p", [0.05, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_elements_are_dropped_with_probability_p_and_the_rest_scaled(p, dtype):
    torch.manual_seed(1)
    found = dropout(torch.ones(N, dtype=dtype), p)
    assert found.dtype == dtype
    kept = found != 0
    deviation = math.sqrt(p * (1 - p) / N)
    assert abs(float(kept.double().mean()) - (1 - p)) < 5 * deviation
    relative = {torch.bfloat16: 2**-8, torch.float32: 1e-4, torch.float64: 1e-4}[dtype]  # p is rounded to 1/65536
    assert found[kept].double().unique().tolist() == pytest.approx([1 / (1 - p)], rel=relative)


def test_every_place_is_dropped_equally_often_and_neighbours_are_independent():
    torch.manual_seed(2)
    masks = np.stack([(dropout(torch.ones(64), 0.25) != 0).numpy() for _ in range(4_000)])
    bound = 5 * math.sqrt(0.25 * 0.75 / 4_000)
    assert np.abs(masks.mean(axis=0) - 0.75).max() < bound
    correlation = np.corrcoef(masks.T)
    np.fill_diagonal(correlation, 0)
    assert np.abs(correlation).max() < 5.5 / math.sqrt(4_000)


@given(st.lists(st.integers(0, 7), min_size=0, max_size=4), st.sampled_from([0.0, 1e-9, 0.1, 0.5, 0.999999, 1.0]))
def test_any_shape_and_any_probability(shape, p):
    x = torch.randn(shape)
    found = dropout(x, p)
    assert found.shape == x.shape
    if p < 1e-6:
        assert found is x
    if p == 1.0 or round(p * 65536) == 65536:
        assert not found.any()
    assert found.isfinite().all()


def test_a_view_that_is_not_contiguous_is_dropped_element_by_element():
    torch.manual_seed(0)
    x = torch.arange(1.0, 13).reshape(3, 4).T
    found = dropout(x, 0.5)
    kept = found != 0
    torch.testing.assert_close(found[kept], 2 * x[kept])


def test_torchs_seed_decides_the_mask_and_every_call_has_another():
    torch.manual_seed(3)
    first, second = dropout(torch.ones(1_000), 0.5), dropout(torch.ones(1_000), 0.5)
    torch.manual_seed(3)
    assert torch.equal(dropout(torch.ones(1_000), 0.5), first)
    state = torch.get_rng_state()
    again = dropout(torch.ones(1_000), 0.5)
    assert torch.equal(again, second)
    assert not torch.equal(first, second)
    torch.set_rng_state(state)
    assert torch.equal(dropout(torch.ones(1_000), 0.5), second)


def test_the_gradient_passes_through_what_is_kept_and_nothing_else():
    x = torch.randn(1_000, requires_grad=True)
    found = dropout(x, 0.3)
    found.sum().backward()
    kept = found != 0
    assert not x.grad[~kept].any()
    torch.testing.assert_close(x.grad[kept], torch.full_like(x.grad[kept], 65536 / (65536 - round(0.3 * 65536))))


def model() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5), nn.Sequential(nn.Dropout(0.1), nn.Dropout(0.0)))


def test_layers_use_it_while_they_train_and_get_their_own_back():
    layers, x = model(), torch.ones(1_000, 8)
    with torch.no_grad():
        layers[0].weight.copy_(torch.eye(8))
        layers[0].bias.zero_()
    own = layers[1].forward
    torch.manual_seed(0)
    theirs = layers[1](x)
    with use_fast_dropout(layers):
        assert layers[1].forward != own
        torch.manual_seed(0)
        assert not torch.equal(layers[1](x), theirs)
        torch.manual_seed(0)
        assert torch.equal(layers[1](x), _seeded(lambda: dropout(x, 0.5)))
        layers.eval()
        assert torch.equal(layers(x), x)
        layers.train()
        assert "forward" not in vars(layers[2][1])  # p = 0 has nothing to do
    assert layers[1].forward == own
    torch.manual_seed(0)
    assert torch.equal(layers[1](x), theirs)


def _seeded(function):
    torch.manual_seed(0)
    return function()


def test_layers_get_their_own_back_after_an_error():
    layers = model()
    with pytest.raises(RuntimeError, match="in between"), use_fast_dropout(layers):
        raise RuntimeError("in between")
    assert "forward" not in vars(layers[1])


def test_kinds_of_dropout_that_are_not_elementwise_are_left_alone():
    layers = nn.Sequential(nn.Linear(2, 2), nn.Dropout2d(0.5), nn.AlphaDropout(0.5), nn.Dropout(0.5, inplace=True))
    with use_fast_dropout(layers):
        assert not any("forward" in vars(layer) for layer in layers)
