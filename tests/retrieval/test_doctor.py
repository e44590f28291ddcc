"""`rankwright doctor` from end to end: trainings on the tiny collection, runs that it left, and the command line."""

import json
import math
import shutil
from pathlib import Path

import pytest
from training_runs import flags, settings

from retrieval.cli.doctor import told
from retrieval.cli.main import main
from retrieval.doctor import examine_run, examine_setup
from retrieval.doctor_findings import Commands, Examination, Thresholds
from retrieval.doctor_run import examine_log
from retrieval.errors import InputError
from retrieval.train_config import TrainConfig
from retrieval.training import TrainingStoppedError
from retrieval.yamlfiles import read_yaml

pytestmark = pytest.mark.usefixtures("one_thread")

# The tiny model is random and its collection small: what a real one must not have is usual here.
LENIENT = Thresholds(learning_rate=1.0, few_negatives=1.0, document_cosine=2.0, risen_cosine=2.0, equal_scores=1e-9)


def setup(tiny_model, tiny_collection, **changes) -> Examination:
    values = settings(tiny_model, tiny_collection, Path("unused"), **changes)
    return examine_setup(TrainConfig.from_dict(values), thresholds=LENIENT)


def names(exam: Examination) -> set[str]:
    return {one.name for one in exam.problems}


# --- before -----------------------------------------------------------------------------------------------------------


def test_a_setup_has_the_figures_of_everything_that_was_looked_at(tiny_model, tiny_collection):
    exam = setup(tiny_model, tiny_collection)
    assert {
        "leaked_test",
        "negatives_per_query",
        "auc_words",
        "documents_cut",
        "loss_left_infonce",
    } <= exam.figures.keys()
    assert math.isfinite(exam.figures["first_loss"])
    assert exam.figures["steps"] == 8
    assert not Path("unused").exists()
    assert names(exam) <= {"collapsed_model"}  # a random model's vectors are alike


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"loss__temperature": 5.0}, "temperature"),
        ({"learning_rate": 10.0}, "learning_rate"),
        ({"loss__temperature": 1e-40}, "overflow"),
        ({"document_max_length": 4}, "truncation"),
    ],
)
def test_settings_with_a_fault(tiny_model, tiny_collection, changes, name):
    assert name in names(setup(tiny_model, tiny_collection, **changes))


@pytest.mark.parametrize(
    "changes", [{"chunk_size": 3}, {"batching": "cluster"}, {"batching": "proxy"}, {"loss": "bixse"}]
)
def test_every_way_of_training_can_be_examined(tiny_model, tiny_collection, changes):
    exam = setup(tiny_model, tiny_collection, **changes)
    assert names(exam) <= {"collapsed_model"}
    assert math.isfinite(exam.figures["first_loss"])


def test_a_first_batch_that_overflows(tiny_model, tiny_collection, monkeypatch):
    from retrieval.objective import Objective

    monkeypatch.setattr(Objective, "gradient", lambda self, batches: math.inf)
    exam = setup(tiny_model, tiny_collection)
    assert "overflow" in names(exam)
    assert next(one for one in exam.problems if one.name == "overflow").found.startswith(
        "the first batch has the loss inf"
    )


# --- a run ------------------------------------------------------------------------------------------------------------


def test_a_finished_run_is_examined_with_its_settings_and_its_log(whole):
    exam = examine_run(whole, thresholds=LENIENT)
    assert exam.subject == str(whole)
    assert {"loss_first", "loss_last", "chance_loss", "score_std", "auc_words", "first_loss"} <= exam.figures.keys()
    assert names(exam) <= {"collapsed_model", "collapsed_in_training"}
    assert "unfinished" not in {one.name for one in exam.diagnoses}
    again = next(one for one in exam.diagnoses if one.name == "no_validation").command
    assert again.startswith(f"rankwright train --config {whole}/config.yaml --out {whole}-2 ")


def test_without_a_probe_nothing_but_settings_and_log_is_read(whole, tmp_path, monkeypatch):
    import retrieval.doctor as doctor

    def refuse(*args, **how):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(doctor, "DualEncoderTask", refuse)
    monkeypatch.setattr(doctor.Encoder, "load", refuse)
    exam = examine_run(whole, probe=False, thresholds=LENIENT)
    assert "loss_last" in exam.figures
    assert "auc_words" not in exam.figures
    assert exam.unchecked[0] == "rows, prompts, lengths and the model itself: --no-probe"


def test_a_run_whose_data_are_gone_is_examined_by_its_log(whole, tmp_path):
    folder = shutil.copytree(whole, tmp_path / "run")
    values = read_yaml(folder / "config.yaml") | {"data": str(tmp_path / "gone"), "loss.temperature": 5.0}
    (folder / "config.yaml").write_text("".join(f"{k}: {json.dumps(v)}\n" for k, v in values.items()))
    exam = examine_run(folder, thresholds=LENIENT)
    assert "temperature" in names(exam)
    assert exam.unchecked[0].startswith("data and start model cannot be read any more (")
    assert "loss_last" in exam.figures


