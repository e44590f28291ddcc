"""The grid of cells: nothing finished is lost or run twice, and whatever decides a result is noticed."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest

from benchmarks import cells
from benchmarks.__main__ import NAMES, main
from benchmarks.cells import Cell, Options, Results, code_hash
from benchmarks.grid import run_grid
from indexes.storage import StorageError, locked
from retrieval.errors import InputError

ROOT = Path(__file__).resolve().parents[1]
FAKE = """
import os
import time

from benchmarks.cells import Cell, Experiment, Plan


def prepare(options):
    return (options.shared / "data.txt").read_text()


def cell(name, seconds=1):
    return Cell(settings={"method": name}, seconds=seconds, sources=("code.py",))


def plan(options, results):
    first = [cell("a"), cell("b")]
    found = [results.values("fake", one) for one in first]
    if None in found:
        return Plan(first, later=1.0, waiting="a and b")
    best = max(first, key=lambda one: results.values("fake", one)["score"])
    return Plan([*first, cell("best of a and b: " + best.settings["method"])])


def work(settings, options, folder):
    with open(options.shared / "log.txt", "a") as log:
        log.write(f"{settings['method']} {os.getpid()}\\n")
    assert not any(folder.iterdir())
    while (options.shared / f"wait {settings['method']}").exists():
        time.sleep(0.02)
    if (options.shared / f"fail {settings['method']}").exists():
        raise SystemExit("cannot")
    used = bytearray(300 << 20) if settings["method"] == "a" else b""
    print("chatter", len(used[::4096]))
    return {"score": len(settings["method"]) + (settings["method"] == "b")}


def table(options, results):
    return ""


EXPERIMENT = Experiment(name="fake", module="fake_grid", prepare=prepare, plan=plan, work=work, table=table)
"""


class Grid:
    """An experiment of three tiny cells, the third known only after the first two, in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.said = folder, []
        self.options = Options(shared=folder, results=folder / "results", build=folder / "build")
        (folder / "fake_grid.py").write_text(FAKE)
        (folder / "code.py").write_text("x = 1\n")
        (folder / "data.txt").write_text("d1")

    def run(self, *, keep: bool = False, **arguments) -> bool:
        self.said.clear()
        experiment = import_module("fake_grid").EXPERIMENT
        results = Results(self.options.results, keep=keep)
        return run_grid(experiment, self.options, results, say=self.said.append, **arguments)

    def log(self) -> list[str]:
        """The methods of the cells begun since the last call."""
        path = self.folder / "log.txt"
        lines = path.read_text().splitlines() if path.exists() else []
        path.unlink(missing_ok=True)
        return [line.rpartition(" ")[0] for line in lines]

    def records(self) -> dict[str, dict]:
        lines = (self.options.results / "fake.jsonl").read_text().splitlines()
        return {record["settings"]["method"]: record for record in map(json.loads, lines)}


ALL = ["a", "b", "best of a and b: b"]


@pytest.fixture
def grid(tmp_path, monkeypatch) -> Grid:
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{ROOT}")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(cells, "ROOT", tmp_path)
    monkeypatch.delitem(sys.modules, "fake_grid", raising=False)
    yield Grid(tmp_path)
    sys.modules.pop("fake_grid", None)


def test_cells_run_once_and_later_ones_follow_from_results(grid):
    assert grid.run()
    assert grid.log() == ALL
    assert [record["values"]["score"] for record in grid.records().values()] == [1, 2, len(ALL[2])]
    before = (grid.options.results / "fake.jsonl").read_bytes()
    assert grid.run()
    assert grid.log() == []
    assert (grid.options.results / "fake.jsonl").read_bytes() == before


def test_a_record_tells_all_that_decided_it_and_nothing_private(grid):
    grid.run()
    record = grid.records()["a"]
    assert record["data"] == "d1"
    assert record["code"] == code_hash(("code.py",))
    assert record["key"] == Cell(settings={"method": "a"}, seconds=9, sources=()).key
    assert set(record["machine"]) == {"cpu", "cores", "bf16", "load", "threads"}
    assert record["machine"]["cores"] == os.cpu_count()
    assert {"python", "torch", "numpy", "rankwright"} <= set(record["versions"])
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", record["finished"])
    text = json.dumps(record)
    assert str(grid.folder) not in text
    assert socket.gethostname() not in text
    assert str(Path.home()) not in text


def test_each_cell_has_a_process_of_its_own(grid):
    grid.run()
    processes = [line.rpartition(" ")[2] for line in (grid.folder / "log.txt").read_text().splitlines()]
    assert len({*processes, str(os.getpid())}) == 4
    memory = {method: record["peak_mb"] for method, record in grid.records().items()}
    assert memory["a"] >= 300 > memory["b"] > 5  # the peak of the first is not seen in the second
    assert not any((grid.options.build / "benchmarks" / "fake").glob("*"))  # what a cell wrote is gone


