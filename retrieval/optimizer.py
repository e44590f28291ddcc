"""AdamW and its learning rate: the defaults of Hugging Face's trainer."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from retrieval.loop_config import LoopConfig

if TYPE_CHECKING:
    import torch


def learning_rate(step: int, total: int, config: LoopConfig) -> float:
    """Return the rate of a step (from 0): linear warm-up over warmup_ratio of all steps, then linear decay to 0.

        warm-up, s < w = ceil(warmup_ratio · total):   rate · (s + 1) / w
        decay, s >= w:                                 rate · (total - s) / (total - w)

    transformers' linear schedule, except that its warm-up is one step behind (s / w), so that its first step changes
    nothing and costs as much as any.
    """
    warmup = math.ceil(config.warmup_ratio * total)
    if step < warmup:
        return config.learning_rate * ((step + 1) / warmup)
    return config.learning_rate * max(0.0, (total - step) / max(1, total - warmup))


# Learned settings of a loss are single numbers that must come a long way (a scale from 10 to 30).
LOSS_RATE = 100.0
# The branch of global proxies is a linear map that begins at random beside a model that has learned already.
PROXY_RATE = 10.0


def make_optimizer(model: torch.nn.Module, loss: torch.nn.Module, config: LoopConfig) -> torch.optim.Optimizer:
    """Return AdamW without decay on biases and normalisation weights; one fused pass over all parameters.

    Each group's `share` is what it makes of the schedule's rate: 1, and more for learned settings of the loss and for
    what the model holds as `proxies`.
    """
    import torch

    every = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    proxies = [parameter for name, parameter in every if name.startswith("proxies.")]
    trained = [(name, parameter) for name, parameter in every if not name.startswith("proxies.")]
    learned = [parameter for parameter in loss.parameters() if parameter.requires_grad]
    for parameter in [*(parameter for _, parameter in every), *learned]:
        # The fused kernel walks memory: weights must lie there as the moments of a checkpoint do.
        parameter.data = parameter.data.contiguous()
    decayed = [p for name, p in trained if p.ndim > 1 and "norm" not in name.lower()]
    plain = [p for name, p in trained if not (p.ndim > 1 and "norm" not in name.lower())]
    rate = config.loss_learning_rate
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay, "share": 1.0},
        {"params": plain, "weight_decay": 0.0, "share": 1.0},
        {"params": proxies, "weight_decay": config.weight_decay, "share": PROXY_RATE},
        {"params": learned, "weight_decay": 0.0, "share": LOSS_RATE if rate is None else rate / config.learning_rate},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=config.learning_rate, fused=True)


@contextmanager
def perturbed(parameters: Sequence[torch.nn.Parameter], rho: float) -> Iterator[None]:
    """Move the parameters up their gradient by `rho`, for the second gradient of a sharpness-aware step.

        e = rho · g / (‖g‖ + 1e-12),   ‖g‖ over all parameters

    Inside, the gradients are gone and the weights are w + e; afterwards they are w again, bit for bit.

    Source: Foret et al. 2021, "Sharpness-Aware Minimization" (arXiv:2010.01412), eq. 2.
    """
    import torch

    moved = [(p, p.grad) for p in parameters if p.grad is not None]
    kept = [p.detach().clone() for p, _ in moved]
    with torch.no_grad():
        norm = torch.stack([gradient.norm() for _, gradient in moved]).norm()
        for parameter, gradient in moved:
            parameter.add_(gradient * (rho / (norm + 1e-12)))
            parameter.grad = None
    try:
        yield
    finally:
        with torch.no_grad():
            for (parameter, _), before in zip(moved, kept, strict=True):
                parameter.copy_(before)
