"""Estimate how many mined negatives are relevant after all, and list the most doubtful for a person to label.

For each band of ranks: an estimate by scores (--reranker; those in the rows give no more than a bound), one by the
words that a negative shares with the query's positives, near duplicates of positives (a lower bound), and with --qrels
what judgements say that mining did not see; not those of a test split, which is for measuring. Best audited is a mining
of the whole window: mine --num-negatives 100 --relative-margin none. Use a reranker that was not trained on these
queries: what it has seen it scores too well.

--out DIR holds audit.json, audit.png (with matplotlib) and doubtful.tsv. Write 0, 1, 2, … into the column "label" of
the latter, and give it back with --labels: --as qrels makes judgements of it, --as mask takes the negatives labelled
1 or more out of the rows.
"""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from retrieval.cli.flags import add_flags
from retrieval.cli.outputs import check_file_target
from retrieval.errors import InputError

if TYPE_CHECKING:
    from retrieval.auditing import Audit
    from retrieval.collection import Collection
    from retrieval.false_negatives import Band
    from retrieval.reranking import Reranker, RunReranker
    from retrieval.rows import TrainingRow
    from retrieval.trec import Qrels

logger = logging.getLogger(__name__)

EXAMPLES = """examples:
  rankwright audit rows.jsonl --data my-beir-folder --reranker runs/reranker --out runs/audit
  rankwright audit rows.jsonl --data my-beir-folder --qrels further.tsv --bands 1-5,6-20,21-100
after runs/audit/doubtful.tsv was labelled:
  rankwright audit rows.jsonl --data my-beir-folder --labels runs/audit/doubtful.tsv --as mask --out cleaned.jsonl
  rankwright audit rows.jsonl --data my-beir-folder --labels runs/audit/doubtful.tsv --as qrels --out labelled.tsv
  rankwright mine --model M --data my-beir-folder --qrels labelled.tsv --out cleaned.jsonl
"""

JSON, PICTURE, DOUBTFUL = "audit.json", "audit.png", "doubtful.tsv"
_TEST = ("test", "eval")  # names of splits that are for measuring
_OF_THE_AUDIT = ("reranker", "features", "qrels", "bands", "top", "batch_tokens")


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the verb's flags."""
    parser.add_argument("rows", metavar="ROWS", help="training rows with negatives, such as `mine` writes")
    add_flags(parser, "data", required=("data",))
    add_flags(parser, "out")
    parser.add_argument("--reranker", metavar="M", help="a cross-encoder, for the scores; default: those in the rows")
    parser.add_argument("--features", metavar="FILE", help="--reranker is of `train-ltr`; what `features` wrote for it")
    parser.add_argument(
        "--qrels", action="append", metavar="QRELS", help="judgements: a file or D:SPLIT (repeatable; the best counts)"
    )
    parser.add_argument("--bands", metavar="A-B,C-D", help="bands of ranks (default: 1-10,11-30,31-100)")
    parser.add_argument("--top", type=int, metavar="N", help="doubtful negatives that are listed (default: 200)")
    parser.add_argument("--batch-tokens", type=int, metavar="N", help="tokens of one forward pass, padding included")
    labels = parser.add_argument_group("labels that a person wrote")
    labels.add_argument("--labels", metavar="FILE", help="a doubtful.tsv with labels")
    labels.add_argument("--as", dest="kind", choices=["qrels", "mask"], help="what --out becomes")
    add_flags(parser, "precision", "device", "seed", "json", "overwrite")


def run(args: argparse.Namespace) -> int:
    """Audit the rows, or turn labels into judgements or a mask."""
    if args.labels is not None or args.kind is not None:
        return _use_labels(args)
    from retrieval.auditing import BANDS, audit, check_bands

    if args.features is not None and args.reranker is None:
        raise InputError("--features goes with --reranker, a ranker that `train-ltr` wrote")
    bands = BANDS if args.bands is None else _bands(args.bands)
    top = 200 if args.top is None else args.top
    check_bands(bands)
    if top < 0:
        raise InputError(f"--top must be at least 0, got {top}")
    if args.out is not None:
        _check_out(Path(args.out), overwrite=args.overwrite)
    from retrieval.audit_report import table_lines, to_json
    from retrieval.doubtful_pairs import write_doubtful

    qrels = _qrels(args.qrels)
    collection, rows = _rows(args)
    found = audit(
        rows, collection.corpus, reranker=_reranker(args, collection), qrels=qrels, bands=bands, top=top, seed=args.seed
    )
    if args.out is not None:
        from indexes.storage import write_json

        write_doubtful(Path(args.out) / DOUBTFUL, found.doubtful)
        write_json(Path(args.out) / JSON, to_json(found))
        _draw(found, Path(args.out) / PICTURE)
        logger.info("%s: %s, with %d negatives to label, and %s", args.out, DOUBTFUL, len(found.doubtful), JSON)
    print(
        json.dumps(to_json(found), ensure_ascii=False, allow_nan=False) if args.json else "\n".join(table_lines(found))
    )
    return 0


