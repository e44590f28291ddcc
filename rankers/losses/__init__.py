"""All losses: pure functions of (scores, labels, where), a table that names them, a module that holds one.

    from rankers.losses import LOSSES, build
    loss = build("infonce", temperature=0.05)(scores, labels, where)  # () tensor

`scores`, `labels` and `where` are (queries, docs): larger scores are better, each loss names the kind of
labels that it takes and refuses others, and `where` is False at padding and at entries that must not be
compared.
"""

from __future__ import annotations

from rankers.losses.distillation import kl_div, soft_alignment
from rankers.losses.entry import LossEntry
from rankers.losses.expression import LossSum, build_expression
from rankers.losses.individual_temperature import isogclr
from rankers.losses.lambdas import lambdaloss, lambdarank, ndcg_loss1, ndcg_loss2, ndcg_loss2pp
from rankers.losses.listwise import listmle, listnet, p_listmle, poly1
from rankers.losses.mann_whitney import mw
from rankers.losses.metric_learning import circle, multi_similarity
from rankers.losses.module import RankingLoss
from rankers.losses.ordinal_regression import ordinal
from rankers.losses.pairwise import energy_hinge, hinge, ranknet, triplet
from rankers.losses.pointwise import bixse, point_ce, siglip
from rankers.losses.regularisers import REGULARISERS, Regulariser, alignment, uniformity
from rankers.losses.smooth_ranks import approx_ndcg, approx_rr, neural_ndcg
from rankers.losses.soft_top_k import log_soft_top_k, soft_topk
from rankers.losses.softmax import decoupled_softmax, infonce, softmax_ce
from rankers.losses.softmax_at_k import sl, sl_at_k
from rankers.losses.table import LOSSES, build
from rankers.losses.teacher_pairs import margin_mse, rank_distil

__all__ = [
    "LOSSES",
    "REGULARISERS",
    "LossEntry",
    "LossSum",
    "RankingLoss",
    "Regulariser",
    "alignment",
    "approx_ndcg",
    "approx_rr",
    "bixse",
    "build",
    "build_expression",
    "circle",
    "decoupled_softmax",
    "energy_hinge",
    "hinge",
    "infonce",
    "isogclr",
    "kl_div",
    "lambdaloss",
    "lambdarank",
    "listmle",
    "listnet",
    "log_soft_top_k",
    "margin_mse",
    "multi_similarity",
    "mw",
    "ndcg_loss1",
    "ndcg_loss2",
    "ndcg_loss2pp",
    "neural_ndcg",
    "ordinal",
    "p_listmle",
    "point_ce",
    "poly1",
    "rank_distil",
    "ranknet",
    "siglip",
    "sl",
    "sl_at_k",
    "soft_alignment",
    "soft_topk",
    "softmax_ce",
    "triplet",
    "uniformity",
]
