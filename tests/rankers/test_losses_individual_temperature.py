"""iSogCLR: its gradient beside InfoNCE's, the slope of a temperature, and the state from visit to visit."""

import math

import pytest
import torch

from rankers.losses import LOSSES, build, infonce, isogclr

FIRST = LOSSES["isogclr"].state


def batch(rows=4, columns=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(rows, columns, generator=generator, dtype=torch.float64) * 2 - 1
    labels = torch.zeros(rows, columns)
    labels[:, 0] = 1
    where = torch.rand(rows, columns, generator=generator) < 0.8
    where[:, :2] = True
    return scores, labels, where


def first_state(rows, **changes):
    return {name: torch.full((rows,), changes.get(name, value)).double() for name, value in FIRST.items()}


def gradient(loss, scores, labels, **settings):
    leaf = scores.clone().requires_grad_()
    value = loss(leaf, labels, **settings)
    (value[0] if isinstance(value, tuple) else value).backward()
    return leaf.grad


def test_by_hand():
    scores, labels = torch.tensor([[0.8, 0.5, -0.1]]), torch.tensor([[1, 0, 0]])
    mean = (math.exp(-0.3 / 0.2) + math.exp(-0.9 / 0.2)) / 2
    wanted = 0.2 * math.log(mean) + 0.2 * 0.1
    assert isogclr(scores, labels, temperature=0.2).item() == pytest.approx(wanted)
    assert isogclr(scores, labels, scale=5).item() == pytest.approx(wanted)


@pytest.mark.parametrize("labels", [[1, 0, 0, 0], [1, 1, 0, 0]])
def test_with_positives_in_the_mean_the_gradient_is_infonces(labels):
    scores, labels = torch.tensor([[0.3, -0.2, 0.9, 0.1]], dtype=torch.float64), torch.tensor([labels])
    got = gradient(isogclr, scores, labels, temperature=0.2, count_positives=True)
    torch.testing.assert_close(got, 0.2 * gradient(infonce, scores, labels, temperature=0.2))


def test_without_positives_in_the_mean_the_gradient_is_that_of_infonce_per_row_rescaled():
    """Both have the negatives' softmax; InfoNCE's is times (1 - p) / temperature, p the positive's share."""
    scores, labels, where = batch()
    p = torch.softmax((scores / 0.2).masked_fill(~where, -torch.inf), 1)[:, :1]
    got = gradient(isogclr, scores, labels, where=where, temperature=0.2)
    torch.testing.assert_close((1 - p) / 0.2 * got, gradient(infonce, scores, labels, where=where, temperature=0.2))


def test_gamma_one_forgets_the_past():
    scores, labels, where = batch()
    state = first_state(4, log_average=2.0, temperature=0.3)
    loss, new = isogclr(scores, labels, where=where, state=state, gamma=1)
    torch.testing.assert_close(loss, isogclr(scores, labels, where=where, temperature=0.3))
    got = gradient(isogclr, scores, labels, where=where, state=state, gamma=1.0)
    torch.testing.assert_close(got, gradient(isogclr, scores, labels, where=where, temperature=0.3))
    assert (new["log_average"] != 2).all()


@pytest.mark.parametrize("settings", [{}, {"temperature": 0.2}, {"scale": 4.0}])
def test_the_first_visit_is_the_loss_without_a_state(settings):
    scores, labels, where = batch()
    loss = build("isogclr", **settings)
    value, state = loss(scores, labels, where, state=first_state(4))
    torch.testing.assert_close(value, loss(scores, labels, where))
    assert state.keys() == FIRST.keys()
    heat = settings.get("temperature", 1 / settings.get("scale", 1 / 0.07))
    moved = (state["temperature"] - heat).abs()
    assert (moved < 0.01 * 0.9 * 5 + 1e-9).all()  # eta × beta_u × clip


def slope_by_hand(row, heat, rho):
    """Of one row whose first column is relevant: log g + rho - sum of w h / heat."""
    h = row[1:] - row[0]
    w = torch.softmax(h / heat, 0)
    return (h / heat).exp().mean().log() + rho - (w * h).sum() / heat, w


def test_the_slope_of_a_temperature_is_rho_minus_kl():
    scores, labels, _ = batch()
    _, state = isogclr(scores, labels, state=first_state(4), temperature=0.2)
    for row, momentum, heat in zip(scores, state["momentum"], state["temperature"], strict=True):
        slope, w = slope_by_hand(row, 0.2, 0.1)
        torch.testing.assert_close(slope, 0.1 - (w * (w * len(w)).log()).sum())
        torch.testing.assert_close(momentum, 0.9 * slope)
        torch.testing.assert_close(heat, 0.2 - 0.01 * momentum)


def test_it_is_the_slope_of_the_loss():
    scores, labels, where = batch(rows=1)
    heat = torch.tensor(0.2, dtype=torch.float64, requires_grad=True)
    isogclr(scores, labels, where=where, temperature=heat).backward()
    _, state = isogclr(scores, labels, where=where, temperature=0.2, state=first_state(1), beta_u=1)
    torch.testing.assert_close(state["momentum"], heat.grad[None])


def test_a_row_with_peaked_negatives_gets_a_higher_temperature_than_a_flat_one():
    scores = torch.tensor([[0.9, 0.8, -0.5, -0.6], [0.9, 0.1, 0.11, 0.12]])
    state = first_state(2)
    for _ in range(200):
        _, state = isogclr(scores, torch.tensor([[1, 0, 0, 0]] * 2), state=state, gamma=1)
    assert state["temperature"][0] > 0.07 > state["temperature"][1]


def test_rho_zero_never_lowers_a_temperature():
    scores, labels, _ = batch()
    state = first_state(4)
    before = torch.full((4,), 0.07, dtype=torch.float64)
    for _ in range(20):
        _, state = isogclr(scores, labels, state=state, rho=0, gamma=1)
        assert (state["temperature"] >= before).all()
        before = state["temperature"]
    assert (before > 0.07).all()


def test_two_visits_by_hand():
    """EMA of g, momentum of the clipped slope; the second gradient is e^{h/t} / a, the average a held fixed."""
    one, two = torch.tensor([0.5, 0.2, 0.4, -0.3]).double(), torch.tensor([0.4, 0.1, 0.3, 0.2]).double()
    labels = torch.tensor([[1, 0, 0, 0]])
    _, state = isogclr(one[None], labels, state=first_state(1), temperature=0.3)
    slope, _ = slope_by_hand(one, 0.3, 0.1)
    average = ((one[1:] - one[0]) / 0.3).exp().mean()
    heat, momentum = 0.3 - 0.01 * 0.9 * slope, 0.9 * slope

    pulls = ((two[1:] - two[0]) / heat).exp()
    average = 0.2 * average + 0.8 * pulls.mean()
    loss, state = isogclr(two[None], labels, state=state, temperature=99)  # the row has its own by now
    torch.testing.assert_close(loss, heat * (average.log() + 0.1))
    torch.testing.assert_close(state["log_average"][0], average.log())
    slope = average.log() + 0.1 - (pulls / average * (two[1:] - two[0]) / heat).mean()
    momentum = 0.1 * momentum + 0.9 * slope
    torch.testing.assert_close(state["momentum"][0], momentum)
    torch.testing.assert_close(state["temperature"][0], heat - 0.01 * momentum)


def test_the_gradient_holds_the_average_fixed():
    scores, labels, where = batch()
    state = first_state(4, log_average=-1.0, temperature=0.3)
    _, new = isogclr(scores, labels, where=where, state=state)
    h = scores - scores[:, :1]
    against = where & (labels == 0)
    push = (h / 0.3).exp() * against / against.sum(1, keepdim=True) / new["log_average"].exp()[:, None]
    push[:, 0] = -push.sum(1)
    torch.testing.assert_close(gradient(isogclr, scores, labels, where=where, state=state), push / 4)


def test_slopes_are_clipped_and_temperatures_kept_in_range():
    scores, labels = torch.tensor([[0.5, 50.0, -50.0]]), torch.tensor([[1, 0, 0]])
    state = first_state(1, log_average=-200.0)
    _, new = isogclr(scores, labels, state=state, clip=0.5, eta=0.1)
    assert new["momentum"].abs().item() == pytest.approx(0.45)
    _, new = isogclr(scores, labels, state=state, eta=100.0)
    assert new["temperature"].item() in (0.005, 1.0)


def test_rows_without_a_loss_keep_their_state():
    scores, labels, where = batch()
    labels[1] = 0  # nothing relevant
    where[2, 1:] = False  # nothing irrelevant
    where[3] = False
    state = first_state(4, log_average=0.5, momentum=0.25)
    loss, new = isogclr(scores, labels, where=where, state=state)
    alone, _ = isogclr(scores[:1], labels[:1], where=where[:1], state={k: v[:1] for k, v in state.items()})
    torch.testing.assert_close(loss, alone / 2)  # row 2 counts, with a loss of 0
    for name, values in new.items():
        assert torch.equal(values[1:], state[name][1:])
        assert values[0] != state[name][0]
    assert gradient(isogclr, scores, labels, where=where, state=state)[1:].abs().sum() == 0


def test_the_state_has_no_gradient_and_the_old_one_is_not_written_to():
    scores, labels, where = batch()
    state = first_state(4)
    kept = {name: values.clone() for name, values in state.items()}
    _, new = isogclr(scores.requires_grad_(), labels, where=where, state=state)
    assert not any(values.requires_grad for values in new.values())
    assert all(torch.equal(state[name], kept[name]) for name in state)


def test_a_state_keeps_its_precision():
    scores, labels, where = batch()
    state = {name: values.float() for name, values in first_state(4).items()}
    loss, new = isogclr(scores, labels, where=where, state=state)
    assert loss.dtype == torch.float64
    assert {values.dtype for values in new.values()} == {torch.float32}


def test_blocks_of_rows_with_their_states_add_up():
    scores, labels, where = batch()
    loss = build("isogclr")
    state = first_state(4, log_average=-1.0)
    whole, new = loss(scores, labels, where, state=state)
    totals = loss.totals(loss.tally(labels, where))
    parts = [
        loss.share(scores[a:b], labels[a:b], where[a:b], totals=totals, state={k: v[a:b] for k, v in state.items()})
        for a, b in ((0, 1), (1, 4))
    ]
    torch.testing.assert_close(parts[0][0] + parts[1][0], whole)
    for name in new:
        torch.testing.assert_close(torch.cat([part[1][name] for part in parts]), new[name])


@pytest.mark.parametrize("columns", [0, 1, 3])
def test_nothing_relevant_with_a_state(columns):
    state = first_state(2)
    loss, new = isogclr(torch.zeros(2, columns, requires_grad=True), torch.zeros(2, columns), state=state)
    loss.backward()
    assert loss == 0
    assert all(torch.equal(new[name], state[name]) for name in state)


@pytest.mark.parametrize("size", [1.0, 1e4])
def test_loss_and_state_stay_finite_at_extreme_scores(size):
    scores, labels, where = batch()
    state = first_state(4)
    for sign in (1, -1, 1):
        loss, state = isogclr(sign * size * scores.float(), labels, where=where, state=state)
        assert loss.isfinite()
        assert all(values.isfinite().all() for values in state.values())


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (
            {"temperature": torch.ones(4)},
            "state must hold temperature, log_average, momentum, each .queries,., got temp",
        ),
        (torch.ones(4), "state must hold temperature, .* got Tensor"),
        (
            {"temperature": torch.ones(4), "log_average": torch.ones(3), "momentum": torch.ones(4)},
            r"state\['log_average'\] must hold one number per query \(4,\), got \(3,\)",
        ),
    ],
)
def test_other_states_are_refused(state, message):
    scores, labels, _ = batch()
    with pytest.raises(ValueError, match=message):
        isogclr(scores, labels, state=state)


@pytest.mark.parametrize(
    "settings",
    [
        {"gamma": 0},
        {"gamma": 1.5},
        {"beta_u": 0},
        {"rho": -0.1},
        {"eta": -1},
        {"clip": 0},
        {"min_temperature": 0},
        {"max_temperature": 0.001},
        {"count_positives": "no"},
    ],
)
def test_other_settings_are_refused(settings):
    with pytest.raises(ValueError, match=f"{next(iter(settings))} must be"):
        build("isogclr", **settings)
