"""Small collections for tests: records in, a BEIR folder out."""

import gzip
import json
from pathlib import Path

HEADER = "query-id\tcorpus-id\tscore\n"

DOCUMENTS = [
    {"_id": "d1", "title": "Cats", "text": "Cats sleep most of the day."},
    {"_id": "d2", "title": "", "text": "Dogs bark at strangers."},
    {"_id": "d3", "title": "Birds", "text": "Most birds can fly."},
    {"_id": "d4", "text": "Fish breathe in water."},
]
QUERIES = {"q1": "why do cats sleep", "q2": "what do dogs do", "q3": "can birds fly", "q4": "how do fish breathe"}
QRELS = {"train": {"q1": {"d1": 2, "d2": 0}, "q2": {"d2": 1}}, "test": {"q3": {"d3": 1, "d1": 0}}}


def jsonl(records) -> str:
    """One JSON object a line; strings are taken as they are, so that a test can write nonsense."""
    return "".join((r if isinstance(r, str) else json.dumps(r, ensure_ascii=False)) + "\n" for r in records)


def qrels_text(qrels) -> str:
    return HEADER + "".join(f"{q}\t{d}\t{grade}\n" for q, grades in qrels.items() for d, grade in grades.items())


def write(path: Path, text: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = text.encode("utf-8") if isinstance(text, str) else text
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def make_collection(folder: Path, documents=DOCUMENTS, queries=QUERIES, qrels=QRELS, ending="") -> Path:
    """Write a collection; None leaves a part out, `ending` may be ".gz"."""
    write(folder / f"corpus.jsonl{ending}", jsonl(documents))
    if queries is not None:
        records = [{"_id": i, "text": t} for i, t in queries.items()] if isinstance(queries, dict) else queries
        write(folder / f"queries.jsonl{ending}", jsonl(records))
    for split, judged in (qrels or {}).items():
        text = judged if isinstance(judged, str) else qrels_text(judged)
        write(folder / "qrels" / f"{split}.tsv{ending}", text)
    return folder
