"""What the engine is compared with: losses as one writes them down, and sentence-transformers' cached InfoNCE.

One relevant document per query: query i asks for document i, and all others are its negatives. The losses take the
whole matrix of scores and no mask, no label and no check, which is the least that plain torch can do; each equals the
one of the table.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MINI_BATCH = 256  # of the cached loss: its default, 32, is several times slower


def infonce(scores: Tensor) -> Tensor:
    return F.cross_entropy(scores / 0.05, torch.arange(len(scores)))


def infonce_symmetric(scores: Tensor) -> Tensor:
    own = torch.arange(len(scores))
    logits = scores / 0.05
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2


def decoupled_softmax(scores: Tensor) -> Tensor:
    logits = scores / 0.05
    others = logits.masked_fill(torch.eye(len(scores), dtype=torch.bool), -math.inf).logsumexp(1)
    return F.softplus(others - logits.diagonal()).mean()


def bixse(scores: Tensor) -> Tensor:
    n = len(scores)
    logits = 10 * scores - math.log(n - 1)
    return F.binary_cross_entropy_with_logits(logits, torch.eye(n), reduction="sum") / n


def sl_at_k(scores: Tensor) -> Tensor:
    beta = scores.detach().topk(min(10, len(scores)), dim=1).values[:, -1]
    weight = torch.sigmoid(scores.diagonal() - beta)
    return F.cross_entropy(scores / 0.1, torch.arange(len(scores)), reduction="none").mul(weight).mean()


def mw(scores: Tensor) -> Tensor:
    others = scores[~torch.eye(len(scores), dtype=torch.bool)]
    return F.softplus((others - scores.diagonal()[:, None]) / 0.05).mean()


LOSSES: dict[str, Callable[[Tensor], Tensor]] = {
    "infonce": infonce,
    "infonce, symmetric": infonce_symmetric,
    "decoupled_softmax": decoupled_softmax,
    "bixse": bixse,
    "sl_at_k": sl_at_k,
    "mw": mw,
}


def gradients(name: str, queries: Tensor, documents: Tensor) -> tuple[float, Tensor, Tensor]:
    """Return a loss and the gradients of both embeddings, through autograd."""
    q, d = queries.detach().requires_grad_(), documents.detach().requires_grad_()
    value = LOSSES[name](q @ d.T)
    value.backward()
    assert q.grad is not None
    assert d.grad is not None
    return value.item(), q.grad, d.grad


class GivenEmbeddings(nn.Module):
    """What sentence-transformers' loss takes for a model: its features are the embeddings.

    The factor is there for the replay to have a parameter; its gradient is Σ (embedding × gradient).
    """

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones(()))

    def __getitem__(self, place: int) -> nn.Module:
        return self

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the embeddings, under the name that the loss looks for."""
        return {"sentence_embedding": features["embeddings"] * self.factor}


def cached_infonce(mini_batch: int = MINI_BATCH) -> Callable[[Tensor, Tensor], tuple[float, float]]:
    """Return sentence-transformers' cached InfoNCE over given embeddings: (queries, documents) → loss, slope.

    The slope is that of the loss by a factor on all embeddings. Cosines do not see a factor, so it is 0.
    """
    from sentence_transformers.sentence_transformer.losses import CachedMultipleNegativesRankingLoss

    model: Any = GivenEmbeddings()
    loss = CachedMultipleNegativesRankingLoss(model, scale=20.0, mini_batch_size=mini_batch)

    def run(queries: Tensor, documents: Tensor) -> tuple[float, float]:
        model.factor.grad = None
        value = loss([{"embeddings": queries}, {"embeddings": documents}], None)
        value.backward()
        return value.item(), model.factor.grad.item()

    return run
