"""Dropout whose random numbers cost less than the arithmetic around it.

torch's CPU dropout draws its mask on one thread and takes a fifth of a MiniLM training step. This one draws 16 bits
per element from SFC64, seeded from torch's generator at each call: the same distribution (p is rounded to 1/65536),
the same determinism (what restores torch's random state restores every mask), another stream of numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

_LEVELS = 1 << 16


def dropout(x: torch.Tensor, p: float) -> torch.Tensor:
    """Return x with each element set to 0 with probability p, the others divided by 1 - p.

    Args:
        x: any float CPU tensor.
        p: probability, 0 <= p <= 1, rounded to the nearest 1/65536.

    """
    import torch

    dropped = round(p * _LEVELS)
    if dropped == 0:
        return x
    if dropped == _LEVELS:
        return x * 0
    seed = int(torch.randint(1 << 62, ()))
    words = np.random.SFC64(seed).random_raw((x.numel() + 3) // 4)
    bits = torch.from_numpy(words.view(np.int16))[: x.numel()].view(x.shape)
    keep = bits >= dropped - _LEVELS // 2
    return x * keep.to(x.dtype).mul_(_LEVELS / (_LEVELS - dropped))


@contextmanager
def use_fast_dropout(model: torch.nn.Module) -> Iterator[None]:
    """Let every `nn.Dropout` of a CPU model use :func:`dropout` while it trains; undone at the end."""
    from torch import nn

    layers = [m for m in model.modules() if type(m) is nn.Dropout and not m.inplace and 0 < m.p < 1]
    if next(model.parameters()).device.type != "cpu":
        layers = []

    def patched(layer: nn.Dropout) -> None:
        def forward(x: torch.Tensor) -> torch.Tensor:
            return dropout(x, layer.p) if layer.training else x

        layer.forward = forward  # type: ignore[method-assign, assignment]

    for layer in layers:
        patched(layer)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward
