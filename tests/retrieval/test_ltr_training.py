"""Training of feature rankers: they learn what can be learned, go on after an interrupt, and tell what they reached."""

import json

import numpy as np
import pytest
import torch
from feature_files import lists, odd_one_out, written
from tiny_files import read_jsonl

from rankers.lists import pad_lists
from rankers.losses import build
from retrieval.errors import InputError
from retrieval.feature_evaluation import MEASURES, means, measure_lists
from retrieval.feature_ranker import FeatureRanker
from retrieval.ltr_config import LtrConfig, build_ltr_loss
from retrieval.ltr_data import load_ltr_data
from retrieval.ltr_training import FeatureTask, dry_run, train_ltr
from retrieval.training_loop import TrainingStoppedError

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = {"hidden_sizes": [16], "feed_forward": 16, "heads": 2, "num_train_epochs": 5, "per_device_train_batch_size": 8}


@pytest.fixture
def files(tmp_path):
    return {
        "features": written(tmp_path / "train.txt", lists(40)),
        "test": written(tmp_path / "test.txt", lists(30, seed=1, prefix="t")),
    }


def task(files, **settings) -> FeatureTask:
    config = LtrConfig.from_dict({"out": "run", **SMALL, **files, **settings})
    return FeatureTask(config, build_ltr_loss(config), load_ltr_data(config))


@pytest.mark.parametrize("scorer", ["linear", "mlp", "context", "lambdamart"])
def test_a_ranker_finds_the_feature_that_decides(files, tmp_path, scorer):
    if scorer == "lambdamart":
        pytest.importorskip("lightgbm", reason="needs the ltr extra")
    rate = 0.1 if scorer == "lambdamart" else 0.02
    more = {"learning_rate": rate, "num_train_epochs": 15, "num_trees": 20, "min_data_in_leaf": 5}
    result = train_ltr(**files, **SMALL | more, out=str(tmp_path / "run"), scorer=scorer)
    assert result.test["nDCG@10"] > 0.97
    assert list(result.test) == list(MEASURES)
    written_result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (written_result["dev"], written_result["test"]) == (result.dev, result.test)
    assert {f"best_{name}" for name in MEASURES} <= result.dev.keys()
    test = lists(30, seed=1, prefix="t")
    assert means(measure_lists(test, FeatureRanker.load(tmp_path / "run").score_lists(test))) == result.test


def test_only_the_context_scorer_finds_the_odd_one_out(tmp_path):
    """Whoever scores documents one by one puts the odd one first or last: (1 + 1 / log2(5)) / 2 = 0.72 on average."""
    files = {
        "features": written(tmp_path / "train.txt", odd_one_out(150)),
        "test": written(tmp_path / "test.txt", odd_one_out(60, seed=1, prefix="t")),
    }
    settings = SMALL | {"hidden_sizes": [32], "blocks": 1, "learning_rate": 0.01, "num_train_epochs": 15, "dropout": 0}
    context = train_ltr(**files, **settings, out=str(tmp_path / "context"), scorer="context")
    alone = train_ltr(**files, **settings, out=str(tmp_path / "mlp"), scorer="mlp")
    assert context.test["nDCG@10"] > 0.95
    assert alone.test["nDCG@10"] < 0.85


def test_the_gradient_is_that_of_the_padded_lists(files):
    ours = task(files, scorer="linear", dropout=0, loss="ranknet")
    step = next(ours.steps(0, 1))
    value = ours.gradient(step)
    theirs = task(files, scorer="linear", dropout=0).model
    scores = [theirs(torch.from_numpy(ours.features[place])[None])[0] for place in step]
    loss = build("ranknet", temperature=1.0)(*pad_lists(scores, [ours.labels[place] for place in step]))
    loss.backward()
    assert value == pytest.approx(loss.item(), rel=1e-6)
    torch.testing.assert_close(ours.model.output.weight.grad, theirs.output.weight.grad)


@pytest.mark.parametrize("loss", ["point_ce", "softmax_ce + 2*bixse"])
def test_grades_become_probabilities_where_a_loss_wants_them(files, loss):
    ours = task(files, loss=loss)
    assert ours.max_grade == 2
    assert np.isfinite(ours.gradient(next(ours.steps(0, 1))))


