"""The Bradley-Terry model: one strength for each candidate, fitted to who beat whom, and whether that is enough.

    P(i beats j) = sigmoid(θ_i - θ_j),   Σ θ = 0

The fit takes any set of pairs, each asked any number of times. An answer that is a probability counts as that part of
a win, which is the cross-entropy against soft targets (for targets sigmoid(γ · margin), MMPO's), and a tie as half a
win each. Where candidates fall into parts that were never compared with each other, each part has Σ θ = 0, and nothing
is said across parts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components
from scipy.special import expit, ndtr, xlogy

PRIOR = 0.5  # wins each way that are added to every compared pair when the likelihood has no maximum without
_NO_WIN = 1e-6  # a smaller share of a pair's games is as good as none: its strengths would be 14 apart and more
_SWEEPS = 50  # of MM before Newton's steps
_LONGEST_STEP = 0.5  # see _climb
_MOST_STEPS = 1_000

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class BradleyTerry:
    """A fit.

    Attributes:
        strengths: (n,) θ, larger is better; sum 0 in each part.
        covariance: (n, n) of the strengths: the pseudo-inverse of the observed information. It takes every answer as
            one independent game, so it is too wide for answers that are probabilities.
        parts: (n,) int, equal for candidates that are connected by comparisons.
        prior: wins that were added each way to each compared pair.

    """

    strengths: Floats
    covariance: Floats
    parts: NDArray[np.int64]
    prior: float

    @property
    def standard_errors(self) -> Floats:
        """(n,) standard errors of the strengths, which are relative to the mean of their part."""
        errors: Floats = np.sqrt(np.maximum(np.diagonal(self.covariance), 0))
        return errors

    def probability(self, first: ArrayLike, second: ArrayLike) -> Floats:
        """Return P(first beats second), as fitted: (pairs,); 1/2 for candidates of different parts."""
        i, j = np.asarray(first), np.asarray(second)
        return np.where(self.parts[i] == self.parts[j], expit(self.strengths[i] - self.strengths[j]), 0.5)

    def certainty(self, first: ArrayLike, second: ArrayLike) -> Floats:
        """Return how sure it is that first is the stronger one: (pairs,), 1/2 where nothing is known.

            Φ((θ_i - θ_j) / se),   se² = C_ii + C_jj - 2 C_ij

        The normal approximation: rough where a pair hangs together by a handful of games.
        """
        i, j = np.asarray(first), np.asarray(second)
        covariance = self.covariance
        variance = covariance[i, i] + covariance[j, j] - 2 * covariance[i, j]
        known = (self.parts[i] == self.parts[j]) & (variance > 0)
        differences = self.strengths[i] - self.strengths[j]
        z = np.divide(differences, np.sqrt(np.where(known, variance, 1)), out=np.zeros(known.shape), where=known)
        certainty: Floats = ndtr(z)
        return certainty


def fit_bradley_terry(wins: ArrayLike, *, prior: float | None = None) -> BradleyTerry:
    """Fit strengths to wins by maximum likelihood.

    MM updates π_i ← W_i / Σ_j n_ij / (π_i + π_j), π = exp θ, climb from equal strengths; since their last digits take
    long where few pairs were compared, Newton's steps finish, until no strength moves by 1e-9.

    A maximum exists only when, within each part, everybody has beaten everybody through a chain of wins. Where that
    does not hold, `prior` wins each way are added to each pair that was compared. Parts of a win below a millionth of
    the opponent's do not count there.

    Args:
        wins: (n, n) ≥ 0, [i, j] how often i beat j; parts of a win are allowed, the diagonal is 0.
        prior: wins to add each way. None: 0 where the likelihood has a maximum that is not too far away to be reached
            (strengths some hundreds apart), else 1/2.

    Raises:
        ValueError: at wins of another shape, negative or not finite; when there is no maximum with `prior=0`, or it is
            too far away with a prior that is given.

    Sources: Bradley and Terry 1952 (doi:10.1093/biomet/39.3-4.324); Hunter 2004 (doi:10.1214/aos/1079120141), the MM
    updates and the condition; the half win is the usual remedy, and with 1/2 each way a single game tells log 3.

    """
    won = _checked(wins)
    if prior is not None and not (np.isfinite(prior) and prior >= 0):
        raise ValueError(f"prior must be ≥ 0, got {prior}")
    compared = (won + won.T) > 0
    parts, has_maximum = _connections(won)
    is_given = prior is not None
    if prior is None:
        prior = 0.0 if has_maximum else PRIOR
    elif prior == 0 and not has_maximum:
        raise ValueError(
            "no strengths fit best: some candidates never lost to the others, or hardly ever, so theirs would be "
            f"infinite; give a prior, such as {PRIOR}"
        )
    counted = won + prior * compared
    strengths = _climb(counted, parts)
    if strengths is None and not is_given and prior == 0:
        prior, counted = PRIOR, won + PRIOR * compared
        strengths = _climb(counted, parts)
    if strengths is None:
        message = (
            f"strengths still move after {_MOST_STEPS} steps; are wins of very different sizes? Give a larger prior"
        )
        raise ValueError(message)
    games = counted + counted.T
    covariance = _pseudo_inverse(_information(strengths, games), parts)
    return BradleyTerry(strengths=strengths, covariance=covariance, parts=parts, prior=float(prior))


@dataclass(frozen=True, slots=True)
class Misfit:
    """Whether Bradley-Terry describes the pairs.

    Attributes:
        deviance: G² over the pairs that were compared more than once; nan when there is none.
        pairs: how many those are.
        p_value: how often data of the fitted model deviate as much or more; nan when that cannot be told.
        worst: the pair that deviates most, or None.
        verdict: the finding in a sentence.

    """

    deviance: float
    pairs: int
    p_value: float
    worst: tuple[int, int] | None
    verdict: str

    @property
    def fits(self) -> bool | None:
        """False when p < 0.05, None when it cannot be told."""
        return None if np.isnan(self.p_value) else bool(self.p_value >= 0.05)


def misfit(wins: ArrayLike, *, prior: float | None = None, resamples: int = 499, seed: int = 0) -> Misfit:
    """Test whether one strength for each candidate explains who beat whom.

        G² = 2 Σ [w log(w / np) + (n - w) log((n - w) / n(1 - p))]   over pairs with n ≥ 2 games, w of them won

    compares the fit with the model that gives each pair a probability of its own. Its p is that of a parametric
    bootstrap: games are drawn from the fit, as many for each pair as there were, fitted again, and
    p = (1 + number with G² as large) / (1 + resamples). So few games for a pair do no harm, as they would to χ².

    It needs pairs that were compared more than once, by answers that are independent games. It cannot tell (p is nan)
    when there is none, when the compared pairs form no loop (strengths then fit whatever happens), or when answers are
    probabilities. Ties, as half wins, vary less than the games drawn: the test is then slow to find a misfit.

    Args:
        wins: (n, n), [i, j] how often i beat j; `Ranking.wins`, say, of a ranking made with `repeats`.
        prior: as in `fit_bradley_terry`. Every drawn sample is fitted by the same rule, but for 0: a sample may have no
            maximum where the data have one, and then gets the half win.
        resamples: how many samples are drawn; p is at least 1 / (1 + resamples).
        seed: same seed, same p.

    Raises:
        ValueError: as `fit_bradley_terry`; resamples below 1.

    Source: the deviance test and the bootstrap are standard, Davison and Hinkley 1997, "Bootstrap Methods and their
    Application", section 4.2.

    """
    won = _checked(wins)
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1, got {resamples}")
    games = won + won.T
    i, j = np.nonzero(np.triu(games))
    repeated = games[i, j] > 1
    fit = fit_bradley_terry(won, prior=prior)
    loops = len(i) - (len(won) - len(np.unique(fit.parts)))
    deviances = _deviances(won, fit, i, j) * repeated
    if not repeated.any():
        return Misfit(np.nan, 0, np.nan, None, "cannot tell: no pair was compared more than once")
    worst = int(np.argmax(deviances))
    known = (float(deviances.sum()), int(repeated.sum()))
    pair = (int(i[worst]), int(j[worst]))
    if loops < 1:
        return Misfit(*known, np.nan, pair, "cannot tell: the compared pairs form no loop, so strengths fit anything")
    if not _is_whole(2 * won) or not _is_whole(games):
        return Misfit(*known, np.nan, pair, "cannot tell: answers are probabilities, not games")
    generator = np.random.default_rng(seed)
    chances, counts = fit.probability(i, j), np.rint(games[i, j]).astype(np.int64)
    as_large = 0
    for _ in range(resamples):
        drawn = np.zeros_like(won)
        drawn[i, j] = generator.binomial(counts, chances)
        drawn[j, i] = counts - drawn[i, j]
        again = fit_bradley_terry(drawn, prior=prior or None)
        as_large += bool((_deviances(drawn, again, i, j) * repeated).sum() >= known[0] - 1e-9)
    p = (1 + as_large) / (1 + resamples)
    found = "does not describe these pairs" if p < 0.05 else "is not contradicted by these pairs"
    return Misfit(*known, p, pair, f"Bradley-Terry {found} (G² = {known[0]:.1f}, p = {p:.3f})")


def _deviances(won: Floats, fit: BradleyTerry, i: NDArray[Any], j: NDArray[Any]) -> Floats:
    """Return each pair's part of G²."""
    first, second = won[i, j], won[j, i]
    total, p = first + second, fit.probability(i, j)
    seen = xlogy(first, first) + xlogy(second, second)
    parts: Floats = 2 * (seen - xlogy(first, total * p) - xlogy(second, total * (1 - p)))
    return parts


