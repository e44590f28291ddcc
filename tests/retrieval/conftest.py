"""Shared by the tests of encoding, training and search: a tiny model and a tiny collection, made once per session."""

from pathlib import Path

import pytest
from tiny_files import make_tiny_collection, make_tiny_model


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> str:
    """A sentence-transformers folder: random BERT (32 dimensions, 2 layers, 64 positions). Read it, never write."""
    return str(make_tiny_model(tmp_path_factory.mktemp("models") / "tiny"))


@pytest.fixture(scope="session")
def tiny_collection(tmp_path_factory) -> Path:
    """A BEIR folder: 60 short documents, 60 queries in train, dev and test, grades 0 to 3. Read it, never write."""
    return make_tiny_collection(tmp_path_factory.mktemp("collections") / "tiny")
