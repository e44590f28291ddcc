"""Does `rankwright doctor` name what is wrong? Faults made on purpose, and sound trainings that it must leave alone.

Each cell makes a training with one fault (`benchmarks.faults`), lets the doctor look at it, trains 30 steps of 16 rows
at 64 tokens, and lets the doctor look at the run. A fault is named where the first problem that a user is told names
it: of the look before training or, where that finds none, of the look at the run. A false alarm is any problem in a
sound training.

    python -m benchmarks.doctor --dev     pydocs alone: all variants of the faults, on which thresholds were chosen
    python -m benchmarks doctor           these, and then the test: 12 faults on MedQuAD and on SciFact, 5 sound ones

The test's collections were not looked at while thresholds were chosen. About 20 minutes on two cores with bf16 for dev,
and 20 for the test.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks import data, quality, tables
from benchmarks.cells import Cell, Experiment, Options, Plan, Results, Settings, Values
from benchmarks.faults import SETUPS, TESTED, settings_of, sound_setups
from retrieval.collection import Collection
from retrieval.doctor import examine_run, examine_setup
from retrieval.doctor_findings import Examination
from retrieval.errors import InputError
from retrieval.splits import folds
from retrieval.train_config import TrainConfig
from retrieval.training import TrainingStoppedError, train

NAME = "doctor"
DEV, TEST = "pydocs", ("medquad", "scifact")
FOLDED = "cystic_fibrosis"  # it has a test split alone: the first of five folds is trained on
SOURCES = (
    *quality.TRAINING,
    "benchmarks/doctor.py",
    "benchmarks/faults.py",
    "retrieval/bm25.py",
    "retrieval/doctor*.py",
    "retrieval/embedding_health.py",
    "retrieval/objective.py",
    "retrieval/validation.py",
)
NOTES = (
    "Each training: MiniLM-L6, batch 16, 64 tokens, 30 steps, one seed. Named: the first problem told names the fault, "
    "before training or, where nothing was a problem then, from the run.",
    "Thresholds were chosen on the trainings from pydocs; that of shuffled labels was lowered for a sound training on "
    "adi, whose documents are all alike. The faults of the other collections are made by the same "
    "code and were examined once.",
)


def prepare(options: Options) -> str:
    """Write the fold of the collection without a training split, and return the hash of all that is read."""
    source = data.collection(FOLDED, options)
    own = data.split_folder(source, folds(source.qrels("test"), source.queries("test"))[0], _fold(options))
    hashes = [data.data_hash(data.collection(name, options)) for name in (DEV, *TEST)]
    return data.data_hash(source, " ".join([own, *hashes]))


def _fold(options: Options) -> Path:
    return options.build / "splits" / NAME / FOLDED


def plan(options: Options, results: Results) -> Plan:
    """Name the cells of pydocs, then those of the test."""
    tested = [*((name, fault) for fault in TESTED for name in TEST), *sound_setups()]
    return Plan([*development(options, results).cells, *(_cell("test", name, setup) for name, setup in tested)])


def development(options: Options, results: Results) -> Plan:
    """Name the cells of pydocs."""
    return Plan([_cell("dev", DEV, setup) for setup in SETUPS])


def _cell(stage: str, name: str, setup: str) -> Cell:
    return Cell(settings={"stage": stage, "data": name, "method": setup, "seed": 0}, seconds=42, sources=SOURCES)


def work(settings: Settings, options: Options, folder: Path) -> Values:
    """Make the training, examine it, train, examine the run."""
    name = settings["data"]
    source = Collection(_fold(options), name=name) if name == FOLDED else data.collection(name, options)
    wanted = {**settings_of(settings["method"], source, folder), "seed": settings["seed"], "out": str(folder / "run")}
    if options.tiny:
        wanted |= {"max_steps": 2, "per_device_train_batch_size": 4, "eval_steps": 1}
    config = TrainConfig.from_dict({key: value for key, value in wanted.items() if value is not None})
    values: Values = {"stopped": ""}
    started = time.perf_counter()
    values["before"] = _found(examine_setup(config))
    examined = time.perf_counter()
    try:
        train(config)
    except TrainingStoppedError as error:
        values["stopped"] = str(error).partition(";")[0]
    trained = time.perf_counter()
    values["after"] = _found(examine_run(folder / "run"))
    values["log"] = _found(examine_run(folder / "run", probe=False))
    values["took"] = [round(examined - started, 1), round(trained - examined, 1)]
    return values


def _found(exam: Examination) -> dict[str, Any]:
    figures = {name: round(value, 5) for name, value in exam.figures.items() if abs(value) < float("inf")}
    remarks = [one.name for one in exam.diagnoses if one.severity == "remark"]
    return {"problems": [one.name for one in exam.problems], "remarks": remarks, "figures": figures}


def first_problem(values: Values) -> str:
    """Return the problem that a user is told first; "" where none is."""
    for look in ("before", "after"):
        if values[look]["problems"]:
            return str(values[look]["problems"][0])
    return ""


def is_right(setup: str, values: Values) -> bool:
    """Whether a fault was named, or a sound training left alone in both looks."""
    finding = SETUPS[setup].finding
    if finding:
        return first_problem(values) == finding
    return not values["before"]["problems"] and not values["after"]["problems"]


def table(options: Options, results: Results) -> str:
    """Return what was found, fault by fault, and how often it was right."""
    cells = plan(options, results).cells
    shown: list[str] = []
    for stage, title in (("test", "Test"), ("dev", "pydocs, where thresholds were chosen")):
        mine = [cell for cell in cells if cell.settings["stage"] == stage]
        rows = list(_rows(mine, results))
        if rows:
            heads = ["training", "data", "before training", "from the run", "from its log alone", ""]
            shown += [f"**{title}.** {'; '.join(_sums(mine, results))}.", tables.markdown(heads, rows)]
    return tables.report(
        title="The doctor on trainings with one fault, and on sound ones",
        command="python -m benchmarks doctor",
        tables=shown,
        notes=NOTES,
        missing=sum(results.values(NAME, cell) is None for cell in cells),
    )


def _rows(cells: Sequence[Cell], results: Results) -> Iterator[list[str]]:
    for cell in cells:
        values = results.values(NAME, cell)
        if values is not None:
            setup = cell.settings["method"]
            looks = [", ".join(values[look]["problems"]) or tables.NOTHING for look in ("before", "after", "log")]
            right = ("named" if SETUPS[setup].finding else "left alone") if is_right(setup, values) else "**wrong**"
            yield [setup, cell.settings["data"], *looks, right]


def _sums(cells: Sequence[Cell], results: Results) -> Iterator[str]:
    """Say of each collection how many faults were named, and of the sound trainings how many had an alarm."""
    done = [(cell.settings, values) for cell in cells if (values := results.values(NAME, cell)) is not None]
    for name in dict.fromkeys(settings["data"] for settings, _ in done):
        right = [is_right(s["method"], v) for s, v in done if s["data"] == name and SETUPS[s["method"]].finding]
        if right:
            yield f"{name}: {sum(right)} of {len(right)} faults named"
    sound = [is_right(s["method"], v) for s, v in done if not SETUPS[s["method"]].finding]
    if sound:
        yield f"{len(sound) - sum(sound)} false alarms in {len(sound)} sound trainings"


EXPERIMENT = Experiment(name=NAME, module="benchmarks.doctor", prepare=prepare, plan=plan, work=work, table=table)


def main(arguments: list[str] | None = None) -> int:
    """Run the cells of pydocs, or print the table of what is finished."""
    from benchmarks.cells import ROOT
    from benchmarks.grid import run_grid

    parser = argparse.ArgumentParser(prog="python -m benchmarks.doctor", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--dev", action="store_true", help="run the cells of pydocs; without it, print the table alone")
    parser.add_argument("--budget-minutes", type=float, metavar="N", help="begin no cell that would end later")
    parser.add_argument("--shared", type=Path, default=ROOT.parent / "shared", metavar="DIR", help="holds data/NAME")
    args = parser.parse_args(arguments)
    options = Options(shared=args.shared.resolve(), results=ROOT / "benchmarks" / "results", build=ROOT / "build")
    results, done = Results(options.results), True
    deadline = time.monotonic() + 60 * args.budget_minutes if args.budget_minutes is not None else float("inf")
    try:
        if args.dev:
            experiment = replace(EXPERIMENT, plan=development)
            done = run_grid(
                experiment, options, results, deadline=deadline, say=lambda told: print(told, file=sys.stderr)
            )
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    print(table(options, Results(options.results, keep=True)))
    return 0 if done else 1


if __name__ == "__main__":
    sys.exit(main())
