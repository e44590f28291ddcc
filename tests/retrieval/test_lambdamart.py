"""LightGBM behind our interface: the same bytes twice, as many trees as are best on dev, grades, missing values."""

import json
from dataclasses import replace

import numpy as np
import pytest
from feature_files import lists, written
from tiny_files import read_jsonl

from retrieval.errors import InputError
from retrieval.feature_evaluation import MEASURE, means, measure_lists
from retrieval.feature_normalisation import Normalisation
from retrieval.feature_ranker import FeatureRanker
from retrieval.lambdamart import Trees
from retrieval.ltr_config import OBJECTIVES, LtrConfig
from retrieval.ltr_training import dry_run, train_ltr

lightgbm = pytest.importorskip("lightgbm", reason="needs the ltr extra")
pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = {"scorer": "lambdamart", "num_trees": 15, "min_data_in_leaf": 3, "num_leaves": 7}


@pytest.fixture
def train(tmp_path) -> str:
    return written(tmp_path / "train.txt", lists(40))


def model(folder) -> bytes:
    (path,) = folder.glob("model/v*/model.txt")
    return path.read_bytes()


def test_the_same_seed_gives_the_same_bytes_and_another_does_not(train, tmp_path):
    drawn = {"bagging_fraction": 0.5, "feature_fraction": 0.7}
    for name, seed in (("one", 0), ("two", 0), ("three", 1)):
        train_ltr(features=train, **SMALL, **drawn, seed=seed, out=str(tmp_path / name))
    assert model(tmp_path / "one") == model(tmp_path / "two") != model(tmp_path / "three")


def test_as_many_trees_are_kept_as_are_best_on_dev(train, tmp_path):
    valid = lists(20, seed=2, prefix="v")
    noisy = replace(valid, labels=np.random.default_rng(0).permutation(valid.labels))
    path = written(tmp_path / "valid.txt", noisy)
    result = train_ltr(features=train, valid=path, **SMALL, out=str(tmp_path / "run"))
    scores = [line[f"dev_{MEASURE}"] for line in read_jsonl(tmp_path / "run" / "metrics.jsonl")]
    assert (result.steps, result.best_step) == (len(scores), 1 + int(np.argmax(scores)))
    assert result.best_step < result.steps
    ranker = FeatureRanker.load(tmp_path / "run")
    assert ranker.model.booster.num_trees() == result.best_step
    found = means(measure_lists(noisy, ranker.score_lists(noisy), [MEASURE]))[MEASURE]
    assert found == pytest.approx(max(scores), abs=1e-6)
    assert result.dev[f"best_{MEASURE}"] == found


def test_patience_ends_the_growth(train, tmp_path):
    result = train_ltr(
        features=train, **SMALL | {"num_trees": 200}, early_stopping_patience=3, out=str(tmp_path / "run")
    )
    assert result.steps == result.best_step + 3 < 200


def test_scores_are_lightgbms_own(train, tmp_path):
    train_ltr(features=train, **SMALL, normalisation="none", out=str(tmp_path / "run"))
    booster = lightgbm.Booster(model_str=model(tmp_path / "run").decode())
    own = lists(4, seed=5)
    ours = np.concatenate(FeatureRanker.load(tmp_path / "run").score_lists(own))
    np.testing.assert_array_equal(ours, booster.predict(own.features.astype(np.float64)).astype(np.float32))


def test_a_missing_value_goes_its_own_way_unless_it_is_zero(tmp_path):
    """Documents that lack the feature are the relevant ones; as 0 they would be told from no other 0."""
    found = lists(40)
    features = np.zeros_like(found.features)
    features[found.labels > 0, 0] = np.nan
    path = written(tmp_path / "train.txt", replace(found, features=features))
    results = {
        missing: train_ltr(features=path, **SMALL, missing=missing, out=str(tmp_path / missing)).dev
        for missing in ("mean", "zero")
    }
    assert results["mean"]["best_nDCG@10"] > results["zero"]["best_nDCG@10"] + 0.1


@pytest.mark.parametrize("gain", ["exp2", "linear"])
def test_the_gain_reaches_lightgbm(train, tmp_path, gain):
    train_ltr(features=train, **SMALL, out=str(tmp_path / "run"), **{"loss.gain": gain})
    text = model(tmp_path / "run").decode()
    shown = {"exp2": "[label_gain: 0,1,3,7]", "linear": "[label_gain: 0,1,2,3]"}[gain]
    assert shown in text
    assert "[objective: lambdarank]" in text


@pytest.mark.parametrize(
    ("grade", "settings", "message"),
    [
        (0.5, {}, "lambdamart takes whole grades, got 0.5 in query 'q3'; other scorers take fractions"),
        (61, {}, "a grade of 61, too large for a gain of 2"),
    ],
)
def test_grades_that_trees_cannot_take(tmp_path, grade, settings, message):
    found = lists(10)
    labels = found.labels.copy()
    labels[19::2] = grade
    path = written(tmp_path / "train.txt", replace(found, labels=labels))
    refused_before_anything_is_deleted(path, tmp_path, message, **settings)
    if grade > 1:
        linear = {"loss.gain": "linear", "eval_strategy": "no"}
        assert train_ltr(features=path, **SMALL, out=str(tmp_path / "linear"), **linear).steps == 15


