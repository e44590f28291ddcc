"""Which loss helps on these data: the same trials for each on dev, settings frozen, then test read once per seed.

    DIR/bench.json      the settings                      DIR/tests.jsonl    the frozen settings' runs, test measured
    DIR/trials.jsonl    a line for each finished trial    DIR/results.json   means, intervals, differences, p-values
    DIR/frozen.json     the best trial of each loss       DIR/curves.png     dev against steps, the best trials
    DIR/splits/         training and dev, and no test     DIR/models/        the first seed's models

Every line is published when its run has finished, so that a kill loses the run that it met. Test judgements are read by
the runs of the last stage alone, when `frozen.json` lies there; a frozen comparison takes no further trials.

Import this module only where torch is installed.
"""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from indexes.storage import check_target, locked, remove_folder, write_json, write_lines
from retrieval.bench_config import MEASURE, BenchConfig, Setting, short_hash
from retrieval.bench_data import Part, make_parts
from retrieval.bench_modes import HeadMode, Mode, ModelMode, Sources, discard
from retrieval.bench_results import UNTRAINED, summary
from retrieval.collection import Collection
from retrieval.encoder import Encoder
from retrieval.errors import InputError
from retrieval.head_training import NotFiniteError
from retrieval.measures import parse_measures
from retrieval.peak_memory import forget_peak, peak_mb
from retrieval.training import TrainingStoppedError

logger = logging.getLogger(__name__)

Record = dict[str, Any]

# What --overwrite deletes when settings, model and data have proved good; half of it gone, bench.json still tells whose
# the rest is. Splits are compared and written anew where they differ.
_OURS = ("results.json", "curves.png", "models", "runs", "tests.jsonl", "frozen.json", "trials.jsonl")
_DEPTH = 100  # documents ranked per query, where no measure looks deeper


@dataclass(frozen=True, slots=True)
class Run:
    """One run: a setting of a loss in a part of the data, with a seed."""

    part: str
    setting: Setting
    seed: int

    @property
    def key(self) -> str:
        """The hash of all that tells it from the bench's other runs."""
        return short_hash([self.part, self.setting.to_dict(), self.seed])

    def to_dict(self) -> Record:
        """Return JSON values."""
        return {"key": self.key, "part": self.part, **self.setting.to_dict(), "seed": self.seed}

    def __str__(self) -> str:
        where = f"{self.part} " if self.part else ""
        return f"{where}{self.setting.loss}: {self.setting}, seed {self.seed}"


def planned(config: BenchConfig) -> list[Run]:
    """Return the trials, in the order in which they run: part after part, loss after loss, as many for each."""
    names = [f"fold{number + 1}" for number in range(config.folds)] if config.folds else [""]
    return [Run(name, setting, 0) for name in names for loss in config.losses for setting in config.grid(loss)]


def bench_losses(config: BenchConfig, *, resume: bool = False, overwrite: bool = False) -> Record:
    """Compare losses and return what `results.json` then holds.

    Args:
        config: the settings.
        resume: go on with an interrupted comparison; what has finished is not run again.
        overwrite: delete an earlier comparison first.

    Raises:
        InputError: at impossible settings (before data is read), bad data, or an `out` that holds something else.

    """
    bench = _Bench(config)
    bench.check(resume=resume, overwrite=overwrite)
    with locked(bench.folder):
        bench.check(resume=resume, overwrite=overwrite)
        return bench.run(resume=resume)


