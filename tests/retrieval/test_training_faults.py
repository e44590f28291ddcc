"""Runs that go wrong: what is told, what is left on the disk, and that the fix which a message names works."""

import shutil

import pytest
from safetensors.torch import load_file, save_file
from tiny_files import make_tiny_collection, rows_file
from training_runs import EACH, Crash, crash_in_step, settings, weights

import retrieval.objective as objective
import retrieval.training as training
import retrieval.training_loop as training_loop
from indexes.storage import locked
from retrieval.checkpoints import checkpoint_folder, checkpoint_steps, load_weights
from retrieval.encoder import Encoder
from retrieval.errors import InputError
from retrieval.train_config import TrainConfig
from retrieval.training import TrainingStoppedError, dry_run, train

pytestmark = pytest.mark.usefixtures("one_thread")


# --- losses and gradients that are not finite -------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_stops_the_run_and_names_step_and_queries(run, tiny_model, tmp_path, monkeypatch):
    backward, taken = objective.backward, []

    def diverging(encoder, loss, batches, **how):
        taken.append(batches)
        return float("nan") if len(taken) == 5 else backward(encoder, loss, batches, **how)

    monkeypatch.setattr(objective, "backward", diverging)
    with pytest.raises(TrainingStoppedError) as caught:
        run(save_steps=2)
    message = str(caught.value)
    assert "the loss is nan at step 5" in message
    assert "the checkpoint of step 4 is intact" in message
    assert "lower learning_rate (now 0.002)" in message
    names = taken[4][0].batch.query_ids
    assert f"queries {', '.join(names)};" in message
    assert checkpoint_steps(tmp_path / "run") == [2, 4]
    model = Encoder.load(tiny_model, device="cpu").model
    load_weights(checkpoint_folder(tmp_path / "run", 4), model)
    assert all(p.isfinite().all() for p in model.parameters())
    monkeypatch.undo()
    assert run(save_steps=2, resume=True).steps == 8


@pytest.mark.parametrize(
    "changes", [{"save_steps": 1}, {"save_steps": 100}, {"eval_strategy": "steps", "eval_steps": 1}]
)
def test_an_absurd_learning_rate_stops_the_run_and_leaves_no_broken_checkpoint(run, tmp_path, changes):
    with pytest.raises(TrainingStoppedError, match=r"(the loss|the gradient|an embedding) is (nan|inf) at step [12]"):
        run(learning_rate=1e30, **changes)
    assert not (tmp_path / "run" / "model").exists()
    for step in checkpoint_steps(tmp_path / "run"):
        found = load_file(checkpoint_folder(tmp_path / "run", step) / "model.safetensors")
        assert all(v.isfinite().all() and v.abs().max() < 1e6 for v in found.values() if v.is_floating_point())


def test_the_last_step_is_looked_at_too(run, tmp_path):
    with pytest.raises(
        TrainingStoppedError, match=r"an embedding is nan at step 1, queries q-.*; no checkpoint was due"
    ):
        run(learning_rate=1e30, max_steps=1, warmup_ratio=0.0)
    assert checkpoint_steps(tmp_path / "run") == []
    assert not (tmp_path / "run" / "result.json").exists()


@pytest.mark.parametrize(("changes", "step"), [({"eval_strategy": "no"}, 1), ({"eval_strategy": "epoch"}, 0)])
def test_a_model_with_a_nan_in_it_is_stopped_at_once(run, tiny_model, tmp_path, changes, step):
    broken = tmp_path / "broken"
    shutil.copytree(tiny_model, broken)
    tensors = load_file(broken / "model.safetensors")
    name = next(n for n in tensors if n.endswith("encoder.layer.0.output.dense.bias"))
    tensors[name][3] = float("nan")
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(TrainingStoppedError, match=rf"is nan at step {step}, queries q-"):
        run(model=str(broken), **changes)
    assert checkpoint_steps(tmp_path / "run") == []


