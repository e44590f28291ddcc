"""Alignment and uniformity: loops over pairs, the sphere, and collapse."""

import dataclasses
import inspect
import itertools
import math

import pytest
import torch
import torch.nn.functional as F

from rankers.losses import REGULARISERS, alignment, uniformity

every_term = pytest.mark.parametrize("name", REGULARISERS)


def embeddings(n=8, dim=5, seed=0):
    rows = torch.randn(n, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return F.normalize(rows, dim=1)


def value_of(name, x, y, **settings):
    fn = REGULARISERS[name].fn
    return fn(x, y, **settings) if name == "alignment" else fn(x, **settings)


def slopes_of(name, x, y, **settings):
    x, y = x.clone().requires_grad_(), y.clone().requires_grad_()
    value_of(name, x, y, **settings).backward()
    return (x.grad, y.grad) if name == "alignment" else (x.grad,)


@pytest.mark.parametrize("alpha", [0.5, 1, 2.0, 3])
def test_alignment_is_the_mean_power_of_the_distance(alpha):
    x, y = embeddings(), embeddings(seed=1)
    wanted = sum(math.dist(a, b) ** alpha for a, b in zip(x.tolist(), y.tolist(), strict=True)) / 8
    assert alignment(x, y, alpha=alpha).item() == pytest.approx(wanted)


def test_squared_alignment_is_two_minus_two_cosines():
    x, y = embeddings(), embeddings(seed=1)
    torch.testing.assert_close(alignment(x, y), (2 - 2 * F.cosine_similarity(x, y)).mean())


@pytest.mark.parametrize("t", [0.5, 2, 10.0])
def test_uniformity_is_the_log_of_the_mean_potential(t):
    x = embeddings()
    potentials = [math.exp(-t * math.dist(a, b) ** 2) for a, b in itertools.combinations(x.tolist(), 2)]
    assert uniformity(x, t=t).item() == pytest.approx(math.log(sum(potentials) / 28))


@pytest.mark.parametrize("t", [0.1, 2.0, 1000.0])
def test_uniformity_of_unit_vectors_lies_between_minus_4t_and_0(t):
    for seed in range(5):
        assert -4 * t <= uniformity(embeddings(seed=seed), t=t) <= 0
    north = torch.tensor([[1.0, 0.0]])
    assert uniformity(torch.cat([north, -north]), t=t).item() == pytest.approx(-4 * t)  # the best of two


def test_an_even_spread_is_near_what_the_docstring_says():
    spread = uniformity(embeddings(n=2000, dim=64))
    assert spread.item() == pytest.approx(-2 * 2 + 2 * 2**2 / 64, abs=0.02)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0])
def test_collapse_is_perfect_alignment_and_the_worst_uniformity(alpha):
    x = embeddings(1).expand(6, -1).float()
    assert alignment(x, x, alpha=alpha) == 0
    assert uniformity(x).item() == pytest.approx(0, abs=1e-6)
    for slopes in (*slopes_of("alignment", x, x, alpha=alpha), *slopes_of("uniformity", x, x)):
        assert (slopes == 0).all()


def test_a_near_collapse_is_not_lost_in_rounding():
    """Squared distances of 1e-8, which a product of float32 matrices rounds to 0 or to 1e-7."""
    x = F.normalize(embeddings(1, 64) + 1e-5 * embeddings(6, 64, seed=1), dim=1)
    got = uniformity(x.float(), t=1e8)
    torch.testing.assert_close(got.double(), uniformity(x, t=1e8), rtol=0.05, atol=0)


@every_term
def test_gradients_against_finite_differences(name):
    x, y = embeddings(5, 3).requires_grad_(), embeddings(5, 3, seed=1).requires_grad_()
    where = torch.tensor([True, False, True, True, True])
    assert torch.autograd.gradcheck(lambda a, b: value_of(name, a, b, where=where), (x, y))


