"""Several processes on this machine, joined by torch.distributed: started, waited for, and ended whatever happens.

None outlives the call: they are ended when one of them fails or dies, when time is up, at Ctrl-C and SIGTERM, and they
end themselves when the process that started them is gone.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any

_HOST = "127.0.0.1"
_GRACE = 3.0  # seconds in which a process may end by itself


class ProcessError(RuntimeError):
    """One of the processes failed, died or did not answer."""


def run_in_processes(job: Callable[[bytes], Any], payload: bytes, count: int, *, timeout: float) -> list[Any]:
    """Run `job(payload)` in `count` new processes that form a gloo group, and return what each gives, in their order.

    Args:
        job: a function of a module; what it returns is pickled. Tensors should come back as arrays: they would travel
            through shared memory, of which a container may have little.
        payload: whatever the job needs, pickled once for all.
        count: how many processes.
        timeout: seconds until all must have answered, the start (several seconds) included.

    Raises:
        ProcessError: when one raises (with its message), dies or does not answer in time; none is left then.

    """
    from torch.distributed import TCPStore  # type: ignore[attr-defined]  # built in where torch is built for it

    # Port 0: the system chooses one that is free, and it is ours from then on.
    store = TCPStore(_HOST, 0, is_master=True, wait_for_workers=False)
    context = multiprocessing.get_context("spawn")  # a fork of a process with threads may hang
    processes: list[SpawnProcess] = []
    pipes: list[Connection] = []
    try:
        for rank in range(count):
            receiver, sender = context.Pipe(duplex=False)
            arguments = (job, payload, rank, count, store.port, timeout, sender)
            process = context.Process(target=_run, args=arguments, name=f"process {rank}", daemon=True)
            with _interrupts_held_back():
                process.start()
            sender.close()  # the other end is the child's alone: when it dies, we read the end of the pipe
            processes.append(process)
            pipes.append(receiver)
        return _answers(processes, pipes, time.monotonic() + timeout, timeout)
    finally:
        _end(processes)
        for pipe in pipes:
            pipe.close()


def _answers(
    processes: Sequence[SpawnProcess], pipes: Sequence[Connection], deadline: float, timeout: float
) -> list[Any]:
    """Return what each process sends, or raise at the first that sends an error or nothing."""
    found: dict[int, Any] = {}
    while len(found) < len(pipes):
        waiting = [pipe for rank, pipe in enumerate(pipes) if rank not in found]
        ready = wait(waiting, timeout=max(0.0, deadline - time.monotonic()))
        if not ready:
            missing = ", ".join(str(rank) for rank in range(len(pipes)) if rank not in found)
            raise ProcessError(f"no answer from process {missing} of {len(pipes)} within {timeout:g} s; all were ended")
        failed = ""
        for rank, pipe in enumerate(pipes):
            if pipe in ready:
                try:
                    good, found[rank] = pipe.recv()
                except EOFError:  # a death comes first: the others' errors follow from it
                    processes[rank].join(_GRACE)
                    raise ProcessError(_death(rank, processes[rank].exitcode)) from None
                failed = failed or ("" if good else f"process {rank} of {len(pipes)}: {found[rank]}")
        if failed:
            raise ProcessError(failed)
    return [found[rank] for rank in range(len(pipes))]


def _death(rank: int, status: int | None) -> str:
    by = f"by signal {-status}" if status is not None and status < 0 else f"with status {status}"
    hint = "; signal 9 often means that memory ran out" if status == -signal.SIGKILL else ""
    return f"process {rank} ended {by} before it answered{hint}"


def _end(processes: Sequence[SpawnProcess]) -> None:
    """End every process, by SIGTERM and at last by SIGKILL; one that has answered has nothing left to do."""
    for process in processes:
        process.terminate()
    for process in processes:
        process.join(_GRACE)
        if process.is_alive():
            process.kill()
            process.join()


@contextmanager
def _interrupts_held_back() -> Iterator[None]:
    """Start a child in which Ctrl-C does nothing: it reaches all processes of a terminal, and we end the children."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _run(
    job: Callable[[bytes], Any], payload: bytes, rank: int, count: int, port: int, timeout: float, sender: Connection
) -> None:
    """Join the group, do the job, send (True, what it gives) or (False, why not)."""
    import torch
    import torch.distributed as dist

    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // count))
    # gloo looks for the machine's name, which need not resolve without a network; the loopback is always there.
    for name in ("lo", "lo0"):
        if name in (found for _, found in socket.if_nameindex()):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
    answer: tuple[bool, Any]
    try:
        limit = timedelta(seconds=timeout)
        store = dist.TCPStore(_HOST, port, is_master=False, timeout=limit)  # type: ignore[attr-defined]
        dist.init_process_group("gloo", store=store, rank=rank, world_size=count, timeout=limit)
        answer = True, job(payload)
    except Exception as error:
        answer = False, f"{type(error).__name__}: {' '.join(str(error).split())}"
    sender.send(answer)
    sender.close()
    sys.stdout.flush()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
