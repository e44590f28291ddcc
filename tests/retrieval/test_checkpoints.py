import json
import shutil

import pytest
import torch
from torch import nn

from retrieval.checkpoints import (
    Progress,
    checkpoint_folder,
    checkpoint_steps,
    load_checkpoint,
    load_weights,
    remove_old_checkpoints,
    resumable_step,
    save_checkpoint,
)
from retrieval.errors import InputError
from retrieval.fast_dropout import dropout
from retrieval.optimizer import make_optimizer
from retrieval.train_config import TrainConfig

FILES = ["loss.safetensors", "model.safetensors", "optimizer.safetensors", "random.safetensors", "state.json"]


class Run:
    """A model, a loss with a learned setting, and an optimizer."""

    def __init__(self, seed: int = 0):
        torch.manual_seed(seed)
        self.model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))
        self.model.register_buffer("positions", torch.arange(6).reshape(2, 3).T)  # not contiguous
        self.model[2].weight = nn.Parameter(self.model[2].weight.detach().T.contiguous().T)
        self.loss = nn.Module()
        self.loss.scale = nn.Parameter(torch.tensor(3.0))
        config = TrainConfig(model="m", data="d", out="o", learning_rate=0.1)
        self.optimizer = make_optimizer(self.model, self.loss, config)
        self.progress = Progress()

    def step(self) -> None:
        (dropout(self.model(torch.randn(5, 3)), 0.3) * self.loss.scale).square().sum().backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.progress.step += 1

    def save(self, out):
        save_checkpoint(
            checkpoint_folder(out, self.progress.step), self.progress, self.model, self.loss, self.optimizer
        )

    def load(self, out, step):
        folder = checkpoint_folder(out, step)
        self.progress = load_checkpoint(folder, self.model, self.loss, self.optimizer)
        return self

    def tensors(self):
        return {**self.model.state_dict(), **self.loss.state_dict()}


def equal(one: Run, other: Run) -> bool:
    ours, theirs = one.tensors(), other.tensors()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[n], theirs[n]) for n in ours)


def test_a_run_goes_on_to_the_same_bits(tmp_path):
    run = Run()
    for _ in range(3):
        run.step()
    run.progress.best_score, run.progress.metrics = 0.1 + 0.2, [{"step": 2, "loss": 1 / 3}]
    run.save(tmp_path)
    for _ in range(4):
        run.step()
    other = Run(seed=7).load(tmp_path, 3)
    assert other.progress == Progress(3, best_score=0.1 + 0.2, metrics=[{"step": 2, "loss": 1 / 3}])
    assert not equal(run, other)
    for _ in range(4):
        other.step()
    assert equal(run, other)


def test_a_checkpoint_of_the_start_has_no_moments_yet(tmp_path):
    run = Run()
    run.save(tmp_path)
    run.step()
    other = Run(seed=1).load(tmp_path, 0)
    other.step()
    assert equal(run, other)


def test_it_holds_plain_files_alone_and_they_share_no_memory(tmp_path):
    run = Run()
    run.step()
    run.save(tmp_path)
    assert sorted(path.name for path in checkpoint_folder(tmp_path, 1).iterdir()) == FILES
    state = json.loads((checkpoint_folder(tmp_path, 1) / "state.json").read_text())
    assert set(state["sha256"]) == set(FILES[:-1])
    assert state["format"] == 1


def test_saving_over_a_checkpoint_is_refused_and_changes_nothing(tmp_path):
    run = Run()
    run.save(tmp_path)
    before = {path.name: path.read_bytes() for path in checkpoint_folder(tmp_path, 0).iterdir()}
    with pytest.raises(ValueError, match="exists already"):
        run.save(tmp_path)
    assert {path.name: path.read_bytes() for path in checkpoint_folder(tmp_path, 0).iterdir()} == before


def test_a_failed_save_leaves_nothing(tmp_path, monkeypatch):
    run = Run()
    monkeypatch.setattr("retrieval.checkpoints.sha256_file", lambda path: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run.save(tmp_path)
    assert list((tmp_path / "checkpoints").iterdir()) == []
    assert checkpoint_steps(tmp_path) == []


def test_progress_that_is_no_json_is_not_saved(tmp_path):
    run = Run()
    run.progress.best_score = float("nan")
    with pytest.raises(ValueError, match="not JSON compliant"):
        run.save(tmp_path)
    assert checkpoint_steps(tmp_path) == []


# --- damage -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path):
    run = Run()
    run.step()
    run.save(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "flipped", "longer"])