def _checked(wins: ArrayLike) -> Floats:
    won = np.asarray(wins, dtype=np.float64)
    if won.ndim != 2 or won.shape[0] != won.shape[1]:
        raise ValueError(f"wins must have the shape (n, n), got {won.shape}")
    if len(bad := np.argwhere(~(np.isfinite(won) & (won >= 0)))):
        i, j = bad[0]
        raise ValueError(f"wins[{i}, {j}] is {won[i, j]}; wanted a finite number ≥ 0")
    if np.diagonal(won).any():
        place = int(np.flatnonzero(np.diagonal(won))[0])
        raise ValueError(f"wins[{place}, {place}] is {won[place, place]}; nobody plays against himself")
    return won


def _connections(won: Floats) -> tuple[NDArray[np.int64], bool]:
    """Return the part of each candidate, and whether within each part everybody has beaten everybody by some chain."""
    if not len(won):
        return np.zeros(0, dtype=np.int64), True
    n_parts, parts = connected_components(csr_array(won > 0), directed=True, connection="weak")
    n_strong, _ = connected_components(csr_array(won > _NO_WIN * won.T), directed=True, connection="strong")
    return parts.astype(np.int64), bool(n_strong == n_parts)


def _climb(won: Floats, parts: NDArray[np.int64]) -> Floats | None:
    """Return the strengths of the highest likelihood, which must exist; None where it is too far away.

    Where no compared pair's difference changes by more than r, the information changes by a factor of at most e^r. A
    Newton step cut to r = 1/2 < log 2 therefore always climbs, without a search along it.
    """
    games = won + won.T
    total, strengths = won.sum(axis=1), np.zeros(len(won))
    plays = total > 0  # everybody who was compared: there is a maximum
    for _ in range(_SWEEPS):
        powers = np.exp(strengths)
        rates = (games / (powers[:, None] + powers)).sum(axis=1)
        strengths = np.log(np.divide(total, rates, out=np.ones(len(won)), where=plays))
        strengths = _centred(strengths, parts)
    for _ in range(_MOST_STEPS):
        gradient = total - (games * expit(strengths[:, None] - strengths)).sum(axis=1)
        step = _pseudo_inverse(_information(strengths, games), parts) @ gradient
        longest = float(np.max(np.abs(step[:, None] - step), where=games > 0, initial=0))
        strengths = _centred(strengths + step * min(1.0, _LONGEST_STEP / max(longest, 1e-300)), parts)
        if longest <= 1e-9:
            return strengths
    return None


def _centred(strengths: Floats, parts: NDArray[np.int64]) -> Floats:
    """Return strengths with the sum 0 in each part."""
    if not len(parts):
        return strengths
    means = np.bincount(parts, strengths) / np.bincount(parts)
    return strengths - means[parts]


def _information(strengths: Floats, games: Floats) -> Floats:
    """Return minus the second derivative of the log likelihood."""
    chances = expit(strengths[:, None] - strengths)
    weights = games * chances * chances.T
    information: Floats = np.diag(weights.sum(axis=1)) - weights
    return information


def _pseudo_inverse(information: Floats, parts: NDArray[np.int64]) -> Floats:
    """Return the pseudo-inverse; the null space, one constant for each part, is known and need not be guessed."""
    if not len(parts):
        return information
    together = (parts[:, None] == parts).astype(np.float64)
    constants = together / together.sum(axis=1)
    scale = float(np.diagonal(information).mean()) or 1.0
    inverse: Floats = np.linalg.inv(information + scale * constants) - constants / scale
    return inverse


def _is_whole(values: Floats) -> bool:
    return bool(np.allclose(values, np.rint(values), rtol=0, atol=1e-9))
