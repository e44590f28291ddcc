"""All losses: pure functions of (scores, labels, where), a table that names them, a module that holds one.

    from rankers.losses import LOSSES, build
    loss = build("infonce", temperature=0.05)(scores, labels, where)  # () tensor

`scores`, `labels` and `where` are (queries, docs): larger scores are better, each loss names the kind of
labels that it takes and refuses others, and `where` is False at padding and at entries that must not be
compared.
"""

from __future__ import annotations

from rankers.losses.entry import LossEntry
from rankers.losses.mann_whitney import mw
from rankers.losses.module import RankingLoss
from rankers.losses.pointwise import bixse
from rankers.losses.softmax import decoupled_softmax, infonce, softmax_ce
from rankers.losses.softmax_at_k import sl_at_k
from rankers.losses.table import LOSSES, build

__all__ = [
    "LOSSES",
    "LossEntry",
    "RankingLoss",
    "bixse",
    "build",
    "decoupled_softmax",
    "infonce",
    "mw",
    "sl_at_k",
    "softmax_ce",
]