def test_every_damaged_file_is_named_with_a_fix(saved, name, damage):
    path = checkpoint_folder(saved, 1) / name
    data = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        flipped = bytes([*data[:-20], data[-20] ^ 1, *data[-19:]])
        path.write_bytes({"empty": b"", "cut": data[:-1], "flipped": flipped, "longer": data + b" x"}[damage])
    with pytest.raises(InputError, match=r"step-1: .*delete this checkpoint and --resume goes on") as caught:
        Run().load(saved, 1)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match=name.replace(".", r"\.")):
        load_weights(checkpoint_folder(saved, 1), Run().model)


def test_every_flipped_bit_of_the_state_is_noticed(saved):
    path = checkpoint_folder(saved, 1) / "state.json"
    data = path.read_bytes()
    for place in range(0, len(data), 7):
        for bit in (1, 4):
            changed = bytearray(data)
            changed[place] ^= bit
            if bytes(changed).split() != data.split():
                path.write_bytes(changed)
                with pytest.raises(InputError):
                    Run().load(saved, 1)


def test_a_checkpoint_of_another_format_names_both(saved):
    path = checkpoint_folder(saved, 1) / "state.json"
    state = json.loads(path.read_text())
    state["format"] = 2
    from retrieval.checkpoints import _checksum

    state["checksum"] = _checksum({k: v for k, v in state.items() if k != "checksum"})
    path.write_text(json.dumps(state))
    with pytest.raises(InputError, match="format 2; this version reads 1"):
        Run().load(saved, 1)


@pytest.mark.parametrize("text", ["[]", "null", "7", '{"format": 1}'])
def test_a_state_that_is_no_object_of_ours_is_refused(saved, text):
    (checkpoint_folder(saved, 1) / "state.json").write_text(text)
    with pytest.raises(InputError, match="cannot be read"):
        Run().load(saved, 1)


def test_damage_leaves_the_model_as_it_was(saved):
    (checkpoint_folder(saved, 1) / "optimizer.safetensors").write_bytes(b"")
    run, other = Run(seed=3), Run(seed=3)
    with pytest.raises(InputError):
        run.load(saved, 1)
    assert equal(run, other)


# --- which are kept, and which is gone on from ------------------------------------------------------------------------


def some(out, *steps, best=-1):
    for step in steps:
        run = Run()
        run.progress = Progress(step=step, best_step=best if best <= step else step)
        run.save(out)


def test_steps_are_found_in_the_order_of_numbers(tmp_path):
    some(tmp_path, 10, 9, 100)
    (tmp_path / "checkpoints" / "step-12x").mkdir()
    (tmp_path / "checkpoints" / ".step-7.tmp-1-00000000").mkdir()
    assert checkpoint_steps(tmp_path) == [9, 10, 100]
    assert checkpoint_steps(tmp_path / "nothing") == []


def test_the_newest_and_the_best_are_kept(tmp_path):
    some(tmp_path, 1, 2, 3, 4, 5)
    remove_old_checkpoints(tmp_path, keep=[2, -1], limit=2)
    assert checkpoint_steps(tmp_path) == [2, 4, 5]
    remove_old_checkpoints(tmp_path, keep=[-1], limit=7)
    assert checkpoint_steps(tmp_path) == [2, 4, 5]
    remove_old_checkpoints(tmp_path, keep=[5], limit=1)
    assert checkpoint_steps(tmp_path) == [5]


def test_a_run_goes_on_from_the_newest(tmp_path):
    assert resumable_step(tmp_path) is None
    some(tmp_path, 5, 10)
    assert resumable_step(tmp_path) == 10


def test_where_the_best_one_is_gone_a_run_goes_on_from_before_it(tmp_path):
    some(tmp_path, 5, best=5)
    some(tmp_path, 10, best=10)
    some(tmp_path, 15, 20, best=10)
    assert resumable_step(tmp_path) == 20
    shutil.rmtree(checkpoint_folder(tmp_path, 10))
    assert resumable_step(tmp_path) == 5
    shutil.rmtree(checkpoint_folder(tmp_path, 5))
    assert resumable_step(tmp_path) is None


def test_a_damaged_state_stops_the_search(tmp_path):
    some(tmp_path, 5, 10)
    (checkpoint_folder(tmp_path, 10) / "state.json").write_text("{")
    with pytest.raises(InputError, match="step-10"):
        resumable_step(tmp_path)
    shutil.rmtree(checkpoint_folder(tmp_path, 10))  # the fix that the message names
    assert resumable_step(tmp_path) == 5