class _Bench:
    """One comparison and the folder that it leaves."""

    def __init__(self, config: BenchConfig) -> None:
        self.config, self.folder = config, Path(config.out)
        self._sources = Sources(config)
        self.trials: dict[str, Record] = {}
        self.tests: dict[str, Record] = {}

    def check(self, *, resume: bool, overwrite: bool) -> None:
        """Say whether the comparison may begin here."""
        if resume and overwrite:
            raise InputError("--resume and --overwrite exclude each other")
        check_target(self.folder / "bench.json", overwrite=True)
        # A comparison that was refused for its data has left its splits, and nothing else.
        held = self.folder.iterdir() if self.folder.is_dir() else ()
        if all(path.name.startswith(".") or path.name == "splits" for path in held):
            return
        record = self.folder / "bench.json"
        if not record.is_file():
            raise InputError("exists already and is no comparison of losses; use another --out", path=self.folder)
        if not resume and not overwrite:
            raise InputError("exists already; use --resume or --overwrite, or another --out", path=self.folder)
        if resume:
            before, now = _read_json(record).get("settings", {}), _settings(self.config)
            for name in sorted(before.keys() | now.keys()):
                if before.get(name) != now.get(name):
                    was = f"{name} was {before.get(name)!r} in the comparison to resume and is {now.get(name)!r} now"
                    raise InputError(f"{was}; a resumed one needs the same settings", path=record)

    def run(self, *, resume: bool) -> Record:
        """Run what is missing: trials, the choice, the runs for test, the table."""
        collection = Collection.load(self.config.data)
        parts = {part.name: part for part in make_parts(self.config, collection, self.folder / "splits")}
        sources = self._sources
        for part in parts.values():  # before anything is trained
            for loss in self.config.losses:
                sources.batcher(part, self.config.grid(loss)[0])
        encoder = _load(self.config)
        began = {"data": short_hash([collection.corpus.sha256, *(part.fingerprint for part in parts.values())])}
        began["start model"] = encoder.fingerprint()["weights_sha256"]
        self._begin(began, resume=resume)
        self._device = encoder.model.device
        mode: Mode = ModelMode(self.config, collection, sources)
        if self.config.heads is not None:
            mode = HeadMode(self.config, collection, encoder, sources)
        self._try(mode, parts)
        chosen = self._freeze()
        self._test(mode, parts, chosen, collection)
        found = summary(self.config, list(self.trials.values()), list(self.tests.values()), self._frozen_hash(chosen))
        write_json(self.folder / "results.json", found)
        return found

    def _begin(self, fingerprints: Mapping[str, str], *, resume: bool) -> None:
        path = self.folder / "bench.json"
        if not resume:
            for name in _OURS:
                _delete(self.folder / name)
        elif path.is_file():
            before = _read_json(path)
            for name, value in fingerprints.items():
                if before.get(name, value) != value:
                    raise InputError(f"the {name} has changed since the comparison began; start again", path=path)
            self.trials = _read_records(self.folder / "trials.jsonl")
            self.tests = _read_records(self.folder / "tests.jsonl")
        write_json(path, {"settings": _settings(self.config), **fingerprints})

    # --- trials ---------------------------------------------------------------------------------------------------

    def _try(self, mode: Mode, parts: Mapping[str, Part]) -> None:
        """Run the trials that have not finished."""
        todo = [run for run in planned(self.config) if run.key not in self.trials]
        pace = _Pace(len(todo))
        if todo and (self.folder / "frozen.json").is_file():
            raise InputError(
                "is frozen, but trials are missing; test was read, so start another --out", path=self.folder
            )
        for run in todo:
            record = self._timed(run, lambda run=run: self._trial(mode, parts[run.part], run))  # type: ignore[misc]
            self.trials[run.key] = record
            self._write("trials.jsonl", self.trials)
            value = record.get("failed") or f"dev {MEASURE} {record['dev']:.4f}"
            logger.info("trial %s  %s: %s, %.1f s%s", pace.step(), run, value, record["seconds"], pace.left())

    def _trial(self, mode: Mode, part: Part, run: Run) -> Record:
        place = self.folder / "runs" / run.key
        try:
            trained = mode.train(part, run.setting, run.seed, place)
        except (NotFiniteError, TrainingStoppedError) as error:
            discard(place)
            return {"dev": None, "failed": str(error)}
        discard(place)
        curve = [[step, value] for step, value in trained.curve]
        return {"dev": trained.dev, "curve": curve, "best_step": trained.best_step, "steps": trained.steps}

    def _freeze(self) -> dict[tuple[str, str], Record]:
        """Choose each loss's best trial on dev, and write the choice before test is read.

        Of equal trials the first: the lower learning rate, the lower temperature.
        """
        chosen: dict[tuple[str, str], Record] = {}
        for run in planned(self.config):
            record = self.trials[run.key]
            best = chosen.get((run.part, run.setting.loss))
            if record["dev"] is not None and (best is None or record["dev"] > best["dev"]):
                chosen[run.part, run.setting.loss] = record
        for run in planned(self.config):
            if (run.part, run.setting.loss) not in chosen:
                failed = self.trials[run.key].get("failed")
                raise InputError(f"every trial of {run.setting.loss} failed ({failed}); try lower --learning-rates")
        path, now = self.folder / "frozen.json", self._frozen_hash(chosen)
        if path.is_file() and (before := _read_json(path).get("hash")) != now:
            raise InputError(f"settings were frozen as {before}, and test was read; start another --out", path=path)
        fields = ("part", "loss", "learning_rate", "loss_settings", "dev", "key")
        shown = [{name: record[name] for name in fields} for record in chosen.values()]
        write_json(path, {"hash": now, "chosen_by": f"dev {MEASURE}", "settings": shown})
        return chosen

    def _frozen_hash(self, chosen: Mapping[tuple[str, str], Record]) -> str:
        """Return the hash of what the runs for test are made with; where things lie does not matter."""
        places = ("model", "data", "rows")
        shared = {name: value for name, value in _settings(self.config).items() if name not in places}
        return short_hash([shared, [record["key"] for record in chosen.values()]])

    # --- test -----------------------------------------------------------------------------------------------------

    def _test(
        self, mode: Mode, parts: Mapping[str, Part], chosen: Mapping[tuple[str, str], Record], collection: Collection
    ) -> None:
        """Run the frozen settings with every seed and measure each on test, once."""
        todo: list[tuple[Run, Part]] = []
        for (name, loss), record in chosen.items():
            setting = Setting(loss, record["learning_rate"], record["loss_settings"])
            todo += [(Run(name, setting, seed), parts[name]) for seed in range(self.config.seeds)]
        start = [(Run(name, Setting(UNTRAINED, 0.0, {}), 0), part) for name, part in parts.items()]
        todo = [(run, part) for run, part in [*start, *todo] if run.key not in self.tests]
        pace = _Pace(len(todo))
        for run, part in todo:
            record = self._timed(run, lambda run=run, part=part: self._final(mode, part, run, collection))  # type: ignore[misc]
            self.tests[run.key] = record
            self._write("tests.jsonl", self.tests)
            logger.info("test %s  %s: %.1f s%s", pace.step(), run, record["seconds"], pace.left())

    def _final(self, mode: Mode, part: Part, run: Run, collection: Collection) -> Record:
        """Train with the frozen settings, then read test."""
        texts = collection.query_texts
        if run.setting.loss == UNTRAINED:
            qrels = part.test()
            embedded = mode.untrained([q for q in qrels if texts.get(q, "").strip()])
            return {
                "test": embedded.measure(qrels, self.config.measures, self._depth()),
                "auc": embedded.pairs(qrels).auc(),
            }
        name = "-".join(filter(None, [re.sub(r"[^\w.]+", "_", run.setting.loss), run.part]))
        kept = self.folder / "models" / name
        place = kept if run.seed == 0 and self.config.heads is None else self.folder / "runs" / run.key
        trained = mode.train(part, run.setting, run.seed, place)
        reads = trained.log_odds
        if reads is None:
            dev = self._sources.data(part)
            fitted = trained.embedded(list(dev.dev_queries)).pairs(dev.dev_qrels).fitted_bias(trained.scale)
            reads = trained.scale, fitted
        qrels = part.test()
        embedded = trained.embedded([q for q in qrels if texts.get(q, "").strip()])
        pairs = embedded.pairs(qrels)
        record = {
            "dev": trained.dev,
            "best_step": trained.best_step,
            "steps": trained.steps,
            "test": embedded.measure(qrels, self.config.measures, self._depth()),
            "auc": pairs.auc(),
            "ece": pairs.calibration_error(*reads),
            "probability": {"scale": reads[0], "bias": reads[1], "fitted_on_dev": trained.log_odds is None},
        }
        if trained.export is not None and run.seed == 0:
            _delete(kept)
            trained.export(kept, _card(self.config, run, trained.dev))
        elif place != kept:
            discard(place)
        return record

    def _depth(self) -> int:
        return max([_DEPTH, *(m.k or 1000 for m in parse_measures(self.config.measures).values())])

    def _timed(self, run: Run, job: Callable[[], Record]) -> Record:
        """Return what a run gave, with its seconds and its peak of memory."""
        forget_peak(self._device)
        started = time.perf_counter()
        values = job()
        seconds = round(time.perf_counter() - started, 2)
        return {**run.to_dict(), **values, "seconds": seconds, "peak_mb": round(peak_mb(self._device), 1)}

    def _write(self, name: str, records: Mapping[str, Record]) -> None:
        lines = (json.dumps(record, ensure_ascii=False, allow_nan=False) for record in records.values())
        write_lines(self.folder / name, lines)