def test_every_epoch_has_every_list_once_in_its_own_order(files):
    ours = task(files)
    per_epoch = ours.steps_per_epoch
    steps = list(ours.steps(0, 3 * per_epoch))
    epochs = [[place for step in steps[e * per_epoch : (e + 1) * per_epoch] for place in step] for e in range(3)]
    assert all(sorted(epoch) == list(range(len(ours.features))) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert list(ours.steps(per_epoch + 1, 2 * per_epoch)) == steps[per_epoch + 1 : 2 * per_epoch]


def test_accumulation_is_a_larger_batch(files):
    one, two = task(files), task(files, per_device_train_batch_size=4, gradient_accumulation_steps=2)
    assert list(one.steps(0, 6)) == list(two.steps(0, 6))


@pytest.mark.parametrize("scorer", ["mlp", "context"])
def test_an_interrupted_run_goes_on_to_the_same_bytes(files, tmp_path, scorer, monkeypatch):
    settings = {**files, **SMALL, "scorer": scorer, "save_steps": 3, "dropout": 0.3}
    whole, cut = str(tmp_path / "whole"), str(tmp_path / "cut")
    expected = train_ltr(**settings, out=whole)
    gradient, calls = FeatureTask.gradient, []

    def stopping(self, step):
        calls.append(step)
        if len(calls) == 8:
            raise KeyboardInterrupt
        return gradient(self, step)

    monkeypatch.setattr(FeatureTask, "gradient", stopping)
    with pytest.raises(KeyboardInterrupt):
        train_ltr(**settings, out=cut)
    found = train_ltr(**settings, out=cut, resume=True)
    assert len(calls) < 8 + expected.steps  # it did not begin anew
    assert (found.dev, found.test, found.best_step) == (expected.dev, expected.test, expected.best_step)
    for one, other in zip(
        sorted((tmp_path / "whole" / "model").rglob("*.*")),
        sorted((tmp_path / "cut" / "model").rglob("*.*")),
        strict=True,
    ):
        assert one.read_bytes() == other.read_bytes()
    assert train_ltr(**settings, out=cut, resume=True).test == expected.test  # finished: nothing to do


def test_a_run_that_ended_before_test_was_measured_is_completed(files, tmp_path):
    expected = train_ltr(**files, **SMALL, out=str(tmp_path / "run"))
    path = tmp_path / "run" / "result.json"
    result = json.loads(path.read_text())
    del result["test"]
    path.write_text(json.dumps(result))
    assert train_ltr(**files, **SMALL, out=str(tmp_path / "run"), resume=True).test == expected.test
    assert json.loads(path.read_text())["test"] == expected.test


def test_without_validation_the_last_model_is_kept(files, tmp_path):
    result = train_ltr(**files, **SMALL, out=str(tmp_path / "run"), eval_strategy="no")
    assert (result.dev, result.best_step) == ({}, result.steps)


def test_a_long_list_is_refused_before_training(files, tmp_path):
    with pytest.raises(InputError, match=r"compares all pairs of a list, .* has 6 documents; allow it with --set loss"):
        train_ltr(**files, **SMALL, out=str(tmp_path / "run"), loss="ranknet", **{"loss.max_list": 5})
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("loss", ["decoupled_softmax", "softmax_ce + decoupled_softmax"])
def test_grades_that_a_loss_refuses_are_found_before_the_run_begins(files, tmp_path, loss):
    train_ltr(**files, **SMALL, out=str(tmp_path / "run"))
    found = lists(40)
    found.labels[[6 * 7 + 1, 6 * 9]] = 0.5
    settings = {"features": written(tmp_path / "other.txt", found), "loss": loss, "eval_strategy": "no"}
    config = LtrConfig.from_dict({**SMALL, **settings, "out": str(tmp_path / "run")})
    for begin in (train_ltr, dry_run):
        with pytest.raises(InputError) as caught:
            begin(config, overwrite=True)
        message = (
            f"{tmp_path}/other.txt: query 'q7' has a grade of 0.5, which the loss {loss} refuses: binary labels are"
        )
        assert str(caught.value).startswith(message)
    assert (tmp_path / "run" / "result.json").exists()
    if loss == "decoupled_softmax":
        assert train_ltr(config, overwrite=True, **{"loss.positive_from": 0.5}).steps > 0


def test_many_fractional_grades_are_fine_where_a_loss_takes_them(files, tmp_path):
    found = lists(40)
    found.labels[:] = np.random.default_rng(0).random(len(found.labels))
    assert task({"features": written(tmp_path / "soft.txt", found)}, loss="softmax_ce + bixse").max_grade == 1


def test_a_loss_that_breaks_names_the_queries(files, tmp_path):
    with pytest.raises(TrainingStoppedError, match=r"queries q\d+"):
        train_ltr(**files, **SMALL | {"learning_rate": 1e38}, out=str(tmp_path / "run"), eval_strategy="no")


def test_other_settings_or_data_are_no_resume(files, tmp_path):
    out = str(tmp_path / "run")
    train_ltr(**files, **SMALL, out=out)
    with pytest.raises(InputError, match="scorer was 'mlp' in the run to resume and is 'linear' now"):
        train_ltr(**files, **SMALL, out=out, scorer="linear", resume=True)
    (tmp_path / "run" / "result.json").unlink()
    written(tmp_path / "train.txt", lists(40, seed=9))
    with pytest.raises(InputError, match="the data has changed since the run began"):
        train_ltr(**files, **SMALL, out=out, resume=True)


@pytest.mark.parametrize(("scorer", "steps"), [("mlp", 25), ("lambdamart", 7)])
def test_a_dry_run_counts_and_writes_nothing(files, tmp_path, scorer, steps):
    if scorer == "lambdamart":
        pytest.importorskip("lightgbm", reason="needs the ltr extra")
    config = LtrConfig.from_dict({**files, **SMALL, "out": str(tmp_path / "run"), "scorer": scorer, "num_trees": 7})
    train = len(load_ltr_data(config).train)
    assert dry_run(config) == (5 * -(-train // 8) if scorer == "mlp" else steps)
    assert not (tmp_path / "run").exists()


def test_metrics_have_a_line_for_each_validation(files, tmp_path):
    result = train_ltr(**files, **SMALL, out=str(tmp_path / "run"), logging_steps=1)
    lines = read_jsonl(tmp_path / "run" / "metrics.jsonl")
    scores = [line["dev_nDCG@10"] for line in lines if "dev_nDCG@10" in line]
    assert len(scores) == 1 + 5
    assert max(scores) == result.dev["best_nDCG@10"]
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, result.steps + 1))