def test_a_run_that_stopped_at_an_overflow_says_so(run, tmp_path):
    with pytest.raises(TrainingStoppedError):
        run(loss__temperature=1e-40)
    exam = examine_run(tmp_path / "run", thresholds=LENIENT)
    assert exam.problems[0].name == "overflow"
    assert "unfinished" in {one.name for one in exam.diagnoses}
    assert names(examine_run(tmp_path / "run", probe=False, thresholds=LENIENT)) == {"overflow"}
    stopped = json.loads((tmp_path / "run" / "stopped.json").read_text())
    assert stopped["step"] == 0
    assert "the loss is nan at step 1, queries" in stopped["reason"]
    exam = Examination("run", LENIENT)
    examine_log(
        exam, [], None, Commands(TrainConfig.from_dict(read_yaml(tmp_path / "run" / "config.yaml")), tmp_path / "run")
    )
    assert "training stopped by itself: the loss is nan at step 1" in exam.problems[0].found
    (tmp_path / "run" / "stopped.json").write_text("{")
    with pytest.raises(InputError, match=r"stopped\.json: is damaged"):
        examine_run(tmp_path / "run", probe=False, thresholds=LENIENT)
    run(overwrite=True)
    assert not (tmp_path / "run" / "stopped.json").exists()


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"nowhere: is no training run: it holds no config\.yaml"):
        examine_run(tmp_path / "nowhere")
    (tmp_path / "config.yaml").write_text("features: f.txt\nscorer: mlp\n")
    with pytest.raises(InputError, match=r"config\.yaml: is no run of `rankwright train`: unknown setting 'features'"):
        examine_run(tmp_path)


# --- the command line -------------------------------------------------------------------------------------------------


def test_a_problem_ends_with_2_and_names_it(tiny_model, tiny_collection, tmp_path, capsys):
    arguments = flags(
        settings(tiny_model, tiny_collection, tmp_path / "out", loss__temperature=5.0, learning_rate=1e-4)
    )
    assert main(["doctor", *arguments, "--quiet"]) == 2
    out, error = capsys.readouterr()
    assert "PROBLEM temperature: at infonce with temperature 5" in out
    assert "  probably: the temperature fights the scale" in out
    assert "--set loss.temperature=0.05" in out
    assert error.splitlines()[-1].startswith("error: ")
    assert not (tmp_path / "out").exists()


def test_remarks_end_with_0(whole, capsys):
    """The log of a sound run, without its random model."""
    assert main(["doctor", str(whole), "--no-probe", "--json", "--quiet"]) in (0, 2)
    found = json.loads(capsys.readouterr().out)
    assert found.keys() == {"subject", "problems", "diagnoses", "figures", "unchecked"}
    assert found["problems"] == sum(one["severity"] == "problem" for one in found["diagnoses"])


def test_the_status_follows_the_problems(whole, monkeypatch, capsys):
    import retrieval.doctor as doctor

    exam = Examination("mine")
    monkeypatch.setattr(doctor, "examine_run", lambda run, probe: exam)
    assert main(["doctor", str(whole)]) == 0
    assert capsys.readouterr().out == "mine: no problems, no remarks\n"
    exam.remark("few_steps", "3 steps", "rankwright train")
    exam.unchecked.append("the model")
    assert main(["doctor", str(whole)]) == 0
    assert "\n".join(told(exam)) + "\n" == capsys.readouterr().out
    exam.problem("leak", "all queries", "rankwright data D")
    exam.problem("flat_loss", "3.4", "rankwright train")
    assert main(["doctor", str(whole)]) == 2
    captured = capsys.readouterr()
    assert captured.err == "error: leak: all queries (and 1 more)\n"
    assert captured.out.splitlines()[0] == "mine: 2 problems, 1 remark"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "wanted a run folder, or --model and --data of a training"),
        (["--model", "m"], "wanted a run folder, or --model and --data"),
        (["--no-probe", "--model", "m", "--data", "d"], "--no-probe is for a run; wanted a run folder before it"),
        (["run", "--data", "d"], "got a run and the setting 'data'; a run has its own"),
        (["run", "--learning-rate", "1e-5"], "got a run and the setting 'learning_rate'"),
        (["run", "--set", "loss.temperature=1"], "got a run and the setting 'loss.temperature'"),
        (["/nowhere/run"], "/nowhere/run: is no training run"),
        (["--model", "m", "--data", "d", "--set", "lerning_rate=1"], "did you mean 'learning_rate'?"),
        (["--resume"], "unknown flag '--resume'"),
    ],
)
def test_a_wrong_command_is_one_line(arguments, message, capsys):
    assert main(["doctor", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("error: ")
    assert len(error.splitlines()) == 1
