"""Two processes, started by torchrun and joined by gloo, give the gradients of one: for every loss."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from two_processes import CASES, DOCUMENTS, QUERIES, alone

from rankers.processes import Alone

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = Path(__file__).with_name("two_processes.py")
slow = pytest.mark.slow  # two interpreters that import torch


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What each of two processes found, in one run over all cases."""
    folder = tmp_path_factory.mktemp("ranks")
    loopback = "lo0" if sys.platform == "darwin" else "lo"
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": loopback,
        "PYTHONWARNINGS": "ignore",
    }
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [sys.executable, *torchrun, str(SCRIPT), str(folder)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    started = subprocess.Popen(command, env=environment, start_new_session=True, **pipes)
    try:
        told, _ = started.communicate(timeout=300)
    finally:
        if started.poll() is None:  # torchrun killed alone would leave its workers behind
            os.killpg(started.pid, signal.SIGKILL)
    assert started.returncode == 0, told[-3000:]
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


def tolerance(name):
    """The tables of mw interpolate, and one process alone computes all pairs; all else differs by rounding."""
    return {"rtol": 1e-5, "atol": 1e-7} if "mw" in CASES[name].expression else {"rtol": 1e-8, "atol": 1e-11}


@slow
@pytest.mark.parametrize("name", CASES)
def test_two_processes_give_the_gradients_of_one(ranks, name):
    wanted, parts = alone(CASES[name]), [rank["found"][name] for rank in ranks]
    close = tolerance(name)
    assert parts[0]["loss"] == parts[1]["loss"]
    torch.testing.assert_close(torch.tensor(parts[0]["loss"]), torch.tensor(wanted["loss"]), **close)
    for side, sizes in (("queries", CASES[name].queries), ("documents", CASES[name].documents)):
        assert [len(part[side]) for part in parts] == [sizes, len(wanted[side]) - sizes]
        torch.testing.assert_close(torch.cat([part[side] for part in parts]), wanted[side], **close)
    assert (wanted["queries"] != 0).any()
    assert (wanted["documents"] != 0).any()


LEARNING = [name for name, case in CASES.items() if "learned" in case.settings.values()]


@slow
@pytest.mark.parametrize("name", LEARNING)
def test_each_process_has_its_rows_part_of_a_learned_settings_gradient(ranks, name):
    wanted, parts = alone(CASES[name])["learned"], [rank["found"][name]["learned"] for rank in ranks]
    assert wanted
    for setting, gradient in wanted.items():
        torch.testing.assert_close(parts[0][setting] + parts[1][setting], gradient, rtol=1e-8, atol=1e-11)
        assert gradient != 0


STATEFUL = [name for name, case in CASES.items() if "isogclr" in case.expression]


@slow
@pytest.mark.parametrize("name", STATEFUL)
def test_each_process_gets_the_state_of_its_own_rows(ranks, name):
    wanted, parts = alone(CASES[name])["state"], [rank["found"][name] for rank in ranks]
    assert [len(part["rows"]) for part in parts] == [7, 3]  # rows of queries 0 … 4, and of 5 and 6
    for key, values in wanted.items():
        torch.testing.assert_close(torch.cat([part["state"][key] for part in parts]), values, rtol=1e-8, atol=1e-11)
        assert values.isfinite().all()


@slow
def test_a_loss_that_needs_the_whole_matrix_says_so_in_both(ranks):
    for rank in ranks:
        assert rank["refusal"] == "mw with these settings needs the whole matrix; it runs in one process only"


@slow
def test_what_the_engine_asks_of_a_group(ranks):
    first, second = (rank["primitives"] for rank in ranks)
    for found in (first, second):
        assert found["gathered"].tolist() == [0, 10, 11]
        assert found["ragged"].shape == (3, 2)  # the first process brings no row
        assert found["objects"] == [None, {"rank": 1}]
        assert found["numbers"]["share"] == 1
        assert found["numbers"]["pairs"].dtype == torch.int64
        assert found["numbers"]["pairs"] == 2**53  # what a double holds: float32 would lose a billion
    assert first["summed"].tolist() == [3]  # 1 × (1 + 2)
    assert second["summed"].tolist() == [6, 9]


def test_alone_gathers_and_sums_nothing():
    rows, numbers = torch.arange(4.0), {"count": torch.tensor(3)}
    one = Alone()
    assert one.count == 1
    assert one.gather_rows(rows) is rows
    assert one.sum_rows(rows, 4) is rows
    assert one.sum_numbers(numbers) is numbers
    assert one.sum(rows) is rows
    assert one.gather("seen") == ["seen"]


def test_the_cases_are_every_loss_and_both_sides_uneven():
    assert {case.queries for case in CASES.values()} == {0, 1, 5, QUERIES}
    assert {case.documents for case in CASES.values()} == {0, 4, 11}
    assert DOCUMENTS % 2 == 0  # but 4 + 8
