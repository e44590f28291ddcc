"""Which device computes, and in which precision: bf16 where the silicon multiplies it natively."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from retrieval.errors import InputError, require

if TYPE_CHECKING:
    import torch

_BF16_FLAGS = {"amx_bf16", "avx512_bf16"}


def resolve_device(device: str = "auto") -> torch.device:
    """Return the device for `auto`, `cpu`, `cuda` or `cuda:i`; an absent one is an InputError."""
    require("torch", "train")
    import torch

    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not re.fullmatch(r"cpu|cuda(:[0-9]+)?", device):
        raise InputError(f"unknown device {device!r}; wanted auto, cpu or cuda[:i]")
    found = torch.device(device)
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise InputError(f"device {device!r} is not here ({torch.cuda.device_count()} CUDA devices); try --device cpu")
    return found


def resolve_precision(precision: str = "auto", device: torch.device | None = None) -> str:
    """Return "bf16" or "fp32"; "auto" is bf16 where the silicon has it (AMX, AVX-512 BF16, CUDA >= 8.0)."""
    if precision not in ("auto", "fp32", "bf16"):
        raise InputError(f"unknown precision {precision!r}; wanted auto, fp32 or bf16")
    if precision != "auto":
        return precision
    return "bf16" if has_native_bf16(device or resolve_device("cpu")) else "fp32"


def has_native_bf16(device: torch.device) -> bool:
    """Whether `device` multiplies bfloat16 in hardware (elsewhere it is emulated and slower than fp32)."""
    if device.type == "cuda":
        import torch

        return torch.cuda.get_device_capability(device) >= (8, 0)
    return device.type == "cpu" and bool(_BF16_FLAGS & cpu_flags())


def cpu_flags(cpuinfo: Path = Path("/proc/cpuinfo")) -> set[str]:
    """Return the CPU's feature flags; empty where the system does not list them (macOS)."""
    if not cpuinfo.is_file():
        return set()
    for line in cpuinfo.read_text(errors="replace").splitlines():
        if line.startswith("flags"):
            return set(line.partition(":")[2].split())
    return set()
