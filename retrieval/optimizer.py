"""AdamW and its learning rate: the defaults of Hugging Face's trainer."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from retrieval.train_config import TrainConfig

if TYPE_CHECKING:
    import torch


def learning_rate(step: int, total: int, config: TrainConfig) -> float:
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


def make_optimizer(model: torch.nn.Module, loss: torch.nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """Return AdamW without decay on biases and normalisation weights; one fused pass over all parameters."""
    import torch

    named = [*model.named_parameters(), *loss.named_parameters()]
    trained = [(name, parameter) for name, parameter in named if parameter.requires_grad]
    for _, parameter in trained:
        # The fused kernel walks memory: weights must lie there as the moments of a checkpoint do.
        parameter.data = parameter.data.contiguous()
    decayed = [p for name, p in trained if p.ndim > 1 and "norm" not in name.lower()]
    plain = [p for name, p in trained if not (p.ndim > 1 and "norm" not in name.lower())]
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=config.learning_rate, fused=True)
