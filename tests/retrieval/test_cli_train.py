"""`rankwright train` as it is typed."""

import json
from dataclasses import fields

import pytest
import yaml
from tiny_files import read_jsonl, rows_file
from training_runs import flags, settings, weights

from retrieval.cli.main import main
from retrieval.train_config import TrainConfig

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def arguments(tiny_model, tiny_collection, tmp_path):
    """The arguments of a run of two steps; `name` is its folder."""

    def make(name="run", **changes):
        return ["train", *flags(settings(tiny_model, tiny_collection, tmp_path / name, **({"max_steps": 2} | changes)))]

    return make


def failed(capsys, arguments, status=2) -> str:
    """The one line of a command that fails."""
    assert main(arguments) == status
    out, err = capsys.readouterr()
    assert out == ""
    line = err.splitlines()[-1]
    assert line.startswith("error: ")
    assert "Traceback" not in err
    return line


def test_every_field_is_a_flag_with_help(capsys):
    assert main(["train", "--help"]) == 0
    out = capsys.readouterr().out
    for f in fields(TrainConfig):
        if f.name != "loss_settings":
            assert f"--{f.name.replace('_', '-')}" in out
    assert "Ctrl-C finishes the step, saves it" in out


def test_a_run_prints_where_the_model_is(arguments, tmp_path, capsys):
    assert main(arguments(eval_strategy="epoch")) == 0
    out, err = capsys.readouterr()
    assert out.startswith(f"{tmp_path}/run/model: step ")
    assert "dev best_full_nDCG@10" in out
    assert "validation: " in err
    assert "\r" not in err


def test_json_is_one_document(arguments, tmp_path, capsys):
    assert main([*arguments(), "--json"]) == 0
    out = capsys.readouterr().out
    assert json.loads(out) == {"out": str(tmp_path / "run"), "steps": 2, "best_step": 2, "dev": {}}
    assert out.count("\n") == 1


def test_quiet_says_nothing_but_the_result(arguments, tmp_path, capsys):
    assert main([*arguments(), "--quiet"]) == 0
    out, err = capsys.readouterr()
    assert out == f"{tmp_path}/run/model: step 2 of 2\n"
    assert err == ""


def test_flags_set_and_yaml_are_the_same_run(arguments, tiny_model, tiny_collection, tmp_path):
    changes = {
        "loss": "bixse",
        "loss__scale": 12.5,
        "learning_rate": 1e-3,
        "query_prompt": "query: ",
        "eval_full": False,
    }
    assert main(arguments("flags", **changes)) == 0
    values = settings(tiny_model, tiny_collection, tmp_path / "set", max_steps=2, **changes)
    assert main(["train", *(part for name, value in values.items() for part in ("--set", f"{name}={value}"))]) == 0
    del values["loss.scale"]
    values |= {"out": str(tmp_path / "yaml"), "loss": {"name": "bixse", "scale": 12.5}}
    (tmp_path / "my.yaml").write_text(yaml.safe_dump(values))
    assert main(["train", "--config", str(tmp_path / "my.yaml")]) == 0
    one, two, three = (tmp_path / name for name in ("flags", "set", "yaml"))
    assert weights(one) == weights(two) == weights(three)
    configs = [yaml.safe_load((out / "config.yaml").read_text()) | {"out": ""} for out in (one, two, three)]
    assert configs[0] == configs[1] == configs[2]


def test_the_resolved_settings_reload_to_the_same_run(arguments, tmp_path):
    rows = [{"query": f"what is thing {i}", "positives": [f"thing {i}"], "negatives": ["x", "y"]} for i in range(9)]
    paths = [str(rows_file(tmp_path / f"{name}.jsonl", rows)) for name in "ab"]
    assert main(arguments("one", rows=paths, loss__temperature=2e-2, query_max_length=9)) == 0
    assert main(["train", "--config", str(tmp_path / "one/config.yaml"), "--out", str(tmp_path / "two")]) == 0
    assert weights(tmp_path / "one") == weights(tmp_path / "two")
    one, two = ((tmp_path / name / "config.yaml").read_text() for name in ("one", "two"))
    assert one.replace("/one", "/two") == two
    assert yaml.safe_load(two)["rows"] == paths
    # with another file of rows, that one replaces those of the settings
    again = [
        "train",
        "--config",
        str(tmp_path / "one/config.yaml"),
        "--out",
        str(tmp_path / "three"),
        "--rows",
        paths[0],
    ]
    assert main(again) == 0
    assert yaml.safe_load((tmp_path / "three" / "config.yaml").read_text())["rows"] == paths[:1]


def test_small_numbers_survive_set(arguments, tmp_path):
    assert main([*arguments(), "--set", "loss.temperature=2e-5"]) == 0
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["loss.temperature"] == 2e-5


