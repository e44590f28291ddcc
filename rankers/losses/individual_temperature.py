"""A softmax loss with a temperature of its own for every query, learned beside the model (iSogCLR)."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from rankers.losses.entry import LossEntry, count_positive_rows
from rankers.losses.inputs import (
    Number,
    Reduction,
    check_matrix,
    check_number,
    check_state,
    check_switch,
    fill_masked,
    positives,
    reduced,
    scale_of,
)

TEMPERATURE = 0.07  # cosines: where the source's temperatures start
STATE: Mapping[str, float] = {"temperature": TEMPERATURE, "log_average": -math.inf, "momentum": 0.0}


def isogclr(
    scores: Tensor,
    labels: Tensor,
    *,
    where: Tensor | None = None,
    state: Mapping[str, Tensor] | None = None,
    temperature: Number | None = None,
    scale: Number | None = None,
    gamma: float = 0.8,
    rho: float = 0.1,
    beta_u: float = 0.9,
    eta: float = 0.01,
    clip: float = 5.0,
    min_temperature: float = 0.005,
    max_temperature: float = 1.0,
    count_positives: bool = False,
    positive_from: float = 1.0,
    reduction: Reduction = "mean",
) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
    """Robust contrastive loss with one temperature per query (iSogCLR; at gamma=1 and equal temperatures, SogCLR).

        h_ij = s_ij - mean over p in P_i of s_ip;   g_i = mean over n in N_i of exp(h_in / t_i)
        row(i) = t_i log a_i + t_i rho;   a_i = (1 - gamma) a_i before + gamma g_i   (g_i on the first visit)
        loss = mean of row(i) over the rows with a relevant document

    s are the scores, P_i the relevant and N_i the other valid columns. a_i averages g_i over the visits of query i, so
    that a small batch has nearly the gradient of a large one: d row / d h_in = exp(h_in / t_i) / (|N_i| a_i), a_i held
    fixed. Without history this is w_n, the softmax of N_i at t_i: the gradient of InfoNCE with the positives out of its
    denominator, times t_i. count_positives=True takes them into N_i; the gradient is then t_i × that of `infonce`.

    d row / d t_i = log a_i + rho - sum_n w_n h_in / t_i, which is rho - KL(w || uniform) without history. So t_i grows
    while the negatives' weights are more peaked than rho allows (queries about frequent things), and shrinks while
    they are flatter; with rho=0 it only grows. This slope is clipped, averaged into a momentum and descended, once
    per visit. With gamma < 1, a_i lags behind a moving t_i, and the t_i of flat negatives hovers instead of shrinking.

    It is a function of its own and not an argument of `infonce` because it carries a state and has another value: the
    rows' losses are differences of scores, not nats, and may be negative.

    Args:
        scores: (queries, docs) float, larger is better; the defaults are meant for cosines.
        labels: (queries, docs) binary: 0/1 or grades, `>= positive_from` is relevant; any number per row.
        where: (queries, docs) bool, False at padding and at masked false negatives. None: all valid.
        state: the rows' "temperature" t_i, "log_average" log a_i and "momentum", each (queries,). A query whose
            log_average is -inf is on its first visit: it starts at `temperature`. None: all of them are.
        temperature: of a query's first visit; > 0; default 0.07.
        scale: 1 / temperature; give one of the two.
        gamma: share of the newest batch in the average, in (0, 1].
        rho: allowance for peaked weights, >= 0, in nats.
        beta_u: share of the newest slope in the momentum, in (0, 1].
        eta: step of the temperatures, >= 0.
        clip: largest slope of a temperature, > 0.
        min_temperature: > 0.
        max_temperature: > min_temperature.
        count_positives: take the relevant columns into the mean g_i.
        positive_from: smallest relevant grade, > 0.
        reduction: "sum" is the numerator: loss × number of rows with a relevant document.

    Returns:
        () float loss in units of the scores; 0, with zero gradient, when no row has a relevant document. A row without
        an irrelevant document gives 0. With `state`, (loss, new state): that of rows without a loss stays as it was.

    Raises:
        ValueError: at wrong shapes, dtypes, labels, state or settings.

    Source: Qiu et al. 2023, "Not All Semantics are Created Equal" (arXiv:2305.11965).

    """
    scores, where = check_matrix(scores, labels, where)
    _check_settings(gamma, rho, beta_u, eta, clip, min_temperature, max_temperature)
    check_switch("count_positives", count_positives)
    first = scores.new_ones(len(scores)) / scale_of(temperature, scale, 1 / TEMPERATURE)
    positive = positives(labels, where, positive_from)
    against = where if count_positives else where & ~positive
    found, number = positive.sum(-1), against.sum(-1)
    alive = (found > 0) & (number > 0)

    old = {name: scores.new_full(first.shape, value) for name, value in STATE.items()}
    if state is not None:
        old = dict(check_state(state, STATE, scores))
    unseen = old["log_average"] == -math.inf
    heat = torch.where(unseen, first, old["temperature"])
    if not scores.shape[1]:  # the logsumexp of no columns is -inf
        return scores.sum() if state is None else (scores.sum(), dict(state))

    target = scores.masked_fill(~positive, 0).sum(-1) / found.clamp_min(1)
    logits = fill_masked((scores - target[:, None]) / heat[:, None], against)
    log_mean = torch.logsumexp(logits, dim=-1) - number.clamp_min(1).log()
    newest = log_mean.detach()
    before = old["log_average"] + (math.log1p(-gamma) if gamma < 1 else -math.inf)
    log_average = torch.where(unseen, newest, torch.logaddexp(before, newest + math.log(gamma)))
    share = (log_mean - log_average).exp()  # g_i / a_i <= 1 / gamma: its slope, the average held fixed, is the loss's
    rows = heat * (log_average + share - share.detach() + rho)
    loss = reduced(rows.masked_fill(~alive, 0).sum(), (found > 0).sum(), reduction)
    if state is None:
        return loss

    with torch.no_grad():
        pull = (torch.softmax(logits, dim=-1) * logits.masked_fill(~against, 0)).sum(-1) * share
        slope = (log_average + rho - pull).clamp(-clip, clip)
        momentum = (1 - beta_u) * old["momentum"] + beta_u * slope
        moved = {
            "temperature": (heat - eta * momentum).clamp(min_temperature, max_temperature),
            "log_average": log_average,
            "momentum": momentum,
        }
        return loss, {name: torch.where(alive, moved[name].to(was.dtype), was) for name, was in state.items()}


def _check_settings(
    gamma: float, rho: float, beta_u: float, eta: float, clip: float, min_temperature: float, max_temperature: float
) -> None:
    for name, share in (("gamma", gamma), ("beta_u", beta_u)):
        if not 0 < check_number(name, share) <= 1:
            raise ValueError(f"{name} must be in (0, 1], got {share}")
    for name, amount in (("rho", rho), ("eta", eta)):
        if not check_number(name, amount) >= 0:
            raise ValueError(f"{name} must be >= 0, got {amount}")
    check_number("clip", clip, positive=True)
    check_number("min_temperature", min_temperature, positive=True)
    if not check_number("max_temperature", max_temperature) > min_temperature:
        raise ValueError(f"max_temperature must be > min_temperature={min_temperature}, got {max_temperature}")


ENTRIES = (
    LossEntry(
        name="isogclr",
        fn=isogclr,
        labels="binary",
        use="queries about frequent and about rare things together, small batches: a temperature for each query",
        needs="rows",
        cost="linear",
        paper="Qiu et al. 2023, arXiv:2305.11965",
        defaults={
            "temperature": TEMPERATURE,
            "gamma": 0.8,
            "rho": 0.1,
            "beta_u": 0.9,
            "eta": 0.01,
            "clip": 5.0,
            "min_temperature": 0.005,
            "max_temperature": 1.0,
            "count_positives": False,
            "positive_from": 1.0,
        },
        count=count_positive_rows,
        state=STATE,
    ),
)
