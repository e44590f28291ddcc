"""Processes that are started together end together, whatever happens to one of them or to their parent."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from retrieval.local_processes import ProcessError, run_in_processes

ROOT = Path(__file__).resolve().parents[2]


def fails_in_the_second(payload):
    import torch.distributed as dist

    if dist.get_rank() == 1:
        raise ValueError("the second\nis broken")
    dist.barrier()


def dies(payload):
    import torch.distributed as dist

    if dist.get_rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    dist.barrier()


def never_ends(payload):
    Path(payload.decode()).with_name(str(os.getpid())).touch()
    while True:
        time.sleep(0.1)


def alive(number) -> bool:
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    # a zombie whose parent has not looked is dead too
    state = Path(f"/proc/{number}/stat")
    return not state.exists() or state.read_text().rpartition(")")[2].split()[0] != "Z"


def gone(numbers, within=20.0) -> bool:
    end = time.monotonic() + within
    while any(map(alive, numbers)) and time.monotonic() < end:
        time.sleep(0.05)
    return not any(map(alive, numbers))


def no_children():
    import multiprocessing

    return multiprocessing.active_children() == []


@pytest.mark.slow
def test_one_that_fails_ends_all_with_its_message():
    with pytest.raises(ProcessError, match="process 1 of 2: ValueError: the second is broken"):
        run_in_processes(fails_in_the_second, b"", 2, timeout=200)
    assert no_children()


@pytest.mark.slow
def test_one_that_dies_ends_all_and_says_how():
    with pytest.raises(ProcessError, match=r"process 1 ended by signal 9 .* memory ran out"):
        run_in_processes(dies, b"", 2, timeout=200)
    assert no_children()


@pytest.mark.slow
def test_time_is_up(tmp_path):
    with pytest.raises(ProcessError, match=r"no answer from process 0, 1 of 2 within 0\.2 s; all were ended"):
        run_in_processes(never_ends, str(tmp_path / "x").encode(), 2, timeout=0.2)
    assert no_children()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_no_process_is_left_behind(number, tmp_path):
    """Ctrl-C as a terminal sends it, to all; and a parent that is killed and can end nobody."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from test_local_processes import never_ends\n"
        "from retrieval.local_processes import run_in_processes\n"
        "if __name__ == '__main__': run_in_processes(never_ends, sys.argv[2].encode(), 2, timeout=300)\n"
    )
    script = tmp_path / "start.py"
    script.write_text(code)
    pids = tmp_path / "pids"
    pids.mkdir()
    command = [sys.executable, str(script), str(Path(__file__).parent), str(pids / "x")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    parent = subprocess.Popen(command, env=environment, start_new_session=True, stderr=subprocess.PIPE, text=True)
    try:
        end = time.monotonic() + 200
        while len(list(pids.iterdir())) < 2 and parent.poll() is None and time.monotonic() < end:
            time.sleep(0.1)
        children = [int(path.name) for path in pids.iterdir()]
        assert len(children) == 2
        assert all(map(alive, children))
        if number == signal.SIGINT:
            os.killpg(parent.pid, number)
        else:
            parent.kill()
        _, told = parent.communicate(timeout=100)
        assert gone(children)
        assert told.count("Traceback") == (number == signal.SIGINT)  # the parent's alone
    finally:
        if parent.poll() is None:
            os.killpg(parent.pid, signal.SIGKILL)
