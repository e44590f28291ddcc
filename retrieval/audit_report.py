"""An audit for people: a table for the terminal, JSON, and a picture of the shares by rank band."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from retrieval.auditing import Audit, BandAudit
from retrieval.errors import require
from retrieval.false_negatives import MixtureShare, Share
from retrieval.pictures import publish_png

NOTHING = "–"
SCORED_BY = {
    "reranker": "the reranker's",
    "rows": "those in the rows (the negatives were ranked or chosen by them, so that they tell little; --reranker M "
    "tells more)",
    "nothing": "none: the rows have no scores, and there is no --reranker",
}


def table_lines(audit: Audit) -> list[str]:
    """Return the table of shares and what must be known to read it."""
    heads = ["ranks", "negatives", "by scores", "by likeness", "near duplicates", "judged relevant", "judged"]
    body = [
        [
            str(part.band),
            f"{part.negatives:,}",
            _share(part.scores),
            _share(part.likeness),
            _share(part.near),
            _share(part.known),
            NOTHING if part.known is None else f"{part.judged:,}",
        ]
        for part in audit.bands
    ]
    if all(part.known is None for part in audit.bands):
        heads, body = heads[:-2], [row[:-2] for row in body]
    widths = [max(map(len, column)) for column in zip(heads, *body, strict=True)]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in (heads, *body)]
    outside = f", {audit.outside:,} of them at ranks of no band" if audit.outside else ""
    lines += ["", f"{audit.queries:,} queries, {audit.negatives:,} negatives{outside}", *_notes(audit)]
    return lines


def to_json(audit: Audit) -> dict[str, Any]:
    """Return the audit as JSON values, without the texts of doubtful pairs."""
    return {
        "queries": audit.queries,
        "negatives": audit.negatives,
        "outside": audit.outside,
        "scored_by": audit.scored_by,
        "bands": [{**asdict(part), "band": str(part.band)} for part in audit.bands],
        "doubtful": [
            {"query_id": p.query_id, "doc_id": p.doc_id, "rank": p.rank, "margin": p.margin, "repeats": p.repeats}
            for p in audit.doubtful
        ],
    }


def draw(audit: Audit, path: Path) -> None:
    """Publish the picture as a PNG.

    Raises:
        InputError: matplotlib is missing; names the extra.
    """
    require("matplotlib", "bench")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")  # no pyplot: nothing of the user's is touched
    axes = figure.add_subplot()
    kinds: dict[str, Sequence[Share | None]] = {
        "by scores": [part.scores for part in audit.bands],
        "by likeness": [part.likeness for part in audit.bands],
        "near duplicates": [part.near for part in audit.bands],
        "judged relevant": [part.known for part in audit.bands],
    }
    shown = {name: shares for name, shares in kinds.items() if any(share is not None for share in shares)}
    for number, (name, shares) in enumerate(shown.items()):
        shift = 0.12 * (number - (len(shown) - 1) / 2)
        points = [(place + shift, share) for place, share in enumerate(shares) if share is not None]
        values = [share.value for _, share in points]
        ends = [
            [max(0.0, share.value - share.low) for _, share in points],
            [max(0.0, share.high - share.value) for _, share in points],
        ]
        axes.errorbar([x for x, _ in points], values, yerr=ends, fmt="o", capsize=3, color=f"C{number}", label=name)
        for marker, mark in (("v", "≤"), ("X", "~")):
            marked = [(x, share.value) for x, share in points if _mark(share) == mark]
            axes.plot([x for x, _ in marked], [y for _, y in marked], marker, ms=11, color=f"C{number}", alpha=0.4)
    axes.set_xticks(range(len(audit.bands)), [f"{part.band}\n{part.negatives:,} negatives" for part in audit.bands])
    axes.set(xlabel="ranks", ylabel="share that is relevant after all", ylim=(0, None))
    axes.set_title("False negatives by rank, 95 % over queries (▼: at most, ✖: of other ranks' positives)")
    axes.grid(visible=True, axis="y", alpha=0.3)
    if shown:
        figure.legend(loc="outside right upper")
    publish_png(figure, path)


def _share(share: Share | None) -> str:
    if share is None:
        return NOTHING
    mark = _mark(share)
    return f"{mark}{' ' * bool(mark)}{100 * share.value:.1f} % [{100 * share.low:.1f}, {100 * share.high:.1f}]"


def _mark(share: Share) -> str:
    """Return what stands before a share that must not be taken as it is, or nothing."""
    if not isinstance(share, MixtureShare):
        return ""
    return "~" if not share.matched else "≤" if share.is_bound else ""


def _notes(audit: Audit) -> list[str]:
    lines = [
        "by scores, by likeness: estimates; likeness is of the words of negative and positives",
        "[95 % over queries]: of sampling only, the estimate's own bias is not in it",
        f"scores: {SCORED_BY[audit.scored_by]}",
        "near duplicates of a positive: a lower bound",
    ]
    if any(part.known is not None for part in audit.bands):
        lines.append("judged relevant: by --qrels, of all negatives; those not judged may be either")
    parts = audit.bands
    if bounds := _named(parts, lambda share: share.is_bound and share.matched):
        lines.append(
            f"≤: these scores do not tell relevant documents from others well enough ({bounds}); it may be lower"
        )
    if unmatched := _named(parts, lambda share: not share.matched):
        lines.append(
            f"~: compared with all known positives, as too few are known to stand at these ranks ({unmatched}): the "
            "first ranks look dirtier than they are, the last ones cleaner"
        )
    return lines


def _named(parts: Sequence[BandAudit], holds: Callable[[MixtureShare], bool]) -> str:
    """Return which estimates are meant, such as "scores 1-10, 11-30; likeness 31-100"."""
    bands = {
        name: [str(part.band) for part in parts if (share := getattr(part, name)) is not None and holds(share)]
        for name in ("scores", "likeness")
    }
    return "; ".join(f"{name} {', '.join(found)}" for name, found in bands.items() if found)