def refused_before_anything_is_deleted(path, tmp_path, message, **settings):
    """An older run survives, in training and in a dry run."""
    old = written(tmp_path / "old.txt", lists(10))
    train_ltr(features=old, **SMALL, out=str(tmp_path / "run"))
    config = LtrConfig.from_dict({"features": path, **SMALL, "out": str(tmp_path / "run"), **settings})
    for begin in (train_ltr, dry_run):
        with pytest.raises(InputError, match=message):
            begin(config, overwrite=True)
    assert len(FeatureRanker.load(tmp_path / "run").score_lists(lists(3))) == 3
    assert (tmp_path / "run" / "result.json").exists()


@pytest.mark.parametrize("loss", OBJECTIVES)
def test_a_list_that_is_too_long_for_lightgbm(tmp_path, loss):
    found = lists(1, docs=10_001, prefix="long")
    path = written(tmp_path / "train.txt", found)
    message = "query 'long0' has 10,001 documents; lambdamart takes up to 10,000, other scorers take more"
    refused_before_anything_is_deleted(path, tmp_path, message, loss=loss, eval_strategy="no")
    fitting = written(tmp_path / "fitting.txt", lists(1, docs=10_000))
    settings = SMALL | {"num_trees": 1, "loss": loss, "eval_strategy": "no"}
    assert train_ltr(features=fitting, **settings, out=str(tmp_path / "fitting")).steps == 1


def test_a_tree_that_lightgbm_takes_back_is_not_counted(tmp_path):
    """Each list has one relevant document, told by a feature of two values: soon no split gains anything."""
    found = lists(20)
    features = np.zeros_like(found.features)
    labels = np.zeros_like(found.labels)
    labels[::6], features[::6, 0] = 1, 1
    path = written(tmp_path / "train.txt", replace(found, features=features, labels=labels))
    settings = {"scorer": "lambdamart", "num_trees": 50, "min_data_in_leaf": 1, "learning_rate": 1.0}
    result = train_ltr(features=path, **settings, eval_strategy="no", out=str(tmp_path / "run"))
    booster = FeatureRanker.load(tmp_path / "run").model.booster
    assert 1 < result.steps == result.best_step == booster.num_trees() < 50
    assert len(read_jsonl(tmp_path / "run" / "metrics.jsonl")) == result.steps


def test_leaves_smaller_than_lightgbms_own_least_are_grown(tmp_path):
    """10 of 100 documents are relevant and one feature names them; LightGBM would leave it out, which splits off 10."""
    found = lists(20, docs=5)
    features, labels = np.random.default_rng(0).normal(size=found.features.shape), np.zeros(len(found.labels))
    labels[::10] = 2
    features[:, 0] = labels
    path = written(tmp_path / "train.txt", replace(found, features=features, labels=labels))
    settings = {"scorer": "lambdamart", "num_trees": 5, "min_data_in_leaf": 5, "num_leaves": 4}
    train_ltr(features=path, **settings, eval_strategy="no", out=str(tmp_path / "run"))
    booster = FeatureRanker.load(tmp_path / "run").model.booster
    assert booster.feature_importance("split")[0] == 5  # in each tree


def test_where_no_split_is_possible_one_constant_tree_is_kept(tmp_path):
    found = lists(4)
    path = written(tmp_path / "train.txt", replace(found, features=np.ones_like(found.features)))
    result = train_ltr(features=path, **SMALL, eval_strategy="no", out=str(tmp_path / "run"))
    ranker = FeatureRanker.load(tmp_path / "run")
    assert result.steps == result.best_step == ranker.model.booster.num_trees() == 1
    assert {float(score) for own in ranker.score_lists(found) for score in own} == {0.0}


def test_a_file_that_is_no_model_is_refused(tmp_path):
    path = tmp_path / "model.txt"
    path.write_text("no trees")
    with pytest.raises(InputError, match="is no model of LightGBM"):
        Trees.load(path)


def test_a_ranker_of_trees_keeps_its_normalisation(train, tmp_path):
    train_ltr(features=train, **SMALL, normalisation="query", out=str(tmp_path / "run"))
    (path,) = (tmp_path / "run" / "model").glob("v*/features.json")
    assert Normalisation.from_dict(json.loads(path.read_text())["normalisation"]).kind == "query"
    own = lists(1, seed=3).split_features()[0]
    one, shifted = FeatureRanker.load(tmp_path / "run").score([own, own * 2 + 1])
    np.testing.assert_allclose(one, shifted, rtol=1e-5)
