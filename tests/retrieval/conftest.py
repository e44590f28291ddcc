"""What the tests of this package share: clean logging, a tiny model and collection, processes to kill."""

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from forked_commands import Nursery
from stub_encoder import StubEncoder
from tiny_files import make_tiny_collection, make_tiny_model
from training_runs import settings

from retrieval.collection import Collection
from retrieval.progress import set_quiet
from retrieval.search import build_index


@pytest.fixture(autouse=True)
def untouched_logging():
    """Undo what `main` sets up for a command of its own: handlers on a captured stderr, no propagation."""
    loggers = [logging.getLogger(name) for name in ("retrieval", "rankers", "indexes")]
    before = [(logger.handlers, logger.propagate, logger.level) for logger in loggers]
    yield
    for logger, (handlers, propagate, level) in zip(loggers, before, strict=True):
        logger.handlers, logger.propagate = handlers, propagate
        logger.setLevel(level)
    logging.captureWarnings(False)
    set_quiet(False)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> str:
    """A sentence-transformers folder: random BERT (32 dimensions, 2 layers, 64 positions). Read it, never write."""
    return str(make_tiny_model(tmp_path_factory.mktemp("models") / "tiny"))


@pytest.fixture(scope="session")
def tiny_collection(tmp_path_factory) -> Path:
    """A BEIR folder: 60 short documents, 60 queries in train, dev and test, grades 0 to 3. Read it, never write."""
    return make_tiny_collection(tmp_path_factory.mktemp("collections") / "tiny")


@pytest.fixture(scope="session")
def nursery(tmp_path_factory) -> Iterator[Nursery]:
    """Runs `rankwright` commands in processes of their own that can be killed."""
    nursery = Nursery(tmp_path_factory.mktemp("nursery"))
    yield nursery
    nursery.close()


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Compute on one thread: with models this small, more of them only wait for each other."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def run(tiny_model, tiny_collection, tmp_path):
    """Train on the tiny collection into a folder of `tmp_path`; settings as in `training_runs.settings`."""
    from retrieval.training import train

    def go(name="run", *, resume=False, overwrite=False, **changes):
        values = settings(tiny_model, tiny_collection, tmp_path / name, **changes)
        return train(resume=resume, overwrite=overwrite, **values)

    return go


@pytest.fixture(scope="module")
def whole(one_thread, tiny_model, tiny_collection, tmp_path_factory) -> Path:
    """The folder of a finished run of 8 steps, two batches each, a checkpoint every 3."""
    from retrieval.training import train

    out = tmp_path_factory.mktemp("whole") / "run"
    train(**settings(tiny_model, tiny_collection, out, gradient_accumulation_steps=2, save_steps=3))
    return out


@pytest.fixture(scope="session")
def stub_index(tmp_path_factory, tiny_collection) -> Path:
    """An index folder of the tiny collection, made by the stub encoder: no model, no torch. Read it, never write."""
    folder = tmp_path_factory.mktemp("stub") / "index"
    build_index(folder, encoder=StubEncoder(), collection=Collection.load(tiny_collection))
    return folder