def test_progress_says_what_runs_and_what_is_left(grid):
    grid.run()
    assert grid.said[0] == "fake 1/2+  method=a  (about 0 min left)"
    assert re.fullmatch(r"fake 3/3  \d+ s, \d+ MB", grid.said[-1])


def test_output_of_a_cell_stays_away_from_the_tables(grid, capfd):
    grid.run()
    shown = capfd.readouterr()
    assert "chatter" not in shown.out
    assert "chatter 76800" in shown.err


def test_a_change_of_the_code_runs_again_but_not_one_of_words(grid):
    grid.run()
    grid.log()
    edited = grid.folder / "code.py"
    edited.write_text('"""A docstring."""\n\n# a comment\nx   =   1\n')
    assert grid.run()
    assert grid.log() == []
    edited.write_text("x = 2\n")
    assert grid.run(keep=True)
    assert grid.log() == []
    assert grid.run()
    assert grid.log() == ALL
    assert len(grid.records()) == 3  # in place of the old ones


def test_code_hash_sees_functions_not_their_docstrings(grid):
    path = grid.folder / "code.py"

    def hashed(text: str) -> str:
        path.write_text(text)
        os.utime(path, ns=(time.time_ns(), time.time_ns()))
        return code_hash(("code.py",))

    bare = hashed("class A:\n    pass\ndef f(x):\n    return x\n")
    assert hashed('class A:\n    """A."""\ndef f(x):\n    """F."""\n    # why\n    return (x)\n') == bare
    assert hashed("class A:\n    pass\ndef f(x):\n    return -x\n") != bare
    assert hashed("class A:\n    pass\ndef f(x):\n    'no docstring' + x\n    return x\n") != bare


def test_code_hash_refuses_a_glob_that_finds_nothing(grid):
    with pytest.raises(ValueError, match=r"no file matches 'gone\.py'"):
        code_hash(("gone.py",))


def test_other_data_runs_again_even_when_old_code_is_accepted(grid):
    grid.run()
    grid.log()
    (grid.folder / "data.txt").write_text("d2")
    assert grid.run(keep=True)
    assert grid.log() == ALL
    assert {record["data"] for record in grid.records().values()} == {"d2"}


def test_a_stale_first_stage_is_redone_before_the_second_is_planned(grid):
    grid.run()
    path = grid.options.results / "fake.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()]
    records[0] |= {"code": "older", "values": {"score": 100}}  # would be the best, if it were believed
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    grid.log()
    assert grid.run()
    assert grid.log() == ["a"]


def test_a_failed_cell_is_told_and_the_others_go_on(grid, capfd):
    (grid.folder / "fail a").touch()
    assert not grid.run()
    assert grid.log() == ["a", "b"]  # once, and the third waits for it
    assert any("FAILED" in line for line in grid.said)
    assert "cannot" in capfd.readouterr().err
    assert list(grid.records()) == ["b"]
    (grid.folder / "fail a").unlink()
    assert grid.run()
    assert grid.log() == ["a", ALL[2]]


def test_a_budget_begins_no_cell_that_would_end_late(grid):
    assert grid.run(deadline=time.monotonic() - 1)
    assert grid.log() == []
    assert grid.said == ["fake: out of time; about 0 min are left to do"]
    assert grid.run(deadline=time.monotonic() + 60)
    assert grid.log() == ALL


def test_a_kill_loses_only_the_running_cell_and_leaves_no_process(grid):
    (grid.folder / "wait b").touch()
    code = (
        "from pathlib import Path; from benchmarks import cells, grid; import fake_grid, sys; p = Path(sys.argv[1]);"
        "cells.ROOT = p; o = cells.Options(shared=p, results=p / 'results', build=p / 'build');"
        "grid.run_grid(fake_grid.EXPERIMENT, o, cells.Results(o.results))"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(grid.folder)], stdout=subprocess.DEVNULL)
    log = grid.folder / "log.txt"
    _until(lambda: log.exists() and len(log.read_text().splitlines()) == 2)
    child = int(log.read_text().splitlines()[1].rpartition(" ")[2])
    process.send_signal(signal.SIGKILL)
    process.wait()
    _until(lambda: not _runs(child))
    assert list(grid.records()) == ["a"]
    (grid.folder / "wait b").unlink()
    grid.log()
    assert grid.run()
    assert grid.log() == ["b", ALL[2]]


