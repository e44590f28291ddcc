"""Collects what the comparisons found; with `--write-references` it becomes the committed table."""

import pytest
from results_table import RESULTS, table

_RESULTS = pytest.StashKey[list]()


def pytest_addoption(parser):
    parser.addoption("--write-references", action="store_true", help=f"write what was compared to {RESULTS.name}")


def pytest_configure(config):
    config.stash[_RESULTS] = []


@pytest.fixture
def agreement(request):
    """Check a result against what is claimed of it, and keep it for the table."""

    def check(result):
        request.config.stash[_RESULTS].append(result)
        assert result.agrees != bool(result.differs), result

    return check


def pytest_sessionfinish(session):
    found = session.config.stash.get(_RESULTS, [])
    if found and session.config.getoption("--write-references", default=False):
        RESULTS.write_text(table(found), encoding="utf-8")


def pytest_terminal_summary(terminalreporter, config):
    agreed = {result.loss.partition("(")[0] for result in config.stash.get(_RESULTS, []) if result.agrees}
    if agreed:
        terminalreporter.line(f"{len(agreed)} losses agree with public implementations: {', '.join(sorted(agreed))}")
