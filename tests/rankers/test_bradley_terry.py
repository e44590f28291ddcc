from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit

from rankers.bradley_terry import fit_bradley_terry, misfit


def played(strengths, games, seed):
    """Wins of `games` games for each pair, drawn from the model."""
    generator = np.random.default_rng(seed)
    n = len(strengths)
    chances = 1 / (1 + np.exp(strengths - np.asarray(strengths)[:, None]))
    upper = np.triu(generator.binomial(games, chances), 1)
    return upper + np.triu(np.full((n, n), games) - upper, 1).T


def circle(games, won):
    """Rock, paper, scissors: each beats the next in `won` of `games`."""
    wins = np.zeros((3, 3))
    for i in range(3):
        wins[i, (i + 1) % 3], wins[(i + 1) % 3, i] = won, games - won
    return wins


# --- the fit ----------------------------------------------------------------------------------------------------------


def test_two_candidates_by_hand():
    fit = fit_bradley_terry([[0, 3], [1, 0]])
    np.testing.assert_allclose(fit.strengths, [np.log(3) / 2, -np.log(3) / 2])
    variance = 1 / (4 * 0.75 * 0.25)  # of the difference: 1 / (n p (1 - p))
    np.testing.assert_allclose(fit.covariance, variance / 4 * np.array([[1, -1], [-1, 1]]))
    assert fit.probability(0, 1) == pytest.approx(0.75)
    assert fit.certainty(0, 1) == pytest.approx(NormalDist().cdf(np.log(3) / variance**0.5))
    assert fit.certainty(1, 1) == 0.5
    assert fit.prior == 0


def test_a_single_game_needs_the_half_win_and_tells_log_three():
    fit = fit_bradley_terry([[0, 1], [0, 0]])
    assert fit.prior == 0.5
    assert fit.strengths[0] - fit.strengths[1] == pytest.approx(np.log(3))


@given(st.integers(2, 12), st.integers(0, 2**32 - 1))
def test_it_finds_the_strengths_that_made_the_games(n, seed):
    strengths = np.linspace(-1.5, 1.5, n)
    fit = fit_bradley_terry(played(strengths, 200, seed))
    assert np.corrcoef(fit.strengths, strengths)[0, 1] > 0.99
    assert fit.strengths.sum() == pytest.approx(0, abs=1e-9)


@given(st.integers(3, 8), st.integers(0, 2**32 - 1))
def test_the_gradient_is_zero(n, seed):
    """Whatever the wins, parts of a win and candidates without any game among them: wins are what the fit expects."""
    generator = np.random.default_rng(seed)
    wins = generator.random((n, n)) * (generator.random((n, n)) < 0.6) * (1 - np.eye(n))
    fit = fit_bradley_terry(wins)
    counted = wins + fit.prior * ((wins + wins.T) > 0)
    expected = (counted + counted.T) * fit.probability(np.arange(n)[:, None], np.arange(n))
    np.testing.assert_allclose(expected.sum(axis=1), counted.sum(axis=1), atol=1e-8)


def test_it_agrees_with_logistic_regression():
    linear_model = pytest.importorskip("sklearn.linear_model", reason="needs the demo extra")
    wins = played(np.array([-1.0, -0.2, 0.1, 0.4, 0.9]), 12, seed=3)
    i, j = np.nonzero(wins)
    design = np.zeros((2 * len(i), 5))
    design[np.arange(len(i)), i], design[np.arange(len(i)), j] = 1, -1
    design[len(i) :] = -design[: len(i)]  # each game from both sides, so that there are two classes
    labels = np.repeat([1, 0], len(i))
    peer = linear_model.LogisticRegression(
        C=np.inf, fit_intercept=False, tol=1e-12, max_iter=10_000, solver="newton-cg"
    )
    peer.fit(design, labels, sample_weight=np.tile(wins[i, j], 2))
    theirs = peer.coef_[0] - peer.coef_[0].mean()
    np.testing.assert_allclose(fit_bradley_terry(wins).strengths, theirs, atol=1e-6)