def test_resume_overwrite_and_neither(arguments, tmp_path, capsys):
    assert main([*arguments(), "--resume"]) == 0  # nothing to resume: it begins
    capsys.readouterr()
    assert "use --resume or --overwrite" in failed(capsys, arguments())
    assert "exclude each other" in failed(capsys, [*arguments(), "--resume", "--overwrite"])
    message = failed(capsys, [*arguments(learning_rate=0.5), "--resume"])
    assert "learning_rate was 0.002 in the run to resume and is 0.5 now" in message
    before = weights(tmp_path / "run")
    assert main([*arguments(), "--resume", "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["steps"] == 2
    assert "is finished (2 steps); nothing to do" in err
    assert weights(tmp_path / "run") == before
    assert main([*arguments(learning_rate=0.5), "--overwrite"]) == 0
    assert weights(tmp_path / "run") != before


def test_a_config_and_its_own_run_folder_can_be_resumed(arguments, tmp_path, capsys):
    assert main(arguments()) == 0
    assert main(["train", "--config", str(tmp_path / "run" / "config.yaml"), "--resume"]) == 0
    assert "nothing to do" in capsys.readouterr().err


def test_dry_run_prints_the_settings_and_writes_nothing(arguments, tmp_path, capsys):
    assert main([*arguments(loss__temperature=0.1), "--dry-run", "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["loss.temperature"] == 0.1
    assert "2 steps; nothing was written" in err
    assert list(tmp_path.iterdir()) == []


def test_a_loss_that_is_not_finite_ends_with_status_1(arguments, tmp_path, capsys):
    line = failed(capsys, arguments(learning_rate=1e30, save_steps=1), status=1)
    assert "TrainingStoppedError: " in line
    assert "at step " in line
    assert "q-" in line
    assert "lower learning_rate (now 1e+30)" in line
    assert all(line["step"] <= 2 for line in read_jsonl(tmp_path / "run" / "metrics.jsonl"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "/nowhere/model"}, "/nowhere/model: no such model folder"),
        (
            {"model": "package:no_such_package/model"},
            "the package 'no_such_package' is not installed; run: pip install",
        ),
        ({"data": "/nowhere/data"}, "/nowhere/data: no such folder; wanted a BEIR folder"),
        ({"rows": ["/nowhere/rows.jsonl"]}, "/nowhere/rows.jsonl: no such file"),
        ({"train_split": "trian"}, "no split 'trian'; did you mean 'train'"),
        ({"dev_split": "tset", "eval_strategy": "epoch"}, "no split 'tset'; did you mean 'test'"),
        ({"loss": "infonec"}, "loss: unknown loss 'infonec'; did you mean 'infonce'"),
        ({"loss__temprature": 0.1}, "loss: unknown setting 'temprature' of infonce; did you mean 'temperature'"),
        ({"loss__temperature": "warm"}, "loss: temperature must be a finite number, got 'warm'"),
        ({"los__temperature": 1}, "unknown setting 'los.temperature'"),
        ({"learning_rate": "fast"}, "setting 'learning_rate' got 'fast'; wanted a number"),
        ({"learning_rate": -1}, "learning_rate must be > 0"),
        ({"learning_rate": "nan"}, "learning_rate must be a finite number, got nan"),
        ({"max_steps": 1.5}, "setting 'max_steps' got '1.5'; wanted a whole number"),
        ({"max_steps": 0}, "max_steps must be > 0, or -1 for num_train_epochs; got 0"),
        ({"seed": -1}, "seed must be >= 0, got -1"),
        ({"seed": 2**64}, "seed must be below 2**63"),
        ({"warmup_ratio": 3}, "warmup_ratio is a share of all steps"),
        ({"eval_strategy": "epochs"}, "unknown eval_strategy 'epochs'; did you mean 'epoch'"),
        ({"precision": "fp16"}, "argument --precision: invalid choice: 'fp16'"),
        ({"device": "gpu"}, "unknown device 'gpu'; wanted auto, cpu or cuda[:i]"),
        ({"device": "cuda:9"}, "device 'cuda:9' is not here"),
        ({"document_max_length": 65}, "document_max_length 65 exceeds the model's 64 positions; lower it"),
        ({"query_max_length": 2}, "query_max_length must be at least 3"),
        ({"pooling": "mean"}, "has its own pooling"),
        ({"batch_tokens": 0}, "batch_tokens must be >= 1"),
        ({"per_device_train_batch_size": 1, "num_negatives": 0}, "leaves no negatives; raise either"),
        ({"loss__positive_from": 9}, "none of the 36 training rows has a positive of grade >= 9"),
    ],
)
def test_bad_settings_are_one_line_and_leave_nothing(arguments, tmp_path, capsys, changes, message):
    assert message in failed(capsys, arguments(**changes))
    assert list(tmp_path.iterdir()) == []


def test_temperature_and_scale_together_are_one_line(arguments, capsys):
    line = failed(capsys, arguments(loss__temperature=0.05, loss__scale=20))
    assert line == "error: loss: got temperature=0.05 and scale=20; they are 1/x of each other, give one"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{", ":2: column 2 is not JSON"),
        ('{"query": "a"}', ":2: "),
        ('{"query": "a", "positive_ids": ["zz"]}', "which is not in the corpus"),
        ('{"query": "a", "positives": ["p"], "negatives": ["p"]}', "is in positives and in negatives; keep one"),
        ('{"query": "", "positives": ["p"]}', '"query" is empty'),
        ('{"query": "a", "positives": ["p"], "positive_labels": [1, 2]}', "got 2 positive_labels for 1 documents"),
    ],
)
def test_bad_rows_are_told_by_file_and_line(arguments, tmp_path, capsys, row, message):
    path = rows_file(tmp_path / "rows.jsonl", [{"query": "good", "positives": ["p"]}, row])
    line = failed(capsys, arguments(rows=[str(path)]))
    assert f"{path}:2: " in line
    assert message in line
    assert not (tmp_path / "run").exists()


def test_a_folder_that_is_no_run_is_never_deleted(arguments, tmp_path, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("mine: true\n")
    (tmp_path / "run" / "thesis.tex").write_text("years of work")
    for flag in ([], ["--overwrite"], ["--resume"]):
        assert "exists already and is no training run; use another --out" in failed(capsys, [*arguments(), *flag])
    assert (tmp_path / "run" / "thesis.tex").read_text() == "years of work"


def test_a_place_that_cannot_be_written_is_found_before_anything_is_read(arguments, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    line = failed(capsys, arguments("file/run", model="/nowhere", data="/nowhere"))
    assert "cannot be made, because" in line
