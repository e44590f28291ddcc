"""`rankwright bench-losses` as it is typed."""

import json
from dataclasses import fields

import pytest
from bench_runs import config, flags, records

from retrieval import bench_modes
from retrieval.bench_config import BenchConfig
from retrieval.bench_cost import cost
from retrieval.cli.main import command_map, main
from retrieval.collection import Collection

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("RANKWRIGHT_CACHE", str(tmp_path_factory.getbasetemp() / "cli-bench-cache"))


@pytest.fixture
def arguments(wordllama, tiny_collection, tmp_path):
    """The arguments of a small comparison over static embeddings."""

    def make(**changes):
        return flags(config(wordllama, tiny_collection, tmp_path / "out", **changes))

    return make


def failed(capsys, arguments) -> str:
    """The one line of a command that fails."""
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "Traceback" not in err
    return err.splitlines()[-1]


def test_every_field_is_a_flag_and_the_verb_is_on_the_map(capsys):
    assert "bench-losses" in command_map()
    assert main(["bench-losses", "--help"]) == 0
    out = capsys.readouterr().out
    for f in fields(BenchConfig):
        if f.name != "loss_settings":
            assert f"--{f.name.replace('_', '-')}" in out


def test_from_end_to_end(arguments, tmp_path, capsys):
    assert main(arguments(losses=("infonce", "bixse", "mw"), seeds=3)) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert [line.split()[0] for line in lines[:5]] == ["loss", "untrained", "infonce", "bixse", "mw"]
    assert "− infonce [95 %]" in lines[0]
    assert "test: 12 queries, each averaged over 3 seeds first; linear head, query" in out
    assert "trial 6 of 6  mw: lr=0.01" in err
    assert "test 10 of 10  mw" in err
    assert "left" in err
    assert "\r" not in err
    assert len(records(tmp_path / "out")) == 6
    assert not (tmp_path / "out" / "splits" / "qrels" / "test.tsv").exists()


def test_json_is_one_document(arguments, capsys):
    assert main([*arguments(losses=("infonce",), trials=1, seeds=1), "--json", "--quiet"]) == 0
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    results = json.loads(out)
    assert set(results["methods"]) == {"untrained", "infonce"}
    assert set(results["methods"]["infonce"]["measures"]["nDCG@10"]) == {"value", "low", "high", "seeds"}


def test_the_picture_is_drawn_or_said_to_be_left_out(arguments, tmp_path, capsys, monkeypatch):
    small = {"losses": ("infonce",), "trials": 1, "seeds": 1}
    assert main(arguments(**small)) == 0
    picture, err = tmp_path / "out" / "curves.png", capsys.readouterr().err
    assert picture.is_file() != ("no picture of the learning curves" in err)
    picture.unlink(missing_ok=True)
    import sys

    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main([*arguments(**small), "--resume"]) == 0
    assert "no picture of the learning curves: matplotlib is not installed" in capsys.readouterr().err
    assert not picture.exists()


def test_a_sum_and_settings_of_a_loss(arguments, tmp_path, capsys):
    losses = ("softmax_ce + 0.5*ranknet", "sl_at_k")
    assert main(arguments(losses=losses, trials=1, seeds=1, loss_settings={"sl_at_k.k": 20})) == 0
    assert "softmax_ce + 0.5*ranknet" in capsys.readouterr().out
    chosen = {record["loss"]: record["loss_settings"] for record in records(tmp_path / "out")}
    assert chosen["sl_at_k"]["sl_at_k.k"] == 20


