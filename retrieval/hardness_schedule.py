"""How hard batches are over a training run: a number, a ramp, or steps, as `--hardness` takes them."""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, get_args

from retrieval.errors import InputError, did_you_mean

Shape = Literal["linear", "cosine", "steps"]

_WANTED = "wanted a number from 0 to 1, START:END, START:END:cosine, or steps such as 0.2@0,0.8@0.5"


@dataclass(frozen=True, slots=True)
class Schedule:
    """Hardness by the share of the training that is done.

    Attributes:
        points: (share, hardness), both from 0 to 1, by rising share; the first share is 0.
        shape: between points the hardness moves evenly ("linear"), slowly at both ends ("cosine"), or not ("steps").

    """

    points: tuple[tuple[float, float], ...]
    shape: Shape = "steps"

    @property
    def is_constant(self) -> bool:
        """Whether it never changes."""
        return len({hardness for _, hardness in self.points}) == 1

    def at(self, share: float) -> float:
        """Return the hardness when this share of the training is done; shares below 0 and above 1 count as these."""
        place = max(bisect_right([start for start, _ in self.points], share) - 1, 0)
        start, low = self.points[place]
        if self.shape == "steps" or place + 1 == len(self.points):
            return low
        end, high = self.points[place + 1]
        way = max(share - start, 0) / (end - start)
        if self.shape == "cosine":
            way = (1 - math.cos(math.pi * way)) / 2
        return low + (high - low) * way

    def of_epoch(self, epoch: int, epochs: int) -> float:
        """Return the hardness of an epoch, from 0: a ramp starts in the first and ends in the last of `epochs`.

        Steps count from the share of the training that is done when the epoch begins.
        """
        return self.at(epoch / epochs if self.shape == "steps" else epoch / max(epochs - 1, 1))


def parse_hardness(text: str | float) -> Schedule:
    """Read a hardness or a schedule of it.

        0.5                 always
        0:1                 evenly from the first epoch to the last
        0:1:cosine          the same, slowly at both ends
        0.2@0,0.8@0.5       0.2 from the start, 0.8 when half of the training is done

    Raises:
        InputError: at anything else; names the part that is wrong.
    """
    given = str(text).strip()
    if "@" in given:
        return _steps(given)
    start, *rest = given.split(":")
    if len(rest) > 2:
        raise InputError(f"hardness got {given!r}; {_WANTED}")
    low = _share(start, given, "hardness")
    if not rest:
        return Schedule(((0.0, low),))
    shape = rest[1].strip() if len(rest) == 2 else "linear"
    if shape not in ("linear", "cosine"):
        hint = did_you_mean(shape, [known for known in get_args(Shape) if known != "steps"])
        raise InputError(f"hardness {given!r} has the unknown shape {shape!r}{hint}")
    kind: Shape = "linear" if shape == "linear" else "cosine"
    return Schedule(((0.0, low), (1.0, _share(rest[0], given, "hardness"))), kind)


def _steps(given: str) -> Schedule:
    points = []
    for part in given.split(","):
        value, sign, share = part.partition("@")
        if not sign:
            raise InputError(
                f"hardness {given!r} has the step {part.strip()!r}; wanted HARDNESS@SHARE, such as 0.8@0.5"
            )
        points.append((_share(share, given, "share of the training"), _share(value, given, "hardness")))
    shares = [share for share, _ in points]
    if shares[0] != 0 or any(a >= b for a, b in pairwise(shares)):
        raise InputError(
            f"hardness {given!r} has steps at {', '.join(f'{s:g}' for s in shares)}; wanted 0, then rising"
        )
    return Schedule(tuple(points))


def _share(text: str, given: str, what: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise InputError(f"hardness got {given!r}; {_WANTED}") from None
    if not 0 <= value <= 1:
        raise InputError(f"hardness {given!r} has a {what} of {text.strip()}; wanted a number from 0 to 1")
    return value
