"""`rankwright train-reranker` as it is typed, and `rerank` with what it leaves."""

import json
from dataclasses import fields

import pytest
import yaml
from reranker_runs import settings
from tiny_files import qrels, queries, rows_file
from training_runs import flags, weights

from retrieval.cli.main import main
from retrieval.reranker_config import RerankerConfig
from retrieval.trec import read_run, write_run

pytest.importorskip("torch", reason="needs the train extra")
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def arguments(tiny_model, tiny_collection, tmp_path):
    """The arguments of a run of two steps; `name` is its folder."""

    def make(name="run", **changes):
        values = settings(tiny_model, tiny_collection, tmp_path / name, **({"max_steps": 2} | changes))
        return ["train-reranker", *flags(values)]

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
    assert main(["train-reranker", "--help"]) == 0
    out = capsys.readouterr().out
    for f in fields(RerankerConfig):
        if f.name != "loss_settings":
            assert f"--{f.name.replace('_', '-')} " in out.replace("\n", " ").replace("]", " ").replace(",", " ")


def test_a_run_prints_where_the_model_is(arguments, tmp_path, capsys):
    assert main(arguments(eval_strategy="epoch", eval_queries=3)) == 0
    out, err = capsys.readouterr()
    assert out.startswith(f"{tmp_path}/run/model: step ")
    assert "dev best_reranked_nDCG@10" in out
    assert "Traceback" not in err


def test_json_is_one_document_and_the_resolved_settings_reload_to_the_same_run(arguments, tmp_path, capsys):
    assert main([*arguments("one", loss__temperature=0.5, query_max_length=9), "--json"]) == 0
    out = capsys.readouterr().out
    assert json.loads(out) == {"out": str(tmp_path / "one"), "steps": 2, "best_step": 2, "dev": {}}
    saved = tmp_path / "one" / "config.yaml"
    assert main(["train-reranker", "--config", str(saved), "--out", str(tmp_path / "two")]) == 0
    assert weights(tmp_path / "one") == weights(tmp_path / "two")
    assert yaml.safe_load(saved.read_text())["loss.temperature"] == 0.5


def test_resume_overwrite_and_neither(arguments, tmp_path, capsys):
    assert main([*arguments(), "--resume"]) == 0  # nothing to resume: it begins
    capsys.readouterr()
    assert "use --resume or --overwrite" in failed(capsys, arguments())
    assert "exclude each other" in failed(capsys, [*arguments(), "--resume", "--overwrite"])
    assert main([*arguments(), "--resume", "--json"]) == 0
    assert "is finished (2 steps); nothing to do" in capsys.readouterr().err
    before = weights(tmp_path / "run")
    assert main([*arguments(learning_rate=0.01), "--overwrite"]) == 0
    assert weights(tmp_path / "run") != before


def test_a_run_of_another_verb_is_never_overwritten(arguments, tmp_path, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("# A training run of Rankwright. To repeat it: rankwright train\n")
    for flag in ([], ["--overwrite"], ["--resume"]):
        assert "exists already and is no training run" in failed(capsys, [*arguments(), *flag])


def test_dry_run_prints_the_settings_and_writes_nothing(arguments, tmp_path, capsys):
    assert main([*arguments(loss="mw"), "--dry-run", "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["loss"] == "mw"
    assert "2 steps; nothing was written" in err
    assert list(tmp_path.iterdir()) == []


def test_a_loss_that_is_not_finite_ends_with_status_1(arguments, capsys):
    line = failed(capsys, arguments(learning_rate=1e30, warmup_ratio=0, max_steps=4), status=1)
    assert "TrainingStoppedError: " in line
    assert "lower learning_rate (now 1e+30)" in line


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "/nowhere/model"}, "/nowhere/model: no such model folder"),
        ({"data": "/nowhere/data"}, "/nowhere/data: no such folder; wanted a BEIR folder"),
        ({"rows": ["/nowhere/rows.jsonl"]}, "/nowhere/rows.jsonl: no such file"),
        ({"run": "/nowhere/a.run"}, "/nowhere/a.run: no such file"),
        ({"train_split": "trian"}, "no split 'trian'; did you mean 'train'"),
        ({"dev_split": "tset", "eval_strategy": "epoch"}, "no split 'tset'; did you mean 'test'"),
        ({"loss": "softmax"}, "loss: unknown loss 'softmax'; did you mean 'softmax_ce'"),
        ({"loss": "infonce", "loss__symmetric": True}, "loss: symmetric asks each document for its query"),
        ({"loss__temperature": 0}, "loss: temperature must be > 0, got 0"),
        ({"loss": "margin_mse"}, "none of the 36 training rows has a teacher's scores of two documents"),
        ({"loss": "mw", "loss__positive_from": 9}, "none of the 36 training rows has a positive of grade >= 9"),
        ({"max_length": 65}, "max_length 65 exceeds the model's 64 positions; lower it"),
        ({"max_length": 3}, "max_length must be at least 12"),
        ({"query_max_length": 0}, "query_max_length must be a whole number >= 1, got 0"),
        ({"device": "gpu"}, "unknown device 'gpu'; wanted auto, cpu or cuda[:i]"),
        ({"architecture": "encoder"}, "is a bert; wanted the architecture classifier, set or pairwise, got encoder"),
        ({"novelty": True}, "novelty needs a model whose documents see each other; give --architecture set"),
        (
            {"novelty": True, "architecture": "set", "loss": "kl_div"},
            "novelty gives repeated documents the grade 0; kl_div learns a teacher's scores",
        ),
        (
            {"novelty": True, "architecture": "set"},
            "novelty changes nothing in lists of one relevant document; raise num_positives",
        ),
        ({"num_negatives": 0}, "makes lists of one document; raise either"),
        (
            {"num_positives": 2, "num_negatives": 0, "loss": "infonce"},
            "infonce takes one relevant document in a list, and num_negatives=0 leaves no other; raise num_negatives",
        ),
        (
            {"architecture": "pairwise", "loss": "siglip", "loss__positive_from": 2},
            "positive_from: of a pair the better document has the label 1; leave it out",
        ),
    ],
)
def test_bad_settings_are_one_line_and_leave_nothing(arguments, tmp_path, capsys, changes, message):
    assert message in failed(capsys, arguments(**changes))
    assert list(tmp_path.iterdir()) == []


