"""Runs `rankwright` commands in processes that can be killed, without paying for the imports each time.

Started as a script it imports everything once and then, for each JSON line on stdin, forks a child that runs the
command; `Nursery` is the other end. Nothing is computed before a fork, so no thread is lost by it.
"""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Ended:
    """How a command ended: exit status (-n where signal n killed it), what it printed, how long it took."""

    status: int
    out: str
    err: str
    seconds: float


class Nursery:
    """One process with everything imported; every command is a fork of it."""

    def __init__(self, folder: Path, threads: int = 1):
        environment = os.environ | {
            "OMP_NUM_THREADS": str(threads),
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "PYTHONPATH": str(ROOT),
        }
        command = [sys.executable, __file__, str(folder)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self.process = subprocess.Popen(command, env=environment, cwd=folder, text=True, **pipes)

    def run(
        self, *arguments, kill: signal.Signals | None = None, after: float = 0.0, seen: Path | None = None
    ) -> Ended:
        """Run `rankwright arguments`; `kill` it `after` seconds, counted from when the file `seen` exists."""
        task = {"arguments": list(map(str, arguments)), "kill": kill, "after": after, "seen": seen and str(seen)}
        self.process.stdin.write(json.dumps(task) + "\n")
        self.process.stdin.flush()
        return Ended(**json.loads(self.process.stdout.readline()))

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait(timeout=30)


def main(folder: Path) -> None:
    import sentence_transformers  # noqa: F401
    import torch  # noqa: F401

    import retrieval.cli.train
    import retrieval.training  # noqa: F401

    for line in sys.stdin:
        print(json.dumps(_run(folder, **json.loads(line))), flush=True)


def _run(folder: Path, arguments: list[str], kill: int | None, after: float, seen: str | None) -> dict[str, object]:
    started = time.perf_counter()
    child = os.fork()
    if child == 0:
        _command(folder, arguments)
    status = None
    if kill is not None:
        status = _wait(child, lambda: seen is None or os.path.exists(seen), 60.0)
        if status is None:
            until = time.perf_counter() + after
            status = _wait(child, lambda: time.perf_counter() >= until, after + 1)
        if status is None:
            os.kill(child, kill)
    if status is None:
        _, status = os.waitpid(child, 0)
    out, err = ((folder / name).read_text() for name in ("out", "err"))
    seconds = time.perf_counter() - started
    return {"status": os.waitstatus_to_exitcode(status), "out": out, "err": err, "seconds": seconds}


def _wait(child: int, reached, limit: float) -> int | None:
    """Wait until `reached()`; the status of a child that ended before."""
    end = time.perf_counter() + limit
    while not reached() and time.perf_counter() < end:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return status
        time.sleep(0.002)
    return None


def _command(folder: Path, arguments: list[str]) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # as in a terminal, whatever started us
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    for name, number in (("out", 1), ("err", 2)):
        os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    status = 99
    try:
        from retrieval.cli import main as rankwright

        status = rankwright(arguments)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
