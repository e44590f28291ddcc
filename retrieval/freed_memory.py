"""Whether memory that was freed stays with the process, for the next array, or goes back to the system.

A transformer frees some ten megabytes in every layer and asks for them again in the next. glibc gives them back in
between, so each layer waits for fresh pages, zeroed by the kernel. Kept, a tenth of the pages is fetched; timed by
hand, a turn or two each, MiniLM then encoded and scored in 0.92 of the time and trained in 0.95 (bf16, two cores). The
most memory that is held at any time is the same.
"""

from __future__ import annotations

import os
import sys
from typing import Any

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of <malloc.h>
_NEVER = 2**31 - 1
_LARGEST = 32 << 20  # larger arrays have pages of their own in any case; glibc refuses a higher threshold
OWN_WISHES = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")


def keep_freed_memory() -> bool:
    """Let this process keep what is freed, and return whether it does.

    Only glibc can be told so. It is left as it is where the environment has settings of the user for it.
    """
    libc = _glibc()
    if libc is None or any(name in os.environ for name in OWN_WISHES):
        return False
    return bool(libc.mallopt(_MMAP_THRESHOLD, _LARGEST) and libc.mallopt(_TRIM_THRESHOLD, _NEVER))


def give_back_freed_memory() -> None:
    """Return to the system what is freed now, so that the memory in use can be read off the process."""
    libc = _glibc()
    if libc is not None:
        libc.malloc_trim(0)


def _glibc() -> Any:
    if not sys.platform.startswith("linux"):
        return None
    import ctypes  # not at the top: `rankwright --help` needs none of it

    library = ctypes.CDLL(None)
    return library if hasattr(library, "gnu_get_libc_version") else None