def test_cells_run_side_by_side_unless_they_measure_time(grid):
    for name in "ab":
        (grid.folder / f"wait {name}").touch()
    log = grid.folder / "log.txt"

    def let_go_when_both_run() -> None:
        _until(lambda: log.exists() and len(log.read_text().splitlines()) == 2)
        for name in "ab":
            (grid.folder / f"wait {name}").unlink()

    watcher = threading.Thread(target=let_go_when_both_run)
    watcher.start()
    assert grid.run(jobs=2)
    watcher.join()
    assert sorted(grid.log()) == sorted(ALL)
    assert grid.records()["b"]["machine"]["threads"] == max(1, (os.cpu_count() or 1) // 2)

    (grid.folder / "data.txt").write_text("d2")
    alone = replace(import_module("fake_grid").EXPERIMENT, alone=True)
    assert run_grid(alone, grid.options, Results(grid.options.results), jobs=2, say=grid.said.append)
    assert grid.records()["b"]["machine"]["threads"] == os.cpu_count()


def _until(condition) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{process}/stat")  # nobody waits for an orphan in a container: it may stay as a zombie
    return not (state.exists() and state.read_text().rpartition(")")[2].split()[0] == "Z")


def test_two_runs_of_one_grid_do_not_meet(grid):
    with locked(grid.options.build / "benchmarks" / "fake"), pytest.raises(StorageError, match="in use by"):
        grid.run()
    assert grid.log() == []


def test_results_of_another_process_are_not_overwritten(grid):
    grid.run()
    first = Results(grid.options.results)
    second = Results(grid.options.results)
    first.records("fake")
    template = next(iter(grid.records().values()))
    second.add("fake", {**template, "key": "k2", "settings": {"method": "two"}})
    first.add("fake", {**template, "key": "k1", "settings": {"method": "one"}})
    assert {"one", "two"} <= set(grid.records())


@pytest.mark.parametrize("line", ["{", "[]", "7", '{"settings": {}}', '{"key": "a"'])
def test_a_damaged_result_is_named_with_its_line(grid, line):
    grid.run()
    path = grid.options.results / "fake.jsonl"
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(InputError, match=r"fake\.jsonl.*4.*remove the line"):
        grid.run()


# --- the command ------------------------------------------------------------------------------------------------------


def test_tables_need_no_data_and_no_results(tmp_path, capsys):
    assert main(["--table", "--shared", str(tmp_path / "none"), "--results", str(tmp_path / "none")]) == 0
    shown = capsys.readouterr().out
    assert shown.count("Nothing is finished yet.") == len(NAMES)
    assert shown.count("Made with `python -m benchmarks") == len(NAMES)
    assert shown.count("**Not finished; cells still to be run: ") == len(NAMES)


def test_missing_data_is_one_line(tmp_path, capsys, monkeypatch):
    status = main(["medquad", "--tiny", "--shared", str(tmp_path / "none"), "--results", str(tmp_path)])
    assert status == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert "--shared DIR" in message
    assert "none/data/medquad" in message


def test_an_unknown_name_is_refused(capsys):
    assert main(["scifakt"]) == 2
    assert capsys.readouterr().err == f"no benchmark 'scifakt'; there are {', '.join(NAMES)}\n"


def test_the_help_has_examples(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    assert "--budget-minutes 60" in capsys.readouterr().out


def test_a_table_says_which_cells_are_older_than_the_code(grid, monkeypatch, capsys):
    grid.run()
    monkeypatch.setattr("benchmarks.__main__.NAMES", ("fake",))
    monkeypatch.setattr("benchmarks.__main__.import_module", lambda name: import_module("fake_grid"))
    arguments = ["--table", "--shared", str(grid.folder), "--results", str(grid.options.results)]
    assert main(arguments) == 0
    assert "older code" not in capsys.readouterr().out
    (grid.folder / "code.py").write_text("x = 3\n")
    assert main(arguments) == 0
    assert "3 of the 3 finished cells were made by older code" in capsys.readouterr().out


def test_ctrl_c_says_how_to_go_on(monkeypatch, capsys, tmp_path):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("benchmarks.__main__.run_grid", interrupted)
    assert main(["speed", "--results", str(tmp_path)]) == 130
    assert "the same command goes on" in capsys.readouterr().err


def test_committed_results_are_records():
    folder = ROOT / "benchmarks" / "results"
    for path in sorted(folder.glob("*.jsonl")):
        for record in Results(folder).records(path.stem).values():
            assert {"key", "settings", "values", "code", "data", "versions", "machine", "seconds"} <= set(record)
            cell = Cell(settings=record["settings"], seconds=0, sources=())
            assert record["key"] == cell.key
