"""What glibc does with freed memory, counted in pages that the kernel had to fetch anew."""

import os
import subprocess
import sys

import pytest

from retrieval.freed_memory import OWN_WISHES, keep_freed_memory

GLIBC = sys.platform.startswith("linux") and "CS_GNU_LIBC_VERSION" in os.confstr_names
needs_glibc = pytest.mark.skipif(not GLIBC, reason="needs the C library glibc")
FETCHED = """
import resource, sys
import numpy as np
from retrieval.freed_memory import keep_freed_memory
from retrieval.peak_memory import forget_peak, peak_mb

print(keep_freed_memory() if sys.argv[1] == "keep" else False)

def layer():
    return [np.ones(2 << 20) for _ in range(5)]  # 16 MiB each

layer()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    layer()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
held = peak_mb()
forget_peak()
print(held - peak_mb())
"""


def fetched(mode, **environment):
    """Whether memory is kept, pages fetched in 20 layers, and MiB that are not in use and go back at the end."""
    done = subprocess.run(
        [sys.executable, "-c", FETCHED, mode],
        env={name: value for name, value in os.environ.items() if name not in OWN_WISHES} | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    kept, pages, given_back = done.stdout.split()
    return kept == "True", int(pages), float(given_back)


@needs_glibc
def test_what_is_kept_is_not_fetched_again():
    kept, pages, given_back = fetched("keep")
    assert kept
    assert pages < 200
    assert given_back > 70, "what was kept does not count as in use"
    assert fetched("plain")[1] > 50 * pages, "or else there is nothing to gain"


@needs_glibc
def test_settings_of_the_user_stand():
    assert not fetched("keep", MALLOC_TRIM_THRESHOLD_="131072")[0]


def test_other_systems_are_left_alone(monkeypatch):
    for name in OWN_WISHES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not keep_freed_memory()
