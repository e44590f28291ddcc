"""What a run minimises: a loss or a sum of losses, by the plain step, in chunks, or sharpness-aware."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from retrieval.encoder import Encoder
from retrieval.errors import InputError
from retrieval.loop_config import LoopConfig
from retrieval.optimizer import perturbed
from retrieval.steps import Embedder, TokenizedBatch, Watching, backward
from retrieval.train_config import TrainConfig

if TYPE_CHECKING:
    from torch import nn

    from rankers.engine import Views
    from rankers.losses import LossSum, RankingLoss
    from retrieval.proxies import ProxyBranch


def build_loss(config: LoopConfig, *, bounded: bool = True) -> RankingLoss | LossSum:
    """Build the loss that the settings name, or say which setting is wrong.

    Args:
        config: the settings.
        bounded: whether scores are bounded as cosines are, for which the losses' own temperatures are meant. If not,
            every loss whose settings name neither temperature nor scale divides by 1.

    """
    from rankers.losses import build_expression

    settings = dict(config.loss_settings)
    try:
        loss = build_expression(config.loss, settings)
        for term in () if bounded else loss.terms:
            names = ("temperature", "scale")
            if not {*names, *(f"{term.name}.{name}" for name in names)} & settings.keys():
                settings[f"{term.name}.{'scale' if 'scale' in term.entry.defaults else 'temperature'}"] = 1.0
        return loss if bounded else build_expression(config.loss, settings)
    except (ValueError, TypeError) as error:
        raise InputError(f"loss: {error}") from error


class Objective:
    """The gradient of one step as the settings ask for it.

    Args:
        config: the run's settings.
        loss: the loss; learned settings and the state of each query are part of it.
        encoder: the encoder.
        queries: how many training queries there are.
        max_grade: the highest grade of a training judgement.
        branch: of the global proxies, trained by the same loss over the same batch.
        watching: returns what sees the step of a batch.

    Attributes:
        views: the columns that the loss compares; None: whole embeddings.

    Raises:
        InputError: at settings that the loss or the model cannot follow.

    """

    def __init__(
        self,
        config: TrainConfig,
        loss: RankingLoss | LossSum,
        encoder: Encoder,
        *,
        queries: int,
        max_grade: float,
        branch: ProxyBranch | None = None,
        watching: Watching | None = None,
    ) -> None:
        from rankers.losses import LossSum

        self.loss, self._config, self._watching = loss, config, watching
        self._encoder: Embedder = encoder
        self.views = _views(config, loss, encoder, branch)
        if isinstance(loss, LossSum):
            loss.max_grade = max_grade
        loss.remember(queries)
        loss.to(encoder.model.device)
        self.parameters: list[nn.Parameter] = [*encoder.model.parameters(), *loss.parameters()]
        if branch is not None:
            from retrieval.proxies import WithProxies

            branch.to(encoder.model.device)
            self._encoder = WithProxies(encoder, branch)
            self.parameters += branch.parameters()

    def gradient(self, batches: Sequence[TokenizedBatch]) -> float:
        """Add the gradient of a step to the parameters and return the loss; nan or inf: without its gradient.

        With sam_rho the gradient is that of the weights moved up by it (both passes see the same dropout), the loss
        that of the weights themselves, unless only the former is not finite.
        """
        from rankers.random_state import RandomState

        rho = self._config.sam_rho
        random = RandomState.now(self._encoder.model.device)
        value = self._backward(batches, keep_state=not rho, watching=self._watching)
        if not rho or not math.isfinite(value):
            return value
        with perturbed(self.parameters, rho):
            random.restore()
            found = self._backward(batches, keep_state=True)
        return value if math.isfinite(found) else found

    def _backward(
        self, batches: Sequence[TokenizedBatch], *, keep_state: bool, watching: Watching | None = None
    ) -> float:
        return backward(
            self._encoder,
            self.loss,
            batches,
            chunk_size=self._config.chunk_size,
            views=self.views,
            keep_state=keep_state,
            watching=watching,
        )


def _views(
    config: TrainConfig, loss: RankingLoss | LossSum, encoder: Encoder, branch: ProxyBranch | None
) -> Views | None:
    from rankers.engine import View, Views

    dims, own = config.matryoshka_dims, encoder.dim
    if not dims and branch is None:
        return None
    if max(dims, default=0) > own:
        raise InputError(f"matryoshka_dims: {max(dims)} is more than the model's {own} dimensions")
    if loss.keeps_state:
        what = "matryoshka_dims" if dims else "batching=proxy"
        raise InputError(f"{what}: {loss.name} keeps one state of each query; take another loss")
    parts: tuple[View, ...] = (View(0, own),)
    if dims:
        is_cosine = encoder.model.similarity_fn_name == "cosine"
        parts = Views.matryoshka(dict.fromkeys(dims, 1.0), normalize=is_cosine).parts
    if branch is not None:
        parts += (View(own, own + config.proxy_dim, weight=config.proxy_weight),)
    return Views(parts)