def test_a_model_without_its_files_is_one_line(arguments, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    line = failed(capsys, arguments(model=str(tmp_path / "empty")))
    assert "holds no model (no modules.json or config.json, here or in model/)" in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has documents for none of the 36 training queries; is it of another collection?"),
        ("q1 Q0 otter-0 1 2.5 t\n", "has documents for none of the 36 training queries; is it of another collection?"),
        (
            "q-otter-0 Q0 MED-10 1 2.5 t\n",
            "query 'q-otter-0' of the run has document 'MED-10', which is not in the corpus",
        ),
        ("q-otter-0 Q0 otter-0 1 high t\n", "a.run:1: score 'high' is not a number"),
        ("q-otter-0 0 otter-0 1\n", "a.run:1: got 4 columns, wanted 6"),
    ],
)
def test_a_run_that_does_not_fit_is_one_line(arguments, tmp_path, capsys, text, message):
    (tmp_path / "a.run").write_text(text)
    assert message in failed(capsys, arguments(run=str(tmp_path / "a.run")))
    assert not (tmp_path / "run").exists()


def test_bad_rows_are_told_by_file_and_line(arguments, tmp_path, capsys):
    good = {"query": "what is it", "positives": ["p"]}
    path = rows_file(tmp_path / "rows.jsonl", [good, {"query": "a", "positive_ids": ["zz"]}])
    assert f"{path}:2: " in failed(capsys, arguments(rows=[str(path)]))


@pytest.mark.parametrize("architecture", ["auto", "pairwise"])
def test_rerank_opens_what_was_trained(arguments, tiny_collection, tmp_path, capsys, architecture):
    assert main(arguments(architecture=architecture)) == 0
    test = {query: {f"{query.split('-')[1]}-{form}": -form for form in range(4)} for query in qrels()["test"]}
    write_run(tmp_path / "a.run", test, "t")
    again = ["rerank", "--run", tmp_path / "a.run", "--model", tmp_path / "run", "--data", tiny_collection]
    again = [*map(str, again), "--split", "test", "--device", "cpu"]
    assert main([*again, "--out", str(tmp_path / "b.run")]) == 0
    found = read_run(tmp_path / "b.run")
    assert {query: set(scores) for query, scores in found.items()} == {
        query: set(scores) for query, scores in test.items()
    }
    assert any(list(found[query]) != list(test[query]) for query in test)
    capsys.readouterr()
    tournament = [*again, "--out", str(tmp_path / "c.run"), "--strategy", "max_logits"]
    if architecture == "pairwise":
        assert main(tournament) == 0
        assert "unknown strategy 'heep'; did you mean 'heap'" in failed(
            capsys, [*again, "--out", str(tmp_path / "d.run"), "--strategy", "heep"]
        )
        for flag, message in (("--top", "top must be at least 1, got 0"), ("--budget", "budget must be at least 2")):
            assert message in failed(
                capsys, [*again, "--model", "/nowhere", "--out", str(tmp_path / "d.run"), flag, "0"]
            )
        with_features = [*tournament, "--features", "/nowhere.svm"]
        assert "--strategy is of a pairwise model" in failed(capsys, with_features)
    else:
        assert "scores documents one by one; a tournament needs a pairwise model" in failed(capsys, tournament)
    assert set(queries()) >= set(found)
