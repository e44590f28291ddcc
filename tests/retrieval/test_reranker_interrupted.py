"""Training of rerankers in processes that are interrupted or killed, and goes on to the same bytes."""

import json
import signal

import pytest
from reranker_runs import settings
from training_runs import flags, weights

from retrieval.checkpoints import checkpoint_steps

pytest.importorskip("torch", reason="needs the train extra")


@pytest.fixture
def run(tiny_model, tiny_collection, tmp_path):
    """Arguments of a run that takes a second or two; `name` is its folder."""

    def arguments(name, **changes):
        return ["train-reranker", *flags(settings(tiny_model, tiny_collection, tmp_path / name, **changes))]

    return arguments


def test_a_killed_run_goes_on_to_the_bytes_of_a_whole_one(nursery, run, tmp_path):
    """SIGTERM, which finishes the step and saves it; then SIGKILL behind a checkpoint."""
    changes = {"max_steps": 40, "save_steps": 5, "loss": "bixse", "eval_strategy": "steps", "eval_steps": 20}
    changes |= {"eval_queries": 4, "eval_depth": 8}
    assert nursery.run(*run("whole", **changes)).status == 0
    cut, checkpoints = run("cut", **changes), tmp_path / "cut" / "checkpoints"
    ended = nursery.run(*cut, kill=signal.SIGTERM, seen=checkpoints / "step-5", after=0.0)
    assert ended.status == 128 + signal.SIGTERM, ended.err
    assert "go on with the same command and --resume" in ended.err
    reached = max(checkpoint_steps(tmp_path / "cut"))
    assert 5 <= reached < 30
    seen = checkpoints / f"step-{reached // 5 * 5 + 5}"
    killed = nursery.run(*cut, "--resume", kill=signal.SIGKILL, seen=seen, after=0.0)
    assert killed.status == -signal.SIGKILL, killed.err
    last = nursery.run(*cut, "--resume", "--json")
    assert last.status == 0, last.err
    assert json.loads(last.out)["steps"] == 40
    assert weights(tmp_path / "cut") == weights(tmp_path / "whole")
    for name in ("result.json", "data.json"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert not list((tmp_path / "cut").rglob(".*.tmp-*"))
