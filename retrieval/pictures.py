"""Publishing a picture: the same figure is the same bytes, written whole or not at all."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

from indexes.storage import writing

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def publish_png(figure: Figure, path: Path) -> None:
    """Write a matplotlib figure as a PNG, without a date and the version in it."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120, metadata={"Software": None})
    with writing(path) as file:
        file.write(buffer.getvalue())