def test_a_plan_is_printed_and_nothing_written(arguments, tmp_path, capsys):
    assert main([*arguments(losses=("infonce", "bixse"), trials=3, seeds=2), "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "infonce  lr=0.01, temperature=0.01667 | lr=0.01, temperature=0.05 | lr=0.01, temperature=0.15" in out
    assert "6 trials on dev and 5 runs for test, of 6 steps each; 36 training and 12 dev queries, 60 documents" in out
    assert "minutes with MiniLM-L6 on two cores; nothing was written" in out
    assert not (tmp_path / "out").exists()


def test_a_plan_as_json(arguments, capsys):
    assert main([*arguments(trials=2), "--dry-run", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert (plan["trials"], plan["tests"], plan["steps"]) == (4, 5, 6)
    assert [len(grid) for grid in plan["grid"].values()] == [2, 2]


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--losses", "infonc"], "error: losses: unknown loss 'infonc'; did you mean 'infonce'?"),
        (["--heads", "lineal"], "error: unknown heads 'lineal'; did you mean 'linear'?"),
        (["--trials", "4"], "error: trials=4, but the grid holds 1 learning rates × 3 temperatures"),
        (["--learning-rates", "1e-3,fast"], "error: --learning-rates got '1e-3,fast'; wanted numbers with commas"),
        (["--loses", "mw"], "error: unknown flag '--loses'; did you mean '--losses'?"),
        (["--set", "optimizer.beta=1"], "error: unknown setting 'optimizer.beta'"),
        (["--set", "loss.k=1"], "error: setting loss.k belongs to which loss"),
        (["--test-split", "tets"], "no split 'tets'; did you mean 'test'?"),
        (["--losses", "kl_div"], "error: kl_div cannot be trained here: none of the 36 training rows has a teacher's"),
    ],
)
def test_what_is_wrong_is_one_line(arguments, capsys, extra, message):
    assert message in failed(capsys, [*arguments(), *extra])


def test_settings_come_from_yaml_too(arguments, tmp_path, capsys):
    (tmp_path / "bench.yaml").write_text("losses: infonce\nloss: {infonce: {symmetric: true}}\ntrials: 1\nseeds: 1\n")
    words = [word for word in arguments() if word]
    for name in ("--losses", "--trials", "--seeds"):
        place = words.index(name)
        del words[place : place + 2]
    assert main([*words, "--config", str(tmp_path / "bench.yaml")]) == 0
    assert [record["loss_settings"]["infonce.symmetric"] for record in records(tmp_path / "out")] == [True]


def test_an_interrupted_command_says_how_to_go_on(arguments, tmp_path, capsys, monkeypatch):
    train, runs = bench_modes.train_head, []

    def failing(*given, **more):
        runs.append(1)
        if len(runs) == 3:
            raise KeyboardInterrupt
        return train(*given, **more)

    monkeypatch.setattr(bench_modes, "train_head", failing)
    assert main(arguments()) == 130
    assert "go on with the same command and --resume" in capsys.readouterr().err
    assert len(records(tmp_path / "out")) == 2
    assert main([*arguments(), "--resume"]) == 0
    assert len(records(tmp_path / "out")) == 4


def test_the_estimate_grows_with_what_is_asked_for(tiny_collection):
    def seconds(**changes):
        return cost(config("m", tiny_collection, "o", **changes), Collection.load(tiny_collection)).seconds

    assert seconds(trials=1) < seconds(trials=3)
    assert seconds(seeds=1) < seconds(seeds=5)
    assert seconds(losses=("infonce",)) < seconds(losses=("infonce", "mw"))
    assert seconds() < seconds(sides="both")
    assert seconds() < seconds(heads=None)
    assert seconds(heads=None, document_max_length=64) < seconds(heads=None)


def test_the_estimate_by_hand(tiny_collection):
    """One loss, one trial, one seed, whole encoder at 128 tokens, all 60 documents in the pool."""
    settings = config(
        *("m", tiny_collection, "o"),
        losses=("infonce",),
        trials=1,
        seeds=1,
        heads=None,
        learning_rates=(1e-4,),
        document_max_length=128,
    )
    found = cost(settings, Collection.load(tiny_collection))
    run = 2 * 36 / 22 + 60 / 235 * (1 + 2)
    assert (found.trials, found.tests, found.steps, found.training, found.dev) == (1, 2, 6, 36, 12)
    assert found.seconds == pytest.approx(run + 2 * (run + 60 / 235))