def test_the_covariance_is_the_pseudo_inverse_of_the_information():
    wins = played(np.array([0.5, 0.0, -0.7, 0.2]), 9, seed=1)
    wins[:2, 2:] = wins[2:, :2] = 0  # two parts
    fit = fit_bradley_terry(wins)
    p = 1 / (1 + np.exp(fit.strengths - fit.strengths[:, None]))
    weights = (wins + wins.T) * p * (1 - p)
    np.testing.assert_allclose(fit.covariance, np.linalg.pinv(np.diag(weights.sum(1)) - weights), atol=1e-9)
    np.testing.assert_allclose(fit.standard_errors**2, np.diagonal(fit.covariance))


def test_standard_errors_are_those_of_repeated_data():
    strengths = np.array([-0.8, 0.0, 0.3, 0.5])
    fits = [fit_bradley_terry(played(strengths, 60, seed)) for seed in range(300)]
    spread = np.std([fit.strengths for fit in fits], axis=0)
    np.testing.assert_allclose(np.mean([fit.standard_errors for fit in fits], axis=0), spread, rtol=0.15)


def test_parts_that_never_met_say_nothing_about_each_other():
    wins = np.zeros((5, 5))
    wins[0, 1], wins[1, 0], wins[2, 3], wins[3, 2] = 3, 1, 9, 1
    fit = fit_bradley_terry(wins)
    assert fit.parts[0] == fit.parts[1] != fit.parts[2] == fit.parts[3]
    np.testing.assert_allclose(fit.strengths, np.log([3, 1 / 3, 9, 1 / 9, 1]) / 2, atol=1e-12)
    assert fit.probability([2, 0, 4], [0, 3, 1]).tolist() == [0.5, 0.5, 0.5]
    assert fit.certainty([2, 0, 4], [0, 3, 1]).tolist() == [0.5, 0.5, 0.5]


def test_soft_answers_are_soft_targets():
    """Margins of 20 and more are as good as certain; up to there, the scores themselves come back."""
    scores = np.array([2.0, -1.0, 0.5, -1.5])
    wins = 1 / (1 + np.exp(scores - scores[:, None])) * (1 - np.eye(4))
    np.testing.assert_allclose(fit_bradley_terry(wins).strengths, scores, atol=1e-9)


@pytest.mark.parametrize("spread", [5.0, 36.0, 40.0, 400.0])
@pytest.mark.parametrize("n", [3, 40])
def test_certain_answers_have_a_fit_in_the_right_order(spread, n):
    scores = np.linspace(spread, 0, n)
    with np.errstate(over="ignore"):
        wins = 1 / (1 + np.exp(scores - scores[:, None])) * (1 - np.eye(n))
    fit = fit_bradley_terry(wins)
    assert (np.diff(fit.strengths) < 0).all()
    assert np.isfinite(fit.covariance).all()


def test_a_long_chain_converges():
    """Where Newton's steps are needed: 50 sweeps of MM leave most of the chain near where it began."""
    wins = np.diag(np.full(149, 3.0), 1) + np.diag(np.full(149, 1.0), -1)
    np.testing.assert_allclose(-np.diff(fit_bradley_terry(wins).strengths), np.log(3), atol=1e-9)


def test_nobody_and_one():
    assert fit_bradley_terry(np.zeros((0, 0))).strengths.shape == (0,)
    assert fit_bradley_terry([[0]]).strengths.tolist() == [0]
    assert fit_bradley_terry(np.zeros((3, 3))).standard_errors.tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("wins", "message"),
    [
        ([[0, 1]], r"wins must have the shape \(n, n\), got \(1, 2\)"),
        ([[0, -1], [0, 0]], r"wins\[0, 1\] is -1.0; wanted a finite number ≥ 0"),
        ([[0, 0], [np.nan, 0]], r"wins\[1, 0\] is nan"),
        ([[0, 1], [1, 2]], r"wins\[1, 1\] is 2.0; nobody plays against himself"),
    ],
)
def test_bad_wins_are_refused(wins, message):
    with pytest.raises(ValueError, match=message):
        fit_bradley_terry(wins)


