"""Feature rankers: from and to the disk, with missing features, empty lists and foreign columns."""

import json
from dataclasses import replace

import numpy as np
import pytest
from feature_files import lists, written

from indexes.storage import StorageError
from retrieval.errors import InputError
from retrieval.feature_normalisation import Normalisation
from retrieval.feature_ranker import FeatureRanker
from retrieval.ltr_config import SCORERS
from retrieval.ltr_training import train_ltr

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def rankers(tmp_path_factory):
    """A run folder of each kind, trained for a moment."""
    folder = tmp_path_factory.mktemp("rankers")
    path = written(folder / "train.txt", lists(20))
    small = {"hidden_sizes": [8], "feed_forward": 8, "num_train_epochs": 2, "num_trees": 3, "min_data_in_leaf": 2}
    for kind in SCORERS:
        if kind == "lambdamart":
            pytest.importorskip("lightgbm", reason="needs the ltr extra")
        train_ltr(features=path, out=str(folder / kind), scorer=kind, **small)
    return folder


@pytest.mark.parametrize("kind", SCORERS)
def test_the_way_over_the_disk_changes_no_score(rankers, tmp_path, kind):
    ranker = FeatureRanker.load(rankers / kind)
    assert (ranker.kind, ranker.numbers.tolist(), ranker.names) == (kind, [1, 2, 4], ["signal", "noise", "constant"])
    ranker.save(tmp_path / "copy")
    copy = FeatureRanker.load(tmp_path / "copy")
    own = lists(5, seed=1).split_features()
    for one, other in zip(ranker.score(own), copy.score(own), strict=True):
        assert one.dtype == np.float32
        assert np.array_equal(one, other)
    assert copy.fingerprint() == ranker.fingerprint()
    json.dumps(ranker.fingerprint(), allow_nan=False)


@pytest.mark.parametrize("kind", SCORERS)
def test_empty_single_and_missing(rankers, kind):
    ranker = FeatureRanker.load(rankers / kind)
    own = lists(1, seed=2).split_features()[0]
    nothing = np.full((2, 3), np.nan, dtype=np.float32)
    empty, single, missing, whole = ranker.score([own[:0], own[:1], nothing, own])
    assert (empty.shape, single.shape, missing.shape, whole.shape) == ((0,), (1,), (2,), (6,))
    assert np.isfinite(missing).all()
    assert missing[0] == missing[1]
    assert ranker.score([]) == []


@pytest.mark.parametrize("kind", SCORERS)
def test_a_list_has_the_same_scores_alone(rankers, kind):
    ranker = FeatureRanker.load(rankers / kind)
    found = [own[: 1 + place] for place, own in enumerate(lists(5, seed=3).split_features())]
    for one, together in zip(found, ranker.score(found), strict=True):
        np.testing.assert_allclose(ranker.score([one])[0], together, rtol=1e-5, atol=1e-6)


def test_foreign_columns_are_ignored_and_lacking_ones_missing(rankers):
    ranker = FeatureRanker.load(rankers / "mlp")
    found = lists(3, seed=4)
    expected = ranker.score_lists(found)
    wider = found.align(np.array([1, 2, 3, 4, 9]))
    assert all(map(np.array_equal, ranker.score_lists(wider), expected))
    narrow = found.align(np.array([1]))
    blank = found.features.copy()
    blank[:, 1:] = np.nan
    parts = [blank[rows] for rows in found.slices()]
    assert all(map(np.array_equal, ranker.score_lists(narrow), ranker.score(parts)))


def test_a_feature_of_another_name_is_refused(rankers):
    ranker = FeatureRanker.load(rankers / "mlp")
    other = replace(lists(3), names=["signal", "length", ""])
    with pytest.raises(InputError, match=r"^f\.svm: feature 2 is 'length' here and 'noise' in training; a number"):
        ranker.score_lists(other, "f.svm")
    assert len(ranker.score_lists(replace(other, names=None))) == 3


def test_a_network_without_training_ranks_by_the_normalised_features():
    import torch

    from rankers.feature_scorers import FeatureScorer

    model = FeatureScorer(2)
    with torch.no_grad():
        model.output.weight.copy_(torch.tensor([[1.0, 10.0]]))
        model.output.bias.zero_()
    train = np.array([[0, 5], [2, 5]], dtype=np.float32)
    ranker = FeatureRanker("linear", np.array([1, 2]), None, Normalisation.fit(train), model.eval(), {"features": 2})
    (found,) = ranker.score([np.array([[3, 9], [np.nan, 5]], dtype=np.float32)])
    assert found.tolist() == [2, 0]  # (3 - 1) / 1, and the second feature is constant in training


def test_wrong_columns_and_infinite_values_are_refused(rankers):
    ranker = FeatureRanker.load(rankers / "mlp")
    with pytest.raises(InputError, match=r"list 1: wanted \(docs, 3\) features as the ranker has, got \(2, 4\)"):
        ranker.score([np.zeros((1, 3), dtype=np.float32), np.zeros((2, 4), dtype=np.float32)])
    with pytest.raises(InputError, match="list 0: a feature is infinite"):
        ranker.score([np.full((1, 3), np.inf, dtype=np.float32)])


def test_a_folder_that_is_none_is_refused(rankers, tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        FeatureRanker.load(tmp_path / "nowhere")
    with pytest.raises(InputError, match="holds no feature ranker: train one with"):
        FeatureRanker.load(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(InputError, match="the run did not finish; go on with --resume"):
        FeatureRanker.load(tmp_path)


@pytest.mark.parametrize(("kind", "name"), [("mlp", "model.safetensors"), ("linear", "features.json")])
def test_an_altered_file_is_refused(rankers, tmp_path, kind, name):
    FeatureRanker.load(rankers / kind).save(tmp_path / "copy")
    (path,) = (tmp_path / "copy").glob(f"v*/{name}")
    raw = bytearray(path.read_bytes())
    raw[-2] ^= 1
    path.write_bytes(bytes(raw))
    with pytest.raises(StorageError, match=name):
        FeatureRanker.load(tmp_path / "copy")
