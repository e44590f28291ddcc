"""Learning curves as a picture: dev against steps, the best trial of each loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from retrieval.bench_config import MEASURE
from retrieval.errors import require
from retrieval.pictures import publish_png

_DASHES = ("-", "--", "-.", ":")  # with ten colours: forty curves that can be told apart
_COLOURS = 10


def best_curves(trials: Sequence[Mapping[str, Any]]) -> dict[str, list[tuple[int, float]]]:
    """Return loss → (step, dev) of the trial that is best on dev; with folds, of the first fold."""
    part = trials[0]["part"] if trials else ""
    best: dict[str, Mapping[str, Any]] = {}
    for record in trials:
        if record["part"] != part or record["dev"] is None:
            continue
        if record["loss"] not in best or record["dev"] > best[record["loss"]]["dev"]:
            best[record["loss"]] = record
    return {loss: [(int(step), float(value)) for step, value in record["curve"]] for loss, record in best.items()}


def draw(curves: Mapping[str, Sequence[tuple[int, float]]], path: Path, *, title: str = "") -> None:
    """Publish the curves as a PNG.

    Raises:
        InputError: matplotlib is missing; names the extra.

    """
    require("matplotlib", "bench")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")  # no pyplot: nothing of the user's is touched
    axes = figure.add_subplot()
    for number, (name, curve) in enumerate(curves.items()):
        style = _DASHES[number // _COLOURS % len(_DASHES)]
        steps, values = zip(*curve, strict=True) if curve else ((), ())
        axes.plot(steps, values, style, label=name, color=f"C{number % _COLOURS}", marker="o", markersize=3)
    axes.set(xlabel="steps", ylabel=f"dev {MEASURE}", title=title)
    axes.grid(visible=True, alpha=0.3)
    if curves:
        figure.legend(loc="outside right upper")
    publish_png(figure, path)
