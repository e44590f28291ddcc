"""SL and SL@K: the theorem on random lists, the limits, the threshold and its estimate, and the warning."""

import math
import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rankers.losses import build, infonce, sl, sl_at_k, softmax_at_k


def batch(rows=5, columns=12, seed=0):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(rows, columns, generator=generator, dtype=torch.float64) * 2 - 1
    labels = (torch.rand(rows, columns, generator=generator) < 0.3).double()
    labels[:, 0] = 1
    where = torch.rand(rows, columns, generator=generator) < 0.8
    where[:, 0] = True
    return scores, labels, where


def softmax_loss(scores, labels, where, temperature):
    """SL: the sum over a row's positives of -log softmax, averaged over the rows."""
    log_p = torch.log_softmax((scores / temperature).masked_fill(~where, -torch.inf), 1)
    return -torch.where(where & (labels == 1), log_p, 0).sum(1).mean()


def test_by_hand():
    scores, labels = torch.tensor([[2.0, 1.0, 0.0, -1.0]]), torch.tensor([[0, 1, 0, 1]])
    lse = math.log(sum(math.exp(score) for score in (2, 1, 0, -1)))

    def weight(margin):
        return 1 / (1 + math.exp(-margin / 20))

    expected = weight(0) * (lse - 1) + weight(-2) * (lse + 1)  # the second largest score, 1, is the threshold
    assert sl_at_k(scores, labels, k=2, temperature=1, weight_temperature=20).item() == pytest.approx(expected)


@given(st.integers(0, 10**6), st.integers(1, 12), st.sampled_from([0.05, 0.2, 1.0]), st.booleans())
def test_it_bounds_minus_log_dcg_at_k(seed, k, temperature, rounded):
    scores, labels, where = batch(rows=1, seed=seed)
    if rounded:
        scores = (scores * 3).round() / 3  # ties
    valid = scores[where]
    hits = []
    for score, mark in zip(valid.tolist(), labels[where].tolist(), strict=True):
        rank = int((valid >= score).sum())
        if mark and rank <= k:
            hits.append(1 / math.log2(1 + rank))
    if hits:
        bound = sl_at_k(scores, labels, where=where, k=k, temperature=temperature).item()
        assert -math.log(sum(hits)) * (1 if len(hits) > 1 else 0.5) <= bound + 1e-9


def test_low_threshold_gives_the_softmax_loss():
    scores, labels, where = batch()
    low = torch.full((5,), -1e6, dtype=torch.float64)
    got = sl_at_k(scores, labels, where=where, beta=low, temperature=0.2)
    torch.testing.assert_close(got, softmax_loss(scores, labels, where, 0.2))


def test_high_weight_temperature_gives_half_of_the_softmax_loss():
    scores, labels, where = batch()
    got = sl_at_k(scores, labels, where=where, temperature=0.2, weight_temperature=1e9)
    torch.testing.assert_close(got, softmax_loss(scores, labels, where, 0.2) / 2)


def test_k_beyond_the_row_means_all_of_it_and_weighs_at_least_a_half():
    scores, labels, where = batch()
    everything = sl_at_k(scores, labels, where=where, k=12)
    assert everything == sl_at_k(scores, labels, where=where, k=10**9)
    whole = softmax_loss(scores, labels, where, 0.1)
    assert whole / 2 <= everything < whole


@pytest.mark.filterwarnings("ignore:sl_at_k")
def test_hard_weights_count_only_what_is_above_the_threshold():
    scores, labels = torch.tensor([[0.9, 0.5, 0.1, -0.3]], dtype=torch.float64), torch.tensor([[1, 0, 0, 1]])
    got = sl_at_k(scores, labels, k=2, temperature=0.2, weight_temperature=1e-4)
    torch.testing.assert_close(got, infonce(scores, torch.tensor([[1, 0, 0, 0]]), temperature=0.2))


@given(st.integers(0, 10**6))
def test_a_larger_k_never_lowers_the_weights(seed):
    scores, labels, where = batch(seed=seed)
    losses = [sl_at_k(scores, labels, where=where, k=k).item() for k in range(1, 14)]
    assert losses == sorted(losses)


def test_the_threshold_is_the_kth_largest_valid_score():
    scores, labels, where = batch()
    for k in (1, 3, 12):
        threshold = torch.stack(
            [
                row[valid].sort(descending=True).values[min(k, int(valid.sum())) - 1]
                for row, valid in zip(scores, where, strict=True)
            ]
        )
        given = sl_at_k(scores, labels, where=where, beta=threshold, k=1)
        torch.testing.assert_close(sl_at_k(scores, labels, where=where, k=k), given)


def gradient(scores, labels, **settings):
    leaf = scores.clone().requires_grad_()
    sl_at_k(leaf, labels, **settings).backward()
    return leaf.grad


def test_no_gradient_flows_into_the_threshold():
    scores, labels, where = batch()
    beta = softmax_at_k._kth_largest(scores, where, 3).requires_grad_()
    fixed = gradient(scores, labels, where=where, beta=beta)
    torch.testing.assert_close(gradient(scores, labels, where=where, k=3), fixed)
    assert beta.grad is None


