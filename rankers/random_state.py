"""The state of the random number generators that a forward pass may use, kept and put back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class RandomState:
    """The states of the CPU's generator and of one accelerator's."""

    cpu: Tensor
    device: torch.device | None = None
    on_device: Tensor | None = None

    @classmethod
    def now(cls, device: torch.device | None = None) -> Self:
        """Return the present state; `device` matters when it is a CUDA device."""
        if device is not None and device.type == "cuda":
            return cls(torch.get_rng_state(), device, torch.cuda.get_rng_state(device))
        return cls(torch.get_rng_state())

    def restore(self) -> None:
        """Let the generators go on from here."""
        torch.set_rng_state(self.cpu)
        if self.on_device is not None and self.device is not None:
            torch.cuda.set_rng_state(self.on_device, self.device)
