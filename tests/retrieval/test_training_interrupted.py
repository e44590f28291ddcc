"""Training in processes that are interrupted or killed: what is on the disk is whole, and goes on to the same bytes."""

import json
import random
import signal

import pytest
from tiny_files import read_jsonl
from training_runs import flags, settings, weights

from retrieval.checkpoints import checkpoint_steps


@pytest.fixture
def run(tiny_model, tiny_collection, tmp_path):
    """Arguments of a run that takes a second or two; `name` is its folder."""

    def arguments(name, **changes):
        values = settings(tiny_model, tiny_collection, tmp_path / name, gradient_accumulation_steps=2, **changes)
        return ["train", *flags(values)]

    return arguments


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_finishes_the_step_saves_it_and_resume_goes_on(nursery, run, tmp_path, number):
    whole, cut = (run(name, max_steps=30, save_steps=100, logging_steps=1) for name in ("whole", "cut"))
    assert nursery.run(*whole).status == 0
    ended = nursery.run(*cut, kill=number, seen=tmp_path / "cut" / "metrics.jsonl", after=0.1)
    assert ended.status == 128 + number
    assert "finishing this step and saving it; once more to stop at once" in ended.err
    assert (
        f"stopped by {number.name}; every file written is whole; go on with the same command and --resume" in ended.err
    )
    assert "Traceback" not in ended.err
    (step,) = checkpoint_steps(tmp_path / "cut")
    assert 0 < step < 30
    lines = read_jsonl(tmp_path / "cut" / "metrics.jsonl")
    assert lines[-1]["step"] == step
    assert not (tmp_path / "cut" / "model").exists()

    ended = nursery.run(*cut, "--resume", "--json")
    assert ended.status == 0, ended.err
    assert f"going on from step {step} of 30" in ended.err
    assert json.loads(ended.out)["steps"] == 30
    assert weights(tmp_path / "cut") == weights(tmp_path / "whole")
    assert not [path for path in (tmp_path / "cut").rglob(".*") if path.name != ".lock"]


@pytest.mark.slow
@pytest.mark.promise
def test_ten_kills_at_random_moments_change_no_byte(nursery, run, tmp_path):
    """40 steps of two batches, a checkpoint every 5, validated every 10; SIGKILL while loading, training, saving, …"""
    changes = {"max_steps": 40, "save_steps": 5, "eval_strategy": "steps", "eval_steps": 10, "eval_full": False}
    ended = nursery.run(*run("whole", **changes))
    assert ended.status == 0, ended.err
    arguments, checkpoints = run("killed", **changes), tmp_path / "killed" / "checkpoints"
    chance, reached = random.Random(0), [-5]
    for kill in range(10):
        # Three times while it is loading; else when the next checkpoint is there and up to five steps later.
        loading = kill in (2, 5, 8) or reached[-1] >= 35
        seen = None if loading else checkpoints / f"step-{reached[-1] + 5}"
        after = chance.uniform(0, ended.seconds / (4 if loading else 12))
        killed = nursery.run(*arguments, "--resume", kill=signal.SIGKILL, seen=seen, after=after)
        assert killed.status == -signal.SIGKILL, killed.err
        reached.append(max(checkpoint_steps(tmp_path / "killed"), default=-5))
    assert reached == sorted(reached)
    assert reached[-1] >= 25
    last = nursery.run(*arguments, "--resume")
    assert last.status == 0, last.err
    assert weights(tmp_path / "killed") == weights(tmp_path / "whole")
    for name in ("result.json", "data.json"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert not list((tmp_path / "killed").rglob(".*.tmp-*"))
    print(f"\n{ended.seconds:.1f} s uninterrupted; last checkpoint after each kill: {reached[1:]}")