def test_the_weight_carries_a_gradient_that_can_be_detached():
    scores, labels = torch.tensor([[1.0, 0.2, -0.8]], dtype=torch.float64), torch.tensor([[0, 0, 1]])
    heat, weight_heat, k = 0.2, 2.0, 1
    p = torch.softmax(scores / heat, 1)[0, 2]
    loss, weight = -p.log(), torch.sigmoid((scores[0, 2] - 1) / weight_heat)
    through_the_loss = weight * (p - 1) / heat
    through_the_weight = weight * (1 - weight) * loss / weight_heat
    settings = {"k": k, "temperature": heat, "weight_temperature": weight_heat}
    torch.testing.assert_close(gradient(scores, labels, **settings)[0, 2], through_the_loss + through_the_weight)
    torch.testing.assert_close(gradient(scores, labels, detach_weight=True, **settings)[0, 2], through_the_loss)
    assert through_the_weight > 0  # it pushes a badly placed positive down


@given(st.integers(0, 10**6), st.sampled_from([6.0, 10.0, 20.0]))
def test_a_positive_is_pushed_up_while_the_stability_criterion_holds(seed, ratio):
    scores = torch.rand(1, 1000, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    labels = torch.zeros(1, 1000)
    labels[0, 0] = 1
    p = torch.softmax(scores / 0.1, 1)[0, 0]
    weight = torch.sigmoid((scores[0, 0] - scores[0].topk(10).values[-1]) / (0.1 * ratio))
    stable = ratio > (1 - weight) * -p.log() / (1 - p)
    assert (gradient(scores, labels, weight_temperature=0.1 * ratio)[0, 0] < 0) == stable


def test_a_perfect_single_positive_costs_nothing():
    assert sl_at_k(torch.tensor([[50.0, 0.0, -1.0]]), torch.tensor([[1, 0, 0]]), k=1).item() == pytest.approx(0)


def test_a_low_ratio_warns_once():
    softmax_at_k._warn_if_unstable.cache_clear()
    with pytest.warns(UserWarning, match="weight_temperature / temperature is 5, below 6"):
        loss = build("sl_at_k", temperature=0.1, weight_temperature=0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(3):
            loss(torch.randn(2, 4), torch.eye(2, 4))
        build("sl_at_k", temperature=0.1, weight_temperature=0.6)
        build("sl_at_k", scale=2.0)


@pytest.mark.parametrize("k", [0, -1, 2.5, "10", None, True])
def test_other_k_are_refused(k):
    with pytest.raises(ValueError, match="k must be a whole number >= 1"):
        build("sl_at_k", k=k)


def test_the_default_weight_temperature_is_ten_times_the_temperature():
    scores, labels, where = batch()
    wanted = sl_at_k(scores, labels, where=where, temperature=0.2, weight_temperature=2.0)
    torch.testing.assert_close(sl_at_k(scores, labels, where=where, temperature=0.2), wanted)
    torch.testing.assert_close(sl_at_k(scores, labels, where=where, scale=5), wanted)


def test_thresholds_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"one threshold per query \(2,\), got \(3,\)"):
        sl_at_k(torch.zeros(2, 4), torch.eye(2, 4), beta=torch.zeros(3))


def test_settings_are_checked():
    for settings in ({"weight_temperature": 0}, {"detach_weight": "no"}):
        with pytest.raises(ValueError, match=next(iter(settings))):
            build("sl_at_k", **settings)


def test_sl_is_the_sum_over_a_rows_positives():
    scores, labels, where = batch()
    torch.testing.assert_close(sl(scores, labels, where=where), softmax_loss(scores, labels, where, 0.1))
    torch.testing.assert_close(sl(scores, labels, where=where, scale=5), softmax_loss(scores, labels, where, 0.2))


def test_sl_is_infonce_times_the_number_of_positives():
    scores, labels, where = batch(rows=1)
    found = (where & (labels == 1)).sum()
    assert found > 1
    wanted = found * infonce(scores, labels, where=where, temperature=0.1)
    torch.testing.assert_close(sl(scores, labels, where=where), wanted)


@given(st.integers(0, 10**6), st.integers(1, 12))
def test_sl_at_k_is_at_most_sl(seed, k):
    scores, labels, where = batch(seed=seed)
    assert sl_at_k(scores, labels, where=where, k=k) <= sl(scores, labels, where=where)


def test_an_estimated_threshold_starts_at_zero():
    scores, labels, where = batch()
    zero = torch.zeros(5, dtype=torch.float64)
    wanted = sl_at_k(scores, labels, where=where, beta=zero)
    assert sl_at_k(scores, labels, where=where, quantile="estimated") == wanted
    loss, _ = sl_at_k(scores, labels, where=where, quantile="estimated", state={"beta": zero})
    assert loss == wanted


def test_one_step_of_the_estimate_by_hand():
    scores, labels = torch.tensor([[0.5, 0.3, 0.1, -0.2, 9.0]]), torch.tensor([[1, 0, 0, 0, 0]])
    where = torch.tensor([[True, True, True, True, False]])
    for beta, below, above in ((0.0, 1 / 4, 3 / 4), (0.3, 2 / 4, 1 / 4), (-1.0, 0, 1)):
        settings = {"where": where, "quantile": "estimated", "state": {"beta": torch.tensor([beta])}, "k": 1}
        _, state = sl_at_k(scores, labels, beta_rate=0.2, **settings)
        assert state["beta"].item() == pytest.approx(beta - 0.2 * (0.25 * below - 0.75 * above))  # p = 1 - 1/4
        _, state = sl_at_k(scores, labels, beta_rate=0.2, corpus_size=100, **settings)
        assert state["beta"].item() == pytest.approx(beta - 0.2 * (0.01 * below - 0.99 * above))


def test_the_step_is_down_the_pinball_loss():
    scores, labels, where = batch()
    beta = torch.full((5,), 0.05, dtype=torch.float64, requires_grad=True)
    p = (1 - 3 / where.sum(1)).clamp_min(0)[:, None]
    gap = scores - beta[:, None]
    pinball = torch.where(where, p * gap.clamp_min(0) + (1 - p) * (-gap).clamp_min(0), 0).sum(1) / where.sum(1)
    pinball.sum().backward()
    _, state = sl_at_k(scores, labels, where=where, k=3, quantile="estimated", state={"beta": beta}, beta_rate=0.4)
    torch.testing.assert_close(state["beta"], beta.detach() - 0.4 * beta.grad)
    assert not state["beta"].requires_grad


def test_the_estimate_finds_the_top_k_of_a_corpus_from_samples_of_it():
    generator = torch.Generator().manual_seed(0)
    corpus = torch.rand(1000, generator=generator) * 2 - 1
    state = {"beta": torch.zeros(1)}
    for _ in range(2000):
        rows = corpus[torch.randint(0, 1000, (1, 100), generator=generator)]
        settings = {"k": 100, "corpus_size": 1000, "beta_rate": 0.02, "quantile": "estimated"}
        _, state = sl_at_k(rows, torch.zeros(1, 100), state=state, **settings)
    assert (corpus > state["beta"]).sum().item() == pytest.approx(100, abs=15)


def test_k_beyond_the_corpus_only_lowers_the_estimate():
    scores, labels, where = batch()
    state = {"beta": torch.zeros(5)}
    for _ in range(300):
        before = state["beta"]
        _, state = sl_at_k(scores, labels, where=where, k=99, quantile="estimated", state=state)
        assert (state["beta"] <= before).all()
    assert (state["beta"] <= scores.masked_fill(~where, 9).amin(1) + 1e-6).all()


def test_rows_without_a_valid_entry_keep_their_estimate():
    scores, labels, where = batch()
    where[1] = False
    state = {"beta": torch.full((5,), 0.25)}
    _, new = sl_at_k(scores, labels, where=where, quantile="estimated", state=state)
    assert new["beta"].dtype == torch.float32
    assert ((new["beta"] == 0.25) == torch.tensor([False, True, False, False, False])).all()
    _, new = sl_at_k(scores[:, :0], labels[:, :0], quantile="estimated", state=state)
    assert torch.equal(new["beta"], state["beta"])


def test_the_rows_own_quantile_leaves_a_state_alone():
    scores, labels, where = batch()
    state = {"beta": torch.rand(5)}
    loss, new = sl_at_k(scores, labels, where=where, state=state)
    assert loss == sl_at_k(scores, labels, where=where)
    assert torch.equal(new["beta"], state["beta"])


def test_blocks_of_rows_with_their_estimates_add_up():
    scores, labels, where = batch()
    loss, state = build("sl_at_k", quantile="estimated"), {"beta": torch.rand(5, dtype=torch.float64)}
    whole, new = loss(scores, labels, where, state=state)
    totals = loss.totals(loss.tally(labels, where))
    parts = [
        loss.share(scores[a:b], labels[a:b], where[a:b], totals=totals, state={"beta": state["beta"][a:b]})
        for a, b in ((0, 2), (2, 5))
    ]
    torch.testing.assert_close(parts[0][0] + parts[1][0], whole)
    torch.testing.assert_close(torch.cat([part[1]["beta"] for part in parts]), new["beta"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"quantile": "sampled"}, "quantile must be one of row, estimated, got 'sampled'"),
        ({"beta_rate": 0}, "beta_rate must be > 0"),
        ({"corpus_size": 0}, "corpus_size must be a whole number >= 1, got 0"),
        ({"corpus_size": 1e6}, "corpus_size must be a whole number"),
    ],
)
def test_other_settings_of_the_estimate_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        build("sl_at_k", **settings)


@pytest.mark.parametrize("state", [{}, {"beta": torch.zeros(3)}, {"theta": torch.zeros(2)}, torch.zeros(2)])
def test_other_states_are_refused(state):
    with pytest.raises(ValueError, match=r"state(\['beta'\])? must hold"):
        sl_at_k(torch.zeros(2, 4), torch.eye(2, 4), quantile="estimated", state=state)