def test_a_step_down_uniformity_spreads_the_vectors():
    x = embeddings().requires_grad_()
    uniformity(x).backward()
    with torch.no_grad():
        moved = F.normalize(x - 0.1 * x.grad, dim=1)
    assert torch.pdist(moved).mean() > torch.pdist(x.detach()).mean()


@every_term
@pytest.mark.parametrize("junk", [0.0, 1e4, float("nan"), float("inf")])
def test_masked_rows_count_for_nothing_and_get_exactly_no_gradient(name, junk):
    x, y = embeddings(), embeddings(seed=1)
    where = torch.arange(8) % 3 > 0
    wanted = value_of(name, x[where], y[where])
    x[~where], y[~where] = junk, junk
    torch.testing.assert_close(value_of(name, x, y, where=where), wanted)
    for slopes in slopes_of(name, x, y, where=where):
        assert (slopes[~where] == 0).all()
        assert (slopes[where] != 0).any(1).all()


@every_term
def test_the_order_of_rows_never_matters(name):
    x, y, order = embeddings(), embeddings(seed=1), torch.randperm(8)
    torch.testing.assert_close(value_of(name, x[order], y[order]), value_of(name, x, y))


@every_term
@pytest.mark.parametrize("rows", [0, 1, 3])
def test_without_valid_rows_it_is_zero_with_a_zero_gradient(name, rows):
    x, where = torch.randn(rows, 4), torch.zeros(rows, dtype=torch.bool)
    assert value_of(name, x, x, where=where) == 0
    assert value_of(name, x, x, where=where).shape == ()
    for slopes in slopes_of(name, x, x, where=where):
        assert (slopes == 0).all()


def test_one_row_has_no_pair():
    assert uniformity(torch.randn(1, 4)) == 0


@every_term
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_lifted(name, dtype):
    x, y = embeddings().to(dtype), embeddings(seed=1).to(dtype)
    got = value_of(name, x, y)
    assert got.dtype == torch.float32
    assert got == value_of(name, x.float(), y.float())


def test_extreme_distances_stay_finite():
    x = 1e4 * embeddings().float()
    for slopes in (*slopes_of("uniformity", x, x, t=50.0), *slopes_of("alignment", x, -x)):
        assert slopes.isfinite().all()
    assert uniformity(x, t=50.0).isfinite()


@every_term
def test_the_table_tells_what_the_functions_are(name):
    entry = REGULARISERS[name]
    assert entry.name == name == entry.fn.__name__
    assert entry.use
    assert entry.paper
    parameters = inspect.signature(entry.fn).parameters
    assert dict(entry.defaults) == {
        key: parameters[key].default for key in parameters if key not in ("x", "y", "where")
    }
    with pytest.raises(dataclasses.FrozenInstanceError):
        entry.use = "another"
    with pytest.raises(TypeError):
        REGULARISERS["mine"] = entry


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: alignment(torch.zeros(3), torch.zeros(3)), r"x must be float \(n, dim\), got torch.float32 \(3,\)"),
        (lambda: uniformity(torch.zeros(3, 2).long()), r"x must be float \(n, dim\), got torch.int64"),
        (lambda: alignment(torch.zeros(3, 2), torch.zeros(3, 4)), r"x and y must be pairs, .* \(3, 2\) and \(3, 4\)"),
        (lambda: uniformity(torch.zeros(3, 2), where=torch.ones(2) > 0), r"where must be bool \(3,\), .* \(2,\)"),
        (lambda: uniformity(torch.zeros(3, 2), where=torch.ones(3)), r"where must be bool \(3,\), got torch.float32"),
        (lambda: uniformity(torch.zeros(3, 2), t=0), "t must be > 0, got 0"),
        (lambda: alignment(torch.zeros(3, 2), torch.zeros(3, 2), alpha="2"), "alpha must be a finite number, got '2'"),
    ],
)
def test_impossible_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