class _Pace:
    """How far a stage has come, and how long the rest will take at its own pace."""

    def __init__(self, total: int) -> None:
        self.total, self.done, self.started = total, 0, time.perf_counter()

    def step(self) -> str:
        """Count one more, and return "3 of 90"."""
        self.done += 1
        return f"{self.done} of {self.total}"

    def left(self) -> str:
        """Return "; about 4 min left", or nothing at the end."""
        seconds = (time.perf_counter() - self.started) / self.done * (self.total - self.done)
        return (
            f"; about {seconds / 60:.0f} min left"
            if seconds >= 60
            else f"; about {seconds:.0f} s left"
            if seconds
            else ""
        )


def _load(config: BenchConfig) -> Encoder:
    return Encoder.load(
        config.model,
        precision=config.precision,
        device=config.device,
        query_max_length=config.query_max_length,
        document_max_length=config.document_max_length,
    )


def _settings(config: BenchConfig) -> Record:
    """Return the settings that a resumed comparison must share: all but the place."""
    return {name: value for name, value in config.to_dict().items() if name != "out"}


def _read_json(path: Path) -> Record:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"is damaged ({error}); start again with --overwrite", path=path) from None
    return value if isinstance(value, dict) else {}


def _read_records(path: Path) -> dict[str, Record]:
    """Read finished runs by key; a missing file has none."""
    found: dict[str, Record] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines() if path.is_file() else [], start=1):
        try:
            record = json.loads(line)
            found[record["key"]] = record
        except (ValueError, TypeError, KeyError):
            raise InputError("is no finished run; remove the line", path=path, line=number) from None
    return found


def _delete(path: Path) -> None:
    if path.is_dir():
        remove_folder(path)
    else:
        path.unlink(missing_ok=True)


def _card(config: BenchConfig, run: Run, dev: float) -> str:
    sides = "queries and documents" if config.sides == "both" else "queries alone"
    return f"""---
tags: [sentence-transformers, sentence-similarity, feature-extraction, dense-retrieval]
library_name: sentence-transformers
pipeline_tag: sentence-similarity
---

# A head trained with Rankwright over a dual encoder's embeddings

| | |
|---|---|
| encoder | `{config.model}`, unchanged |
| head | {config.heads}, on {sides} |
| loss | `{run.setting.loss}` ({run.setting}) |
| training data | `{config.data}`, split `{config.train_split}` |
| {MEASURE} on dev, by which it was chosen | {dev:.4f} |

Use `encode_query` for queries and `encode_document` for documents.
"""