def test_queries_without_an_id_are_named_by_their_text(run, tmp_path):
    rows = [{"query": f"question {i}", "positives": [f"answer {i}"]} for i in range(12)]
    path = rows_file(tmp_path / "rows.jsonl", rows)
    with pytest.raises(TrainingStoppedError, match=r"queries 'question \d+'") as caught:
        run(rows=[str(path)], learning_rate=1e30, save_steps=100)
    assert "text:" not in str(caught.value)


# --- damage, and what resume refuses ----------------------------------------------------------------------------------


def test_a_damaged_checkpoint_is_one_clear_line_and_its_fix_works(run, whole, tmp_path, monkeypatch):
    changes = {"gradient_accumulation_steps": 2, "save_steps": 3}
    with monkeypatch.context() as patch:
        crash_in_step(patch, 7)
        with pytest.raises(Crash):
            run(**changes)
    path = checkpoint_folder(tmp_path / "run", 6) / "optimizer.safetensors"
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"step-6: optimizer.safetensors is damaged: .*delete this checkpoint"):
        run(resume=True, **changes)
    shutil.rmtree(path.parent)
    run(resume=True, **changes)
    assert weights(tmp_path / "run") == weights(whole)


def test_a_damaged_best_checkpoint_is_made_again(run, tmp_path, monkeypatch):
    scores = [0.1, 0.2, 0.9, 0.3]

    def by_step(patch):
        # what a step's validation gives does not depend on how often the run was interrupted
        def validate(self):
            step = self.progress.step
            patch.setattr(training.DevSet, "score", lambda *_: scores[min(step, 3)])
            original(self)

        original = training_loop.TrainingLoop._validate
        patch.setattr(training_loop.TrainingLoop, "_validate", validate)

    changes = EACH | {"save_total_limit": 9, "eval_full": False}
    with monkeypatch.context() as patch:
        by_step(patch)
        run("whole", **changes)
    with monkeypatch.context() as patch:
        by_step(patch)
        patch.setattr(training_loop.TrainingLoop, "_publish", lambda self: (_ for _ in ()).throw(Crash()))
        with pytest.raises(Crash):
            run(**changes)
    assert checkpoint_steps(tmp_path / "run") == [0, 1, 2, 8]
    (checkpoint_folder(tmp_path / "run", 2) / "model.safetensors").write_bytes(b"")
    with monkeypatch.context() as patch:
        by_step(patch)
        with pytest.raises(InputError, match=r"step-2: model.safetensors is damaged"):
            run(resume=True, **changes)
        shutil.rmtree(checkpoint_folder(tmp_path / "run", 2))
        assert run(resume=True, **changes).best_step == 2
    assert weights(tmp_path / "run") == weights(tmp_path / "whole")


def test_changed_data_or_a_changed_start_model_is_refused_with_both_hashes(run, tiny_model, tmp_path, monkeypatch):
    data, model = make_tiny_collection(tmp_path / "data"), tmp_path / "model"
    shutil.copytree(tiny_model, model)
    changes = {"data": str(data), "model": str(model), "save_steps": 3}
    with monkeypatch.context() as patch:
        crash_in_step(patch, 5)
        with pytest.raises(Crash):
            run(**changes)
    path = data / "qrels" / "train.tsv"
    text = path.read_text()
    path.write_text(text.replace("\t3\n", "\t2\n", 1))
    with pytest.raises(
        InputError, match=r"the data has changed since the run began \([0-9a-f]{64} then, [0-9a-f]{64} now"
    ):
        run(resume=True, **changes)
    path.write_text(text)
    tensors = load_file(model / "model.safetensors")
    next(iter(tensors.values())).flatten()[0] += 1
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match="the start model has changed since the run began"):
        run(resume=True, **changes)
    with pytest.raises(InputError, match=r"learning_rate was 0.002 in the run to resume and is 0.1 now"):
        run(resume=True, learning_rate=0.1, **changes)


def test_resume_of_a_finished_run_says_so_and_changes_nothing(run, tmp_path, caplog):
    caplog.set_level("INFO")
    first = run(max_steps=2, eval_strategy="epoch")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}
    assert run(max_steps=2, eval_strategy="epoch", resume=True) == first
    assert "is finished (2 steps); nothing to do" in caplog.text
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")} == before


