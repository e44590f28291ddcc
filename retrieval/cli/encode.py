"""Write the embeddings of a collection's documents or queries as a checked folder (npy, ids, manifest).

Finished parts survive an interruption: the same command with --resume encodes only what is missing.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from retrieval.cli.flags import add_flags, add_model_flags, encoder_of

EXAMPLES = """examples:
  rankwright encode --model runs/demo/run --data pydocs --out runs/demo.documents
  rankwright encode --model runs/demo/run --data pydocs --side query --split test --out runs/demo.queries
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the verb's flags."""
    add_flags(parser, "data", "out", "split", "overwrite", "resume", required=("data", "out"))
    add_model_flags(parser, required=True)
    parser.add_argument(
        "--side", choices=["document", "query"], default="document", help="what to encode (default: document)"
    )


def run(args: argparse.Namespace) -> int:
    """Encode and publish."""
    from indexes.storage import check_folder
    from retrieval.collection import Collection
    from retrieval.embeddings import encode_collection

    check_folder(args.out, overwrite=args.overwrite or args.resume)  # before the model is loaded
    collection = Collection.load(args.data)
    encode_collection(
        encoder_of(args),
        collection,
        Path(args.out),
        side=args.side,
        split=args.split,
        overwrite=args.overwrite,
        resume=args.resume,
    )
    return 0