def test_a_maximum_that_is_too_far_away_gets_the_half_win():
    """100 candidates who win with 1 - 2e-6 against all behind them: their strengths would lie 1,300 apart."""
    chances = expit(np.where(np.triu(np.ones((100, 100)), 1) > 0, 13.0, -13.0))
    np.fill_diagonal(chances, 0)
    fit = fit_bradley_terry(chances)
    assert fit.prior == 0.5
    assert (np.diff(fit.strengths) < 0).all()
    with pytest.raises(ValueError, match="strengths still move"):
        fit_bradley_terry(chances, prior=0)


def test_a_fit_that_does_not_exist_is_refused_without_a_prior():
    with pytest.raises(ValueError, match=r"never lost to the others.* give a prior, such as 0.5"):
        fit_bradley_terry([[0, 4], [0, 0]], prior=0)
    with pytest.raises(ValueError, match="prior must be ≥ 0, got -1"):
        fit_bradley_terry([[0, 4], [0, 0]], prior=-1)


# --- the test of misfit -----------------------------------------------------------------------------------------------


def test_the_deviance_by_hand():
    """Rock, paper, scissors, 8 of 10 each: the fit says 1/2, G² = 3 · 2 (8 log 1.6 + 2 log 0.4)."""
    found = misfit(circle(10, 8), resamples=99)
    assert found.deviance == pytest.approx(6 * (8 * np.log(1.6) + 2 * np.log(0.4)))
    assert found.pairs == 3
    assert found.p_value == 0.01
    assert found.fits is False
    assert found.verdict.startswith("Bradley-Terry does not describe these pairs (G² = 11.6, p = 0.010)")


def test_the_worst_pair_is_named():
    wins = played(np.zeros(4), 20, seed=0).astype(float)
    wins[1, 3], wins[3, 1] = 20, 0
    assert misfit(wins, resamples=1).worst == (1, 3)


def test_p_is_spread_evenly_where_the_model_holds():
    strengths = np.array([-0.6, -0.1, 0.2, 0.5])
    found = [misfit(played(strengths, 15, seed), resamples=39, seed=seed).p_value for seed in range(30)]
    assert 0.35 < np.mean(found) < 0.65
    assert sum(p <= 0.05 for p in found) <= 5
    assert min(found) < 0.25
    assert max(found) > 0.75


def test_the_seed_decides_p():
    wins = played(np.array([0.0, 0.4, 0.8]), 10, seed=2)
    assert misfit(wins, resamples=19, seed=5) == misfit(wins, resamples=19, seed=5)


def test_candidates_that_never_lose_are_drawn_and_fitted_by_the_same_rule():
    wins = 6.0 * np.triu(np.ones((4, 4)), 1)
    found = misfit(wins, resamples=49)
    assert found.fits is True
    assert "is not contradicted" in found.verdict


def test_samples_without_a_maximum_get_the_half_win_where_the_data_need_no_prior():
    """The three games of a pair often go one way; where no chain of wins is left, strengths have no maximum."""
    found = misfit(circle(3, 2), prior=0, resamples=49)
    assert found.fits is True
    assert found.deviance == misfit(circle(3, 2), resamples=49).deviance


@pytest.mark.parametrize(
    ("wins", "reason"),
    [
        (circle(1, 1), "no pair was compared more than once"),
        (np.zeros((2, 2)), "no pair was compared more than once"),
        ([[0, 5, 0], [2, 0, 4], [0, 3, 0]], "the compared pairs form no loop"),
        (circle(3, 2.2), "answers are probabilities, not games"),
    ],
)
def test_it_says_when_it_cannot_tell(wins, reason):
    found = misfit(wins)
    assert found.fits is None
    assert np.isnan(found.p_value)
    assert found.verdict.startswith(f"cannot tell: {reason}")


def test_misfit_refuses_what_the_fit_refuses():
    with pytest.raises(ValueError, match="resamples must be at least 1, got 0"):
        misfit(circle(3, 2), resamples=0)
    with pytest.raises(ValueError, match="nobody plays against himself"):
        misfit(np.eye(2))