def test_a_run_killed_after_its_last_step_is_published_by_resume(run, tmp_path, monkeypatch, whole):
    changes = {"gradient_accumulation_steps": 2, "save_steps": 3}
    for module, place in (("encoder", "save_model"), ("run_folder", "remove_folder"), ("run_folder", "write_json")):
        with monkeypatch.context() as patch:
            original = getattr(__import__(f"retrieval.{module}", fromlist=[place]), place)

            def dying(path, *arguments, original=original, **more):
                if str(path).endswith(("environment.json", "data.json")):
                    return original(path, *arguments, **more)
                raise Crash

            patch.setattr(f"retrieval.{module}.{place}", dying)
            if place == "remove_folder":
                (tmp_path / "run" / "model").mkdir()
            with pytest.raises(Crash):
                run(resume=True, **changes)
    run(resume=True, **changes)
    assert weights(tmp_path / "run") == weights(whole)


# --- nothing earlier is lost ------------------------------------------------------------------------------------------


def test_an_existing_run_is_refused_and_overwritten_only_when_all_is_good(run, tmp_path):
    run(max_steps=1)
    before = weights(tmp_path / "run")
    with pytest.raises(InputError, match="use --resume or --overwrite"):
        run(max_steps=2)
    for bad in ({"model": str(tmp_path)}, {"data": str(tmp_path)}, {"train_split": "trian"}, {"loss__scale": -1}):
        with pytest.raises(InputError):
            run(max_steps=2, overwrite=True, **bad)
    assert weights(tmp_path / "run") == before
    run(max_steps=2, overwrite=True)
    assert weights(tmp_path / "run") != before


def test_a_run_that_cannot_begin_leaves_no_folder(run, tmp_path):
    for bad in ({"model": str(tmp_path)}, {"data": str(tmp_path)}, {"dev_split": "nope"}, {"document_max_length": 65}):
        with pytest.raises(InputError):
            run("new", eval_strategy="epoch", **bad)
        assert not (tmp_path / "new").exists()


def test_two_runs_in_one_folder_are_refused(run, tmp_path):
    (tmp_path / "run").mkdir()
    with locked(tmp_path / "run"), pytest.raises(ValueError, match="in use by process"):
        run(max_steps=1)


def test_a_dry_run_checks_everything_and_writes_nothing(tiny_model, tiny_collection, tmp_path):
    def check(**changes):
        values = settings(tiny_model, tiny_collection, tmp_path / "run", **changes)
        return dry_run(TrainConfig.from_dict(values), resume=False, overwrite=False)

    assert check() == 8
    for bad in (
        {"model": "/nowhere"},
        {"data": "/nowhere"},
        {"train_split": "trian"},
        {"rows": ["/nowhere.jsonl"]},
        {"loss": "infonec"},
        {"loss__temperature": -1},
        {"loss__temperature": 0.1, "loss__scale": 10},
        {"loss__positive_from": 9},
        {"document_max_length": 100},
        {"pooling": "mean"},
        {"device": "gpu"},
    ):
        with pytest.raises(InputError):
            check(**bad)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss": "infonec"}, "loss: unknown loss 'infonec'; did you mean 'infonce'"),
        ({"loss__temprature": 1}, "loss: unknown setting 'temprature' of infonce; did you mean 'temperature'"),
        ({"loss__temperature": "warm"}, "loss: temperature must be a finite number, got 'warm'"),
        ({"loss__temperature": 0}, "loss: temperature must be > 0, got 0"),
        ({"loss__temperature": [1]}, "loss: "),
        ({"loss__symmetric": "yes"}, "loss: symmetric must be true or false"),
        ({"loss__temperature": 0.05, "loss__scale": 20}, "loss: got temperature=0.05 and scale=20; .* give one"),
    ],
)
def test_impossible_losses_are_refused_before_anything_is_read(tmp_path, changes, message):
    with pytest.raises(InputError, match=message) as caught:
        train(**settings("/nowhere", tmp_path / "nothing", tmp_path / "run", **changes))
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []
