"""What a comparison of losses found: means with intervals, paired differences, p-values, and the table of them."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from retrieval.bench_config import MEASURE, BenchConfig, Setting
from retrieval.comparison import SEEDS_FOR_A_CLAIM, averaged, corrected_p
from retrieval.statistics import bootstrap, mean, paired, paired_bootstrap

Record = Mapping[str, Any]

UNTRAINED = "untrained"
NOTHING = "–"
_PACKAGES = ("rankwright", "torch", "sentence-transformers", "transformers", "numpy")


def summary(config: BenchConfig, trials: Sequence[Record], tests: Sequence[Record], frozen: str) -> dict[str, Any]:
    """Return the results as JSON values.

    Per loss and measure: the mean over queries, each averaged over seeds first, with its bootstrap interval, and the
    seeds' means. Of the first measure also the paired difference from the first loss, and its p-value after Holm over
    the losses; the untrained model is shown, and is no member of that family. AUC and calibration error are averaged
    over seeds (and folds), and so are the ends of their intervals, which resample queries.

    Args:
        config: the settings.
        trials: their records.
        tests: records of the frozen settings' runs.
        frozen: hash of these settings.

    """
    first = config.measures[0]
    names = [UNTRAINED, *config.losses]
    seeds = {name: _seeds([record for record in tests if record["loss"] == name], config.measures) for name in names}
    values = {name: averaged([runs[first] for runs in seeds[name]]) for name in names}
    baseline = config.losses[0]
    enough = config.seeds >= SEEDS_FOR_A_CLAIM
    p = corrected_p([(name, baseline) for name in config.losses[1:]] if enough else [], values)
    methods: dict[str, Any] = {}
    for name in names:
        runs = [record for record in tests if record["loss"] == name]
        found = _method(seeds[name], runs, config.measures)
        if name != baseline:
            difference = paired_bootstrap(*paired(values[name], values[baseline]))
            found["difference"] = {**difference._asdict(), "p": p.get((name, baseline))}
        own = [record for record in trials if record["loss"] == name]
        methods[name] = {
            **found,
            "trials": len(own),
            "failed_trials": sum(record["dev"] is None for record in own),
            # Of trials: the runs for test also measure it.
            "seconds": mean([record["seconds"] for record in own]) if own else None,
            "peak_mb": max([record["peak_mb"] for record in own], default=None),
        }
    return {
        "settings": config.to_dict(),
        "frozen": frozen,
        "baseline": baseline,
        "queries": len(values[baseline]),
        "methods": methods,
        "environment": {"python": platform.python_version(), **{name: _version(name) for name in _PACKAGES}},
    }


def _seeds(records: Sequence[Record], measures: Sequence[str]) -> list[dict[str, dict[str, float]]]:
    """Return measure → query → value for each seed, the queries of all folds pooled."""
    found: dict[int, dict[str, dict[str, float]]] = {}
    for record in records:
        run = found.setdefault(record["seed"], {name: {} for name in measures})
        for name in measures:
            run[name] |= record["test"][name]
    return [found[seed] for seed in sorted(found)]


def _method(
    seeds: Sequence[Mapping[str, Mapping[str, float]]], runs: Sequence[Record], measures: Sequence[str]
) -> dict[str, Any]:
    found: dict[str, Any] = {"seeds": len(seeds), "measures": {}}
    for name in measures:
        numbers = list(averaged([run[name] for run in seeds]).values())
        low, high = bootstrap(numbers)
        by_seed = [mean(list(run[name].values())) for run in seeds]
        found["measures"][name] = {"value": mean(numbers), "low": low, "high": high, "seeds": by_seed}
    for name in ("auc", "ece"):
        given = [run[name] for run in runs if name in run]
        found[name] = {end: mean([one[end] for one in given]) for end in ("value", "low", "high")} if given else None
    found["fitted_on_dev"] = any(run["probability"]["fitted_on_dev"] for run in runs if "probability" in run)
    found["dev"] = mean([run["dev"] for run in runs]) if all("dev" in run for run in runs) else None
    chosen = {run["part"]: Setting(run["loss"], run["learning_rate"], run["loss_settings"]) for run in runs}
    found["chosen"] = {part: str(setting) for part, setting in chosen.items()} if found["dev"] is not None else {}
    return found


def table_lines(results: Mapping[str, Any]) -> list[str]:
    """Return the table that a user reads, and what must be known to read it."""
    config, methods, baseline = results["settings"], results["methods"], results["baseline"]
    first, *others = config["measures"]
    columns: dict[str, Callable[[str, Record], str]] = {
        "loss": lambda name, one: name,
        f"{first} [95 %]": lambda name, one: _interval(one["measures"][first]),
        "seeds": lambda name, one: _range(one["measures"][first]["seeds"]),
        f"− {baseline} [95 %]": lambda name, one: _difference(one.get("difference")),
        "p (Holm)": lambda name, one: _p(one.get("difference")),
        **{other: lambda name, one, other=other: f"{one['measures'][other]['value']:.4f}" for other in others},  # type: ignore[misc]
        "AUC": lambda name, one: NOTHING if one["auc"] is None else f"{one['auc']['value']:.4f}",
        "ECE": lambda name, one: NOTHING if one["ece"] is None else _ece(one),
        "dev": lambda name, one: NOTHING if one["dev"] is None else f"{one['dev']:.4f}",
        "s/trial": lambda name, one: NOTHING if one["seconds"] is None else f"{one['seconds']:.1f}",
        "peak MB": lambda name, one: NOTHING if one["peak_mb"] is None else f"{one['peak_mb']:.0f}",
        "chosen": lambda name, one: _chosen(one["chosen"]),
    }
    rows = [list(columns), *([show(name, one) for show in columns.values()] for name, one in methods.items())]
    return [*_aligned(rows), "", *_notes(results)]


def _notes(results: Mapping[str, Any]) -> list[str]:
    config = results["settings"]
    first = config["measures"][0]
    trained = "whole encoder" if config["heads"] is None else f"{config['heads']} head, {config['sides']}"
    where = f"{config['folds']} folds of {config['test_split']}" if config["folds"] else config["test_split"]
    lines = [
        f"{where}: {results['queries']:,} queries, each averaged over {config['seeds']} seeds first; {trained}; "
        f"settings {results['frozen']}",
        f"each loss had {config['trials']} trials{' per fold' if config['folds'] else ''}, chosen by {MEASURE} on dev; "
        f"difference and p are of {first}",
        "AUC: relevant pairs against the 500 best others of each query, pooled. ECE: 15 bins of equal mass over these, "
        "of sigmoid(scale·s + bias) as the loss was trained; ~ where it has no bias: fitted on dev",
    ]
    if config["seeds"] < SEEDS_FOR_A_CLAIM:
        lines.append(f"fewer than {SEEDS_FOR_A_CLAIM} seeds support no claim: no p-values")
    if config["label_noise"]:
        lines.append(f"label noise: {100 * config['label_noise']:g} % of the training positives were exchanged")
    failed = {name: one["failed_trials"] for name, one in results["methods"].items() if one["failed_trials"]}
    return [*lines, *(f"{name}: {count} of its trials failed (not finite)" for name, count in failed.items())]


def _interval(found: Record) -> str:
    return f"{found['value']:.4f} [{found['low']:.4f}, {found['high']:.4f}]"


def _range(means: Sequence[float]) -> str:
    return NOTHING if len(means) < 2 else f"{min(means):.4f}–{max(means):.4f}"


def _difference(found: Record | None) -> str:
    return NOTHING if found is None else f"{found['value']:+.4f} [{found['low']:+.4f}, {found['high']:+.4f}]"


def _p(found: Record | None) -> str:
    if found is None or found["p"] is None:
        return NOTHING
    return "< 0.001" if found["p"] < 0.001 else f"{found['p']:.3f}"


def _ece(one: Record) -> str:
    return f"{'~' if one['fitted_on_dev'] else ''}{one['ece']['value']:.4f}"


def _chosen(by_part: Mapping[str, str]) -> str:
    return "; ".join(f"{part}: {setting}" if part else setting for part, setting in by_part.items())


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Pad the columns: the first and the last to the right of their text, numbers to the left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:-1], widths[1:-1]), row[-1]]).rstrip() for row in rows
    ]


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
