"""Read a collection, and training rows if given, from the first line to the last, and report what is in them.

Prints counts, grades, length percentiles, leaks between splits, how many queries ask for documents that training
shows, and every defect with file and line; reading goes on after a defect. Ends with status 2 when it found one:
something that makes the data unusable as it is. Leaks between splits, judgements of documents that the corpus lacks,
empty and duplicate texts are warnings: published collections have them, and they do not change the exit status.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from retrieval.cli.flags import add_flags
from retrieval.inspect_data import DataReport, Finding, inspect

EXAMPLES = """examples:
  rankwright data scifact                              a BEIR folder
  rankwright data irds:vaswani                         a collection of ir_datasets
  rankwright data scifact --rows triples.jsonl         with training rows, in any dialect that we read
  rankwright data scifact --json > report.json         all findings, not only the first of each kind
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add this verb's flags."""
    parser.add_argument("data", metavar="DATA", help="a collection: a BEIR folder, irds:ID, or pydocs")
    parser.add_argument(
        "--rows", metavar="FILE", action="append", default=[], help="training rows, checked too (repeatable)"
    )
    parser.add_argument(
        "--list", metavar="N", type=int, default=5, help="findings told of each kind in each file (default: 5)"
    )
    add_flags(parser, "json")


def run(args: argparse.Namespace) -> int:
    """Print the report; 2 when there is a defect."""
    report = inspect(args.data, args.rows)
    if args.json:
        print(json.dumps(asdict(report), ensure_ascii=False, indent=2))
    else:
        print("\n".join(report_lines(report, max(args.list, 0))))
    if not report.defects:
        return 0
    others = f" (and {len(report.defects) - 1:,} more defects)" if len(report.defects) > 1 else ""
    print(f"error: {report.defects[0]}{others}", file=sys.stderr)
    return 2


def report_lines(report: DataReport, limit: int) -> Iterator[str]:
    """Yield the report as text; of each kind of finding in each file the first `limit` are told one by one."""
    yield report.name
    yield from _texts("documents", report.documents)
    yield from _texts("queries", report.queries)
    for split, values in report.splits.items():
        grades = ", ".join(f"grade {grade}: {n:,}" for grade, n in values["grades"].items())
        yield f"  split {split}: {values['queries']:,} queries, {values['judgements']:,} judgements; {grades}"
        if values["without_relevant"]:
            yield f"    {values['without_relevant']:,} queries have no relevant document and score 0"
        if values["unknown_documents"]:
            bound = f"; no run can have a mean recall above {values['recall_bound']:.4f}"
            yield f"    {values['unknown_documents']:,} judgements name documents that are not in the corpus{bound}"
    for path, values in report.rows.items():
        yield f"  rows {path}: {values['dialect']}"
        counts = {name.replace("_", " "): n for name, n in values.items() if name != "dialect"}
        yield f"    {', '.join(f'{n:,} {name}' for name, n in counts.items())}"
    for leak in report.leaks:
        first, second = leak["between"]
        counts = {name: n for name, n in leak.items() if name != "between"}
        yield f"  leak from {first} to {second}: {', '.join(f'{n:,} × {name}' for name, n in counts.items())}"
    for seen in report.seen:
        first, second = seen["between"]
        yield f"  {second}: {seen['queries']:,} of {seen['of']:,} queries have a relevant document that {first} has too"
    yield from _findings("warning", report.warnings, limit)
    yield from _findings("defect", report.defects, limit)


def _texts(what: str, values: Mapping[str, Any]) -> Iterator[str]:
    if not values:
        yield f"  {what}: none"
        return
    others = {name.replace("_", " "): n for name, n in values.items() if isinstance(n, int) and name != "count"}
    told = "".join(f", {n:,} {name}" for name, n in others.items() if n)
    yield f"  {what}: {values['count']:,}{told}"
    for unit in ("words", "characters"):
        if values[unit]:
            lengths = "  ".join(f"{percentile}%: {n:,}" for percentile, n in values[unit].items())
            yield f"    {unit:<10}  {lengths}"


def _findings(what: str, findings: Sequence[Finding], limit: int) -> Iterator[str]:
    if not findings:
        yield f"no {what}s"
        return
    groups: defaultdict[tuple[str, str], list[Finding]] = defaultdict(list)
    for finding in findings:
        groups[finding.kind, finding.path].append(finding)
    yield f"{len(findings):,} {what}{'s' if len(findings) > 1 else ''}"
    for (kind, path), group in groups.items():
        for finding in group[:limit]:
            yield f"  {kind}: {finding}"
        if len(group) > limit:
            yield f"  {kind}: {path}: and {len(group) - limit:,} more (--json has all)"