def _use_labels(args: argparse.Namespace) -> int:
    """Write what labels become."""
    if args.labels is None or args.kind is None or args.out is None:
        raise InputError("labels need --labels FILE, --as qrels or --as mask, and --out FILE")
    for name in _OF_THE_AUDIT:
        if getattr(args, name) is not None:
            raise InputError(f"--{name.replace('_', '-')} is of the audit; it has no meaning with --labels")
    check_file_target(args.out, overwrite=args.overwrite)
    from retrieval.doubtful_pairs import masked_rows, read_labels, write_label_qrels
    from retrieval.mining import row_lines
    from retrieval.textfiles import publish_lines

    _, rows = _rows(args)
    labels = read_labels(args.labels, rows)
    grades = [grade for judged in labels.values() for grade in judged.values()]
    n_relevant = sum(grade >= 1 for grade in grades)
    if args.kind == "qrels":
        write_label_qrels(args.out, labels)
    else:
        kept = list(masked_rows(rows, labels))
        publish_lines(Path(args.out), row_lines(kept))
        n_before, n_after = (sum(len(row.negative_ids) for row in part) for part in (rows, kept))
        logger.info("%s: %d rows, %d of %d negatives taken out", args.out, len(kept), n_before - n_after, n_before)
    logger.info("%s: %d labels, %d of them relevant", args.labels, len(grades), n_relevant)
    if args.kind == "qrels":
        logger.info(
            "next: rankwright mine with --qrels %s, so that no relevant one is a negative; or append its lines to the "
            "training split's judgements (qrels/train.tsv), so that training takes the relevant ones as positives",
            args.out,
        )
    return 0


def _bands(text: str) -> list[Band]:
    from retrieval.false_negatives import Band

    found = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not dash or not first.isdecimal() or not last.isdecimal():
            raise InputError(f"--bands got {part.strip()!r}; wanted ranks such as 1-10,11-30,31-100")
        found.append(Band(int(first), int(last)))
    return found


def _check_out(out: Path, *, overwrite: bool) -> None:
    """Refuse a folder that could not be written, or whose labels would be lost, before anything is computed."""
    from indexes.storage import check_target
    from retrieval.doubtful_pairs import check_unlabelled

    check_target(out, overwrite=overwrite)
    if out.exists() and not out.is_dir():
        raise InputError("is a file; wanted the name of a folder", path=out)
    check_unlabelled(out / DOUBTFUL)


def _qrels(sources: list[str] | None) -> Qrels | None:
    """Return the judgements of all sources; where they differ, the higher grade."""
    from retrieval.cli.evaluate import load_qrels

    if sources is None:
        return None
    found: Qrels = {}
    for source in sources:
        for query_id, grades in load_qrels(source)[0].items():
            known = found.setdefault(query_id, {})
            for doc_id, grade in grades.items():
                known[doc_id] = max(grade, known.get(doc_id, grade))
        name = Path(source).name.partition(".")[0] if Path(source).is_file() else source.rpartition(":")[2]
        if name in _TEST:
            logger.warning(
                "--qrels %s: judgements of a test split; whatever is chosen by this audit is then tuned on the test",
                source,
            )
    return found


def _rows(args: argparse.Namespace) -> tuple[Collection, list[TrainingRow]]:
    from retrieval.collection import Collection
    from retrieval.rows import read_rows

    collection = Collection.load(args.data)
    return collection, read_rows(args.rows, collection)[0]


def _reranker(args: argparse.Namespace, collection: Collection) -> Reranker | RunReranker | None:
    if args.reranker is None:
        return None
    if args.features is None:
        from retrieval.reranking import load_reranker

        how = {"precision": args.precision, "device": args.device, "batch_tokens": args.batch_tokens}
        return load_reranker(args.reranker, **how)
    from retrieval.feature_ranker import FeatureRanker
    from retrieval.features import FeatureReranker, load_extractor

    ranker = FeatureRanker.load(args.reranker)
    return FeatureReranker(
        ranker, load_extractor(args.features, collection, precision=args.precision, device=args.device)
    )


def _draw(found: Audit, path: Path) -> None:
    """Draw the picture, or say what is missing for it."""
    from retrieval.audit_report import draw

    try:
        draw(found, path)
    except InputError as error:
        logger.warning("no picture: %s", error)
