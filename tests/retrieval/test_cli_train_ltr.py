"""`rankwright train-ltr` as it is typed."""

import json
from dataclasses import fields

import pytest
from feature_files import lists, written

from retrieval.cli.main import main
from retrieval.ltr_config import LtrConfig

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def arguments(tmp_path):
    """The arguments of a short run; `name` is its folder."""
    train = written(tmp_path / "train.txt", lists(20))
    test = written(tmp_path / "test.txt", lists(5, seed=1, prefix="t"))
    files = ["--features", train, "--test", test]

    def make(*more, name="run"):
        return ["train-ltr", *files, "--out", str(tmp_path / name), "--max-steps", "3", "--hidden-sizes", "8", *more]

    return make


def failed(capsys, arguments) -> str:
    """The one line of a command that is refused."""
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "Traceback" not in err
    return err.splitlines()[-1]


def test_every_field_is_a_flag_with_help(capsys):
    assert main(["train-ltr", "--help"]) == 0
    out = capsys.readouterr().out
    for f in fields(LtrConfig):
        if f.name != "loss_settings":
            assert f"--{f.name.replace('_', '-')}" in out
    assert "(default: )" not in out


def test_a_run_prints_both_gains_of_dev_and_test(arguments, tmp_path, capsys):
    assert main(arguments()) == 0
    out, _ = capsys.readouterr()
    assert out.startswith(f"{tmp_path}/run/model: step ")
    for name in ("best_nDCG@10", "best_nDCG(dcg='exp-log2')@10"):
        assert f"  dev  {name} " in out
    for name in ("nDCG@5", "nDCG(dcg='exp-log2')@5"):
        assert f"  test {name} " in out


def test_json_is_one_document(arguments, tmp_path, capsys):
    assert main(arguments("--json", "--quiet")) == 0
    found = json.loads(capsys.readouterr().out)
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (found["dev"], found["test"], found["steps"]) == (result["dev"], result["test"], 3)


def test_trees_are_counted_as_such(arguments, capsys):
    pytest.importorskip("lightgbm", reason="needs the ltr extra")
    assert main(arguments("--scorer", "lambdamart", "--num-trees", "4", "--min-data-in-leaf", "2")) == 0
    assert "model: trees " in capsys.readouterr().out


def test_the_resolved_settings_repeat_the_run(arguments, tmp_path):
    assert main(arguments("--loss", "ranknet + 0.5*softmax_ce", "--set", "loss.ranknet.temperature=2")) == 0
    config = tmp_path / "run" / "config.yaml"
    assert config.read_text().startswith("# A training run of Rankwright. To repeat it: rankwright train-ltr --config")
    assert main(["train-ltr", "--config", str(config), "--out", str(tmp_path / "again")]) == 0
    results = [json.loads((tmp_path / name / "result.json").read_text()) for name in ("run", "again")]
    assert results[0] == results[1]


def test_a_dry_run_prints_the_settings_and_writes_nothing(arguments, tmp_path, capsys):
    assert main(arguments("--dry-run", "--scorer", "linear", "--json")) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["scorer"] == "linear"
    assert "settings and data are good; 3 steps; nothing was written" in err
    assert not (tmp_path / "run").exists()


def test_an_existing_run_needs_a_word(arguments, capsys):
    assert main(arguments()) == 0
    capsys.readouterr()
    assert "exists already; use --resume or --overwrite" in failed(capsys, arguments())
    assert main(arguments("--resume")) == 0
    assert "is finished (3 steps); nothing to do" in capsys.readouterr().err
    assert main(arguments("--overwrite")) == 0


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--scorer", "trees"], "unknown scorer 'trees'"),
        (["--loss", "softmax"], "loss: unknown loss 'softmax'; did you mean"),
        (["--hidden-size", "4"], "unknown flag '--hidden-size'; did you mean '--hidden-sizes'?"),
        (["--set", "normalization=none"], "unknown setting 'normalization'; did you mean 'normalisation'?"),
        (["--hidden-sizes", "x"], "setting 'hidden_sizes' got 'x'; wanted a whole number"),
        (["--dropout", "no"], "setting 'dropout' got 'no'; wanted a number"),
        (["--valid", "nowhere.txt"], "nowhere.txt: no such file"),
        (["--device", "gpu"], "unknown device 'gpu'"),
    ],
)
def test_what_cannot_be_is_refused_in_a_line(arguments, tmp_path, capsys, more, message):
    assert message in failed(capsys, arguments(*more))
    assert not (tmp_path / "run").exists()


def test_a_broken_line_is_named(arguments, tmp_path, capsys):
    path = tmp_path / "train.txt"
    path.write_text(path.read_text().replace("qid:q3 ", "q3 ", 1))
    line = failed(capsys, arguments())
    number = 1 + 3 + 3 * 6  # three lines name features, three queries have six documents
    assert line.startswith(f"error: {path}:{number}: got 'q3' behind the grade, where qid:ID must stand")


def test_a_query_in_two_files_is_refused(arguments, tmp_path, capsys):
    written(tmp_path / "test.txt", lists(5, seed=1))
    assert f"{tmp_path}/test.txt: query 'q0' is in {tmp_path}/train.txt too" in failed(capsys, arguments())
    assert main(arguments("--ids-restart")) == 0
