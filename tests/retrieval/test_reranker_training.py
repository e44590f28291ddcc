"""Whole runs of rerankers on the tiny collection; those that are killed are in test_reranker_interrupted.py."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from beir_folder import make_collection
from reranker_runs import crash_in_step, lines, settings
from tiny_files import documents, make_tiny_collection, qrels, queries, rows_file
from tiny_rerankers import make_t5
from training_runs import Crash, weights

torch = pytest.importorskip("torch", reason="needs the train extra")
sentence_transformers = pytest.importorskip("sentence_transformers", reason="needs the train extra")

from retrieval.checkpoints import checkpoint_steps  # noqa: E402
from retrieval.collection import Collection  # noqa: E402
from retrieval.cross_encoder import CrossEncoder  # noqa: E402
from retrieval.errors import InputError  # noqa: E402
from retrieval.evaluation import evaluate  # noqa: E402
from retrieval.reranker_config import RerankerConfig  # noqa: E402
from retrieval.reranker_training import RerankerTask, checked_loss, dry_run, train_reranker  # noqa: E402
from retrieval.reranking import load_reranker, rerank  # noqa: E402
from retrieval.training_loop import TrainingStoppedError  # noqa: E402
from retrieval.trec import write_run  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")

EVAL = {"eval_strategy": "epoch", "eval_queries": 6, "eval_depth": 8}
TEXTS = [f"{d['title']} {d['text']}" for d in documents()]


@pytest.fixture
def run(tiny_model, tiny_collection, tmp_path):
    """Train on the tiny collection into a folder of `tmp_path`."""

    def go(name="run", *, resume=False, overwrite=False, **changes):
        values = settings(tiny_model, tiny_collection, tmp_path / name, **changes)
        return train_reranker(resume=resume, overwrite=overwrite, **values)

    return go


@pytest.fixture(scope="module")
def whole(one_thread, tiny_model, tiny_collection, tmp_path_factory) -> Path:
    """The folder of a finished run, a checkpoint every 2 steps."""
    out = tmp_path_factory.mktemp("whole") / "run"
    train_reranker(**settings(tiny_model, tiny_collection, out, save_steps=2))
    return out


def task_of(tiny_model, tiny_collection, **changes) -> RerankerTask:
    """A task that has not begun."""
    config = RerankerConfig.from_dict(settings(tiny_model, tiny_collection, Path("out"), **changes))
    return RerankerTask(config, checked_loss(config))


def test_a_new_output_layer_at_even_odds_is_told(tiny_model, tiny_collection, caplog):
    task_of(tiny_model, tiny_collection, loss="point_ce")
    assert "bixse, the same loss from the labels' prior on" in caplog.text
    caplog.clear()
    task_of(tiny_model, tiny_collection, loss="bixse")
    task_of(tiny_model, tiny_collection, loss="0.5*point_ce", architecture="pairwise")
    assert "prior" not in caplog.text


def test_a_low_learning_rate_of_a_new_output_layer_is_told(tiny_model, tiny_collection, tmp_path, caplog):
    task = task_of(tiny_model, tiny_collection, learning_rate=2e-5)
    assert "learns little in a short training at a learning rate of 2e-05; try --learning-rate 1e-4" in caplog.text
    caplog.clear()
    task_of(tiny_model, tiny_collection, learning_rate=1e-4)
    task.reranker.save(tmp_path / "trained")
    task_of(tmp_path / "trained", tiny_collection, learning_rate=2e-5)
    assert "output layer" not in caplog.text


# --- the same bytes ---------------------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(run, whole, tmp_path):
    run("again", save_steps=3, logging_steps=2)
    run("other", seed=1)
    assert weights(tmp_path / "again") == weights(whole)
    assert weights(tmp_path / "other") != weights(whole)
    assert lines(tmp_path / "again") == lines(whole)


def test_two_batches_of_four_lists_are_one_of_eight(run, whole, tmp_path):
    run(per_device_train_batch_size=4, gradient_accumulation_steps=2)
    assert weights(tmp_path / "run") == weights(whole)


@pytest.mark.parametrize("loss", ["softmax_ce", "mw"])
def test_a_step_of_accumulated_batches_has_the_lists_of_the_large_batch(tiny_model, tiny_collection, loss):
    large = task_of(tiny_model, tiny_collection, loss=loss)
    small = task_of(
        tiny_model, tiny_collection, loss=loss, per_device_train_batch_size=4, gradient_accumulation_steps=2
    )
    assert large.steps_per_epoch == small.steps_per_epoch == 5
    for one, two in zip(large.steps(0, 7), small.steps(0, 7), strict=True):
        assert [held.made.documents for held in one] == [held.made.documents for held in two]
        assert large.size(one) <= 8


def test_validation_changes_no_weight_of_the_steps(run, whole, tmp_path):
    run(**EVAL | {"eval_strategy": "steps", "eval_steps": 2}, dev_split="dev", save_total_limit=9, save_steps=6)
    kept = tmp_path / "run" / "checkpoints" / "step-6" / "model.safetensors"
    assert kept.read_bytes() == (whole / "checkpoints" / "step-6" / "model.safetensors").read_bytes()


def test_corrupting_the_test_judgements_changes_no_byte(run, tmp_path):
    data = make_tiny_collection(tmp_path / "data")
    changes = {"data": str(data), "max_steps": 5, **EVAL}
    run("one", **changes)
    path = data / "qrels" / "test.tsv"
    path.write_text(path.read_text().replace("\t3\n", "\t0\n"))
    run("two", **changes)
    path.write_text("no judgements\nat all")
    run("three", **changes)
    path.unlink()
    run("four", **changes)
    assert len({weights(tmp_path / name) for name in ("one", "two", "three", "four")}) == 1
    assert lines(tmp_path / "one") == lines(tmp_path / "two") == lines(tmp_path / "four")


@pytest.mark.parametrize("halfway", [False, True])
@pytest.mark.parametrize("step", [1, 3, 6])
def test_a_crash_in_a_step_and_resume_give_the_bytes_of_an_uninterrupted_run(
    run, whole, tmp_path, monkeypatch, step, halfway
):
    with monkeypatch.context() as patch:
        crash_in_step(patch, step, halfway=halfway)
        with pytest.raises(Crash):
            run(save_steps=2)
    assert checkpoint_steps(tmp_path / "run") == [s for s in (2, 4) if s < step]
    run(resume=True, save_steps=2)
    assert weights(tmp_path / "run") == weights(whole)
    assert lines(tmp_path / "run") == lines(whole)


@pytest.mark.parametrize(
    "changes",
    [
        {"loss": "isogclr"},  # a state of each query
        {"loss": "mw + softmax_ce", "loss__softmax_ce.scale": "learned"},  # computed twice, and a learned setting
        {"architecture": "set", "novelty": True, "num_positives": 3},
        {"architecture": "pairwise", "num_pairs": 2},
    ],
)
def test_resume_is_exact_with_state_replay_and_other_architectures(run, tmp_path, monkeypatch, changes):
    changes = changes | {"max_steps": 4, "save_steps": 2, "per_device_train_batch_size": 4}
    run("whole", **changes)
    with monkeypatch.context() as patch:
        crash_in_step(patch, 4)
        with pytest.raises(Crash):
            run(**changes)
    run(resume=True, **changes)
    assert weights(tmp_path / "run") == weights(tmp_path / "whole")
    assert lines(tmp_path / "run") == lines(tmp_path / "whole")


def test_a_set_encoder_remembers_how_long_its_lists_were(tiny_model, tiny_collection, run, tmp_path):
    for changes, size in (({}, 5), ({"num_positives": 2}, 6), ({"set_size": 3}, 3), ({"set_size": 0}, None)):
        task = task_of(tiny_model, tiny_collection, architecture="set", **changes)
        assert task.model.set_size == size
    run(architecture="set", max_steps=2, num_negatives=3)
    found = load_reranker(tmp_path / "run" / "model", precision="fp32", device="cpu")
    assert found.model.set_size == found.fingerprint()["set_size"] == 4
    with pytest.raises(InputError, match="set_size needs a model whose documents see each other"):
        task_of(tiny_model, tiny_collection, set_size=5)


def test_resume_goes_on_with_validation(run, tmp_path, monkeypatch):
    changes = {"save_steps": 4, **EVAL, "eval_strategy": "steps", "eval_steps": 1, "early_stopping_patience": 3}
    first = run("whole", **changes)
    with monkeypatch.context() as patch:
        crash_in_step(patch, 4)
        with pytest.raises(Crash):
            run(**changes)
    assert run(resume=True, **changes) == replace(first, out=tmp_path / "run")
    assert weights(tmp_path / "run") == weights(tmp_path / "whole")


def test_resume_of_a_finished_run_changes_nothing_and_overwrite_begins_anew(run, tmp_path):
    first = run(max_steps=1)
    before = weights(tmp_path / "run")
    assert run(max_steps=1, resume=True) == first
    with pytest.raises(InputError, match="use --resume or --overwrite"):
        run(max_steps=1)
    with pytest.raises(InputError, match="num_negatives was 4 in the run to resume and is 5 now"):
        run(max_steps=1, resume=True, num_negatives=5)
    run(max_steps=2, overwrite=True)
    assert weights(tmp_path / "run") != before


def test_the_run_that_fills_the_lists_may_not_change_before_resume(run, tmp_path, monkeypatch):
    path = tmp_path / "first.run"
    found = {query: {f"{subject}-{form}": -form for form in range(4)} for query in queries() for subject in ("otter",)}
    write_run(path, found, "t")
    with monkeypatch.context() as patch:
        crash_in_step(patch, 3)
        with pytest.raises(Crash):
            run(run=str(path), save_steps=2)
    write_run(path, {query: dict(reversed(scores.items())) for query, scores in found.items()}, "u")
    with pytest.raises(InputError, match="the run has changed since the run began"):
        run(run=str(path), save_steps=2, resume=True)


# --- what is trained --------------------------------------------------------------------------------------------------


def test_training_lowers_the_loss_and_raises_dev(run, tmp_path):
    often = {"eval_strategy": "steps", "eval_steps": 20, "eval_queries": 12, "eval_depth": 20}
    result = run(max_steps=40, learning_rate=5e-3, **often)
    found = lines(tmp_path / "run")
    losses = [line["loss"] for line in found if "loss" in line]
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])
    scores = [line["dev_reranked_nDCG@10"] for line in found if "dev_reranked_nDCG@10" in line]
    assert result.dev["best_reranked_nDCG@10"] == max(scores) > scores[0] + 0.1


def test_the_temperature_is_1_unless_the_settings_name_one(tiny_model, tiny_collection):
    def temperatures(**changes):
        loss = checked_loss(RerankerConfig.from_dict(settings(tiny_model, tiny_collection, Path("out"), **changes)))
        return [term.settings.get("temperature", term.settings.get("scale")) for term in loss.terms]

    assert temperatures(loss="softmax_ce") == temperatures(loss="bixse") == [1.0]
    assert temperatures(loss="softmax_ce", loss__temperature=0.1) == [0.1]
    assert temperatures(loss="bixse + 0.5*ranknet") == [1.0, 1.0]
    assert temperatures(**{"loss": "bixse + 0.5*ranknet", "loss__ranknet.temperature": 2.0}) == [1.0, 2.0]


def test_dev_queries_are_reranked_as_rerank_does_it(run, tmp_path, tiny_model, tiny_collection):
    result = run(max_steps=2, **EVAL, dev_split="dev")
    task = task_of(tiny_model, tiny_collection, **EVAL, dev_split="dev")
    task.prepare()
    assert len(task.dev) == 6
    assert {len(found) for found in task.dev.values()} <= set(range(9))
    model = load_reranker(tmp_path / "run" / "model", precision="fp32", device="cpu")
    collection = Collection.load(tiny_collection)
    found = rerank(task.dev, model, task.data.dev_queries, collection.corpus)
    judged = {query: collection.qrels("dev")[query] for query in task.dev}
    assert result.dev["best_reranked_nDCG@10"] == pytest.approx(float(evaluate(judged, found, ["nDCG@10"])["nDCG@10"]))


def test_dev_queries_that_the_run_lacks_get_bm25s_candidates(tiny_model, tiny_collection, tmp_path):
    train = set(qrels()["train"])
    write_run(tmp_path / "a.run", {query: {"otter-0": 1.0} for query in train}, "t")
    task = task_of(tiny_model, tiny_collection, **EVAL, dev_split="dev", run=str(tmp_path / "a.run"))
    task.prepare()
    other = task_of(tiny_model, tiny_collection, **EVAL, dev_split="dev")
    other.prepare()
    assert task.dev == other.dev
    assert all(len(found) > 1 for found in task.dev.values())


def test_without_a_dev_split_training_queries_are_carved_and_not_trained_on(run, tiny_model, tmp_path):
    data = make_collection(tmp_path / "data", documents(), queries(), {"train": qrels()["train"]})
    task = task_of(tiny_model, data, **EVAL)
    dev = set(task.data.dev_queries)
    assert dev
    assert not dev & {row.query_id for row in task.batcher.rows}
    assert "best_reranked_nDCG@10" in run(data=str(data), max_steps=1, **EVAL).dev
    assert not task_of(tiny_model, data).data.dev_queries
    assert run("none", data=str(data), max_steps=1).dev == {}


@pytest.fixture
def two_queries(tmp_path) -> dict[str, object]:
    """Two training queries with one relevant document each; a run knows one, and BM25 finds none for the other."""
    write_run(tmp_path / "a.run", {"q-otter-0": {"violin-0": 2.0, "violin-1": 1.0}}, "t")
    rows = [
        {"query_id": query, "query": text, "positive_ids": [query[2:]]}
        for query, text in (("q-otter-0", queries()["q-otter-0"]), ("q-heron-1", "zzyzx"))
    ]
    return {"rows": [str(rows_file(tmp_path / "rows.jsonl", rows))], "run": str(tmp_path / "a.run"), "max_steps": 2}


def test_lists_of_one_document_are_counted(run, tmp_path, two_queries):
    run(**two_queries)
    last = lines(tmp_path / "run")[-1]
    assert (last["alone"], last["filled"], last["documents"]) == (2, 4, 8)


def test_a_step_without_a_duel_moves_nothing(run, tmp_path, two_queries):
    changes = two_queries | {"architecture": "pairwise", "per_device_train_batch_size": 1}
    run(**changes, logging_steps=1)
    found = lines(tmp_path / "run")
    assert sorted(line["loss"] == line["grad_norm"] == 0 for line in found) == [False, True]
    assert found[-1]["documents"] == 4


def test_a_teachers_scores_train_a_reranker(run, tmp_path):
    rows = [
        {
            "query_id": query,
            "query": queries()[query],
            "positive_ids": [query[2:]],
            "positive_scores": [3.5],
            "negative_ids": ["violin-0", "violin-1", "lemon-3"],
            "negative_scores": [-1.0, -2.5, 0.5],
        }
        for query in qrels()["train"]
        if "violin" not in query and "lemon" not in query
    ]
    path = str(rows_file(tmp_path / "rows.jsonl", rows))
    for loss in ("margin_mse", "kl_div"):
        run(loss, rows=[path], loss=loss, max_steps=20)
        found = [line["loss"] for line in lines(tmp_path / loss)]
        assert found[-1] < found[0]
        assert lines(tmp_path / loss)[-1]["filled"] == 0


# --- what it leaves ---------------------------------------------------------------------------------------------------


def test_the_published_folder_opens_in_sentence_transformers_with_the_same_scores(whole):
    found = CrossEncoder.load(whole / "model", precision="fp32", device="cpu").score(["what is the otter"], [TEXTS])
    model = sentence_transformers.CrossEncoder(str(whole / "model"), device="cpu")
    expected = model.predict([("what is the otter", text) for text in TEXTS], show_progress_bar=False)
    assert np.abs(found[0] - expected).max() <= 1e-5
    assert expected.std() > 1e-3
    card = (whole / "model" / "README.md").read_text()
    assert "| lists | 1 relevant + 4 others, filled from BM25's top 100 |" in card


@pytest.mark.parametrize("architecture", ["auto", "set", "pairwise", "encoder_decoder", "encoder"])
def test_every_architecture_is_trained_and_published(run, tiny_model, tmp_path, architecture):
    is_t5 = architecture.startswith("encoder")
    start = make_t5(tmp_path / "t5") if is_t5 else tiny_model
    run(model=str(start), architecture=architecture, max_steps=3, **EVAL)
    model = load_reranker(tmp_path / "run" / "model", precision="fp32", device="cpu")
    assert model.fingerprint()["architecture"] == ("classifier" if architecture == "auto" else architecture)
    scores = model.score(["what is the otter"], [TEXTS[:5]])[0]
    assert scores.shape == (5,)
    assert scores.std() > 0
    again = run("again", model=str(tmp_path / "run"), max_steps=1)  # the folder of a run is a start model
    assert again.steps == 1


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_checkpoint(run, tmp_path):
    with pytest.raises(TrainingStoppedError, match=r"at step \d, queries q-.*lower learning_rate \(now 1e\+30\)"):
        run(learning_rate=1e30, save_steps=1, warmup_ratio=0.0)
    assert not (tmp_path / "run" / "model").exists()


def test_a_dry_run_checks_everything_and_writes_nothing(tiny_model, tiny_collection, tmp_path):
    def check(**changes):
        return dry_run(RerankerConfig.from_dict(settings(tiny_model, tiny_collection, tmp_path / "run", **changes)))

    assert check() == 6
    assert check(max_steps=-1, num_train_epochs=2) == 10
    for bad in (
        {"model": "/nowhere"},
        {"data": "/nowhere"},
        {"run": "/nowhere.run"},
        {"loss": "softmax"},
        {"max_length": 100},
        {"architecture": "encoder"},
    ):
        with pytest.raises(InputError):
            check(**bad)
    assert list(tmp_path.iterdir()) == []
