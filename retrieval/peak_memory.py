"""The most memory that this process has held since a moment: of the machine, and of an accelerator."""

from __future__ import annotations

import re
import resource
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from retrieval.freed_memory import give_back_freed_memory

if TYPE_CHECKING:
    import torch

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def forget_peak(device: torch.device | None = None) -> None:
    """Let the peaks begin anew from what is held now; where the system cannot, they stay those of the process."""
    give_back_freed_memory()
    with suppress(OSError), _CLEAR.open("w") as file:
        file.write("5")  # Linux: resets VmHWM
    if device is not None and device.type == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats(device)


def peak_mb(device: torch.device | None = None) -> float:
    """Return the peak in MiB: of the accelerator's memory where `device` is one, else of this process."""
    if device is not None and device.type == "cuda":
        import torch

        return torch.cuda.max_memory_allocated(device) / (1 << 20)
    if _STATUS.exists():  # on Linux getrusage also remembers what the forking parent held
        found = re.search(r"VmHWM:\s+(\d+)", _STATUS.read_text())
        if found:
            return int(found[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20 if sys.platform == "darwin" else 1 << 10)
